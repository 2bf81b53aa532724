//! The limits that can be changed while the scheduler runs, under the names they have in the configuration file.

use super::ScheduleConfig;
use crate::config::ReadableDuration;

/// The value of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    Number(u64),
    Flag(bool),
    /// Milliseconds; written like `10m`.
    Duration(u64),
}

impl Setting {
    /// Reads what `Display` writes; None when it is neither a whole number nor a duration nor `true` or `false`.
    pub fn parse(text: &str) -> Option<Setting> {
        match text {
            "true" => Some(Setting::Flag(true)),
            "false" => Some(Setting::Flag(false)),
            text => match text.parse() {
                Ok(number) => Some(Setting::Number(number)),
                Err(_) => ReadableDuration::try_from(text.to_string())
                    .ok()
                    .map(|duration| Setting::Duration(duration.as_millis())),
            },
        }
    }
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Setting::Number(number) => number.fmt(f),
            Setting::Flag(flag) => flag.fmt(f),
            Setting::Duration(ms) => ReadableDuration::from_millis(*ms).fmt(f),
        }
    }
}

/// Every setting with its value.
pub fn all(config: &ScheduleConfig) -> [(&'static str, Setting); 10] {
    [
        ("leader-schedule-limit", Setting::Number(config.leader_operators_max as u64)),
        ("region-schedule-limit", Setting::Number(config.region_operators_max as u64)),
        ("replica-schedule-limit", Setting::Number(config.operators_max as u64)),
        ("store-limit.add-peer", Setting::Number(config.store_limit.add_peer)),
        ("store-limit.remove-peer", Setting::Number(config.store_limit.remove_peer)),
        ("halt-scheduling", Setting::Flag(config.halt_scheduling)),
        ("enable-tikv-split-region", Setting::Flag(config.splits_enabled)),
        ("gc.enable", Setting::Flag(config.gc.is_enabled)),
        ("gc.life-time", Setting::Duration(config.gc.life_ms)),
        ("gc.run-interval", Setting::Duration(config.gc.run_interval_ms)),
    ]
}

/// Changes a setting, or says why not.
pub fn set(config: &mut ScheduleConfig, key: &str, value: Setting) -> Result<(), String> {
    let count = |value| match value {
        Setting::Number(number) => usize::try_from(number).map_err(|_| format!("{key} is too large")),
        Setting::Flag(_) | Setting::Duration(_) => Err(format!("{key} takes a number")),
    };
    let flag = |value| match value {
        Setting::Flag(flag) => Ok(flag),
        Setting::Number(_) | Setting::Duration(_) => Err(format!("{key} is true or false")),
    };
    let duration_ms = |value| match value {
        Setting::Duration(ms) if ms > 0 => Ok(ms),
        _ => Err(format!("{key} takes a duration above 0, such as 10m")),
    };
    match key {
        "leader-schedule-limit" => config.leader_operators_max = count(value)?,
        "region-schedule-limit" => config.region_operators_max = count(value)?,
        "replica-schedule-limit" => match count(value)? {
            0 => return Err(format!("{key} must be at least 1, or nothing is repaired")),
            max => config.operators_max = max,
        },
        "store-limit.add-peer" | "store-limit.remove-peer" if count(value)? == 0 => {
            return Err(format!("{key} must be at least 1, or nothing is repaired"));
        }
        "store-limit.add-peer" => config.store_limit.add_peer = count(value)? as u64,
        "store-limit.remove-peer" => config.store_limit.remove_peer = count(value)? as u64,
        "halt-scheduling" => config.halt_scheduling = flag(value)?,
        "gc.enable" => config.gc.is_enabled = flag(value)?,
        "gc.life-time" => config.gc.life_ms = duration_ms(value)?,
        "gc.run-interval" => config.gc.run_interval_ms = duration_ms(value)?,
        "enable-tikv-split-region" => config.splits_enabled = flag(value)?,
        _ => {
            let known = all(config).map(|(key, _)| key).join(", ");
            return Err(format!("{key:?} cannot be changed; these can: {known}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_set_under_its_name_and_nothing_else_is() {
        let keys = all(&ScheduleConfig::default()).map(|(key, _)| key);
        for (index, key) in keys.into_iter().enumerate() {
            let mut config = ScheduleConfig::default();
            let before = all(&config);
            let other = match before[index].1 {
                Setting::Number(number) => Setting::Number(number + 7),
                Setting::Flag(flag) => Setting::Flag(!flag),
                Setting::Duration(ms) => Setting::Duration(ms + 7),
            };
            set(&mut config, key, other).unwrap();
            let mut expected = before;
            expected[index].1 = other;
            assert_eq!(all(&config), expected);
            assert_eq!(Setting::parse(&other.to_string()), Some(other));
        }
    }

    #[test]
    fn wrong_keys_and_values_are_refused_with_the_way_out() {
        let mut config = ScheduleConfig::default();
        let refused = set(&mut config, "max-replicas", Setting::Number(5)).unwrap_err();
        assert!(refused.contains("leader-schedule-limit"), "{refused}");
        assert!(set(&mut config, "halt-scheduling", Setting::Number(1)).is_err());
        assert!(set(&mut config, "leader-schedule-limit", Setting::Flag(true)).is_err());
        assert!(set(&mut config, "replica-schedule-limit", Setting::Number(0)).is_err());
        assert!(set(&mut config, "gc.life-time", Setting::Number(600)).is_err(), "no unit");
        assert!(set(&mut config, "gc.life-time", Setting::Duration(0)).is_err());
        assert_eq!(config, ScheduleConfig::default());
        assert_eq!(Setting::parse("much"), None);
        assert_eq!(Setting::parse("5m"), Some(Setting::Duration(300_000)));
    }
}
