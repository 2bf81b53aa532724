//! The one encoding of a write: built by a command, carried as a Raft entry's data, read by the apply.
//!
//! Layout: format version (1 byte), kind (1 byte), region version of the epoch it was checked against (u64,
//! big-endian), the body, crc32c of everything before it (u32, big-endian). The body of a write is a sequence
//! of changes: operation (1 byte), column family (1 byte), key (varint length, bytes) and, depending on the
//! operation, a value or an end key in the same form. Reading shares the entry's memory: no copy is made.
//!
//! Invariant: what `decode` returns is what `WriteSet` was given, or a typed error; it never panics.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;

use crate::engine::{Cf, Op};
use crate::raftstore::op::split::SplitCommand;

/// The format this build writes.
pub const FORMAT: u8 = 1;
const HEADER: usize = 10;
const CRC: usize = 4;

const KIND_WRITE: u8 = 1;
const KIND_COMPACT_LOG: u8 = 2;
const KIND_SPLIT: u8 = 3;

const OP_PUT: u8 = 1;
const OP_DELETE: u8 = 2;
const OP_DELETE_RANGE: u8 = 3;

/// Why an entry could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("entry format {0} is newer than this build understands; upgrade this store")]
    UnknownFormat(u8),
    #[error("entry kind {0} is newer than this build understands; upgrade this store")]
    UnknownKind(u8),
    #[error("entry is damaged: {0}")]
    Damaged(&'static str),
}

/// The changes of one command, encoded as they are added.
///
/// The epoch is filled in when the command is proposed, the checksum when it is sealed.
#[derive(Clone, Debug)]
pub struct WriteSet {
    buf: BytesMut,
    ops: usize,
    adds_data: bool,
}

impl Default for WriteSet {
    fn default() -> Self {
        WriteSet::with_capacity(256)
    }
}

impl WriteSet {
    /// An empty write set with room for `bytes` of keys and values.
    pub fn with_capacity(bytes: usize) -> WriteSet {
        let mut buf = BytesMut::with_capacity(HEADER + bytes + 16 + CRC);
        buf.put_u8(FORMAT);
        buf.put_u8(KIND_WRITE);
        buf.put_u64(0);
        WriteSet { buf, ops: 0, adds_data: false }
    }

    /// Sets `key` to the concatenation of `value` parts (a header and a payload need not be joined first).
    pub fn put(&mut self, cf: Cf, key: &[u8], value: &[&[u8]]) {
        self.adds_data = true;
        self.put_small(cf, key, value);
    }

    /// The same for a record that ends something: it is small, and where room is short it makes more room than it takes.
    pub fn put_small(&mut self, cf: Cf, key: &[u8], value: &[&[u8]]) {
        self.begin(OP_PUT, cf, key);
        put_varint(&mut self.buf, value.iter().map(|v| v.len()).sum());
        for part in value {
            self.buf.put_slice(part);
        }
    }

    /// Removes `key`.
    pub fn delete(&mut self, cf: Cf, key: &[u8]) {
        self.begin(OP_DELETE, cf, key);
    }

    /// Removes `[start, end)`. The caller has clamped it to the region; an empty `end` is the end of the family.
    pub fn delete_range(&mut self, cf: Cf, start: &[u8], end: &[u8]) {
        self.begin(OP_DELETE_RANGE, cf, start);
        put_varint(&mut self.buf, end.len());
        self.buf.put_slice(end);
    }

    fn begin(&mut self, op: u8, cf: Cf, key: &[u8]) {
        self.ops += 1;
        self.buf.put_u8(op);
        self.buf.put_u8(cf as u8);
        put_varint(&mut self.buf, key.len());
        self.buf.put_slice(key);
    }

    /// True when it does more than delete and put small records.
    pub fn adds_data(&self) -> bool {
        self.adds_data
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.ops
    }

    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.ops == 0
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.buf.len()
    }

    /// Fixes the region version the command was checked against, adds the checksum and gives the entry's data.
    pub fn seal(self, region_version: u64) -> Bytes {
        seal(self.buf, region_version)
    }
}

/// The data of a command that tells every replica to drop its log up to `index` (of `term`).
pub fn compact_log(region_version: u64, index: u64, term: u64) -> Bytes {
    let mut buf = BytesMut::with_capacity(HEADER + 16 + CRC);
    buf.put_u8(FORMAT);
    buf.put_u8(KIND_COMPACT_LOG);
    buf.put_u64(0);
    buf.put_u64(index);
    buf.put_u64(term);
    seal(buf, region_version)
}

/// The data of a command that divides the region.
pub fn split(region_version: u64, command: &SplitCommand) -> Bytes {
    let mut buf = BytesMut::with_capacity(HEADER + command.encoded_len() + CRC);
    buf.put_u8(FORMAT);
    buf.put_u8(KIND_SPLIT);
    buf.put_u64(0);
    command.encode_raw(&mut buf);
    seal(buf, region_version)
}

/// Whether an entry's data says that it divides the region; no check of anything else.
pub fn is_split(data: &[u8]) -> bool {
    data.len() > HEADER && data[..2] == [FORMAT, KIND_SPLIT]
}

fn seal(mut buf: BytesMut, region_version: u64) -> Bytes {
    buf[2..HEADER].copy_from_slice(&region_version.to_be_bytes());
    let crc = crc32c::crc32c(&buf);
    buf.put_u32(crc);
    buf.freeze()
}

/// An entry's data, checked and ready to be walked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Write { region_version: u64, ops: Ops },
    CompactLog { region_version: u64, index: u64, term: u64 },
    Split { region_version: u64, command: SplitCommand },
}

/// Reads an entry's data.
pub fn decode(data: &Bytes) -> Result<Entry, EntryError> {
    let version = *data.first().ok_or(EntryError::Damaged("empty"))?;
    if version != FORMAT {
        return Err(EntryError::UnknownFormat(version));
    }
    if data.len() < HEADER + CRC {
        return Err(EntryError::Damaged("too short"));
    }
    let (body, crc) = data.split_at(data.len() - CRC);
    if crc32c::crc32c(body) != u32::from_be_bytes(crc.try_into().unwrap_or_default()) {
        return Err(EntryError::Damaged("checksum mismatch"));
    }
    let region_version = be_u64(&body[2..HEADER]);
    match body[1] {
        KIND_WRITE => Ok(Entry::Write { region_version, ops: Ops { data: data.slice(HEADER..body.len()) } }),
        KIND_COMPACT_LOG if body.len() == HEADER + 16 => Ok(Entry::CompactLog {
            region_version,
            index: be_u64(&body[HEADER..HEADER + 8]),
            term: be_u64(&body[HEADER + 8..]),
        }),
        KIND_COMPACT_LOG => Err(EntryError::Damaged("compact-log body")),
        KIND_SPLIT => SplitCommand::decode(data.slice(HEADER..body.len()))
            .map(|command| Entry::Split { region_version, command })
            .map_err(|_| EntryError::Damaged("split body")),
        kind => Err(EntryError::UnknownKind(kind)),
    }
}

/// Walks the changes of a write; each shares the entry's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ops {
    data: Bytes,
}

impl Iterator for Ops {
    type Item = Result<Op, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.data.is_empty() {
            return None;
        }
        let op = self.read();
        if op.is_err() {
            self.data.clear();
        }
        Some(op)
    }
}

impl Ops {
    fn read(&mut self) -> Result<Op, EntryError> {
        if self.data.len() < 2 {
            return Err(EntryError::Damaged("change header"));
        }
        let (op, cf) = (self.data[0], Cf::from_u8(self.data[1]).ok_or(EntryError::Damaged("column family"))?);
        let _ = self.data.split_to(2);
        let key = self.take_bytes()?;
        match op {
            OP_PUT => Ok(Op::Put { cf, key, value: self.take_bytes()? }),
            OP_DELETE => Ok(Op::Delete { cf, key }),
            OP_DELETE_RANGE => Ok(Op::DeleteRange { cf, start: key, end: self.take_bytes()? }),
            _ => Err(EntryError::Damaged("change kind")),
        }
    }

    fn take_bytes(&mut self) -> Result<Bytes, EntryError> {
        let (mut len, mut shift, mut used) = (0usize, 0u32, 0usize);
        loop {
            let b = *self.data.get(used).ok_or(EntryError::Damaged("length"))?;
            used += 1;
            len |= usize::from(b & 0x7f) << shift;
            shift += 7;
            if b & 0x80 == 0 {
                break;
            }
            if shift > 28 {
                return Err(EntryError::Damaged("length"));
            }
        }
        if self.data.len() - used < len {
            return Err(EntryError::Damaged("length beyond the entry"));
        }
        let _ = self.data.split_to(used);
        Ok(self.data.split_to(len))
    }
}

fn put_varint(buf: &mut BytesMut, mut n: usize) {
    while n >= 0x80 {
        buf.put_u8(n as u8 | 0x80);
        n >>= 7;
    }
    buf.put_u8(n as u8);
}

fn be_u64(b: &[u8]) -> u64 {
    b.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Bytes {
        let mut w = WriteSet::default();
        w.put(Cf::Raw, b"k", &[b"\0", b"value"]);
        w.delete(Cf::Write, &[7; 300]);
        w.delete_range(Cf::Default, b"a", b"");
        assert_eq!(w.len(), 3);
        w.seal(9)
    }

    #[test]
    fn a_write_reads_back() {
        let Ok(Entry::Write { region_version: 9, ops }) = decode(&sample()) else { panic!("not a write") };
        let ops: Vec<Op> = ops.map(|op| op.unwrap()).collect();
        assert_eq!(
            ops,
            vec![
                Op::Put { cf: Cf::Raw, key: "k".into(), value: "\0value".into() },
                Op::Delete { cf: Cf::Write, key: vec![7; 300].into() },
                Op::DeleteRange { cf: Cf::Default, start: "a".into(), end: Bytes::new() },
            ]
        );
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let good = sample();
        for i in 0..good.len() {
            let mut bad = good.to_vec();
            bad[i] ^= 1;
            assert!(decode(&bad.into()).is_err(), "byte {i}");
        }
    }

    #[test]
    fn every_truncation_is_an_error_and_no_panic() {
        let good = sample();
        for n in 0..good.len() {
            assert!(decode(&good.slice(..n)).is_err(), "{n} bytes");
        }
        for n in 1..good.len() - HEADER {
            let ops = Ops { data: good.slice(HEADER..HEADER + n) };
            let _ = ops.collect::<Vec<_>>();
        }
    }

    #[test]
    fn compact_log_reads_back() {
        assert_eq!(
            decode(&compact_log(3, 77, 5)),
            Ok(Entry::CompactLog { region_version: 3, index: 77, term: 5 })
        );
    }
}
