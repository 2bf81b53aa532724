//! Sizes and durations as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes. Written `"64MiB"`; KB and KiB both mean 1024 bytes, as in the field. A plain number is bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadableSize(pub u64);

/// A span of time. Written `"50ms"`, `"10s"`, `"5m"`, `"1h"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadableDuration(pub Duration);

impl ReadableDuration {
    pub const fn from_millis(ms: u64) -> ReadableDuration {
        ReadableDuration(Duration::from_millis(ms))
    }

    /// Whole milliseconds.
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

const SIZES: [(&str, u64); 13] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1 << 10),
    ("MB", 1 << 20),
    ("GB", 1 << 30),
    ("TB", 1 << 40),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("B", 1),
    ("", 1),
];

const SPANS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// The number and the factor of its unit.
fn split(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let (_, factor) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

impl FromStr for ReadableSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = split(text, &SIZES).ok_or_else(|| format!("{text:?} is no size: write it like \"64MiB\""));
        size.map(ReadableSize)
    }
}

impl FromStr for ReadableDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ms =
            split(text, &SPANS).ok_or_else(|| format!("{text:?} is no duration: write it like \"50ms\""));
        ms.map(ReadableDuration::from_millis)
    }
}

impl fmt::Display for ReadableSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let largest = SIZES[..4].iter().rev().find(|(_, n)| self.0 >= *n && self.0.is_multiple_of(*n));
        match largest {
            Some((unit, n)) => write!(f, "{}{unit}", self.0 / n),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl fmt::Display for ReadableDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.as_millis();
        match SPANS.iter().rev().find(|(_, n)| ms > 0 && ms.is_multiple_of(*n)) {
            Some((unit, n)) => write!(f, "{}{unit}", ms / n),
            None => write!(f, "{ms}ms"),
        }
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Written {
                    Number(u64),
                    Text(String),
                }
                let text = match Written::deserialize(deserializer)? {
                    Written::Number(n) => n.to_string(),
                    Written::Text(text) => text,
                };
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_text!(ReadableSize, ReadableDuration);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_understood_and_chosen() {
        let size = |text: &str| text.parse::<ReadableSize>().map(|s| s.0);
        assert_eq!((size("64MiB"), size("1 gb"), size("7")), (Ok(64 << 20), Ok(1 << 30), Ok(7)));
        assert!(size("-1").is_err() && size("99999999999TB").is_err() && size("").is_err());
        assert_eq!(ReadableSize(192 << 20).to_string(), "192MiB");
        assert_eq!(ReadableSize(1000).to_string(), "1000B");
        let span = |text: &str| text.parse::<ReadableDuration>().map(|d| d.as_millis());
        assert_eq!((span("50ms"), span("2m")), (Ok(50), Ok(120_000)));
        assert!(span("50").is_err() && span("50x").is_err());
        assert_eq!(ReadableDuration::from_millis(90_000).to_string(), "90s");
        assert_eq!(ReadableDuration::from_millis(1).to_string(), "1ms");
    }
}
