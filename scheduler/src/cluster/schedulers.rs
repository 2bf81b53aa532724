//! Schedulers as people handle them: list, add, remove, pause. Each change is recorded and outlives a restart.

use super::{Cluster, Output};
use crate::error::ClusterError;
use crate::kv::records::MetaWrite;
use crate::schedulers::{SchedulerName, SchedulerState, Schedulers};

/// The longest pause: a scheduler that is not wanted for longer is removed.
pub const PAUSE_MAX_MS: u64 = 30 * 24 * 3_600_000;

impl Cluster {
    /// The schedulers that are there.
    pub fn schedulers(&self) -> &Schedulers {
        self.coordinator.schedulers()
    }

    /// Adds a scheduler. `store_id` is for `evict-leader-scheduler`: the store to keep free of leaders.
    pub fn add_scheduler(&mut self, name: &str, store_id: Option<u64>) -> Result<Output, ClusterError> {
        self.require_bootstrapped()?;
        let scheduler = parse(name)?;
        let mut state = self.schedulers().get(scheduler).cloned().unwrap_or_default();
        match (scheduler, store_id) {
            (SchedulerName::EvictLeader, Some(id)) => {
                self.basic.store(id).ok_or(ClusterError::UnknownStore(id))?;
                state.stores.insert(id);
            }
            (SchedulerName::EvictLeader, None) => {
                return Err(ClusterError::InvalidScheduler(format!("{name} needs a store")));
            }
            (_, Some(_)) => return Err(ClusterError::InvalidScheduler(format!("{name} takes no store"))),
            (_, None) => {}
        }
        Ok(self.set_scheduler(scheduler, Some(state)))
    }

    /// Removes a scheduler. With `store_id`, `evict-leader-scheduler` only gives up that store.
    pub fn remove_scheduler(&mut self, name: &str, store_id: Option<u64>) -> Result<Output, ClusterError> {
        self.require_bootstrapped()?;
        let scheduler = parse(name)?;
        let mut state = self.present(scheduler)?;
        if let Some(id) = store_id
            && !state.stores.remove(&id)
        {
            return Err(ClusterError::UnknownScheduler(format!("{name} of store {id}")));
        }
        let stays = store_id.is_some() && !state.stores.is_empty();
        Ok(self.set_scheduler(scheduler, stays.then_some(state)))
    }

    /// Lets a scheduler, or `all`, do nothing for so long; 0 ends a pause.
    pub fn pause_scheduler(
        &mut self,
        now_ms: u64,
        name: &str,
        delay_ms: u64,
    ) -> Result<Output, ClusterError> {
        self.require_bootstrapped()?;
        if delay_ms > PAUSE_MAX_MS {
            let most = PAUSE_MAX_MS / 1000;
            return Err(ClusterError::InvalidScheduler(format!("a pause lasts at most {most} seconds")));
        }
        let chosen: Vec<SchedulerName> = match name {
            "all" => self.schedulers().present().map(|(name, _)| name).collect(),
            name => vec![parse(name)?],
        };
        let mut out = Output::default();
        for scheduler in chosen {
            let mut state = self.present(scheduler)?;
            state.paused_until_ms = if delay_ms == 0 { 0 } else { now_ms + delay_ms };
            out.writes.extend(self.set_scheduler(scheduler, Some(state)).writes);
        }
        Ok(out)
    }

    fn present(&self, scheduler: SchedulerName) -> Result<SchedulerState, ClusterError> {
        let state = self.schedulers().get(scheduler).cloned();
        state.ok_or_else(|| ClusterError::UnknownScheduler(scheduler.as_str().to_string()))
    }

    fn set_scheduler(&mut self, scheduler: SchedulerName, state: Option<SchedulerState>) -> Output {
        let record = self.coordinator.schedulers_mut().set(scheduler, state);
        Output { writes: vec![MetaWrite::Scheduler(record)], ..Output::default() }
    }
}

fn parse(name: &str) -> Result<SchedulerName, ClusterError> {
    SchedulerName::parse(name).ok_or_else(|| {
        let known: Vec<&str> = SchedulerName::ALL.into_iter().map(SchedulerName::as_str).collect();
        ClusterError::InvalidScheduler(format!(
            "there is no scheduler {name:?}; there are {}",
            known.join(", ")
        ))
    })
}
