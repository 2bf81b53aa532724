//! Hands out timestamps: the oracle behind a lock, its durable bound, and the stream that clients use.
//!
//! Owns the oracle. A timestamp leaves only after the bound above it is durable, and only if this process still led
//! after it was taken: so it was taken before any later leader took one. The bound is saved by one task
//! at a time, which does not stop when the client that needed it goes away. A stream is answered in the order of
//! its requests, and holds no request that has not been answered: back pressure is HTTP/2's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use kvproto::pdpb::{ResponseHeader, Timestamp, TsoRequest, TsoResponse};
use parking_lot::Mutex;
use tonic::Status;

use super::oracle::{Blocked, COUNT_MAX, Clocks, Oracle};
use crate::kv::KvError;
use crate::kv::records;
use crate::member::leadership::Leadership;
use crate::server::meta_writer::MetaWriter;
use crate::server::metrics::TsoMetrics;
use crate::server::state::{number_txn, wall_ms};

/// How often a used oracle is looked at, to save its bound ahead of time.
pub const SAVE_INTERVAL: Duration = Duration::from_millis(500);

struct Inner {
    oracle: Mutex<Oracle>,
    saving: tokio::sync::Mutex<()>,
    writer: Arc<MetaWriter>,
    leadership: Arc<Leadership>,
    started: Instant,
}

/// See the module.
#[derive(Clone)]
pub struct TsoService {
    inner: Arc<Inner>,
}

impl TsoService {
    /// A service that continues above the durable bound (0 in a new cluster).
    pub fn new(saved_bound_ms: u64, writer: Arc<MetaWriter>, leadership: Arc<Leadership>) -> TsoService {
        let oracle = Mutex::new(Oracle::new(saved_bound_ms));
        let saving = tokio::sync::Mutex::new(());
        TsoService { inner: Arc::new(Inner { oracle, saving, writer, leadership, started: Instant::now() }) }
    }

    /// Takes `count` (1 ..= `COUNT_MAX`) consecutive timestamps and returns the last one.
    pub async fn allocate(&self, count: u32) -> Result<Timestamp, KvError> {
        loop {
            let monotonic_ms = self.inner.started.elapsed().as_millis() as u64;
            let clocks = Clocks { wall_ms: wall_ms(), monotonic_ms };
            let allocated = self.inner.oracle.lock().allocate(clocks, count);
            // After it was taken, not before: the lease may end in between.
            if !self.inner.leadership.is_valid() {
                return Err(KvError::NotLeader);
            }
            let blocked = match allocated {
                Ok(timestamp) => return Ok(timestamp),
                Err(blocked) => blocked,
            };
            match blocked {
                Blocked::Save { bound_ms } => self.save(bound_ms).await?,
                // This millisecond's timestamps are used up: the next one brings more.
                Blocked::Wait => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Saves the bound when it comes near and the oracle is in use.
    pub async fn save_ahead(&self) -> Result<(), KvError> {
        let due = self.inner.oracle.lock().save_ahead(wall_ms());
        match due {
            Some(bound_ms) => self.save(bound_ms).await,
            None => Ok(()),
        }
    }

    async fn save(&self, bound_ms: u64) -> Result<(), KvError> {
        let inner = self.inner.clone();
        match tokio::spawn(async move { inner.save_now(bound_ms).await }).await {
            Ok(outcome) => outcome,
            Err(e) => Err(KvError::Storage(format!("saving the timestamp window: {e}"))),
        }
    }

    /// Answers the requests of a stream, each with the largest timestamp of its batch; `served` counts them.
    pub fn serve<S>(
        &self,
        requests: S,
        header: ResponseHeader,
        served: TsoMetrics,
    ) -> impl Stream<Item = Result<TsoResponse, Status>> + Send + 'static
    where
        S: Stream<Item = Result<TsoRequest, Status>> + Send + 'static,
    {
        let service = self.clone();
        requests.then(move |request| {
            let (service, header, served) = (service.clone(), header.clone(), served.clone());
            async move {
                let request = request?;
                let want = header.cluster_id;
                crate::server::grpc_service::check_cluster(want, request.header.as_ref())?;
                if !(1..=COUNT_MAX).contains(&request.count) {
                    let text = format!("tso count {} is not in 1..={COUNT_MAX}", request.count);
                    return Err(Status::invalid_argument(text));
                }
                let timestamp = service.allocate(request.count).await;
                let timestamp = timestamp.map_err(|e| Status::unavailable(e.to_string()))?;
                served.timestamps.inc_by(u64::from(request.count));
                served.requests.inc();
                Ok(TsoResponse { header: Some(header), count: request.count, timestamp: Some(timestamp) })
            }
        })
    }
}

impl Inner {
    async fn save_now(&self, bound_ms: u64) -> Result<(), KvError> {
        let _one_at_a_time = self.saving.lock().await;
        let old_ms = self.oracle.lock().bound_ms();
        if old_ms >= bound_ms {
            return Ok(());
        }
        let txn = number_txn(records::TSO_END, old_ms, bound_ms);
        self.writer.reserve().await?.send(txn).wait().await?;
        self.oracle.lock().saved(bound_ms);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::mem_kv::MemKv;

    async fn service(kv: &Arc<MemKv>, saved_bound_ms: u64) -> (TsoService, Arc<Leadership>) {
        let writer = Arc::new(MetaWriter::start(kv.clone()).unwrap());
        let leadership = Arc::new(Leadership::unlimited());
        (TsoService::new(saved_bound_ms, writer, leadership.clone()), leadership)
    }

    fn saved_bound_ms(kv: &MemKv) -> u64 {
        crate::server::node::read_number(kv, records::TSO_END).unwrap()
    }

    #[tokio::test]
    async fn a_new_leader_starts_above_the_window_of_the_old_one_which_cannot_save_another() {
        let kv = Arc::new(MemKv::default());
        let (old, _) = service(&kv, 0).await;
        let last = old.allocate(10).await.unwrap();
        let bound_ms = saved_bound_ms(&kv);
        assert!((last.physical as u64) < bound_ms);

        let (new, _) = service(&kv, bound_ms).await;
        let first = new.allocate(1).await.unwrap();
        assert!(first.physical as u64 >= bound_ms && saved_bound_ms(&kv) > first.physical as u64);
        let outcome = old.save(bound_ms + 60_000).await;
        assert!(matches!(outcome, Err(KvError::Conflict { .. })), "{outcome:?}");
        assert!(saved_bound_ms(&kv) < bound_ms + 60_000);
    }

    #[tokio::test]
    async fn no_timestamp_leaves_after_the_lead_is_given_up() {
        let (service, leadership) = service(&Arc::new(MemKv::default()), 0).await;
        service.allocate(1).await.unwrap();
        leadership.give_up();
        assert!(matches!(service.allocate(1).await, Err(KvError::NotLeader)));
    }
}
