//! The write record: what a transaction left behind on a key when it ended.
//!
//! Stands under the commit timestamp; a rollback stands under the start timestamp. Layout: format (1 byte), kind
//! (1 byte), start timestamp, timestamp of the last change (numbers of variable length), then for a short value all
//! the rest, with a byte in front that says whether there is one.

use bytes::Bytes;

use super::codec::{self, put_u64};
use crate::engine::EngineError;

/// The format this build writes.
pub const FORMAT: u8 = 1;

/// How a transaction ended on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WriteKind {
    Put = 1,
    Delete = 2,
    /// It changed nothing and excluded others.
    Lock = 3,
    /// It must never commit here.
    Rollback = 4,
}

impl WriteKind {
    fn from_u8(n: u8) -> Option<WriteKind> {
        [WriteKind::Put, WriteKind::Delete, WriteKind::Lock, WriteKind::Rollback]
            .into_iter()
            .find(|kind| *kind as u8 == n)
    }

    /// True when readers see a difference.
    pub fn has_data(self) -> bool {
        matches!(self, WriteKind::Put | WriteKind::Delete)
    }
}

/// See the file's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub kind: WriteKind,
    pub start_ts: u64,
    /// For `Lock`: the commit timestamp of the newest older version with data; 0 when it is not known.
    pub last_change_ts: u64,
    /// The value of a put, when it is short; else it is in `default` under the start timestamp.
    pub short_value: Option<Bytes>,
}

impl Write {
    /// The record of a rollback.
    pub fn rollback(start_ts: u64) -> Write {
        Write { kind: WriteKind::Rollback, start_ts, last_change_ts: 0, short_value: None }
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let value = self.short_value.as_ref().map_or(0, |v| v.len());
        let mut buf = Vec::with_capacity(3 + 2 * 10 + value);
        buf.extend_from_slice(&[FORMAT, self.kind as u8]);
        put_u64(&mut buf, self.start_ts);
        put_u64(&mut buf, self.last_change_ts);
        match &self.short_value {
            None => buf.push(0),
            Some(value) => {
                buf.push(1);
                buf.extend_from_slice(value);
            }
        }
        buf
    }

    /// Reads a stored record; shares its memory.
    pub fn decode(stored: Bytes) -> Result<Write, EngineError> {
        let WriteRef { kind, start_ts, last_change_ts, short_value } = WriteRef::parse(&stored)?;
        let short_value = short_value.map(|value| stored.slice_ref(value));
        Ok(Write { kind, start_ts, last_change_ts, short_value })
    }

    /// Kind and start timestamp alone, without looking at the rest or copying: for walks over many records.
    pub fn peek(stored: &[u8]) -> Option<(WriteKind, u64)> {
        let (&[format, kind], rest) = stored.split_first_chunk::<2>()?;
        let kind = WriteKind::from_u8(kind).filter(|_| format == FORMAT)?;
        Some((kind, codec::peek_u64(rest)?.0))
    }
}

/// A stored write record, read where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteRef<'a> {
    pub kind: WriteKind,
    pub start_ts: u64,
    pub last_change_ts: u64,
    pub short_value: Option<&'a [u8]>,
}

impl<'a> WriteRef<'a> {
    /// Reads a stored record.
    pub fn parse(stored: &'a [u8]) -> Result<WriteRef<'a>, EngineError> {
        match stored.first() {
            Some(&FORMAT) => {}
            Some(format) => {
                return Err(EngineError::Corrupt(format!(
                    "write record format {format} is newer than this build understands; upgrade this store"
                )));
            }
            None => return Err(EngineError::Corrupt("an empty write record".into())),
        }
        WriteRef::read(&stored[1..])
            .ok_or_else(|| EngineError::Corrupt("a write record that cannot be read".into()))
    }

    fn read(stored: &'a [u8]) -> Option<WriteRef<'a>> {
        let (&kind, rest) = stored.split_first()?;
        let kind = WriteKind::from_u8(kind)?;
        let (start_ts, rest) = codec::peek_u64(rest)?;
        let (last_change_ts, rest) = codec::peek_u64(rest)?;
        let short_value = match rest.split_first()? {
            (0, []) => None,
            (1, value) => Some(value),
            _ => return None,
        };
        Some(WriteRef { kind, start_ts, last_change_ts, short_value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_and_can_be_peeked_at() {
        let put = |value: &'static [u8]| Write {
            kind: WriteKind::Put,
            start_ts: u64::MAX - 1,
            last_change_ts: 7,
            short_value: Some(value.into()),
        };
        for write in
            [Write::rollback(5), put(b""), put(b"value"), Write { kind: WriteKind::Lock, ..put(b"") }]
        {
            let stored = write.encode();
            assert_eq!(Write::peek(&stored), Some((write.kind, write.start_ts)));
            assert_eq!(Write::decode(stored.into()).unwrap(), write);
        }
    }

    #[test]
    fn damage_is_an_error_and_no_panic() {
        let good = Write { short_value: None, ..Write::rollback(1 << 50) }.encode();
        for n in 0..good.len() {
            assert!(Write::decode(Bytes::copy_from_slice(&good[..n])).is_err(), "{n} bytes");
            let mut bad = good.clone();
            bad[n] ^= 0xff;
            let (_, _) = (Write::peek(&bad), Write::decode(bad.clone().into()));
        }
    }
}
