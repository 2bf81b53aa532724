//! What the clients do: transfers in a bank, read-modify-writes of registers, appends to lists, and probes for write
//! skew. Each client is a loop that ends once all is calm and it has done its share.

use kvclient::request::retry::Access;
use kvclient::txn::resolution::Caller as Asker;
use kvproto::kvrpcpb as pb;

use super::session::{GivesUp, Open, Session};
use crate::check_txn::{Key, Value};
use crate::sim::plan::MS;

/// Money in each account at the start.
pub const DEPOSIT: u64 = 100;
/// Locks in one page of the last search.
const PAGE: u32 = 8;
/// Longest time that a message takes, or a request waits for a lock, nanoseconds.
const UNDER_WAY_NS: u64 = 3_000 * MS;
/// Between two looks at whether the others are done, nanoseconds.
const LOOK_NS: u64 = 100 * MS;

/// See the file's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    Bank,
    Registers,
    Lists,
    /// Pairs of keys of which one is to stay set. The first half of the pairs is always locked.
    Skew,
}

/// A pair of [`Workload::Skew`].
pub fn pair(number: u64) -> (Key, Key) {
    (number * 2, number * 2 + 1)
}

/// Whether the transactions of a pair lock what they look at.
pub fn is_locked_pair(number: u64) -> bool {
    number.is_multiple_of(2)
}

impl Session {
    /// A client's life.
    pub async fn live(mut self) {
        loop {
            let (low, high) = self.plan.txn.think_ns;
            let think = self.caller.rng.range(low, high);
            self.caller.port.sleep(think).await;
            {
                let notes = self.notes.lock();
                if notes.calm && notes.left[self.client] == 0 {
                    return;
                }
            }
            let committed = self.one_transaction().await;
            let mut notes = self.notes.lock();
            notes.refused += std::mem::take(&mut self.caller.refused);
            if committed && notes.calm {
                notes.left[self.client] -= 1;
            }
        }
    }

    async fn one_transaction(&mut self) -> bool {
        let workload = self.plan.txn.workload;
        let locks = self.caller.rng.below(100) < self.plan.txn.pessimistic;
        let pairs = (self.plan.txn.keys / 2).max(1);
        let which = self.caller.rng.below(pairs);
        let locks = if workload == Workload::Skew { is_locked_pair(which) } else { locks };
        let mut open = self.begin(locks).await;
        let done = match workload {
            Workload::Bank => self.transfer(&mut open).await,
            Workload::Registers | Workload::Lists => self.change_some(&mut open).await,
            Workload::Skew => self.clear_one(&mut open, pair(which)).await,
        };
        match done {
            Ok(()) if self.caller.rng.chance(0.97) => self.commit(open).await,
            _ => {
                self.roll_back(open).await;
                false
            }
        }
    }

    /// Some distinct keys in random order.
    fn some_keys(&mut self, most: u64) -> Vec<Key> {
        let mut keys: Vec<Key> = (0..self.plan.txn.keys).collect();
        let wanted = self.caller.rng.range(1, most.min(self.plan.txn.keys));
        let mut chosen = Vec::new();
        for _ in 0..wanted {
            chosen.push(keys.swap_remove(self.caller.rng.index(keys.len())));
        }
        chosen
    }

    /// Moves money; now and then only looks at all accounts. The first one fills the bank.
    async fn transfer(&mut self, open: &mut Open) -> Result<(), GivesUp> {
        let all: Vec<Key> = (0..self.plan.txn.keys).collect();
        if open.pessimistic {
            let keys = self.some_keys(2);
            let seen = self.lock(open, &keys).await?;
            let balances: Vec<u64> = keys.iter().map(|key| balance(&seen[key])).collect();
            if let ([from, to], [a, b]) = (&keys[..], &balances[..])
                && !seen[from].is_empty()
                && !seen[to].is_empty()
            {
                let amount = self.caller.rng.below(a + 1);
                self.write(open, *from, vec![a - amount]);
                self.write(open, *to, vec![b + amount]);
            }
            return Ok(());
        }
        let seen = self.read(open, &all).await?;
        if seen.values().any(Value::is_empty) {
            all.iter().for_each(|key| self.write(open, *key, vec![DEPOSIT]));
            return Ok(());
        }
        if let [from, to] = self.some_keys(2)[..] {
            let amount = self.caller.rng.below(balance(&seen[&from]) + 1);
            self.write(open, from, vec![balance(&seen[&from]) - amount]);
            self.write(open, to, vec![balance(&seen[&to]) + amount]);
        }
        Ok(())
    }

    /// Reads some keys and changes some of them.
    async fn change_some(&mut self, open: &mut Open) -> Result<(), GivesUp> {
        let keys = self.some_keys(4);
        let seen = match open.pessimistic {
            true => self.lock(open, &keys).await?,
            false => self.read(open, &keys).await?,
        };
        for key in keys {
            if self.caller.rng.chance(0.6) {
                let number = self.notes.lock().number();
                let value = match self.plan.txn.workload {
                    Workload::Lists => [&seen[&key][..], &[number]].concat(),
                    _ => vec![number],
                };
                self.write(open, key, value);
            }
        }
        Ok(())
    }

    /// Clears one of two set keys, or sets a cleared one.
    async fn clear_one(&mut self, open: &mut Open, (a, b): (Key, Key)) -> Result<(), GivesUp> {
        let seen = match open.pessimistic {
            true => self.lock(open, &[a, b]).await?,
            false => self.read(open, &[a, b]).await?,
        };
        let is_set = |key: Key| balance(&seen[&key]) == 1;
        let either = if self.caller.rng.chance(0.5) { a } else { b };
        match (is_set(a), is_set(b)) {
            (true, true) => self.write(open, either, vec![0]),
            (true, false) => self.write(open, b, vec![1]),
            (false, true) => self.write(open, a, vec![1]),
            (false, false) => {
                self.write(open, a, vec![1]);
                self.write(open, b, vec![1]);
            }
        }
        Ok(())
    }

    /// The last client: once the others are done, finishes whatever locks there are, everywhere.
    pub async fn clean(mut self) {
        while !self.notes.lock().is_done() {
            self.caller.port.sleep(LOOK_NS).await;
        }
        // Requests of clients that died may still be under way, or wait for locks.
        self.caller.port.sleep(UNDER_WAY_NS).await;
        loop {
            match self.clean_once().await {
                Ok(0) => break,
                Ok(_) | Err(_) => self.caller.port.sleep(LOOK_NS).await,
            }
        }
        self.notes.lock().cleaned = true;
    }

    /// Looks through all regions; says how many locks there were.
    async fn clean_once(&mut self) -> Result<usize, kvclient::Error> {
        let now = self.caller.timestamp().await;
        let (mut from, mut found) = (bytes::Bytes::new(), 0);
        loop {
            let end = self.caller.region_of(&from).await.end.clone();
            let ask = pb::ScanLockRequest {
                max_version: now,
                start_key: from.clone(),
                end_key: end.clone(),
                limit: PAGE,
                ..Default::default()
            };
            let reply = self.caller.one(from.clone(), Access::Read, ask).await?;
            if let Some(error) = reply.error {
                self.notes.lock().surprises.push(format!("a search for locks: {error:?}"));
            }
            found += reply.locks.len();
            let full = reply.locks.len() == PAGE as usize;
            if !reply.locks.is_empty() {
                let wait_ms = self.resolve(reply.locks, Asker::Wait, None).await?;
                self.caller.port.sleep(wait_ms * MS).await;
            }
            if full {
                continue;
            }
            if end.is_empty() {
                return Ok(found);
            }
            from = end;
        }
    }
}

fn balance(value: &Value) -> u64 {
    value.first().copied().unwrap_or(0)
}
