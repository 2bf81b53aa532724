//! Names and manifests of snapshots, and the check of bytes against them. Pure.
//!
//! Owns the file names (`gen_1_2_3_default.sst` for region 1, term 2, index 3; `rev_…` at the receiver; `.meta`
//! for the manifest) and the manifest's format: a version byte, the body, and a crc32c over both. Everything
//! read here came over the network or from a disk that may have lied: decoding never panics and never allocates
//! by an unchecked length.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kvproto::metapb;
use prost::Message;

use super::{SnapError, SnapKey};
use crate::engine::Cf;

/// The version of manifests this program writes.
const FORMAT: u8 = 2;
/// One that it also reads: it has no safe point.
const FORMAT_WITHOUT_SAFE_POINT: u8 = 1;
/// Version, key, safe point, number of files.
const HEAD_BYTES: usize = 1 + 3 * 8 + 8 + 1;
/// Family, size, keys, checksum.
const FILE_BYTES: usize = 1 + 8 + 8 + 4;
/// Suffix of files that are being written or about to be ingested; swept at start.
pub const TMP_SUFFIX: &str = ".tmp";

/// Whether a snapshot was made here or came from another store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Generated,
    Received,
}

impl Side {
    fn prefix(self) -> &'static str {
        match self {
            Side::Generated => "gen",
            Side::Received => "rev",
        }
    }
}

/// The name of a data file.
pub fn file_name(side: Side, key: &SnapKey, cf: Cf) -> String {
    format!("{}_{key}_{}.sst", side.prefix(), cf.name())
}

/// The name of a manifest.
pub fn meta_name(side: Side, key: &SnapKey) -> String {
    format!("{}_{key}.meta", side.prefix())
}

/// Whose file a name is, temporary ones included; `None` for names that are not of snapshots.
pub fn parse_name(name: &str) -> Option<(Side, SnapKey)> {
    let name = name.strip_suffix(TMP_SUFFIX).unwrap_or(name);
    let (stem, extension) = name.rsplit_once('.')?;
    let mut parts = stem.split('_');
    let side = match parts.next()? {
        "gen" => Side::Generated,
        "rev" => Side::Received,
        _ => return None,
    };
    let mut number = || parts.next()?.parse().ok();
    let key = SnapKey { region_id: number()?, term: number()?, index: number()? };
    let fits = match (extension, parts.next()) {
        ("sst", Some(cf)) => Cf::from_name(cf).is_some(),
        ("meta", None) => true,
        _ => false,
    };
    (fits && parts.next().is_none()).then_some((side, key))
}

/// One data file of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapFile {
    pub cf: Cf,
    pub bytes: u64,
    pub keys: u64,
    /// Of the whole file.
    pub crc32c: u32,
}

/// What a snapshot consists of. Families without keys have no file.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub key: SnapKey,
    pub region: metapb::Region,
    /// Up to this timestamp versions may be missing: whoever takes the data must refuse to read below it first.
    pub gc_safe_point: u64,
    /// In the order of the family's number; the order in which they are sent.
    pub files: Vec<SnapFile>,
}

impl Manifest {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, f| sum.saturating_add(f.bytes))
    }

    /// The stored and sent form.
    pub fn encode(&self) -> Bytes {
        let files = self.files.len() * FILE_BYTES;
        let mut out = BytesMut::with_capacity(HEAD_BYTES + files + self.region.encoded_len() + 4);
        out.put_u8(FORMAT);
        out.put_u64_le(self.key.region_id);
        out.put_u64_le(self.key.term);
        out.put_u64_le(self.key.index);
        out.put_u64_le(self.gc_safe_point);
        out.put_u8(self.files.len() as u8);
        for file in &self.files {
            out.put_u8(file.cf as u8);
            out.put_u64_le(file.bytes);
            out.put_u64_le(file.keys);
            out.put_u32_le(file.crc32c);
        }
        out.put_slice(&self.region.encode_to_vec());
        out.put_u32_le(crc32c::crc32c(&out));
        out.freeze()
    }

    /// Reads the stored or sent form.
    ///
    /// # Errors
    /// [`SnapError::Corrupt`] when it is damaged, makes no sense, or has a version that this program doesn't know.
    pub fn decode(manifest: &[u8]) -> Result<Manifest, SnapError> {
        let corrupt = |what: String| SnapError::Corrupt(format!("manifest: {what}"));
        let too_short = || corrupt(format!("{} bytes are too few", manifest.len()));
        let (body, crc) = manifest.split_last_chunk::<4>().ok_or_else(too_short)?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(corrupt("the checksum does not match".into()));
        }
        let mut rest = body;
        let Some(version) = rest.first().copied() else { return Err(too_short()) };
        let head = match version {
            FORMAT => HEAD_BYTES,
            FORMAT_WITHOUT_SAFE_POINT => HEAD_BYTES - 8,
            version => return Err(corrupt(format!("format {version} is unknown; upgrade kvserver"))),
        };
        if rest.len() < head {
            return Err(too_short());
        }
        rest.advance(1);
        let key = SnapKey { region_id: rest.get_u64_le(), term: rest.get_u64_le(), index: rest.get_u64_le() };
        let gc_safe_point = if version == FORMAT { rest.get_u64_le() } else { 0 };
        let count = usize::from(rest.get_u8());
        if rest.len() < count * FILE_BYTES {
            return Err(too_short());
        }
        let mut files: Vec<SnapFile> = Vec::with_capacity(count);
        for _ in 0..count {
            let cf = rest.get_u8();
            let cf = Cf::from_u8(cf).filter(|cf| Cf::DATA.contains(cf));
            let cf = cf.ok_or_else(|| corrupt("a file is of an unknown column family".into()))?;
            if files.last().is_some_and(|last| last.cf >= cf) {
                return Err(corrupt("the files are not in order".into()));
            }
            let file =
                SnapFile { cf, bytes: rest.get_u64_le(), keys: rest.get_u64_le(), crc32c: rest.get_u32_le() };
            if file.bytes == 0 || file.keys == 0 {
                return Err(corrupt(format!("the file of {} is empty", cf.name())));
            }
            files.push(file);
        }
        let region = metapb::Region::decode(rest).map_err(|e| corrupt(format!("region: {e}")))?;
        if region.id != key.region_id {
            return Err(corrupt(format!("region {} in a snapshot of {}", region.id, key.region_id)));
        }
        Ok(Manifest { key, region, gc_safe_point, files })
    }
}

/// Checks the bytes of one file, as they pass, against the manifest.
#[derive(Clone, Debug)]
pub struct FileCheck {
    expected: SnapFile,
    bytes: u64,
    crc32c: u32,
}

impl FileCheck {
    /// Nothing has passed yet.
    pub fn new(expected: SnapFile) -> FileCheck {
        FileCheck { expected, bytes: 0, crc32c: 0 }
    }

    /// Bytes that have still to come.
    pub fn remaining(&self) -> u64 {
        self.expected.bytes - self.bytes
    }

    /// `data` passes.
    ///
    /// # Errors
    /// [`SnapError::Corrupt`] when the file is longer than announced.
    pub fn update(&mut self, data: &[u8]) -> Result<(), SnapError> {
        if data.len() as u64 > self.remaining() {
            return Err(self.wrong("is longer than announced"));
        }
        self.bytes += data.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, data);
        Ok(())
    }

    /// The file has ended.
    ///
    /// # Errors
    /// [`SnapError::Corrupt`] when it is shorter than announced or its checksum differs.
    pub fn finish(&self) -> Result<(), SnapError> {
        if self.remaining() > 0 {
            return Err(self.wrong("is shorter than announced"));
        }
        if self.crc32c != self.expected.crc32c {
            return Err(self.wrong("has another checksum than announced"));
        }
        Ok(())
    }

    fn wrong(&self, what: &str) -> SnapError {
        SnapError::Corrupt(format!("the file of {} {what}", self.expected.cf.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let file = |cf| SnapFile { cf, bytes: 5, keys: 2, crc32c: crc32c::crc32c(b"12345") };
        Manifest {
            key: SnapKey { region_id: 1, term: 2, index: 3 },
            region: metapb::Region { id: 1, start_key: b"a".to_vec().into(), ..Default::default() },
            gc_safe_point: 77,
            files: vec![file(Cf::Default), file(Cf::Raw)],
        }
    }

    fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let body = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..body]);
        bytes[body..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn refusal(bytes: &[u8]) -> String {
        Manifest::decode(bytes).unwrap_err().to_string()
    }

    #[test]
    fn names_say_whose_file_it_is() {
        let key = SnapKey { region_id: 1, term: 2, index: 3 };
        assert_eq!(file_name(Side::Generated, &key, Cf::Default), "gen_1_2_3_default.sst");
        assert_eq!(meta_name(Side::Received, &key), "rev_1_2_3.meta");
        for side in [Side::Generated, Side::Received] {
            assert_eq!(parse_name(&meta_name(side, &key)), Some((side, key.clone())));
            let tmp = file_name(side, &key, Cf::Raw) + TMP_SUFFIX;
            assert_eq!(parse_name(&tmp), Some((side, key.clone())));
        }
        for name in [
            "gen_1_2_3.sst",
            "gen_1_2_3_default.meta",
            "gen_1_2_3_odd.sst",
            "abc_1_2_3.meta",
            "gen_1_2.meta",
            "",
        ] {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_manifest_survives_the_way_and_any_flipped_bit_is_seen() {
        let sent = manifest().encode();
        assert_eq!(Manifest::decode(&sent).unwrap(), manifest());
        for bit in 0..sent.len() * 8 {
            let mut bytes = sent.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&bytes).is_err(), "bit {bit}");
        }
        for len in 0..sent.len() {
            assert!(Manifest::decode(&sent[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_manifest_of_the_version_before_has_no_safe_point() {
        let mut older = manifest().encode().to_vec();
        older[0] = FORMAT_WITHOUT_SAFE_POINT;
        older.drain(HEAD_BYTES - 9..HEAD_BYTES - 1);
        let read = Manifest::decode(&resealed(older)).unwrap();
        assert_eq!(read, Manifest { gc_safe_point: 0, ..manifest() });
    }

    #[test]
    fn a_manifest_that_makes_no_sense_is_refused_with_the_reason() {
        let good = manifest().encode().to_vec();
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            refusal(&resealed(bytes))
        };
        assert!(changed(0, 9).contains("format 9 is unknown"));
        assert!(changed(1, 7).contains("region 1 in a snapshot of 7"));
        assert!(changed(HEAD_BYTES - 1, 200).contains("too few"));
        assert!(changed(HEAD_BYTES, 99).contains("unknown column family"));
        assert!(changed(HEAD_BYTES, Cf::Meta as u8).contains("unknown column family"));
        assert!(changed(HEAD_BYTES, Cf::Raw as u8).contains("not in order"));
        assert!(changed(HEAD_BYTES + 1, 0).contains("is empty"));
    }

    #[test]
    fn a_file_that_differs_from_its_manifest_is_seen() {
        let check = |pieces: &[&[u8]]| {
            let mut check = FileCheck::new(manifest().files[0]);
            pieces.iter().try_for_each(|piece| check.update(piece))?;
            check.finish()
        };
        check(&[b"12", b"", b"345"]).unwrap();
        let why = |pieces| check(pieces).unwrap_err().to_string();
        assert!(why(&[b"1234"]).contains("shorter"));
        assert!(why(&[b"123456"]).contains("longer"));
        assert!(why(&[b"12346"]).contains("checksum"));
    }
}
