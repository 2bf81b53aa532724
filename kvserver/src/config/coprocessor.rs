//! When regions are divided by themselves: the table `[coprocessor]`.

use serde::{Deserialize, Serialize};

use super::{ReadableDuration, ReadableSize};
use crate::raftstore::split_keys::SplitLimits;

/// Sizes of regions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct CoprocessorConfig {
    /// A region with more data than this is divided; 0 takes half as much again as `region-split-size`.
    pub region_max_size: ReadableSize,
    /// Data in each of its parts.
    pub region_split_size: ReadableSize,
    /// The same by committed versions of transactional keys; 0 takes half as much again as `region-split-keys`.
    pub region_max_keys: u64,
    pub region_split_keys: u64,
    /// The most cuts at once.
    pub batch_split_limit: usize,
    /// How often leaders ask whether their regions should be looked at.
    pub split_check_interval: ReadableDuration,
    /// They look at those that were written this much since the last look; 0 takes a sixteenth of `region-split-size`.
    pub region_split_check_diff: ReadableSize,
}

impl Default for CoprocessorConfig {
    fn default() -> Self {
        let limits = SplitLimits::default();
        CoprocessorConfig {
            region_max_size: ReadableSize(0),
            region_split_size: ReadableSize(limits.split_bytes),
            region_max_keys: 0,
            region_split_keys: limits.split_keys,
            batch_split_limit: limits.batch,
            split_check_interval: ReadableDuration::from_millis(10_000),
            region_split_check_diff: ReadableSize(0),
        }
    }
}

/// Half as much again.
fn max_for(split: u64) -> u64 {
    split.saturating_add(split / 2)
}

impl CoprocessorConfig {
    /// Replaces "0 means choose" by what is chosen.
    pub fn resolve(&mut self) {
        if self.region_max_size.0 == 0 {
            self.region_max_size = ReadableSize(max_for(self.region_split_size.0));
        }
        if self.region_max_keys == 0 {
            self.region_max_keys = max_for(self.region_split_keys);
        }
        if self.region_split_check_diff.0 == 0 {
            self.region_split_check_diff = ReadableSize((self.region_split_size.0 / 16).max(1));
        }
    }

    /// Refuses what cannot work: the key, and what is wrong with it.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        let above = |max: u64, split: u64| max == 0 || max >= split;
        let no = |key, message: &str| Err((key, message.to_string()));
        if self.region_split_size.0 == 0 {
            return no("coprocessor.region-split-size", "must not be 0");
        }
        if self.region_split_keys == 0 {
            return no("coprocessor.region-split-keys", "must not be 0");
        }
        if !above(self.region_max_size.0, self.region_split_size.0) {
            return no("coprocessor.region-max-size", "must not be below region-split-size");
        }
        if !above(self.region_max_keys, self.region_split_keys) {
            return no("coprocessor.region-max-keys", "must not be below region-split-keys");
        }
        if !(1..=SPLITS_MAX).contains(&self.batch_split_limit) {
            return Err((
                "coprocessor.batch-split-limit",
                format!("{} is not between 1 and {SPLITS_MAX}", self.batch_split_limit),
            ));
        }
        if self.split_check_interval.as_millis() == 0 {
            return no("coprocessor.split-check-interval", "must not be 0");
        }
        Ok(())
    }

    /// What the split checker needs to know. The configuration is resolved.
    pub fn limits(&self) -> SplitLimits {
        SplitLimits {
            max_bytes: self.region_max_size.0,
            split_bytes: self.region_split_size.0,
            max_keys: self.region_max_keys,
            split_keys: self.region_split_keys,
            batch: self.batch_split_limit,
        }
    }
}

/// The most parts that a region may be told to fall into at once.
const SPLITS_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_fields_and_an_upper_limit_follows_the_size_of_parts() {
        let mut config = CoprocessorConfig::default();
        config.resolve();
        assert_eq!(config.limits(), SplitLimits::default());
        let mut small: CoprocessorConfig = toml::from_str("region-split-size = \"1MiB\"").unwrap();
        small.resolve();
        assert_eq!((small.limits().max_bytes, small.validate()), (3 << 19, Ok(())));
    }

    #[test]
    fn limits_that_contradict_each_other_are_refused_by_name() {
        let refused = |text: &str| {
            let config: CoprocessorConfig = toml::from_str(text).unwrap();
            config.validate().unwrap_err().0
        };
        assert_eq!(refused("region-max-size = \"1MiB\""), "coprocessor.region-max-size");
        assert_eq!(refused("region-split-size = 0"), "coprocessor.region-split-size");
        assert_eq!(refused("region-max-keys = 5"), "coprocessor.region-max-keys");
        assert_eq!(refused("region-split-keys = 0"), "coprocessor.region-split-keys");
        assert_eq!(refused("batch-split-limit = 0"), "coprocessor.batch-split-limit");
        assert_eq!(refused("split-check-interval = \"0s\""), "coprocessor.split-check-interval");
    }
}
