//! Garbage collection and the cleaning of locks as one store does them: the table `[gc]`. How long old versions are
//! kept is a setting of the scheduler.

use serde::{Deserialize, Serialize};

use super::ReadableDuration;

/// How often things are looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct GcConfig {
    /// How often the scheduler is asked for the safe points.
    pub poll_interval: ReadableDuration,
    /// The shortest time between the beginnings of two walks over all versions of this store.
    pub walk_interval: ReadableDuration,
    /// How often locks are looked at whose clients may be gone; 0 for never.
    pub lock_cleaner_interval: ReadableDuration,
}

impl Default for GcConfig {
    fn default() -> Self {
        GcConfig {
            poll_interval: ReadableDuration::from_millis(10_000),
            walk_interval: ReadableDuration::from_millis(3_600_000),
            lock_cleaner_interval: ReadableDuration::from_millis(5_000),
        }
    }
}

impl GcConfig {
    /// Refuses what cannot work, with the key.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        match self.poll_interval.as_millis() {
            0 => Err(("gc.poll-interval", "must not be 0".into())),
            _ => Ok(()),
        }
    }
}
