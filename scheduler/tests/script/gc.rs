//! Commands about safe points and barriers. Timestamps are written as their milliseconds.

use std::fmt::Write as _;

use kvproto::ts::Timestamp;
use scheduler::cluster::{Cluster, Present};
use scheduler::gc::{Barrier, Scope, TTL_FOREVER};
use scheduler::kv::records::MetaWrite;
use scheduler::schedule::settings::Setting;

use crate::{Command, Outcome, Runner};

fn ts(ms: u64) -> u64 {
    Timestamp::compose(ms, 0).unwrap().get()
}

fn ms(ts: u64) -> u64 {
    Timestamp::new(ts).physical_ms()
}

/// Timestamps in a text, as their milliseconds.
fn in_ms(text: &str) -> String {
    let words = text.split_inclusive(|c: char| !c.is_ascii_digit());
    let shorten = |word: &str| {
        let end = word.trim_end_matches(|c: char| !c.is_ascii_digit()).len();
        match word[..end].parse::<u64>() {
            Ok(number) if number >= 1 << 18 => format!("{}{}", ms(number), &word[end..]),
            _ => word.to_string(),
        }
    };
    words.map(shorten).collect()
}

fn ttl(seconds: Option<i64>) -> i64 {
    seconds.unwrap_or(TTL_FOREVER)
}

fn scope(is_global: bool) -> Scope {
    if is_global { Scope::Cluster } else { Scope::Keyspaces }
}

impl Runner {
    fn present(&self) -> Present {
        Present { now_ms: self.now_ms, ts: Timestamp::compose(self.now_ms, 0).unwrap() }
    }

    fn tell(&self, barrier: &Barrier) -> String {
        let of = if barrier.scope == Scope::Cluster { "global barrier" } else { "barrier" };
        let left = match barrier.ttl_seconds(self.now_ms) {
            TTL_FOREVER => "for ever".to_string(),
            seconds => format!("for {seconds} s"),
        };
        format!("{of} {:?} at {} {left}\n", barrier.name, ms(barrier.ts))
    }

    pub fn gc(&mut self, command: &Command) -> Outcome {
        self.gc_command(command).map_err(|error| in_ms(&error.to_string()).into())
    }

    fn gc_command(&mut self, command: &Command) -> Outcome {
        let (now_ms, present) = (self.now_ms, self.present());
        match command {
            Command::AdvanceTxn { target } => {
                let (advanced, out) = self.cluster.advance_txn_safe_point(present, ts(*target))?;
                let mut text = format!("txn safe point: {} -> {}", ms(advanced.old), ms(advanced.new));
                if let Some(blocker) = advanced.blocker {
                    let _ = write!(text, ", held by {}", in_ms(&blocker));
                }
                Ok(format!("{text}\n{}", self.print(out)))
            }
            Command::AdvanceGc { target } => {
                let (old, out) = self.cluster.advance_gc_safe_point(ts(*target))?;
                Ok(format!("GC safe point: {} -> {target}\n{}", ms(old), self.print(out)))
            }
            Command::UpdateGc { target } => {
                let (reached, out) = self.cluster.update_gc_safe_point(present, ts(*target))?;
                Ok(format!("GC safe point: {}\n{}", ms(reached), self.print(out)))
            }
            Command::Barrier { name, at, seconds, global } => {
                let of = (scope(*global), &name[..]);
                let (barrier, out) = self.cluster.set_gc_barrier(now_ms, of, ts(*at), ttl(*seconds))?;
                Ok(self.tell(&barrier) + &self.print(out))
            }
            Command::DeleteBarrier { name, global } => {
                let (gone, out) = self.cluster.delete_gc_barrier(now_ms, (scope(*global), name))?;
                let text = gone.map_or("nothing\n".into(), |barrier| self.tell(&barrier));
                Ok(text + &self.print(out))
            }
            Command::Service { name, at, seconds } => {
                let (min, out) =
                    self.cluster.update_service_safe_point(present, name, ts(*at), ttl(*seconds))?;
                Ok(format!("smallest: {:?} at {}\n{}", min.name, ms(min.safe_point), self.print(out)))
            }
            Command::Set { key, value } => {
                let value = Setting::parse(value).ok_or("not a setting")?;
                let out = self.cluster.change_settings(&[(key.clone(), value)])?;
                Ok(self.print(out))
            }
            Command::Restart => {
                let (id, config) = (self.cluster.id(), self.config.clone());
                self.cluster = Cluster::new(id, config);
                for (key, value) in &self.disk {
                    self.cluster.restore(MetaWrite::decode(key, value)?, now_ms)?;
                }
                Ok(String::new())
            }
            Command::GcState => {
                let gc = self.cluster.gc();
                let mut text = format!("txn {}, GC {}\n", ms(gc.txn_safe_point()), ms(gc.gc_safe_point()));
                gc.barriers(now_ms).for_each(|barrier| text += &self.tell(barrier));
                Ok(text)
            }
            _ => Err("not about garbage collection".into()),
        }
    }
}
