//! What people ask for: operators by order, schedulers.

use std::fmt::Write as _;

use scheduler::schedule::operator_controller::Outcome;
use scheduler::schedule::order::Order;

use crate::{Command, Outcome as Answer, Runner};

fn stores(list: &str) -> Result<Vec<u64>, std::num::ParseIntError> {
    list.split('/').map(str::parse).collect()
}

impl Runner {
    /// Gives an order, a scatter included.
    pub fn order(&mut self, command: &Command) -> Answer {
        let Command::Order { id, leader, region, from, to, add, learner, remove, split, scatter } = command
        else {
            return Err("not an order".into());
        };
        if let Some(group) = scatter {
            let out = self.cluster.scatter(self.now_ms, *id, group, &mut self.ids)?;
            return Ok(self.print(out));
        }
        let order = match (leader, region, from.zip(*to), add, learner, remove) {
            (Some(to_store_id), ..) => Order::TransferLeader { to_store_id: *to_store_id },
            (_, Some(region), ..) => Order::TransferRegion { to_store_ids: stores(region)? },
            (_, _, Some((from_store_id, to_store_id)), ..) => {
                Order::TransferPeer { from_store_id, to_store_id }
            }
            (_, _, _, Some(store_id), ..) => Order::AddPeer { store_id: *store_id },
            (_, _, _, _, Some(store_id), _) => Order::AddLearner { store_id: *store_id },
            (_, _, _, _, _, Some(store_id)) => Order::RemovePeer { store_id: *store_id },
            _ => {
                let keys = split.as_deref().unwrap_or_default().split('/').filter(|key| !key.is_empty());
                Order::Split { keys: keys.map(|key| key.to_string().into()).collect() }
            }
        };
        let out = self.cluster.order(self.now_ms, *id, order, &mut self.ids)?;
        Ok(self.print(out))
    }

    /// Operators that ended, the latest first.
    pub fn history(&self) -> String {
        let mut text = String::new();
        for record in self.cluster.operator_records() {
            let outcome = match &record.outcome {
                Outcome::Finished => "finished".to_string(),
                Outcome::Cancelled(cause) => cause.to_string(),
            };
            let ms = record.ended_ms - record.created_ms;
            let _ = writeln!(text, "{} ({} ms): {outcome}", record.description, ms);
        }
        text
    }
}
