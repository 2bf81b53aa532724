//! Timestamps as scripts write them and as answers show them: small numbers, milliseconds with a counter, or the end
//! of time.

use std::error::Error;
use std::str::FromStr;

/// A timestamp as scripts write it: a number, or milliseconds and the counter inside them (`100.0`), or `max`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ts(pub u64);

impl FromStr for Ts {
    type Err = Box<dyn Error>;

    fn from_str(s: &str) -> Result<Ts, Box<dyn Error>> {
        if s == "max" {
            return Ok(Ts(u64::MAX));
        }
        Ok(Ts(match s.split_once('.') {
            Some((ms, logical)) => (ms.parse::<u64>()? << 18) + logical.parse::<u64>()?,
            None => s.parse()?,
        }))
    }
}

impl std::fmt::Display for Ts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            u64::MAX => f.write_str("max"),
            ts if ts < 1 << 18 => write!(f, "{ts}"),
            ts => write!(f, "{}.{}", ts >> 18, ts & ((1 << 18) - 1)),
        }
    }
}
