//! How keys are printed in logs and errors: upper-case hex, shortened, so that a line stays a line and a long
//! key does not spill user data.

use std::fmt;

/// How many bytes of a key are printed.
pub const SHOWN_BYTES: usize = 24;

/// Prints a key as upper-case hex; of a long one only the first [`SHOWN_BYTES`] and its length.
#[derive(Clone, Copy)]
pub struct Key<'a>(pub &'a [u8]);

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(SHOWN_BYTES)];
        for byte in shown {
            write!(f, "{byte:02X}")?;
        }
        match self.0.len() {
            len if len > SHOWN_BYTES => write!(f, "..({len} bytes)"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Prints `[start, end)`; an empty end is infinity.
#[derive(Clone, Copy)]
pub struct Range<'a>(pub &'a [u8], pub &'a [u8]);

impl fmt::Display for Range<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, ", Key(self.0))?;
        match self.1 {
            [] => write!(f, "inf)"),
            end => write!(f, "{})", Key(end)),
        }
    }
}

impl fmt::Debug for Range<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_keys_are_whole_and_long_ones_cut() {
        assert_eq!(Key(b"\x00a\xff").to_string(), "0061FF");
        assert_eq!(Key(b"").to_string(), "");
        let long = [0xab; 100];
        assert_eq!(Key(&long).to_string(), format!("{}..(100 bytes)", "AB".repeat(SHOWN_BYTES)));
        assert_eq!(Range(b"a", b"").to_string(), "[61, inf)");
        assert_eq!(Range(b"a", b"b").to_string(), "[61, 62)");
    }
}
