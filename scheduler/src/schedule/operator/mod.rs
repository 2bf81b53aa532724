//! An operator: a short list of steps that changes one region, verified against its heartbeats.
//!
//! Owns the position in the list and the configuration version that the steps so far explain. Invariants:
//! steps finish in order; a region whose conf_ver is higher than the steps explain was changed by somebody else,
//! and then the operator is given up, because its plan was made for other members.

pub mod builder;
pub mod step;

use crate::core::region::RegionInfo;
use crate::schedule::{RegionCommand, ScheduleConfig, View};
use step::{Step, StepState};

/// Whose operator it is: each kind has a limit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperatorKind {
    /// Evens out leaders.
    Leader,
    /// Evens out replicas.
    Region,
    /// Brings a region to its number of replicas on living stores.
    Replica,
    /// Moves leaders off a store that must not have any.
    Evict,
    /// Asked for by people or programs.
    Admin,
}

impl OperatorKind {
    /// Every kind, in the order above.
    pub const ALL: [OperatorKind; 5] = [
        OperatorKind::Leader,
        OperatorKind::Region,
        OperatorKind::Replica,
        OperatorKind::Evict,
        OperatorKind::Admin,
    ];

    /// The name in listings and metrics.
    pub fn name(self) -> &'static str {
        match self {
            OperatorKind::Leader => "leader",
            OperatorKind::Region => "region",
            OperatorKind::Replica => "replica",
            OperatorKind::Evict => "evict",
            OperatorKind::Admin => "admin",
        }
    }

    /// How urgent its operators are.
    pub fn priority(self) -> Priority {
        match self {
            OperatorKind::Leader | OperatorKind::Region => Priority::Low,
            OperatorKind::Replica => Priority::Medium,
            OperatorKind::Evict => Priority::High,
            OperatorKind::Admin => Priority::Urgent,
        }
    }
}

/// An operator takes the place of a running one of a lower priority, and waits for any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    Low,
    Medium,
    High,
    Urgent,
}

impl Priority {
    /// The name in listings.
    pub fn name(self) -> &'static str {
        match self {
            Priority::Low => "low",
            Priority::Medium => "medium",
            Priority::High => "high",
            Priority::Urgent => "urgent",
        }
    }
}

/// What an operator is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purpose {
    pub name: &'static str,
    pub kind: OperatorKind,
}

impl Purpose {
    /// A repair.
    pub const fn replica(name: &'static str) -> Purpose {
        Purpose { name, kind: OperatorKind::Replica }
    }

    /// Somebody's order.
    pub const fn admin(name: &'static str) -> Purpose {
        Purpose { name, kind: OperatorKind::Admin }
    }
}

/// Why an operator was given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cancel {
    #[error("timed out at step {step}")]
    TimedOut { step: String },
    #[error("superseded: conf_ver is {conf_ver}, the steps explain {explained}")]
    Superseded { conf_ver: u64, explained: u64 },
    #[error("step {step} is no longer possible: {reason}")]
    Impossible { step: String, reason: &'static str },
    #[error("the region is gone")]
    RegionGone,
    #[error("replaced by {by}")]
    Replaced { by: &'static str },
    #[error("cancelled by an administrator")]
    ByAdmin,
}

/// What a look at the region says about an operator.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    Running,
    Finished,
    Cancelled(Cancel),
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    purpose: Purpose,
    region_id: u64,
    /// The region's size at the start, MiB.
    region_mib: u64,
    steps: Vec<Step>,
    current: usize,
    /// The region shows what the current step changes, though the step is not finished: a new peer still lacks its data.
    is_shown: bool,
    /// The conf_ver before the current step.
    conf_ver: u64,
    created_ms: u64,
    step_started_ms: u64,
    sent_ms: Option<u64>,
}

impl Operator {
    /// An operator that starts with the region as it is.
    pub fn new(purpose: Purpose, region: &RegionInfo, steps: Vec<Step>, now_ms: u64) -> Operator {
        assert!(!steps.is_empty(), "operator {} without steps", purpose.name);
        Operator {
            purpose,
            region_id: region.id(),
            region_mib: region.approximate_size,
            steps,
            current: 0,
            is_shown: false,
            conf_ver: region.conf_ver(),
            created_ms: now_ms,
            step_started_ms: now_ms,
            sent_ms: None,
        }
    }

    /// What it is for.
    pub fn name(&self) -> &'static str {
        self.purpose.name
    }

    /// Whose it is.
    pub fn kind(&self) -> OperatorKind {
        self.purpose.kind
    }

    /// The region it changes.
    pub fn region_id(&self) -> u64 {
        self.region_id
    }

    /// The size of its region when it began, MiB.
    pub fn region_mib(&self) -> u64 {
        self.region_mib
    }

    /// When it began, milliseconds of the core's clock.
    pub fn created_ms(&self) -> u64 {
        self.created_ms
    }

    /// What is left to do, the current step first.
    pub fn steps_left(&self) -> &[Step] {
        &self.steps[self.current..]
    }

    /// What is still to change, store by store, beyond what the region shows; `weight` is that of a replica.
    pub fn influences(&self, weight: i64) -> impl Iterator<Item = (u64, step::Influence)> {
        let unseen = self.steps_left().iter().skip(usize::from(self.is_shown));
        unseen.flat_map(move |step| step.influences(weight))
    }

    /// All steps, and how many of them are done.
    pub fn steps(&self) -> (&[Step], usize) {
        (&self.steps, self.current)
    }

    /// Whether a step that is left adds, promotes or removes a peer.
    pub fn changes_members(&self) -> bool {
        self.steps_left().iter().any(Step::changes_members)
    }

    /// All steps as text.
    pub fn describe(&self) -> String {
        let steps: Vec<String> = self.steps.iter().map(Step::to_string).collect();
        format!("{}: {}", self.name(), steps.join(", "))
    }

    /// Moves past the steps that the region shows as finished.
    pub fn advance(&mut self, region: &RegionInfo, view: &View<'_>) -> Progress {
        while let Some(step) = self.steps.get(self.current) {
            match step.state(region, view) {
                StepState::Finished => {
                    self.conf_ver += step.conf_ver_delta(region);
                    self.current += 1;
                    self.is_shown = false;
                    self.step_started_ms = view.now_ms;
                    self.sent_ms = None;
                }
                StepState::Impossible(reason) => {
                    return Progress::Cancelled(Cancel::Impossible { step: step.to_string(), reason });
                }
                StepState::Running => {
                    let shown = step.conf_ver_delta(region);
                    self.is_shown = shown > 0;
                    let explained = self.conf_ver + shown;
                    return match region.conf_ver() > explained {
                        true => {
                            Progress::Cancelled(Cancel::Superseded { conf_ver: region.conf_ver(), explained })
                        }
                        false => self.check_time(step, view),
                    };
                }
            }
        }
        Progress::Finished
    }

    fn check_time(&self, step: &Step, view: &View<'_>) -> Progress {
        let limit_ms = step.time_limit_ms(view.config);
        match view.now_ms.saturating_sub(self.step_started_ms) > limit_ms {
            true => Progress::Cancelled(Cancel::TimedOut { step: step.to_string() }),
            false => Progress::Running,
        }
    }

    /// The command of the current step, when it has not been sent lately. The region must have a leader.
    pub fn command(
        &mut self,
        region: &RegionInfo,
        config: &ScheduleConfig,
        now_ms: u64,
    ) -> Option<RegionCommand> {
        let step = self.steps.get(self.current)?;
        if self.sent_ms.is_some_and(|sent| now_ms.saturating_sub(sent) < config.resend_ms) {
            return None;
        }
        let command = step.command(region)?;
        self.sent_ms = Some(now_ms);
        Some(command)
    }
}
