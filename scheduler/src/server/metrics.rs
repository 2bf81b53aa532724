//! Counters and gauges of one server, in a registry of its own: one process may hold several servers. They count on
//! from one time as the leader to the next; what describes the cluster is 0 on a scheduler that does not lead.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::cluster::Cluster;
use crate::core::store::StoreState;
use crate::schedule::checker::Obstacle;
use crate::schedule::operator_controller::OperatorEvent;

/// Timestamps handed out, and the requests that they were for.
#[derive(Clone)]
pub struct TsoMetrics {
    pub timestamps: IntCounter,
    pub requests: IntCounter,
}

/// See the module.
pub struct Metrics {
    registry: Registry,
    /// Region heartbeats by result: ok, stale, refused.
    pub region_heartbeats: IntCounterVec,
    pub store_heartbeats: IntCounter,
    /// Timestamps handed out, and the requests that they were for.
    pub timestamps: TsoMetrics,
    /// Commands that had no way to their store.
    pub commands_dropped: IntCounter,
    /// Times that this scheduler began to lead.
    pub terms: IntCounter,
    is_leader: IntGauge,
    /// None with metadata of its own.
    etcd_up: Option<IntGauge>,
    operators: IntCounterVec,
    operators_running: IntGauge,
    regions: IntGauge,
    regions_waiting: IntGaugeVec,
    stores: IntGaugeVec,
}

impl Metrics {
    /// Registers everything in a new registry.
    pub fn new(uses_etcd: bool) -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new_custom(Some("scheduler".into()), None)?;
        macro_rules! add {
            ($metric:expr) => {{
                let metric = $metric?;
                registry.register(Box::new(metric.clone()))?;
                metric
            }};
        }
        let vec = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        Ok(Metrics {
            region_heartbeats: add!(vec(
                "region_heartbeats_total",
                "Region heartbeats by result",
                &["result"]
            )),
            store_heartbeats: add!(IntCounter::new("store_heartbeats_total", "Store heartbeats")),
            timestamps: TsoMetrics {
                timestamps: add!(IntCounter::new("tso_timestamps_total", "Timestamps handed out")),
                requests: add!(IntCounter::new(
                    "tso_requests_total",
                    "Requests for timestamps; clients that ask at the same moment share one"
                )),
            },
            commands_dropped: add!(IntCounter::new(
                "commands_dropped_total",
                "Region commands without an open, free stream to their store"
            )),
            terms: add!(IntCounter::new("leader_terms_total", "Times that this scheduler began to lead")),
            is_leader: add!(IntGauge::new("is_leader", "1 while this scheduler leads")),
            etcd_up: match uses_etcd {
                true => Some(add!(IntGauge::new("etcd_up", "1 while any member of etcd answers"))),
                false => None,
            },
            operators: add!(vec("operators_total", "Operators by name and event", &["name", "event"])),
            operators_running: add!(IntGauge::new("operators_running", "Operators under way")),
            regions: add!(IntGauge::new("regions", "Known regions")),
            regions_waiting: add!(IntGaugeVec::new(
                Opts::new("regions_waiting", "Regions that need something, by what stands in the way"),
                &["obstacle"]
            )),
            stores: add!(IntGaugeVec::new(Opts::new("stores", "Stores by state"), &["state"])),
            registry,
        })
    }

    /// Counts what happened to an operator.
    pub fn observe(&self, event: &OperatorEvent) {
        let (name, what) = match event {
            OperatorEvent::Created { name, .. } => (name, "created"),
            OperatorEvent::Finished { name, .. } => (name, "finished"),
            OperatorEvent::Cancelled { name, .. } => (name, "cancelled"),
        };
        self.operators.with_label_values(&[*name, what]).inc();
    }

    /// Brings the gauges up to date.
    pub fn refresh(&self, cluster: &Cluster, now_ms: u64) {
        self.operators_running.set(cluster.operators_running() as i64);
        for obstacle in Obstacle::ALL {
            let waiting = cluster.regions_waiting_for(obstacle);
            self.regions_waiting.with_label_values(&[obstacle.name()]).set(waiting as i64);
        }
        self.regions.set(cluster.basic().regions().len() as i64);
        for state in StoreState::ALL {
            let stores = cluster.basic().stores().filter(|store| cluster.store_state(store, now_ms) == state);
            self.stores.with_label_values(&[state.name()]).set(stores.count() as i64);
        }
    }

    /// Brings up to date what every scheduler has, leader or not.
    pub fn refresh_member(&self, is_leader: bool, etcd_up: Option<bool>) {
        self.is_leader.set(i64::from(is_leader));
        if let (Some(gauge), Some(up)) = (&self.etcd_up, etcd_up) {
            gauge.set(i64::from(up));
        }
    }

    /// This scheduler does not lead: what it knew of the cluster is old.
    pub fn forget_cluster(&self) {
        self.operators_running.set(0);
        self.regions.set(0);
        self.regions_waiting.reset();
        self.stores.reset();
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}
