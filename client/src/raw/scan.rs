//! Range scans over raw pairs.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::{Stream, StreamExt};
use kvproto::key::KeyCodec;
use kvproto::kvrpcpb::RawScanRequest;

use crate::KvPair;
use crate::error::Result;
use crate::region_cache::Region;
use crate::request::pages::{Cursor, MAX_PAGE, Page, PageSource, Pages};
use crate::request::plan::Executor;
use crate::request::retry::Access;
use crate::request::shard::Span;

/// A range scan that has not started; see [`RawClient::scan`](crate::RawClient::scan).
#[must_use = "a scan does nothing until it is collected or streamed"]
pub struct Scan {
    executor: Arc<Executor>,
    codec: KeyCodec,
    cursor: Cursor,
}

impl Scan {
    pub(super) fn new(executor: Arc<Executor>, codec: KeyCodec, span: Span) -> Scan {
        let cursor = Cursor::new(span, executor.config().scan_page);
        Scan { executor, codec, cursor }
    }

    /// Ends after `pairs` pairs. Default: no limit.
    pub fn limit(mut self, pairs: usize) -> Scan {
        self.cursor.left = pairs;
        self
    }

    /// From the end of the range to its start.
    pub fn reverse(mut self) -> Scan {
        self.cursor.reverse = true;
        self
    }

    /// Leaves the values empty; they do not travel.
    pub fn keys_only(mut self) -> Scan {
        self.cursor.keys_only = true;
        self
    }

    /// Fetches `pairs` pairs at a time, 1 to 10240. Default: [`Config::scan_page`](crate::Config::scan_page). With
    /// large values smaller pages need less memory.
    pub fn page_size(mut self, pairs: u32) -> Scan {
        self.cursor.page = pairs.clamp(1, MAX_PAGE);
        self
    }

    /// Starts the scan. At most two pages are held in memory. Every page has the deadline of a call.
    pub fn stream(self) -> ScanStream {
        let source = RawPages { executor: self.executor };
        ScanStream { pages: Pages::new(source, self.cursor), codec: self.codec }
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
pub struct ScanStream {
    pages: Pages<RawPages>,
    codec: KeyCodec,
}

impl Stream for ScanStream {
    type Item = Result<KvPair>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<KvPair>>> {
        let Some(pair) = ready!(self.pages.poll_next_unpin(cx)) else { return Poll::Ready(None) };
        let user = |pair: kvproto::kvrpcpb::KvPair| {
            Ok(KvPair { key: self.codec.user_key(pair.key)?, value: pair.value })
        };
        Poll::Ready(Some(pair.and_then(user)))
    }
}

struct RawPages {
    executor: Arc<Executor>,
}

impl PageSource for RawPages {
    fn fetch(&self, cursor: Cursor) -> impl Future<Output = Result<Page>> + Send + 'static {
        fetch(self.executor.clone(), cursor)
    }
}

async fn fetch(executor: Arc<Executor>, mut cursor: Cursor) -> Result<Page> {
    while !cursor.is_done() {
        let call = executor.call(Access::Read);
        let (region, reply) = executor.run(call, cursor.at(), |region| request(&cursor, region)).await?;
        match cursor.page(&region, reply.kvs) {
            Page { pairs, next: Some(next) } if pairs.is_empty() => cursor = next,
            page => return Ok(page),
        }
    }
    Ok(Page::last())
}

fn request(cursor: &Cursor, region: &Region) -> RawScanRequest {
    let (start_key, end_key) = cursor.bounds(region);
    RawScanRequest {
        start_key,
        end_key,
        limit: cursor.want(),
        key_only: cursor.keys_only,
        reverse: cursor.reverse,
        ..RawScanRequest::default()
    }
}
