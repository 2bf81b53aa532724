//! The one thread that writes metadata.
//!
//! Owns the order of writes: callers reserve a place in a bounded queue, then change the state and enqueue under
//! the state's lock, so that writes reach the disk in the order of the changes, and no lock is held over I/O.
//! What queued up meanwhile is written in one batch with one sync.
//!
//! A failed write is final. Memory is then ahead of the disk, so everything that needs the disk is refused from
//! there on. A scheduler with metadata of its own has to be restarted; one of several gives the lead away.

use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::kv::{Kv, KvError, Op, Txn};

const QUEUE_MAX: usize = 1024;

enum Job {
    Commit { txn: Txn, done: oneshot::Sender<()> },
    Stop,
}

/// See the module.
pub struct MetaWriter {
    queue: mpsc::Sender<Job>,
    failure: Arc<OnceLock<KvError>>,
    failed: CancellationToken,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A reserved place in the queue.
pub struct Permit<'a> {
    place: mpsc::Permit<'a, Job>,
    failure: Arc<OnceLock<KvError>>,
}

/// Becomes ready when the txn is on the disk.
#[must_use = "an answer must wait for its writes"]
pub struct Pending {
    done: oneshot::Receiver<()>,
    failure: Arc<OnceLock<KvError>>,
}

impl MetaWriter {
    /// Starts the thread.
    pub fn start(kv: Arc<dyn Kv>) -> std::io::Result<MetaWriter> {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let failure = Arc::new(OnceLock::new());
        let failed = CancellationToken::new();
        let (reason, signal) = (failure.clone(), failed.clone().drop_guard());
        let run = move || {
            run(kv.as_ref(), jobs, &reason);
            // An orderly end is not a failure.
            if reason.get().is_none() {
                signal.disarm();
            }
        };
        let thread = std::thread::Builder::new().name("meta-writer".into()).spawn(run)?;
        Ok(MetaWriter { queue, failure, failed, thread: Mutex::new(Some(thread)) })
    }

    /// Waits for a place in the queue.
    pub async fn reserve(&self) -> Result<Permit<'_>, KvError> {
        match self.queue.reserve().await {
            Ok(place) => Ok(Permit { place, failure: self.failure.clone() }),
            Err(_) => Err(why(&self.failure)),
        }
    }

    /// Why writing has failed, if it has.
    pub fn failure(&self) -> Option<&KvError> {
        self.failure.get()
    }

    /// Waits until writing fails; for ever when it does not.
    pub async fn wait_failure(&self) -> KvError {
        self.failed.cancelled().await;
        why(&self.failure)
    }

    /// Writes what is queued, then ends the thread.
    pub async fn stop(&self) {
        // When the thread is gone already there is nothing left to stop.
        let _gone = self.queue.send(Job::Stop).await.is_err();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the metadata writer ended in a panic");
            }
        }
    }
}

impl Permit<'_> {
    /// Enqueues a txn behind those enqueued before.
    pub fn send(self, txn: Txn) -> Pending {
        let (sender, done) = oneshot::channel();
        self.place.send(Job::Commit { txn, done: sender });
        Pending { done, failure: self.failure }
    }
}

impl Pending {
    /// Waits until the txn is applied, and durable if it asked for that.
    pub async fn wait(self) -> Result<(), KvError> {
        self.done.await.map_err(|_| why(&self.failure))
    }
}

fn why(failure: &OnceLock<KvError>) -> KvError {
    failure.get().cloned().unwrap_or_else(|| KvError::Storage("the scheduler is stopping".into()))
}

fn run(kv: &dyn Kv, mut jobs: mpsc::Receiver<Job>, failure: &OnceLock<KvError>) {
    let max = kv.batch_max();
    let mut waiting = Vec::new();
    // A txn that did not fit into the last batch.
    let mut left_over = None;
    while let Some(job) = left_over.take().or_else(|| jobs.blocking_recv()) {
        let (mut batch, mut bytes) = (Txn::default(), 0);
        let mut next = Some(job);
        while let Some(job) = next.take() {
            match job {
                Job::Commit { txn, done } => {
                    let size: usize = txn.ops.iter().map(Op::size).sum();
                    let fits = batch.ops.len() + txn.ops.len() <= max.ops && bytes + size <= max.bytes;
                    if !fits && !waiting.is_empty() {
                        left_over = Some(Job::Commit { txn, done });
                        break;
                    }
                    bytes += size;
                    batch.append(txn);
                    waiting.push(done);
                }
                // Places reserved before are still served, new ones are refused.
                Job::Stop => jobs.close(),
            }
            next = jobs.try_recv().ok();
        }
        if waiting.is_empty() {
            continue;
        }
        if let Err(error) = kv.commit(&batch) {
            match error {
                KvError::NotLeader => tracing::info!("changes are left to another scheduler from here on"),
                _ => {
                    tracing::error!(%error, "metadata cannot be written: all changes are refused from here on")
                }
            }
            // Both before the waiters wake: they find the reason, and nobody gets a place any more.
            let _first = failure.set(error).is_ok();
            jobs.close();
            return;
        }
        for done in waiting.drain(..) {
            // The caller may have gone away; its write is done all the same.
            let _gone = done.send(()).is_err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::mem_kv::MemKv;
    use crate::kv::{Condition, Op};
    use bytes::Bytes;

    fn put(key: &'static str, value: &'static str) -> Txn {
        Txn::synced(vec![Op::Put(key.into(), value.into())])
    }

    #[tokio::test]
    async fn writes_keep_the_order_in_which_they_were_enqueued() {
        let kv = Arc::new(MemKv::default());
        let writer = MetaWriter::start(kv.clone()).unwrap();
        let first = writer.reserve().await.unwrap();
        let second = writer.reserve().await.unwrap();
        let later = second.send(put("k", "1"));
        let last = first.send(put("k", "2"));
        later.wait().await.unwrap();
        last.wait().await.unwrap();
        assert_eq!(kv.get(b"k").unwrap(), Some(Bytes::from_static(b"2")));
        let unsent = writer.reserve().await.unwrap().send(put("last", "3"));
        writer.stop().await;
        unsent.wait().await.unwrap();
        assert!(writer.reserve().await.is_err());
    }

    /// Notes how large each commit is, and holds the first one back until it may go on.
    struct Slow {
        sizes: Mutex<Vec<usize>>,
        entered: std::sync::mpsc::SyncSender<()>,
        go_on: Mutex<std::sync::mpsc::Receiver<()>>,
    }

    impl Kv for Slow {
        fn get(&self, _: &[u8]) -> Result<Option<Bytes>, KvError> {
            Ok(None)
        }
        fn range(&self, _: &[u8], _: &[u8], _: usize) -> Result<Vec<crate::kv::Pair>, KvError> {
            Ok(Vec::new())
        }
        fn commit(&self, txn: &Txn) -> Result<(), KvError> {
            let mut sizes = self.sizes.lock();
            if sizes.is_empty() {
                self.entered.send(()).map_err(|e| KvError::Storage(e.to_string()))?;
                self.go_on.lock().recv().map_err(|e| KvError::Storage(e.to_string()))?;
            }
            sizes.push(txn.ops.len());
            Ok(())
        }
        fn batch_max(&self) -> crate::kv::BatchMax {
            crate::kv::BatchMax { ops: 3, bytes: 20 }
        }
    }

    #[tokio::test]
    async fn what_queues_up_is_joined_within_the_limits_of_the_storage() {
        let (go_on, waiting) = std::sync::mpsc::sync_channel(1);
        let (entered, has_entered) = std::sync::mpsc::sync_channel(1);
        let kv = Arc::new(Slow { sizes: Mutex::default(), entered, go_on: Mutex::new(waiting) });
        let writer = MetaWriter::start(kv.clone()).unwrap();
        let mut pending = vec![writer.reserve().await.unwrap().send(put("first", "1"))];
        has_entered.recv().unwrap();
        for value in ["1", "1", "1", "1", "a value of many bytes", "1"] {
            pending.push(writer.reserve().await.unwrap().send(put("k", value)));
        }
        go_on.send(()).unwrap();
        for pending in pending {
            pending.wait().await.unwrap();
        }
        assert_eq!(*kv.sizes.lock(), [1, 3, 1, 1, 1], "by operations, and by bytes");
        writer.stop().await;
    }

    #[tokio::test]
    async fn a_failed_write_refuses_everything_after_it_with_its_reason() {
        let writer = MetaWriter::start(Arc::new(MemKv::default())).unwrap();
        let txn = put("k", "1").when(Condition::Equals("other".into(), "x".into()));
        let failed = writer.reserve().await.unwrap().send(txn).wait().await;
        assert!(matches!(failed, Err(KvError::Conflict { .. })));
        assert!(matches!(writer.reserve().await.err(), Some(KvError::Conflict { .. })));
        assert!(writer.failure().is_some());
        assert!(matches!(writer.wait_failure().await, KvError::Conflict { .. }));
        writer.stop().await;
    }
}
