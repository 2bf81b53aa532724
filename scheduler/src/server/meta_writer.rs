//! The one thread that writes metadata.
//!
//! Owns the order of writes: callers reserve a place in a bounded queue, then change the state and enqueue under
//! the state's lock, so that writes reach the disk in the order of the changes, and no lock is held over I/O.
//! What queued up meanwhile is written in one batch with one sync.
//!
//! A failed write is final. Memory is then ahead of the disk, so everything that needs the disk is refused from
//! there on, and the scheduler has to be restarted.

use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::kv::{Kv, KvError, Txn};

const QUEUE_MAX: usize = 1024;
const BATCH_MAX: usize = 256;

enum Job {
    Commit { txn: Txn, done: oneshot::Sender<()> },
    Stop,
}

/// See the module.
pub struct MetaWriter {
    queue: mpsc::Sender<Job>,
    failure: Arc<OnceLock<KvError>>,
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
        let failed = failure.clone();
        let run = move || run(kv.as_ref(), jobs, &failed);
        let thread = std::thread::Builder::new().name("meta-writer".into()).spawn(run)?;
        Ok(MetaWriter { queue, failure, thread: Mutex::new(Some(thread)) })
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
    let mut waiting = Vec::with_capacity(BATCH_MAX);
    while let Some(job) = jobs.blocking_recv() {
        let mut batch = Txn::default();
        let mut next = Some(job);
        while let Some(job) = next.take() {
            match job {
                Job::Commit { txn, done } => {
                    batch.append(txn);
                    waiting.push(done);
                }
                // Places reserved before are still served, new ones are refused.
                Job::Stop => jobs.close(),
            }
            if waiting.len() < BATCH_MAX {
                next = jobs.try_recv().ok();
            }
        }
        if waiting.is_empty() {
            continue;
        }
        if let Err(error) = kv.commit(&batch) {
            tracing::error!(%error, "metadata cannot be written: refusing all changes until a restart");
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

    #[tokio::test]
    async fn a_failed_write_refuses_everything_after_it_with_its_reason() {
        let writer = MetaWriter::start(Arc::new(MemKv::default())).unwrap();
        let txn = put("k", "1").when(Condition::Equals("other".into(), "x".into()));
        let failed = writer.reserve().await.unwrap().send(txn).wait().await;
        assert!(matches!(failed, Err(KvError::Conflict { .. })));
        assert!(matches!(writer.reserve().await.err(), Some(KvError::Conflict { .. })));
        assert!(writer.failure().is_some());
        writer.stop().await;
    }
}
