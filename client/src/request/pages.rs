//! Range scans: pages of one region each, the next one on its way while the current one is read.
//!
//! Invariant: the cursor only moves past keys that were yielded or ranges that a region said hold no more, so that
//! splits and merges in the middle of a scan neither skip nor repeat a key. A page is fetched by a task of its own: it may
//! hold a look-up that other requests wait for, and must go on while the reader of the scan does something else.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{FutureExt as _, Stream};
use kvproto::kvrpcpb::KvPair;
use kvproto::limits::SCAN_CUT_BYTES;
use tokio::task::JoinHandle;

use super::plan::At;
use super::shard::Span;
use crate::bounds::successor;
use crate::error::{Error, Result};
use crate::region_cache::Region;

/// Servers of the field's protocol refuse larger pages.
pub(crate) const MAX_PAGE: u32 = 10_240;

/// What is still to be read.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    pub(crate) span: Span,
    /// Pairs until the scan ends.
    pub(crate) left: usize,
    /// Pairs to fetch at a time.
    pub(crate) page: u32,
    pub(crate) reverse: bool,
    pub(crate) keys_only: bool,
}

/// What one region answered, and what is left after it.
pub(crate) struct Page {
    pub(crate) pairs: VecDeque<KvPair>,
    pub(crate) next: Option<Cursor>,
}

impl Page {
    /// The end of a scan.
    pub(crate) fn last() -> Page {
        Page { pairs: VecDeque::new(), next: None }
    }
}

/// Who fetches pages.
pub(crate) trait PageSource: Send + Unpin + 'static {
    /// The next pairs; walks over regions that hold none.
    fn fetch(&self, cursor: Cursor) -> impl Future<Output = Result<Page>> + Send + 'static;
}

impl Cursor {
    /// Everything in `span`, ascending, so many pairs at a time.
    pub(crate) fn new(span: Span, page: u32) -> Cursor {
        let page = page.clamp(1, MAX_PAGE);
        Cursor { span, left: usize::MAX, page, reverse: false, keys_only: false }
    }

    /// How many pairs the next request asks for.
    pub(crate) fn want(&self) -> u32 {
        u32::try_from(self.left).unwrap_or(u32::MAX).min(self.page)
    }

    /// Whether there is nothing left to ask for.
    pub(crate) fn is_done(&self) -> bool {
        self.span.is_empty() || self.want() == 0
    }

    pub(crate) fn at(&self) -> At<'_> {
        match self.reverse {
            false => At::Key(&self.span.start),
            true => At::Before(&self.span.end),
        }
    }

    /// Start and end of the request to `region`, in the order that requests have them: a reverse one starts at the
    /// upper bound.
    pub(crate) fn bounds(&self, region: &Region) -> (bytes::Bytes, bytes::Bytes) {
        let start = self.span.start.clone().max(region.start.clone());
        let end = match (self.span.end.is_empty(), region.end.is_empty()) {
            (true, _) => region.end.clone(),
            (_, true) => self.span.end.clone(),
            _ => self.span.end.clone().min(region.end.clone()),
        };
        if self.reverse { (end, start) } else { (start, end) }
    }

    /// The page that `region` answered with `pairs`, to a request for [`want`](Self::want) of them.
    pub(crate) fn page(&self, region: &Region, pairs: Vec<KvPair>) -> Page {
        let mut pairs = VecDeque::from(pairs);
        pairs.truncate(self.want() as usize);
        let next = self.after(region, &pairs);
        Page { pairs, next }
    }

    /// What is left after `region` answered with `pairs`.
    fn after(&self, region: &Region, pairs: &VecDeque<KvPair>) -> Option<Cursor> {
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

/// A page on its way; dropping it ends the task that fetches it.
struct Fetch(JoinHandle<Result<Page>>);

impl Drop for Fetch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Fetch {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Page>> {
        self.0.poll_unpin(cx).map(|ended| match ended {
            Ok(page) => page,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Error::Protocol("the runtime of the scan was shut down".to_string())),
        })
    }
}

/// A running scan: pairs with wire keys, in order. At most two pages are held in memory. Ends after the first error.
pub(crate) struct Pages<S> {
    source: S,
    pairs: VecDeque<KvPair>,
    /// Where the scan starts, until it is read for the first time: before that there need not be a runtime.
    first: Option<Cursor>,
    next: Option<Fetch>,
}

impl<S: PageSource> Pages<S> {
    pub(crate) fn new(source: S, cursor: Cursor) -> Pages<S> {
        Pages { source, pairs: VecDeque::new(), first: Some(cursor), next: None }
    }

    fn fetch(&mut self, cursor: Option<Cursor>) {
        self.next = cursor.map(|cursor| Fetch(tokio::spawn(self.source.fetch(cursor))));
    }

    /// Takes the next page if it is here, and asks for the one after it.
    fn poll_page(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool>> {
        if let Some(first) = self.first.take() {
            self.fetch(Some(first));
        }
        let Some(next) = &mut self.next else { return Poll::Ready(Ok(false)) };
        let page = match next.poll(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(page) => page,
        };
        self.next = None;
        let page = page?;
        self.pairs = page.pairs;
        self.fetch(page.next);
        Poll::Ready(Ok(true))
    }
}

impl<S: PageSource> Stream for Pages<S> {
    type Item = Result<KvPair>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<KvPair>>> {
        loop {
            if let Some(pair) = self.pairs.pop_front() {
                return Poll::Ready(Some(Ok(pair)));
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
