//! What the clients of a world have seen and learned. It outlives them.

use crate::check_txn::{Fate, Op, Txn};

/// See the file's head.
#[derive(Debug, Default)]
pub struct Notes {
    pub history: Vec<Txn>,
    /// Nothing fails any more: each client does so many more transactions, successes count.
    pub calm: bool,
    pub left: Vec<u64>,
    /// The last number that a client wrote.
    pub number: u64,
    /// Replies that make no sense.
    pub surprises: Vec<String>,
    /// The locks of crashed clients are gone.
    pub cleaned: bool,
    /// Lives of clients that ended early.
    pub crashes: u64,
    /// Requests that were refused or lost.
    pub refused: u64,
}

impl Notes {
    /// A transaction begins; its place.
    pub fn begin(&mut self, client: usize, start_ts: u64, began: u64) -> usize {
        let (fate, ops) = (Fate::Unknown, Vec::<Op>::new());
        self.history.push(Txn { client, start_ts, fate, ops, began, ended: None });
        self.history.len() - 1
    }

    /// Its client learns its fate, or that it never will.
    pub fn end(&mut self, number: usize, fate: Fate, now_ns: u64) {
        let txn = &mut self.history[number];
        txn.fate = fate;
        txn.ended = (fate != Fate::Unknown).then_some(now_ns);
    }

    /// A number that nobody else writes.
    pub fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// True when all clients are done.
    pub fn is_done(&self) -> bool {
        self.calm && self.left.iter().all(|left| *left == 0)
    }

    /// Transactions that committed, failed, and ended without anybody knowing how.
    pub fn counts(&self) -> [u64; 3] {
        let count = |wanted: fn(&Txn) -> bool| self.history.iter().filter(|txn| wanted(txn)).count() as u64;
        [
            count(|txn| txn.commit_ts().is_some()),
            count(|txn| txn.fate == Fate::Aborted),
            count(|txn| txn.fate == Fate::Unknown),
        ]
    }
}
