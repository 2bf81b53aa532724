//! `kvctl raw import`: a file or pipe into the cluster.
//!
//! One blocking thread reads and decodes; records go by the hash of their key into lanes, and each lane stores one
//! batch after the other. So batches travel concurrently, and of two lines with the same key the later one wins: both
//! are in one lane, and a batch has each key once.
//!
//! Limits: one batch in the making, one waiting and one in flight for each lane. A lane that has nothing to do gets a
//! batch that is not full, so that a slow pipe is stored as it comes.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::hash::BuildHasher as _;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use indicatif::ProgressBar;
use kvclient::RawClient;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::cli::{Global, Import};
use crate::error::{Error, Result};
use crate::format::{BadLine, Decoder, Record};
use crate::{connect, progress};

/// Progress of a file.
pub(crate) const BAR: &str = "{bar:30} {percent:>3}%  {msg}  {elapsed} (about {eta} left)";
/// Progress of a pipe.
pub(crate) const SPINNER: &str = "{spinner} {bytes}  {msg}  {elapsed}";

const READ_BYTES: usize = 256 << 10;
/// A batch is sent when it holds this many bytes, full or not.
const BATCH_BYTES: usize = 512 << 10;
/// A batch whose outcome is not known is stored again this often: it is the same data.
const ATTEMPTS: u32 = 3;

/// What an import did.
#[derive(Debug, Serialize)]
struct Summary {
    /// Records read, bad ones included.
    lines: u64,
    /// Records that are stored; of several with the same key only the last is there.
    stored: u64,
    /// Lines without a record, and records that the cluster refuses.
    bad: u64,
    /// Bytes read.
    bytes: u64,
    seconds: f64,
    lines_per_second: f64,
}

/// Runs the import.
pub async fn run(global: &Global, args: Import) -> Result<()> {
    let (input, total): (Box<dyn Read + Send>, _) = open(&args.file)?;
    let client = connect::raw(global).await?;
    let bar = progress::bar(total, if total.is_some() { BAR } else { SPINNER });
    let started = Instant::now();
    let (mut senders, mut lanes) = (Vec::new(), Vec::new());
    for _ in 0..args.concurrency {
        let (sender, receiver) = mpsc::channel(1);
        senders.push(sender);
        lanes.push(tokio::spawn(store_lane(client.clone(), receiver)));
    }
    let reader = {
        let (bar, path) = (bar.clone(), args.file.clone());
        let mut splitter = Splitter::new(senders, usize::from(args.batch));
        let mut bad = BadLines::new(args.show_bad, bar.clone());
        let mut decoder = Decoder::new(args.format);
        tokio::task::spawn_blocking(move || {
            let read = read_all(input, &path, &mut decoder, &mut splitter, &mut bad, &bar);
            (read, bad)
        })
    };
    let mut refused = Vec::new();
    let mut stored = 0;
    let mut failed = None;
    for lane in lanes {
        let mut done = lane.await.map_err(panicked)?;
        stored += done.stored;
        refused.append(&mut done.refused);
        failed = failed.or(done.failed);
    }
    if let Some(error) = failed {
        bar.finish_and_clear();
        return Err(Error::Failed(format!(
            "{error}; {stored} records are stored; import the same input again when the cluster answers, \
             storing a record twice changes nothing"
        )));
    }
    let (read, mut bad) = reader.await.map_err(panicked)?;
    let counts = read.inspect_err(|_| bar.finish_and_clear())?;
    refused.sort_by_key(|line: &BadLine| line.line);
    refused.into_iter().for_each(|line| bad.report(line));
    bar.finish_and_clear();
    finish(global, counts, stored, bad, started.elapsed())
}

fn panicked(error: tokio::task::JoinError) -> Error {
    Error::Failed(format!("a worker stopped: {error}; this is a defect, please report it"))
}

fn finish(global: &Global, counts: Counts, stored: u64, bad: BadLines, took: Duration) -> Result<()> {
    bad.report_hidden();
    let seconds = took.as_secs_f64();
    let Counts { lines, bytes } = counts;
    let lines_per_second = (lines as f64 / seconds.max(1e-9)).round();
    let summary = Summary { lines, stored, bad: bad.count, bytes, seconds, lines_per_second };
    global.output.print(&summary, |s| {
        format!(
            "{} of {} lines stored in {:.2} s ({} lines/s)",
            s.stored, s.lines, s.seconds, s.lines_per_second
        )
    })?;
    match summary.bad {
        0 => Ok(()),
        bad => Err(Error::Partly { bad, lines }),
    }
}

/// The input and how many bytes it has, when that is known.
fn open(path: &Path) -> Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(std::io::stdin()), None));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    let meta = file.metadata().map_err(Error::io(path))?;
    Ok((Box::new(file), meta.is_file().then_some(meta.len())))
}

/// What was read.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    lines: u64,
    bytes: u64,
}

/// Reads to the end of the input, or until a lane gave up (which says why itself).
fn read_all(
    mut input: impl Read,
    path: &Path,
    decoder: &mut Decoder,
    splitter: &mut Splitter,
    bad: &mut BadLines,
    bar: &ProgressBar,
) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut chunk = vec![0; READ_BYTES];
    let started = Instant::now();
    loop {
        let len = match input.read(&mut chunk) {
            Ok(0) => {
                decoder.finish();
                0
            }
            Ok(len) => len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io(path)(error)),
        };
        decoder.push(&chunk[..len]);
        while let Some(next) = decoder.next_record() {
            counts.lines += 1;
            match next {
                Ok(record) => {
                    if !splitter.add(record) {
                        return Ok(counts);
                    }
                }
                Err(line) => bad.report(line),
            }
        }
        counts.bytes += len as u64;
        bar.set_position(counts.bytes);
        let rate = counts.lines as f64 / started.elapsed().as_secs_f64().max(1e-9);
        bar.set_message(format!("{} lines, {rate:.0} lines/s", counts.lines));
        if len == 0 {
            splitter.flush();
            return Ok(counts);
        }
        splitter.feed_idle();
    }
}

/// Records with different keys.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    by_key: HashMap<Bytes, usize>,
    bytes: usize,
    /// Records that came, those that a later one replaced included.
    taken: u64,
}

impl Batch {
    fn add(&mut self, record: Record) {
        self.taken += 1;
        self.bytes += record.key.len() + record.value.len();
        match self.by_key.get(&record.key) {
            Some(index) => self.records[*index] = record,
            None => {
                self.by_key.insert(record.key.clone(), self.records.len());
                self.records.push(record);
            }
        }
    }
}

/// Deals records to lanes.
struct Splitter {
    lanes: Vec<(mpsc::Sender<Batch>, Batch)>,
    hasher: std::hash::RandomState,
    batch_len: usize,
}

impl Splitter {
    fn new(senders: Vec<mpsc::Sender<Batch>>, batch_len: usize) -> Splitter {
        let lanes = senders.into_iter().map(|sender| (sender, Batch::default())).collect();
        Splitter { lanes, hasher: std::hash::RandomState::new(), batch_len }
    }

    /// False when the record's lane gave up.
    fn add(&mut self, record: Record) -> bool {
        let index = self.hasher.hash_one(&record.key) % self.lanes.len() as u64;
        let (sender, batch) = &mut self.lanes[index as usize];
        batch.add(record);
        if batch.records.len() < self.batch_len && batch.bytes < BATCH_BYTES {
            return true;
        }
        sender.blocking_send(std::mem::take(batch)).is_ok()
    }

    /// Sends batches that are not full to lanes that have none waiting.
    fn feed_idle(&mut self) {
        for (sender, batch) in self.lanes.iter_mut().filter(|(_, batch)| !batch.records.is_empty()) {
            if let Ok(permit) = sender.try_reserve() {
                permit.send(std::mem::take(batch));
            }
        }
    }

    /// Sends what is left. A lane that gave up has its own error to tell.
    fn flush(&mut self) {
        for (sender, batch) in self.lanes.drain(..).filter(|(_, batch)| !batch.records.is_empty()) {
            let _ = sender.blocking_send(batch);
        }
    }
}

/// Names the first bad lines on standard error and counts the others.
struct BadLines {
    count: u64,
    shown_max: u64,
    bar: ProgressBar,
}

impl BadLines {
    fn new(shown_max: u64, bar: ProgressBar) -> BadLines {
        BadLines { count: 0, shown_max, bar }
    }

    fn report(&mut self, bad: BadLine) {
        self.count += 1;
        if self.count <= self.shown_max {
            self.bar.suspend(|| eprintln!("line {}: {}", bad.line, bad.reason));
        }
    }

    fn report_hidden(&self) {
        if self.count > self.shown_max {
            eprintln!("... and {} more bad lines; --show-bad N names more", self.count - self.shown_max);
        }
    }
}

/// What a lane did.
#[derive(Default)]
struct LaneDone {
    stored: u64,
    refused: Vec<BadLine>,
    failed: Option<kvclient::Error>,
}

/// Stores batches in their order until there are no more, or until the cluster does not answer.
async fn store_lane(client: RawClient, mut batches: mpsc::Receiver<Batch>) -> LaneDone {
    let mut done = LaneDone::default();
    while let Some(batch) = batches.recv().await {
        let refused_before = done.refused.len();
        if let Err(error) = store_batch(&client, &batch.records, &mut done.refused).await {
            done.failed = Some(error);
            return done;
        }
        done.stored += batch.taken - (done.refused.len() - refused_before) as u64;
    }
    done
}

/// Stores a batch; when the cluster refuses something in it, record by record, so that only that one is left out.
async fn store_batch(
    client: &RawClient,
    records: &[Record],
    refused: &mut Vec<BadLine>,
) -> kvclient::Result<()> {
    // One request has one TTL. Keys differ, so the order of the requests does not matter.
    let mut by_ttl: BTreeMap<u64, Vec<&Record>> = BTreeMap::new();
    for record in records {
        by_ttl.entry(record.ttl_seconds).or_default().push(record);
    }
    for (ttl, records) in by_ttl {
        match again(|| client.batch_put_with_ttl(pairs(&records), ttl)).await {
            Err(error) if is_refusal(&error) => {
                for record in records {
                    store_one(client, record, refused).await?;
                }
            }
            other => other?,
        }
    }
    Ok(())
}

fn pairs(records: &[&Record]) -> Vec<(Bytes, Bytes)> {
    records.iter().map(|record| (record.key.clone(), record.value.clone())).collect()
}

async fn store_one(client: &RawClient, record: &Record, refused: &mut Vec<BadLine>) -> kvclient::Result<()> {
    let Record { line, key, value, ttl_seconds } = record;
    match again(|| client.put_with_ttl(key.clone(), value.clone(), *ttl_seconds)).await {
        Err(error) if is_refusal(&error) => {
            refused.push(BadLine { line: *line, reason: error.to_string() });
            Ok(())
        }
        other => other,
    }
}

/// Repeats a write of which nobody knows whether it happened: the same data twice is the same as once.
async fn again<F: Future<Output = kvclient::Result<()>>>(write: impl Fn() -> F) -> kvclient::Result<()> {
    let mut attempt = 1;
    loop {
        match write().await {
            Err(kvclient::Error::Undetermined { .. }) if attempt < ATTEMPTS => attempt += 1,
            other => return other,
        }
    }
}

/// Whether the same record would be refused again.
fn is_refusal(error: &kvclient::Error) -> bool {
    use kvclient::Error::{InvalidArgument, KeyTooLarge, Server, WriteTooLarge};
    matches!(error, KeyTooLarge { .. } | WriteTooLarge { .. } | InvalidArgument(_) | Server(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;

    fn read(input: &[u8], lanes: usize, batch: usize) -> (Counts, u64, Vec<Batch>) {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..lanes).map(|_| mpsc::channel(64)).unzip();
        let mut splitter = Splitter::new(senders, batch);
        let mut bad = BadLines::new(0, ProgressBar::hidden());
        let mut decoder = Decoder::new(Format::Tsv);
        let bar = ProgressBar::hidden();
        let counts = read_all(input, Path::new("test"), &mut decoder, &mut splitter, &mut bad, &bar).unwrap();
        let mut batches = Vec::new();
        for mut receiver in receivers {
            while let Some(batch) = receiver.blocking_recv() {
                batches.push(batch);
            }
        }
        (counts, bad.count, batches)
    }

    #[test]
    fn every_record_reaches_a_lane_and_bad_lines_are_counted() {
        let (counts, bad, batches) = read(b"a\t1\nb\t2\n\nc\t3\nd", 3, 2);
        assert_eq!((counts.lines, counts.bytes, bad), (5, 14, 1));
        let mut keys: Vec<_> =
            batches.iter().flat_map(|batch| &batch.records).map(|record| record.key.clone()).collect();
        keys.sort();
        assert_eq!(keys, [&b"a"[..], b"b", b"c", b"d"]);
    }

    #[test]
    fn of_two_lines_with_a_key_the_later_is_stored_later() {
        let (_, _, batches) = read(b"k\t1\nx\t1\nk\t2\ny\t1\nk\t3\n", 4, 2);
        let values: Vec<_> = batches
            .iter()
            .flat_map(|batch| &batch.records)
            .filter(|record| record.key == "k")
            .map(|record| record.value.clone())
            .collect();
        assert_eq!(values.last().unwrap(), "3");
        for batch in &batches {
            let keys: std::collections::BTreeSet<_> =
                batch.records.iter().map(|record| &record.key).collect();
            assert_eq!(keys.len(), batch.records.len(), "a batch has each key once");
        }
    }
}
