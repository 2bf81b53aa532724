//! Limits that people change while the scheduler runs. A change is recorded, outlives the scheduler, and from then on
//! counts more than the configuration file.

use super::{Cluster, Output};
use crate::error::ClusterError;
use crate::kv::records::{MetaWrite, SettingRecord};
use crate::schedule::settings::{self, Setting};

impl Cluster {
    /// Changes settings, all or none.
    pub fn change_settings(&mut self, changes: &[(String, Setting)]) -> Result<Output, ClusterError> {
        self.require_bootstrapped()?;
        let mut config = self.config.clone();
        let mut out = Output::default();
        for (key, value) in changes {
            settings::set(&mut config, key, *value).map_err(ClusterError::InvalidSetting)?;
            let record = SettingRecord { key: key.clone(), value: value.to_string() };
            out.writes.push(MetaWrite::Setting(record));
        }
        self.config = config;
        Ok(out)
    }

    /// Takes in a recorded change; false when this version does not understand it.
    pub(super) fn restore_setting(&mut self, record: &SettingRecord) -> bool {
        let value = Setting::parse(&record.value);
        value.is_some_and(|value| settings::set(&mut self.config, &record.key, value).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::ScheduleConfig;
    use kvproto::{metapb, pdpb};

    #[test]
    fn a_change_outlives_the_scheduler_and_a_refused_one_changes_nothing() {
        let mut before = Cluster::new(1, ScheduleConfig::default());
        let store = metapb::Store { id: 1, address: "a:1".into(), ..Default::default() };
        let region = metapb::Region {
            id: 2,
            region_epoch: Some(metapb::RegionEpoch { conf_ver: 1, version: 1 }),
            peers: vec![metapb::Peer { id: 3, store_id: 1, ..Default::default() }],
            ..Default::default()
        };
        let mut records =
            before.bootstrap(0, store, vec![region], Some(pdpb::ClusterTraits::default())).unwrap().writes;
        let change = |key: &str, value| (key.to_string(), value);
        let wrong =
            [change("leader-schedule-limit", Setting::Number(9)), change("no-such", Setting::Flag(true))];
        assert!(matches!(before.change_settings(&wrong), Err(ClusterError::InvalidSetting(_))));
        assert_eq!(before.config(), &ScheduleConfig::default());
        let right = [
            change("leader-schedule-limit", Setting::Number(9)),
            change("halt-scheduling", Setting::Flag(true)),
        ];
        records.extend(before.change_settings(&right).unwrap().writes);

        let mut after = Cluster::new(1, ScheduleConfig::default());
        for record in records {
            after.restore(record, 0).unwrap();
        }
        assert_eq!(after.config(), before.config());
        assert!(after.config().halt_scheduling && after.config().leader_operators_max == 9);
    }
}
