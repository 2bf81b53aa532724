//! The transaction shell: reads commands, keeps the open transaction, prints what came of each.
//!
//! Invariant: whatever ends the shell (`quit`, the end of its input, an error, Ctrl-C, also in the middle of a command),
//! an open transaction is rolled back before it does.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::ops::Bound;

use futures::TryStreamExt as _;
use kvclient::{Bytes, KvPair, Transaction, TransactionClient, TxnOptions};
use kvproto::ts::Timestamp;
use serde::Serialize;
use tokio::sync::mpsc;

use super::words::{self, Command, Range};
use super::{Change, flush, print_committed};
use crate::cli::{Global, SHELL};
use crate::connect;
use crate::error::{Error, Result};
use crate::output::{Output, print_line, stdout_error};
use crate::pairs::{acknowledge, pair_json, pair_text};
use crate::text::{Coding, json_text};

/// A transaction between `begin` and `commit` or `rollback`.
struct Open {
    txn: Transaction,
    kind: &'static str,
}

struct Shell {
    client: TransactionClient,
    open: Option<Open>,
    coding: Coding,
    output: Output,
}

/// A transaction that began.
#[derive(Debug, Serialize)]
struct BegunJson {
    begun: u64,
    kind: &'static str,
}

/// What Ctrl-C in the middle of a command comes to.
const INTERRUPTED: &str =
    "interrupted; if it was a commit or a single write, read what it did before you repeat it";

/// Runs the shell until its input ends.
pub async fn run(global: &Global, coding: Coding) -> Result<()> {
    let is_terminal = std::io::stdin().is_terminal();
    let client = connect::transactions(global).await?;
    let mut shell = Shell { client, open: None, coding, output: global.output };
    let mut lines = lines();
    let ended = loop {
        if is_terminal && let Err(error) = shell.print_prompt() {
            break Err(error);
        }
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else { break Ok(()) };
        let done = match line.map_err(Error::io("standard input")) {
            Ok(line) => match words::parse(&line, coding) {
                Ok(Command::Quit) => break Ok(()),
                Ok(command) => tokio::select! {
                    done = shell.execute(command) => done,
                    _ = tokio::signal::ctrl_c() => break Err(Error::Failed(INTERRUPTED.into())),
                },
                Err(error) => Err(error),
            },
            Err(error) => break Err(error),
        };
        match done {
            Err(error) if is_terminal && !error.is_closed_pipe() => eprintln!("error: {error}"),
            Err(error) => break Err(error),
            Ok(()) => {}
        }
    };
    let ended = match shell.open.take() {
        Some(mut open) => {
            eprintln!("transaction {} is rolled back", open.txn.start_timestamp().get());
            let rolled_back = open.txn.rollback().await;
            ended.and(rolled_back.map_err(Error::from))
        }
        None => ended,
    };
    flush(&shell.client).await;
    ended
}

/// The lines of standard input, read by a thread of their own: reading it cannot be interrupted.
fn lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lock().lines() {
            let is_over = line.is_err();
            if sender.blocking_send(line).is_err() || is_over {
                return;
            }
        }
    });
    receiver
}

/// What stands before the next command: which transaction is open.
fn prompt(open: Option<(&str, Timestamp)>) -> String {
    match open {
        Some((kind, start)) => format!("{kind} {}> ", start.get()),
        None => "txn> ".into(),
    }
}

impl Shell {
    fn print_prompt(&self) -> Result<()> {
        let open = self.open.as_ref().map(|open| (open.kind, open.txn.start_timestamp()));
        let mut out = std::io::stdout().lock();
        out.write_all(prompt(open).as_bytes()).and_then(|()| out.flush()).map_err(stdout_error)
    }

    async fn execute(&mut self, command: Command) -> Result<()> {
        let done = match command {
            Command::Nothing | Command::Quit => Ok(()),
            Command::Help => print_line(SHELL.as_bytes()),
            Command::Begin { pessimistic } => self.begin(pessimistic).await,
            Command::Get(key) => self.get(key.into()).await,
            Command::Put { key, value } => self.change(Change::Put(key.into(), value.into())).await,
            Command::Insert { key, value } => self.change(Change::Insert(key.into(), value.into())).await,
            Command::Delete(key) => self.change(Change::Delete(key.into())).await,
            Command::Lock(keys) => self.lock(keys.into_iter().map(Bytes::from).collect()).await,
            Command::Scan(range) => self.scan(range).await,
            Command::Commit => {
                let committed = self.take()?.txn.commit().await?;
                print_committed(self.output, committed)
            }
            Command::Rollback => {
                self.take()?.txn.rollback().await?;
                acknowledge(self.output)
            }
        };
        match done {
            Err(Error::Client(error)) if is_the_end(&error) => {
                if let Some(mut open) = self.open.take() {
                    // The error that ended it says more than one of the rollback would.
                    let _ = open.txn.rollback().await;
                }
                Err(error.into())
            }
            other => other,
        }
    }

    async fn begin(&mut self, pessimistic: bool) -> Result<()> {
        if let Some(open) = &self.open {
            let start = open.txn.start_timestamp().get();
            return Err(Error::Usage(format!(
                "transaction {start} is open: commit it or roll it back first"
            )));
        }
        let (kind, options) = match pessimistic {
            true => ("pessimistic", TxnOptions::pessimistic()),
            false => ("optimistic", TxnOptions::optimistic()),
        };
        let txn = self.client.begin(options).await?;
        let begun = BegunJson { begun: txn.start_timestamp().get(), kind };
        self.open = Some(Open { txn, kind });
        self.output.print(&begun, |begun| format!("{} transaction {}", begun.kind, begun.begun))
    }

    /// The open transaction, which is open no longer.
    fn take(&mut self) -> Result<Open> {
        self.open.take().ok_or_else(|| Error::Usage("no transaction is open; `begin` opens one".into()))
    }

    async fn get(&mut self, key: Bytes) -> Result<()> {
        let value = match &mut self.open {
            Some(open) => open.txn.get(key.clone()).await?,
            None => self.client.snapshot(self.client.current_timestamp().await?).get(key.clone()).await?,
        };
        match (self.output, value) {
            (Output::Json, Some(value)) => print_line(&pair_json(&key, Some(&value))?),
            (Output::Json, None) => {
                let (text, encoding) = json_text(&key);
                let absent = serde_json::json!({ "key": text, "key_encoding": encoding, "value": null });
                print_line(absent.to_string().as_bytes())
            }
            (Output::Table, Some(value)) => print_line(self.coding.show(&value).as_bytes()),
            (Output::Table, None) => print_line(b"(absent)"),
        }
    }

    async fn change(&mut self, change: Change) -> Result<()> {
        match &mut self.open {
            Some(open) => {
                change.apply(&mut open.txn).await?;
                acknowledge(self.output)
            }
            None => {
                let committed = change.commit(&self.client).await?;
                print_committed(self.output, committed)
            }
        }
    }

    async fn lock(&mut self, keys: Vec<Bytes>) -> Result<()> {
        let open = self.open.as_mut();
        let open = open.ok_or_else(|| Error::Usage("no transaction is open; `begin` opens one".into()))?;
        open.txn.lock_keys(keys).await?;
        acknowledge(self.output)
    }

    async fn scan(&mut self, range: Range) -> Result<()> {
        let (limit, reverse) = (range.limit, range.reverse);
        let start = range.start.map_or(Bound::Unbounded, |key| Bound::Included(Bytes::from(key)));
        let end = range.end.map_or(Bound::Unbounded, |key| Bound::Excluded(Bytes::from(key)));
        let mut scan = match &mut self.open {
            Some(open) => open.txn.scan((start, end)),
            None => self.client.snapshot(self.client.current_timestamp().await?).scan((start, end)),
        };
        if limit > 0 {
            scan = scan.limit(limit);
        }
        if reverse {
            scan = scan.reverse();
        }
        let mut pairs = scan.stream();
        while let Some(KvPair { key, value }) = pairs.try_next().await? {
            match self.output {
                Output::Json => print_line(&pair_json(&key, Some(&value))?)?,
                Output::Table => print_line(pair_text(&key, Some(&value), self.coding).as_bytes())?,
            }
        }
        Ok(())
    }
}

/// Whether a transaction cannot go on after this. One that only waited in vain can.
fn is_the_end(error: &kvclient::Error) -> bool {
    use kvclient::Error as E;
    error.is_conflict() && !matches!(error, E::KeyLocked { .. }) || matches!(error, E::TxnEnded(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_shows_the_open_transaction() {
        assert_eq!(prompt(None), "txn> ");
        assert_eq!(prompt(Some(("pessimistic", Timestamp::new(77)))), "pessimistic 77> ");
    }

    #[test]
    fn a_transaction_survives_what_it_can() {
        let locked = kvclient::Error::KeyLocked { key: Bytes::new(), holder: Timestamp::ZERO };
        let aborted = kvclient::Error::TxnAborted { start_ts: Timestamp::ZERO, cause: String::new() };
        assert!(!is_the_end(&locked) && is_the_end(&aborted));
        assert!(!is_the_end(&kvclient::Error::InvalidArgument("a long key".into())));
    }
}
