//! Range scans: pages of one region each, the next one on its way while the current one is read.
//!
//! Invariant: the cursor only moves past keys that were yielded or ranges that a region said hold no more, so that
//! splits and merges in the middle of a scan neither skip nor repeat a key.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use kvproto::key::KeyCodec;
use kvproto::kvrpcpb::{self, RawScanRequest};
use kvproto::limits::SCAN_CUT_BYTES;

use super::range::successor;
use crate::KvPair;
use crate::error::Result;
use crate::region_cache::Region;
use crate::request::plan::{At, Executor};
use crate::request::retry::Access;
use crate::request::shard::Span;

/// Servers of the field's protocol refuse larger pages.
const MAX_PAGE: u32 = 10_240;

/// A range scan that has not started; see [`RawClient::scan`](crate::RawClient::scan).
#[must_use = "a scan does nothing until it is collected or streamed"]
pub struct Scan {
    executor: Arc<Executor>,
    codec: KeyCodec,
    cursor: Cursor,
}

/// What is still to be read.
#[derive(Debug, Clone)]
struct Cursor {
    span: Span,
    left: usize,
    page: u32,
    reverse: bool,
    keys_only: bool,
}

struct Page {
    pairs: VecDeque<kvrpcpb::KvPair>,
    next: Option<Cursor>,
}

impl Scan {
    pub(super) fn new(executor: Arc<Executor>, codec: KeyCodec, span: Span) -> Scan {
        let page = executor.config().scan_page.clamp(1, MAX_PAGE);
        let cursor = Cursor { span, left: usize::MAX, page, reverse: false, keys_only: false };
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
        let mut stream =
            ScanStream { executor: self.executor, codec: self.codec, pairs: VecDeque::new(), next: None };
        stream.fetch(Some(self.cursor));
        stream
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
    executor: Arc<Executor>,
    codec: KeyCodec,
    pairs: VecDeque<kvrpcpb::KvPair>,
    next: Option<Pin<Box<dyn Future<Output = Result<Page>> + Send>>>,
}

impl ScanStream {
    fn fetch(&mut self, cursor: Option<Cursor>) {
        self.next = cursor.map(|cursor| Box::pin(fetch(self.executor.clone(), cursor)) as _);
    }

    /// Takes the next page if it is here, and asks for the one after it.
    fn poll_page(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool>> {
        let Some(next) = &mut self.next else { return Poll::Ready(Ok(false)) };
        let page = match next.as_mut().poll(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(page) => page,
        };
        self.next = None;
        let page = page?;
        self.pairs = page.pairs;
        self.fetch(page.next);
        if let Some(next) = &mut self.next {
            // The first poll sends the request; what comes of it is seen when this page is used up, unless the answer
            // is an error at once, which a future keeps no trace of once it is ready.
            if let Poll::Ready(page) = next.as_mut().poll(cx) {
                self.next = Some(Box::pin(std::future::ready(page)));
            }
        }
        Poll::Ready(Ok(true))
    }
}

impl Stream for ScanStream {
    type Item = Result<KvPair>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<KvPair>>> {
        loop {
            if let Some(pair) = self.pairs.pop_front() {
                let codec = self.codec;
                let pair = codec.user_key(pair.key).map(|key| KvPair { key, value: pair.value });
                return Poll::Ready(Some(pair.map_err(Into::into)));
            }
            match self.poll_page(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Poll::Ready(None),
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

/// The next pairs. Walks over regions that hold none.
async fn fetch(executor: Arc<Executor>, mut cursor: Cursor) -> Result<Page> {
    loop {
        let want = cursor.want();
        if cursor.span.is_empty() || want == 0 {
            return Ok(Page { pairs: VecDeque::new(), next: None });
        }
        let call = executor.call(Access::Read);
        let (region, reply) = executor.run(call, cursor.at(), |region| cursor.request(region)).await?;
        let mut pairs = VecDeque::from(reply.kvs);
        pairs.truncate(want as usize);
        let next = cursor.after(&region, &pairs);
        match next {
            Some(next) if pairs.is_empty() => cursor = next,
            next => return Ok(Page { pairs, next }),
        }
    }
}

impl Cursor {
    fn want(&self) -> u32 {
        u32::try_from(self.left).unwrap_or(u32::MAX).min(self.page)
    }

    fn at(&self) -> At<'_> {
        match self.reverse {
            false => At::Key(&self.span.start),
            true => At::Before(&self.span.end),
        }
    }

    fn request(&self, region: &Region) -> RawScanRequest {
        let start = self.span.start.clone().max(region.start.clone());
        let end = match (self.span.end.is_empty(), region.end.is_empty()) {
            (true, _) => region.end.clone(),
            (_, true) => self.span.end.clone(),
            _ => self.span.end.clone().min(region.end.clone()),
        };
        let (start_key, end_key) = if self.reverse { (end, start) } else { (start, end) };
        RawScanRequest {
            start_key,
            end_key,
            limit: self.want(),
            key_only: self.keys_only,
            reverse: self.reverse,
            ..RawScanRequest::default()
        }
    }

    /// What is left after `region` answered with `pairs`.
    fn after(&self, region: &Region, pairs: &VecDeque<kvrpcpb::KvPair>) -> Option<Cursor> {
        let mut next = self.clone();
        next.left -= pairs.len();
        let bytes: usize = pairs.iter().map(|pair| pair.key.len() + pair.value.len()).sum();
        let may_have_more = pairs.len() >= self.want() as usize || bytes >= SCAN_CUT_BYTES;
        match (pairs.back().filter(|_| may_have_more), self.reverse) {
            (Some(last), false) => next.span.start = successor(&last.key),
            (Some(last), true) => next.span.end = last.key.clone(),
            (None, false) if region.end.is_empty() => return None,
            (None, false) => next.span.start = region.end.clone(),
            (None, true) if region.start.is_empty() => return None,
            (None, true) => next.span.end = region.start.clone(),
        }
        // An empty end means no end, also where a reverse scan has just read the empty key.
        let at_start = self.reverse && next.span.end.is_empty();
        (next.left > 0 && !at_start && !next.span.is_empty()).then_some(next)
    }
}
