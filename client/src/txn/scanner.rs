//! Range scans of a transaction: the pairs of its snapshot with its own changes laid over them.
//!
//! Invariant: both sides come in scan order; of two with the same key the transaction's own counts.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use kvproto::kvrpcpb;

use super::snapshot::Snapshot;
use crate::KvPair;
use crate::error::{Error, Result};
use crate::request::pages::{Cursor, MAX_PAGE, Pages};
use crate::request::shard::Span;

/// A range scan that has not started; see [`Transaction::scan`](crate::Transaction::scan). It shows the changes that the
/// transaction had made when it was built.
#[must_use = "a scan does nothing until it is collected or streamed"]
pub struct TxnScan {
    snapshot: Snapshot,
    cursor: Cursor,
    /// The transaction's changes in the range, ascending; `None` for deleted keys.
    changes: Vec<(Bytes, Option<Bytes>)>,
    limit: usize,
    /// Why it will fail: the transaction has ended.
    refused: Option<Error>,
}

impl TxnScan {
    pub(super) fn new(snapshot: Snapshot, span: Span, changes: Vec<(Bytes, Option<Bytes>)>) -> TxnScan {
        let cursor = Cursor::new(span, snapshot.shared().executor.config().scan_page);
        TxnScan { snapshot, cursor, changes, limit: usize::MAX, refused: None }
    }

    /// The same scan, which fails when `check` did.
    pub(super) fn checked(self, check: Result<()>) -> TxnScan {
        TxnScan { refused: check.err(), ..self }
    }

    /// Ends after `pairs` pairs. Default: no limit.
    pub fn limit(mut self, pairs: usize) -> TxnScan {
        self.limit = pairs;
        self
    }

    /// From the end of the range to its start.
    pub fn reverse(mut self) -> TxnScan {
        self.cursor.reverse = true;
        self
    }

    /// Leaves the values empty; they do not travel.
    pub fn keys_only(mut self) -> TxnScan {
        self.cursor.keys_only = true;
        self
    }

    /// Fetches `pairs` pairs at a time, 1 to 10240. Default: [`Config::scan_page`](crate::Config::scan_page). With
    /// large values smaller pages need less memory.
    pub fn page_size(mut self, pairs: u32) -> TxnScan {
        self.cursor.page = pairs.clamp(1, MAX_PAGE);
        self
    }

    /// Starts the scan. At most two pages are held in memory. Every page has the deadline of a call.
    pub fn stream(mut self) -> TxnScanStream {
        // Each deleted key hides at most one stored pair.
        let deleted = self.changes.iter().filter(|(_, value)| value.is_none()).count();
        let nothing = self.limit == 0 || self.refused.is_some();
        self.cursor.left = if nothing { 0 } else { self.limit.saturating_add(deleted) };
        let mut changes = VecDeque::from(self.changes);
        if self.cursor.reverse {
            changes.make_contiguous().reverse();
        }
        TxnScanStream {
            reverse: self.cursor.reverse,
            keys_only: self.cursor.keys_only,
            stored: Pages::new(self.snapshot.clone(), self.cursor),
            snapshot: self.snapshot,
            head: None,
            changes,
            left: self.limit,
            refused: self.refused,
            failed: false,
        }
    }

    /// Runs the scan and returns all pairs. Use [`limit`](Self::limit) or [`stream`](Self::stream) when there may be
    /// many.
    pub async fn collect(self) -> Result<Vec<KvPair>> {
        let mut stream = self.stream();
        let mut pairs = Vec::new();
        while let Some(pair) = stream.next().await {
            pairs.push(pair?);
        }
        Ok(pairs)
    }
}

/// A running scan: a [`Stream`] of pairs in key order. Ends after the first error.
pub struct TxnScanStream {
    snapshot: Snapshot,
    stored: Pages<Snapshot>,
    /// The next stored pair, when it is here.
    head: Option<kvrpcpb::KvPair>,
    changes: VecDeque<(Bytes, Option<Bytes>)>,
    left: usize,
    reverse: bool,
    keys_only: bool,
    refused: Option<Error>,
    failed: bool,
}

impl TxnScanStream {
    /// The next pair of a wire key.
    fn poll_pair(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(Bytes, Bytes)>>> {
        loop {
            if self.head.is_none() {
                self.head = match ready!(self.stored.poll_next_unpin(cx)) {
                    Some(Ok(pair)) => Some(pair),
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => None,
                };
            }
            let own = match (&self.head, self.changes.front()) {
                (None, None) => return Poll::Ready(None),
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some(stored), Some((key, _))) if stored.key == key => {
                    self.head = None;
                    true
                }
                (Some(stored), Some((key, _))) => (key < &stored.key) != self.reverse,
            };
            if !own {
                let pair = self.head.take();
                return Poll::Ready(pair.map(|pair| Ok((pair.key, pair.value))));
            }
            if let Some((key, Some(value))) = self.changes.pop_front() {
                let value = if self.keys_only { Bytes::new() } else { value };
                return Poll::Ready(Some(Ok((key, value))));
            }
        }
    }
}

impl Stream for TxnScanStream {
    type Item = Result<KvPair>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<KvPair>>> {
        if let Some(error) = self.refused.take() {
            self.failed = true;
            return Poll::Ready(Some(Err(error)));
        }
        if self.left == 0 || self.failed {
            return Poll::Ready(None);
        }
        let Some(pair) = ready!(self.poll_pair(cx)) else { return Poll::Ready(None) };
        self.left -= 1;
        self.failed = pair.is_err();
        let shared = self.snapshot.shared();
        let user = |(key, value)| Ok(KvPair { key: shared.codec.user_key(key)?, value });
        Poll::Ready(Some(pair.and_then(user).map_err(|error| shared.user_error(error))))
    }
}
