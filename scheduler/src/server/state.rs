//! What the services of a leader share: the cluster behind a lock, and the ways out of it.
//!
//! Owns the lock discipline: a change reserves a place with the metadata writer, then changes the cluster and
//! enqueues the writes under one lock, then (unlocked) waits for the disk, then sends commands. So writes have
//! the order of the changes, answers wait for their writes, and no lock is held over I/O.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kvproto::pdpb;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::heartbeat_streams::HeartbeatStreams;
use super::meta_writer::MetaWriter;
use super::metrics::Metrics;
use crate::cluster::{Cluster, Output};
use crate::error::ClusterError;
use crate::id::{IdWindow, LOW_WATER};
use crate::kv::records::{self, MetaWrite};
use crate::kv::{Condition, Durability, KvError, Op, Txn};
use crate::member::Member;
use crate::member::directory::Directory;
use crate::member::leadership::Leadership;
use crate::schedule::operator_controller::OperatorEvent;
use crate::tso::service::TsoService;

/// How long a question waits for a region that no store has reported to this leader yet.
const REPORT_WAIT: Duration = Duration::from_secs(1);

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Kv(#[from] KvError),
}

/// Unix time in milliseconds that never goes back: wall time at the start plus what has passed since.
pub struct Clock {
    started_at_ms: u64,
    started: Instant,
}

impl Clock {
    /// Starts at the present wall time.
    pub fn start() -> Clock {
        Clock { started_at_ms: wall_ms(), started: Instant::now() }
    }

    /// Milliseconds since the start.
    pub fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Now, for the core.
    pub fn now_ms(&self) -> u64 {
        self.started_at_ms + self.elapsed_ms()
    }

    /// When the server started, unix milliseconds.
    pub fn started_at_ms(&self) -> u64 {
        self.started_at_ms
    }
}

/// Wall time in unix milliseconds; 0 for a clock before 1970.
#[expect(clippy::disallowed_methods, reason = "the only place where the scheduler reads the wall clock")]
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_millis() as u64)
}

struct Core {
    cluster: Cluster,
    ids: IdWindow,
    id_end: u64,
}

/// See the module.
pub struct State {
    core: Mutex<Core>,
    extending_ids: tokio::sync::Mutex<()>,
    cluster_id: u64,
    pub writer: Arc<MetaWriter>,
    pub tso: TsoService,
    pub streams: HeartbeatStreams,
    pub metrics: Arc<Metrics>,
    /// Asked before a timestamp is handed out, and before a request is taken.
    pub leadership: Arc<Leadership>,
    directory: Arc<Directory>,
    pub member: Member,
    pub clock: Arc<Clock>,
    /// Tells those who wait for a region that one has reported.
    reported: Notify,
    /// Cancelled when the server stops or does not lead any more: long streams end then.
    pub stopping: CancellationToken,
}

/// What a state is made of.
pub struct Parts {
    pub cluster: Cluster,
    /// The durable end of the id window; 0 in a new cluster.
    pub id_end: u64,
    pub writer: Arc<MetaWriter>,
    pub tso: TsoService,
    pub metrics: Arc<Metrics>,
    pub leadership: Arc<Leadership>,
    /// All schedulers, and this one.
    pub members: (Arc<Directory>, Member),
    pub clock: Arc<Clock>,
    pub stopping: CancellationToken,
}

impl State {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> State {
        let Parts { cluster, id_end, writer, tso, metrics, leadership, members, clock, stopping } = parts;
        let (directory, member) = members;
        State {
            cluster_id: cluster.id(),
            core: Mutex::new(Core { cluster, ids: IdWindow::new(id_end), id_end }),
            extending_ids: tokio::sync::Mutex::new(()),
            writer,
            tso,
            streams: HeartbeatStreams::default(),
            metrics,
            leadership,
            directory,
            member,
            clock,
            reported: Notify::new(),
            stopping,
        }
    }

    /// The answer to "who are you?".
    pub fn members(&self) -> pdpb::GetMembersResponse {
        self.directory.view().to_wire(&self.member, self.leadership.is_valid(), self.header())
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// A header without an error.
    pub fn header(&self) -> pdpb::ResponseHeader {
        pdpb::ResponseHeader { cluster_id: self.cluster_id, error: None }
    }

    /// Looks at the cluster.
    pub fn read<T>(&self, look: impl FnOnce(&Cluster, u64) -> T) -> T {
        let now_ms = self.clock.now_ms();
        look(&self.core.lock().cluster, now_ms)
    }

    /// Looks for something that region reports bring, until it is there or [`REPORT_WAIT`] has passed: after a
    /// change of leaders the stores need a moment to report.
    pub async fn read_reported<T>(&self, look: impl Fn(&Cluster) -> Option<T>) -> Option<T> {
        let search = async {
            loop {
                let reported = self.reported.notified();
                tokio::pin!(reported);
                // Armed before the look, so that no report falls in between.
                reported.as_mut().enable();
                if let Some(found) = self.read(|cluster, _| look(cluster)) {
                    return found;
                }
                reported.await;
            }
        };
        tokio::time::timeout(REPORT_WAIT, search).await.ok()
    }

    /// A region has reported.
    pub fn note_report(&self) {
        self.reported.notify_waiters();
    }

    /// Lets time pass.
    pub async fn tick(self: &Arc<Self>) -> Result<(), KvError> {
        match self.change(|cluster, ids, now_ms| Ok(((), cluster.tick(now_ms, ids)))).await {
            Err(ChangeError::Kv(error)) => Err(error),
            // The cluster refuses requests, not the time.
            Ok(()) | Err(ChangeError::Cluster(_)) => Ok(()),
        }
    }

    /// Changes the cluster, makes the change durable, and sends the commands that follow from it.
    pub async fn change<T>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Cluster, &mut IdWindow, u64) -> Result<(T, Output), ClusterError>,
    ) -> Result<T, ChangeError> {
        let permit = self.writer.reserve().await?;
        let now_ms = self.clock.now_ms();
        let (value, commands, events, pending, ids_left) = {
            let mut core = self.core.lock();
            let core = &mut *core;
            let (value, out) = change(&mut core.cluster, &mut core.ids, now_ms)?;
            let pending = txn_of(&out.writes).map(|txn| (txn.durability, permit.send(txn)));
            (value, out.commands, out.events, pending, core.ids.left())
        };
        if ids_left < LOW_WATER {
            self.extend_ids_in_background();
        }
        self.report(&events);
        match pending {
            Some((Durability::Synced, pending)) => pending.wait().await?,
            // What heartbeats rebuild is not waited for.
            Some((Durability::Buffered, _)) | None => {}
        }
        for command in commands {
            let store_id = command.target_peer.as_ref().map_or(0, |peer| peer.store_id);
            let command = pdpb::RegionHeartbeatResponse { header: Some(self.header()), ..command };
            if !self.streams.send(store_id, command) {
                self.metrics.commands_dropped.inc();
            }
        }
        Ok(value)
    }

    fn report(&self, events: &[OperatorEvent]) {
        for event in events {
            self.metrics.observe(event);
            match event {
                OperatorEvent::Created { region_id, description, .. } => {
                    tracing::info!(region_id, operator = description, "operator created");
                }
                OperatorEvent::Finished { region_id, name } => {
                    tracing::info!(region_id, operator = name, "operator finished");
                }
                OperatorEvent::Cancelled { region_id, name, cause } => {
                    tracing::warn!(region_id, operator = name, %cause, "operator given up");
                }
            }
        }
    }

    /// Takes `count` consecutive ids, whose window is durable, and returns the last one.
    pub async fn alloc_ids(self: &Arc<Self>, count: u64) -> Result<u64, KvError> {
        loop {
            if let Some(last) = self.core.lock().ids.take(count) {
                return Ok(last);
            }
            self.extend_ids(count).await?;
        }
    }

    /// Makes `count` more ids available. Runs as a task of its own, because it must not stop half way when its
    /// caller goes away.
    pub async fn extend_ids(self: &Arc<Self>, count: u64) -> Result<(), KvError> {
        let state = self.clone();
        match tokio::spawn(async move { state.extend_ids_now(count).await }).await {
            Ok(outcome) => outcome,
            Err(e) => Err(KvError::Storage(format!("extending the id window: {e}"))),
        }
    }

    fn extend_ids_in_background(self: &Arc<Self>) {
        let state = self.clone();
        tokio::spawn(async move {
            // The writer has logged the reason of a failure.
            let _failed = state.extend_ids_now(LOW_WATER).await.is_err();
        });
    }

    async fn extend_ids_now(&self, count: u64) -> Result<(), KvError> {
        let _one_at_a_time = self.extending_ids.lock().await;
        let (old_end, new_end) = {
            let core = self.core.lock();
            if core.ids.left() >= count {
                return Ok(());
            }
            (core.id_end, core.ids.extension(count))
        };
        let txn = number_txn(records::ID_END, old_end, new_end);
        self.writer.reserve().await?.send(txn).wait().await?;
        let mut core = self.core.lock();
        core.id_end = new_end;
        core.ids.extended_to(new_end);
        Ok(())
    }
}

/// A durable change of a number record from `old` (0: absent) to `new`.
pub fn number_txn(key: Bytes, old: u64, new: u64) -> Txn {
    let condition = match old {
        0 => Condition::Absent(key.clone()),
        _ => Condition::Equals(key.clone(), records::encode_number(old)),
    };
    Txn::synced(vec![Op::Put(key, records::encode_number(new))]).when(condition)
}

fn txn_of(writes: &[MetaWrite]) -> Option<Txn> {
    if writes.is_empty() {
        return None;
    }
    let is_rebuildable = writes.iter().all(MetaWrite::is_rebuildable);
    let durability = if is_rebuildable { Durability::Buffered } else { Durability::Synced };
    Some(Txn { conditions: Vec::new(), ops: writes.iter().map(MetaWrite::to_op).collect(), durability })
}
