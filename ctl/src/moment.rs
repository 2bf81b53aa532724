//! Timestamps for people: the wall time behind the number, and the moments that can be named on a command line. Pure.

use std::time::Duration;

use kvproto::ts::Timestamp;
use serde::Serialize;

use crate::error::{Error, Result};

const DAY_MS: u64 = 86_400_000;
/// The units of a duration, the longer text first where one ends like another.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", DAY_MS)];

/// A timestamp, its parts, and when that was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TimestampView {
    /// The number that requests carry.
    pub timestamp: u64,
    /// Milliseconds since 1970.
    pub physical_ms: u64,
    /// The counter inside the millisecond.
    pub logical: u64,
    /// The same in UTC.
    pub time: String,
}

impl From<Timestamp> for TimestampView {
    fn from(ts: Timestamp) -> TimestampView {
        TimestampView {
            timestamp: ts.get(),
            physical_ms: ts.physical_ms(),
            logical: ts.logical(),
            time: utc(ts.physical_ms()),
        }
    }
}

impl TimestampView {
    /// The number and the time on one line.
    pub fn line(&self) -> String {
        match self.timestamp {
            0 => "0 (none)".into(),
            timestamp => format!("{timestamp} ({})", self.time),
        }
    }
}

/// A moment as it is named on a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// This timestamp.
    At(Timestamp),
    /// So long ago; zero is now.
    Ago(Duration),
}

impl Moment {
    /// A timestamp, `now`, or a duration such as `10m`.
    pub fn parse(text: &str) -> Result<Moment> {
        if let Ok(number) = text.parse() {
            return Ok(Moment::At(Timestamp::new(number)));
        }
        if text == "now" {
            return Ok(Moment::Ago(Duration::ZERO));
        }
        duration(text).map(Moment::Ago).map_err(|_| {
            Error::Usage(format!("{text:?} is neither a timestamp, nor `now`, nor how long ago (10m)"))
        })
    }

    /// The timestamp that is meant when it is `now`.
    pub fn timestamp(self, now: Timestamp) -> Timestamp {
        match self {
            Moment::At(ts) => ts,
            Moment::Ago(Duration::ZERO) => now,
            Moment::Ago(ago) => {
                let ago_ms = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
                Timestamp::compose(now.physical_ms().saturating_sub(ago_ms), 0).unwrap_or(Timestamp::ZERO)
            }
        }
    }
}

/// A whole number and a unit: `500ms`, `30s`, `10m`, `1h`, `7d`.
pub fn duration(text: &str) -> Result<Duration> {
    let parsed = UNITS.iter().find_map(|(unit, ms)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*ms).map(Duration::from_millis)
    });
    parsed.ok_or_else(|| Error::Usage(format!("{text:?} is no duration; write 500ms, 30s, 10m, 1h or 7d")))
}

/// A duration in whole seconds, in the largest units that need not be rounded away: `1h 5m`.
pub fn describe(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts =
        [("d", seconds / 86_400), ("h", seconds / 3_600 % 24), ("m", seconds / 60 % 60), ("s", seconds % 60)];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, count)| *count > 0)
        .take(2)
        .map(|(unit, count)| format!("{count}{unit}"))
        .collect();
    if parts.is_empty() { "0s".into() } else { parts.join(" ") }
}

/// `2026-11-22 20:42:48.123 UTC` of milliseconds since 1970.
pub fn utc(ms: u64) -> String {
    let (days, in_day) = (ms / DAY_MS, ms % DAY_MS);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03} UTC", in_day % 1_000)
}

/// Year, month and day of a day since 1970. Years are counted from March, so that leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    // From 1 March of the year 0; an era is 400 years, after which the calendar repeats.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_times_are_right_around_leap_days_and_centuries() {
        let cases = [
            (0, "1970-01-01 00:00:00.000 UTC"),
            (951_782_399_999, "2000-02-28 23:59:59.999 UTC"),
            (951_782_400_000, "2000-02-29 00:00:00.000 UTC"),
            (1_709_251_199_000, "2024-02-29 23:59:59.000 UTC"),
            (1_735_689_599_000, "2024-12-31 23:59:59.000 UTC"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000 UTC"),
        ];
        for (ms, text) in cases {
            assert_eq!(utc(ms), text);
        }
    }

    #[test]
    fn moments_are_timestamps_or_ages() {
        let now = Timestamp::compose(3_600_000, 5).unwrap();
        let of = |text| Moment::parse(text).unwrap().timestamp(now);
        assert_eq!(of("now"), now);
        assert_eq!(of("77").get(), 77);
        assert_eq!(of("10m"), Timestamp::compose(3_000_000, 0).unwrap());
        assert_eq!(of("500ms"), Timestamp::compose(3_599_500, 0).unwrap());
        assert_eq!(of("7d"), Timestamp::ZERO, "before all time");
        for wrong in ["", "m", "10", "-1s", "10 m", "soon"].iter().filter(|text| text.parse::<u64>().is_err())
        {
            assert_eq!(Moment::parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
        assert_eq!(duration("99999999999999999999d").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn durations_are_short() {
        let of = |seconds| describe(Duration::from_secs(seconds));
        assert_eq!(
            (of(0), of(59), of(3_660), of(90_061)),
            ("0s".into(), "59s".into(), "1h 1m".into(), "1d 1h".into())
        );
    }
}
