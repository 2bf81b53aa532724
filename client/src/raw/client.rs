//! The raw client: every operation on raw pairs, each with a deadline and typed errors.
//!
//! Owns nothing but the executor that all its clones share, and how user keys become wire keys.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use kvproto::key::{KeyCodec, Mode};
use kvproto::kvrpcpb::*;
use kvproto::limits::MAX_KEY_BYTES;

use super::scan::Scan;
use crate::KvPair as Pair;
use crate::bounds::{IntoKeyRange, span};
use crate::config::Config;
use crate::connect::connect;
use crate::error::{Error, Result};
use crate::request::plan::{At, Executor};
use crate::request::retry::Access;
use crate::request::shard::{Items, Span, Spans};
use crate::scheduler_client::SchedulerClient;

/// A connection to a cluster for raw key-value operations. Cheap to clone; clones share connections and caches.
///
/// Every operation ends by [`Config::timeout`]. A key has at most 8 KiB. Writes to different keys of one batch are
/// not atomic together.
#[derive(Clone)]
pub struct RawClient {
    executor: Arc<Executor>,
    codec: KeyCodec,
    for_cas: bool,
}

/// How long a key still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// The key does not exist, or has expired.
    NotFound,
    /// The key never expires.
    Never,
    /// The key expires after this many seconds.
    Seconds(u64),
}

/// What a compare-and-swap did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cas {
    /// Whether the value was as expected, and so was replaced.
    pub swapped: bool,
    /// The value before the operation; `None` when the key did not exist.
    pub previous: Option<Bytes>,
}

/// A checksum over a range. Equal data give equal checksums, however it is split into regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checksum {
    /// The CRC64 checksums of all pairs, combined by exclusive or.
    pub crc64_xor: u64,
    /// How many pairs the range holds.
    pub total_kvs: u64,
    /// Bytes of their keys and values.
    pub total_bytes: u64,
}

impl RawClient {
    /// Connects to the cluster whose schedulers listen at `endpoints` (`host:port`; one is enough).
    ///
    /// ```no_run
    /// # async fn run() -> kvclient::Result<()> {
    /// let client = kvclient::RawClient::connect(["127.0.0.1:2379"]).await?;
    /// client.put("hello", "world").await?;
    /// # Ok(()) }
    /// ```
    pub async fn connect<S: Into<String>>(endpoints: impl IntoIterator<Item = S>) -> Result<RawClient> {
        RawClient::with_config(endpoints, Config::default()).await
    }

    /// Like [`connect`](Self::connect) with other deadlines, another keyspace or a fixed API.
    pub async fn with_config<S: Into<String>>(
        endpoints: impl IntoIterator<Item = S>,
        config: Config,
    ) -> Result<RawClient> {
        let (executor, codec) = connect(endpoints, config, Mode::Raw).await?;
        Ok(RawClient { executor: Arc::new(executor), codec, for_cas: false })
    }

    /// A client whose puts and deletes may be mixed with [`compare_and_swap`](Self::compare_and_swap) on the same
    /// keys: they are ordered with it, at the price of a latch in the store. Like it, they are executed at most once:
    /// when a store fails before its answer the error is [`Error::Undetermined`], where other clients write again.
    /// A delete of a range is not part of this.
    pub fn atomic(&self) -> RawClient {
        RawClient { for_cas: true, ..self.clone() }
    }

    /// The scheduler connection under this client, for cluster information.
    pub fn scheduler(&self) -> &SchedulerClient {
        self.executor.scheduler()
    }

    /// The value of `key`, or `None` when it does not exist.
    ///
    /// ```no_run
    /// # async fn run(client: kvclient::RawClient) -> kvclient::Result<()> {
    /// if let Some(value) = client.get("hello").await? {
    ///     println!("{value:?}");
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        let key = self.wire_key(key.into())?;
        let build = |_: &_| RawGetRequest { key: key.clone(), ..RawGetRequest::default() };
        let (_, reply) = self.executor.run(self.executor.call(Access::Read), At::Key(&key), build).await?;
        Ok((!reply.not_found).then_some(reply.value))
    }

    /// The pairs of those `keys` that exist, in key order.
    ///
    /// ```no_run
    /// # async fn run(client: kvclient::RawClient) -> kvclient::Result<()> {
    /// for pair in client.batch_get(["a", "b", "c"]).await? {
    ///     println!("{:?} = {:?}", pair.key, pair.value);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn batch_get<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<Pair>> {
        let items = Items::new(self.wire_keys(keys)?);
        let build =
            |keys: &Vec<Bytes>| RawBatchGetRequest { keys: keys.clone(), ..RawBatchGetRequest::default() };
        let mut found = Vec::new();
        let call = self.executor.call(Access::Read);
        self.executor.run_all(call, items, build, |_, reply| found.extend(reply.pairs)).await?;
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        found.into_iter().map(|pair| self.user_pair(pair)).collect()
    }

    /// Sets `key` to `value`; the pair never expires. When a store fails before its answer the write is sent again, so
    /// that it may be executed twice; [`atomic`](Self::atomic) clients do not do that.
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<()> {
        self.put_with_ttl(key, value, 0).await
    }

    /// Sets `key` to `value` for `ttl` seconds; 0 means for ever. A V1 cluster may refuse a TTL.
    pub async fn put_with_ttl(&self, key: impl Into<Bytes>, value: impl Into<Bytes>, ttl: u64) -> Result<()> {
        let (key, value) = (self.wire_key(key.into())?, value.into());
        let for_cas = self.for_cas;
        let build = |_: &_| RawPutRequest {
            key: key.clone(),
            value: value.clone(),
            ttl,
            for_cas,
            ..RawPutRequest::default()
        };
        self.executor.run(self.executor.call(self.write_access()), At::Key(&key), build).await?;
        Ok(())
    }

    /// Sets all `pairs`, which never expire. Of equal keys the last one wins. After an error some of them may have
    /// been written.
    ///
    /// ```no_run
    /// # async fn run(client: kvclient::RawClient) -> kvclient::Result<()> {
    /// client.batch_put([("a", "1"), ("b", "2")]).await?;
    /// # Ok(()) }
    /// ```
    pub async fn batch_put<K: Into<Bytes>, V: Into<Bytes>>(
        &self,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<()> {
        self.batch_put_with_ttl(pairs, 0).await
    }

    /// Like [`batch_put`](Self::batch_put); the pairs expire after `ttl` seconds, 0 means never.
    pub async fn batch_put_with_ttl<K: Into<Bytes>, V: Into<Bytes>>(
        &self,
        pairs: impl IntoIterator<Item = (K, V)>,
        ttl: u64,
    ) -> Result<()> {
        let pair = |(key, value): (K, V)| {
            let key = self.wire_key(key.into())?;
            Ok(KvPair { key, value: value.into(), ..KvPair::default() })
        };
        let items = Items::new(pairs.into_iter().map(pair).collect::<Result<Vec<_>>>()?);
        let for_cas = self.for_cas;
        let build = |pairs: &Vec<KvPair>| RawBatchPutRequest {
            pairs: pairs.clone(),
            // One TTL counts for all pairs.
            ttls: if ttl == 0 { Vec::new() } else { vec![ttl] },
            for_cas,
            ..RawBatchPutRequest::default()
        };
        self.executor.run_all(self.executor.call(self.write_access()), items, build, |_, _| {}).await
    }

    /// Removes `key`; no error when it does not exist.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<()> {
        let key = self.wire_key(key.into())?;
        let for_cas = self.for_cas;
        let build = |_: &_| RawDeleteRequest { key: key.clone(), for_cas, ..RawDeleteRequest::default() };
        self.executor.run(self.executor.call(self.write_access()), At::Key(&key), build).await?;
        Ok(())
    }

    /// Removes all `keys`. After an error some of them may have been removed.
    pub async fn batch_delete<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> Result<()> {
        let items = Items::new(self.wire_keys(keys)?);
        let for_cas = self.for_cas;
        let build = |keys: &Vec<Bytes>| RawBatchDeleteRequest {
            keys: keys.clone(),
            for_cas,
            ..RawBatchDeleteRequest::default()
        };
        self.executor.run_all(self.executor.call(self.write_access()), items, build, |_, _| {}).await
    }

    /// Removes all pairs in `range`. After an error some of them may have been removed.
    ///
    /// ```no_run
    /// # async fn run(client: kvclient::RawClient) -> kvclient::Result<()> {
    /// client.delete_range(kvclient::prefix("session/")).await?;
    /// # Ok(()) }
    /// ```
    pub async fn delete_range(&self, range: impl IntoKeyRange) -> Result<()> {
        let build = |span: &Span| RawDeleteRangeRequest {
            start_key: span.start.clone(),
            end_key: span.end.clone(),
            ..RawDeleteRangeRequest::default()
        };
        let call = self.executor.patient_call(Access::Write);
        let spans = Spans::new(span(range, self.codec));
        self.executor.run_all(call, spans, build, |_, _| {}).await
    }

    /// Reads the pairs in `range` in key order, across regions.
    ///
    /// ```no_run
    /// # async fn run(client: kvclient::RawClient) -> kvclient::Result<()> {
    /// use futures::StreamExt;
    /// let mut pairs = client.scan("a".."b").keys_only().stream();
    /// while let Some(pair) = pairs.next().await {
    ///     println!("{:?}", pair?.key);
    /// }
    /// let last_ten = client.scan(..).reverse().limit(10).collect().await?;
    /// # Ok(()) }
    /// ```
    pub fn scan(&self, range: impl IntoKeyRange) -> Scan {
        Scan::new(self.executor.clone(), self.codec, span(range, self.codec))
    }

    /// Reads at most `each_limit` pairs of every one of `ranges`; answers in the same order.
    pub async fn batch_scan<R: IntoKeyRange>(
        &self,
        ranges: impl IntoIterator<Item = R>,
        each_limit: usize,
    ) -> Result<Vec<Vec<Pair>>> {
        let scans: Vec<_> =
            ranges.into_iter().map(|range| self.scan(range).limit(each_limit).collect()).collect();
        let concurrency = self.executor.config().concurrency.max(1);
        futures::stream::iter(scans).buffered(concurrency).try_collect().await
    }

    /// How long `key` still lives.
    pub async fn ttl(&self, key: impl Into<Bytes>) -> Result<Ttl> {
        let key = self.wire_key(key.into())?;
        let build = |_: &_| RawGetKeyTtlRequest { key: key.clone(), ..RawGetKeyTtlRequest::default() };
        let (_, reply) = self.executor.run(self.executor.call(Access::Read), At::Key(&key), build).await?;
        Ok(match reply {
            RawGetKeyTtlResponse { not_found: true, .. } => Ttl::NotFound,
            RawGetKeyTtlResponse { ttl: 0, .. } => Ttl::Never,
            RawGetKeyTtlResponse { ttl, .. } => Ttl::Seconds(ttl),
        })
    }

    /// Sets `key` to `new` if its value is `previous` (`None`: if it does not exist), atomically. Other writers of
    /// the key must use [`atomic`](Self::atomic) clients.
    ///
    /// When the connection breaks before the answer, the outcome is unknown and the error is
    /// [`Error::Undetermined`]: it is not tried again, since its own first execution would make the second fail.
    ///
    /// ```no_run
    /// # async fn run(client: kvclient::RawClient) -> kvclient::Result<()> {
    /// let cas = client.compare_and_swap("lock", None, "me").await?;
    /// if !cas.swapped {
    ///     println!("held by {:?}", cas.previous);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn compare_and_swap(
        &self,
        key: impl Into<Bytes>,
        previous: Option<Bytes>,
        new: impl Into<Bytes>,
    ) -> Result<Cas> {
        self.cas(key.into(), previous, Some(new.into())).await
    }

    /// Removes `key` if its value is `previous`, atomically; see [`compare_and_swap`](Self::compare_and_swap).
    pub async fn compare_and_delete(&self, key: impl Into<Bytes>, previous: impl Into<Bytes>) -> Result<Cas> {
        self.cas(key.into(), Some(previous.into()), None).await
    }

    /// A checksum over all pairs in `range`.
    pub async fn checksum(&self, range: impl IntoKeyRange) -> Result<Checksum> {
        let build = |span: &Span| RawChecksumRequest {
            algorithm: ChecksumAlgorithm::Crc64Xor.into(),
            ranges: vec![KeyRange { start_key: span.start.clone(), end_key: span.end.clone() }],
            ..RawChecksumRequest::default()
        };
        let mut sum = Checksum::default();
        let call = self.executor.patient_call(Access::Read);
        let spans = Spans::new(span(range, self.codec));
        let add = |_: Span, reply: RawChecksumResponse| {
            sum.crc64_xor ^= reply.checksum;
            sum.total_kvs += reply.total_kvs;
            sum.total_bytes += reply.total_bytes;
        };
        self.executor.run_all(call, spans, build, add).await?;
        Ok(sum)
    }

    /// Writing again what may have been written already undoes what others wrote in between.
    fn write_access(&self) -> Access {
        if self.for_cas { Access::ConditionalWrite } else { Access::Write }
    }

    async fn cas(&self, key: Bytes, previous: Option<Bytes>, new: Option<Bytes>) -> Result<Cas> {
        let key = self.wire_key(key)?;
        let build = |_: &_| RawCasRequest {
            key: key.clone(),
            previous_not_exist: previous.is_none(),
            previous_value: previous.clone().unwrap_or_default(),
            delete: new.is_none(),
            value: new.clone().unwrap_or_default(),
            ..RawCasRequest::default()
        };
        let call = self.executor.call(Access::ConditionalWrite);
        let (_, reply) = self.executor.run(call, At::Key(&key), build).await?;
        let previous = (!reply.previous_not_exist).then_some(reply.previous_value);
        Ok(Cas { swapped: reply.succeed, previous })
    }

    fn wire_key(&self, key: Bytes) -> Result<Bytes> {
        if key.len() > MAX_KEY_BYTES {
            return Err(Error::KeyTooLarge { size: key.len(), limit: MAX_KEY_BYTES });
        }
        Ok(self.codec.wire_key(key))
    }

    fn wire_keys<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<Bytes>> {
        keys.into_iter().map(|key| self.wire_key(key.into())).collect()
    }

    fn user_pair(&self, pair: KvPair) -> Result<Pair> {
        Ok(Pair { key: self.codec.user_key(pair.key)?, value: pair.value })
    }
}
