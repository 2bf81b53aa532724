//! Faults that strike a running cluster one after another, drawn from a seed: the process side of what the simulator
//! does in one thread. Each strike waits until clients got on, so that it meets a cluster at work; none takes more
//! than one store away at a time.
//!
//! Owns which stores still belong to the cluster: a store that was removed is not touched again.

use std::time::Duration;

use super::proxy::End;
use super::regions::{Regions, raw_key};
use super::workload::Load;
use super::{ClusterError, ProcessCluster};
use crate::sim::rng::Rng;

/// How long clients may take to get on under a fault.
const SOON: Duration = Duration::from_secs(30);
/// Operations that must succeed under a fault, and after it.
const SOME: u64 = 60;
/// Longest delay between stores, milliseconds.
const DELAY_MS_MAX: u64 = 20;

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A store is killed and started again.
    Crash,
    /// A store is cut off from the others, both ways or one.
    Partition,
    /// Messages between stores take their time, and all connections break once.
    Unreliable,
    /// Regions are divided.
    Split,
    /// A new store joins and an old one is removed.
    Replace,
}

/// Strikes with some kinds of faults.
#[derive(Debug)]
pub struct Nemesis {
    rng: Rng,
    live: Vec<usize>,
}

/// Why a strike did not end as it must.
pub type StrikeError = Box<dyn std::error::Error>;

impl Nemesis {
    /// A nemesis for a cluster that has just started.
    pub fn new(seed: u64, cluster: &ProcessCluster) -> Nemesis {
        Nemesis { rng: Rng::new(seed, 0), live: (0..cluster.stores.len()).collect() }
    }

    /// Strikes once; at the end everything works again, though perhaps not everybody has caught up.
    ///
    /// # Errors
    /// When clients do not get on.
    pub async fn strike(
        &mut self,
        fault: Fault,
        cluster: &mut ProcessCluster,
        load: &Load,
    ) -> Result<(), StrikeError> {
        let victim = self.live[self.rng.index(self.live.len())];
        match fault {
            Fault::Crash => {
                cluster.stores[victim].process.kill();
                load.wait_progress(SOME, SOON)?;
                cluster.stores[victim].restart()?;
            }
            Fault::Partition => {
                let one_way = self.rng.chance(0.5);
                self.cut_off(victim, one_way, cluster);
                load.wait_progress(SOME, SOON)?;
                cluster.links().heal();
            }
            Fault::Unreliable => {
                cluster.links().delay(Duration::from_millis(self.rng.range(1, DELAY_MS_MAX)));
                cluster.links().reset();
                load.wait_progress(SOME, SOON)?;
                cluster.links().heal();
            }
            Fault::Split => self.split(cluster).await?,
            Fault::Replace => self.replace(victim, cluster)?,
        }
        load.wait_progress(SOME, SOON)?;
        Ok(())
    }

    fn cut_off(&self, victim: usize, one_way: bool, cluster: &ProcessCluster) {
        let victim_end = End::Store(victim);
        for other in self.live.iter().filter(|other| **other != victim) {
            match one_way {
                true => cluster.links().cut_one_way(victim_end, End::Store(*other)),
                false => cluster.links().cut(victim_end, End::Store(*other)),
            }
        }
    }

    /// Divides at a register and in the middle of what a ledger client writes.
    async fn split(&mut self, cluster: &ProcessCluster) -> Result<(), StrikeError> {
        let regions = Regions::connect(&cluster.endpoint()).await?;
        let register = format!("register-{:02}", self.rng.below(4));
        let ledger = format!("ledger-{:02}/{:08}", self.rng.below(3), self.rng.below(300));
        for key in [register, ledger] {
            regions.split(&[raw_key(&key)]).await?;
        }
        Ok(())
    }

    fn replace(&mut self, victim: usize, cluster: &mut ProcessCluster) -> Result<(), ClusterError> {
        let new = cluster.add_store()?;
        cluster.remove_store(victim)?;
        cluster.stores[victim].process.kill();
        self.live.retain(|live| *live != victim);
        self.live.push(new);
        Ok(())
    }
}
