//! How keys look in each of their three forms, and the way between them.
//!
//! - **user key**: what an application hands in;
//! - **wire key**: what a request carries. Equal to the user key in API V1; in API V2 it starts with a mode
//!   byte (`r` raw, `x` transactional) and the 3-byte big-endian keyspace id;
//! - **boundary**: how a wire key appears as a region's start or end. Plain for raw V1, else memcomparable.
//!
//! The memcomparable encoding cuts a key into groups of eight bytes and follows each with a marker: 0xFF after
//! a full group, 0xFF minus the number of zero bytes that pad the last one. Encoded keys sort as the plain
//! ones do, and no encoded key is a prefix of another.
//!
//! Invariants: `decode(encode(k)) == k`; `a < b` exactly when `encode(a) < encode(b)`; decoding accepts only
//! what encoding can produce.

use bytes::{BufMut, Bytes, BytesMut};

use crate::kvrpcpb::ApiVersion;

/// Bytes of a group of the memcomparable encoding, without its marker.
pub const GROUP_LEN: usize = 8;
/// Bytes of a keyspace prefix: the mode and a 3-byte id.
pub const PREFIX_LEN: usize = 4;

const MARKER: u8 = 0xff;
const ENCODED_GROUP_LEN: usize = GROUP_LEN + 1;

/// Why bytes are not a key of the form that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The input ends inside a group.
    #[error("encoded key of {len} bytes ends inside a group; groups take 9 bytes")]
    Truncated {
        /// Length of the input in bytes.
        len: usize,
    },
    /// A marker byte that no encoder writes.
    #[error("encoded key has marker {marker:#04x} at byte {offset}; legal are 0xf7 to 0xff")]
    BadMarker {
        /// Position of the marker in the input.
        offset: usize,
        /// The byte found there.
        marker: u8,
    },
    /// The last group is padded with something else than zeros.
    #[error("encoded key is not padded with zeros in the group at byte {offset}")]
    BadPadding {
        /// Position of the group in the input.
        offset: usize,
    },
    /// Bytes follow the last group.
    #[error("encoded key is followed by {count} more bytes")]
    TrailingBytes {
        /// How many bytes follow.
        count: usize,
    },
    /// A key outside the keyspace it was looked for in.
    #[error("key does not start with the prefix of keyspace {keyspace} in mode {mode:?}")]
    WrongKeyspace {
        /// The keyspace that was expected.
        keyspace: u32,
        /// The mode that was expected.
        mode: Mode,
    },
    /// A keyspace id above 24 bits.
    #[error("keyspace id {0} does not fit 24 bits; the largest is 16777215")]
    KeyspaceIdTooLarge(u32),
}

/// Length of the memcomparable encoding of a key of `len` bytes.
pub const fn encoded_len(len: usize) -> usize {
    (len / GROUP_LEN + 1) * ENCODED_GROUP_LEN
}

/// The memcomparable encoding of `key`.
pub fn encode(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded_len(key.len()));
    encode_into(key, &mut out);
    out
}

/// Appends the memcomparable encoding of `key` to `out`. Reserve [`encoded_len`] to allocate at most once.
pub fn encode_into(key: &[u8], out: &mut impl BufMut) {
    let mut groups = key.chunks_exact(GROUP_LEN);
    for group in &mut groups {
        out.put_slice(group);
        out.put_u8(MARKER);
    }
    let rest = groups.remainder();
    let mut last = [0; ENCODED_GROUP_LEN];
    last[..rest.len()].copy_from_slice(rest);
    last[GROUP_LEN] = MARKER - (GROUP_LEN - rest.len()) as u8;
    out.put_slice(&last);
}

/// The key that `encoded` is the memcomparable encoding of.
pub fn decode(encoded: &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut out = Vec::with_capacity(encoded.len() / ENCODED_GROUP_LEN * GROUP_LEN);
    let rest = decode_into(encoded, &mut out)?;
    match rest.len() {
        0 => Ok(out),
        count => Err(KeyError::TrailingBytes { count }),
    }
}

/// Appends the key whose encoding `encoded` starts with to `out` and returns what follows the encoding. On an
/// error `out` may have grown by a part of the key.
pub fn decode_into<'a>(encoded: &'a [u8], out: &mut impl BufMut) -> Result<&'a [u8], KeyError> {
    let mut offset = 0;
    while let Some(group) = encoded.get(offset..offset + ENCODED_GROUP_LEN) {
        let marker = group[GROUP_LEN];
        let padding = usize::from(MARKER - marker);
        if padding > GROUP_LEN {
            return Err(KeyError::BadMarker { offset: offset + GROUP_LEN, marker });
        }
        let (data, zeros) = group[..GROUP_LEN].split_at(GROUP_LEN - padding);
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(KeyError::BadPadding { offset });
        }
        out.put_slice(data);
        offset += ENCODED_GROUP_LEN;
        if padding > 0 {
            return Ok(&encoded[offset..]);
        }
    }
    Err(KeyError::Truncated { len: encoded.len() })
}

/// What a key of a keyspace holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Raw key-value pairs.
    Raw,
    /// Transactional ones.
    Txn,
}

impl Mode {
    /// The first byte of every wire key in this mode.
    pub const fn byte(self) -> u8 {
        match self {
            Mode::Raw => b'r',
            Mode::Txn => b'x',
        }
    }

    /// The mode whose keys start with `byte`.
    pub const fn from_byte(byte: u8) -> Option<Mode> {
        match byte {
            b'r' => Some(Mode::Raw),
            b'x' => Some(Mode::Txn),
            _ => None,
        }
    }
}

/// A keyspace number, at most 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyspaceId(u32);

impl KeyspaceId {
    /// The keyspace named `DEFAULT`, which every V2 cluster has.
    pub const DEFAULT: KeyspaceId = KeyspaceId(0);
    /// The largest id.
    pub const MAX: KeyspaceId = KeyspaceId(0xff_ffff);

    /// Checks that `id` fits 24 bits.
    pub const fn new(id: u32) -> Result<KeyspaceId, KeyError> {
        if id > Self::MAX.0 {
            return Err(KeyError::KeyspaceIdTooLarge(id));
        }
        Ok(KeyspaceId(id))
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// What every wire key of this keyspace and mode starts with.
    pub const fn prefix(self, mode: Mode) -> [u8; PREFIX_LEN] {
        (((mode.byte() as u32) << 24) | self.0).to_be_bytes()
    }

    /// The first wire key after this keyspace and mode: the next id's prefix, or the next mode byte after the
    /// last id.
    pub const fn prefix_end(self, mode: Mode) -> [u8; PREFIX_LEN] {
        ((((mode.byte() as u32) << 24) | self.0) + 1).to_be_bytes()
    }
}

/// Mode, keyspace and user key of a V2 wire key; `None` when it has no keyspace prefix.
pub fn split_wire_key(wire: &[u8]) -> Option<(Mode, KeyspaceId, &[u8])> {
    let (&[mode, a, b, c], user) = wire.split_first_chunk::<PREFIX_LEN>()?;
    Some((Mode::from_byte(mode)?, KeyspaceId(u32::from_be_bytes([0, a, b, c])), user))
}

/// How user keys become wire keys: the API a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyCodec {
    /// No prefix.
    V1,
    /// A mode byte and a keyspace id before every key.
    V2 {
        /// Raw or transactional.
        mode: Mode,
        /// The keyspace all keys live in.
        keyspace: KeyspaceId,
    },
}

impl KeyCodec {
    /// The API version that requests name in their context.
    pub const fn api_version(self) -> ApiVersion {
        match self {
            KeyCodec::V1 => ApiVersion::V1,
            KeyCodec::V2 { .. } => ApiVersion::V2,
        }
    }

    /// Bytes that a wire key has more than its user key.
    pub const fn prefix_len(self) -> usize {
        match self {
            KeyCodec::V1 => 0,
            KeyCodec::V2 { .. } => PREFIX_LEN,
        }
    }

    /// The wire key of `user`. Free in V1, one allocation in V2.
    pub fn wire_key(self, user: Bytes) -> Bytes {
        match self {
            KeyCodec::V1 => user,
            KeyCodec::V2 { mode, keyspace } => {
                let mut wire = BytesMut::with_capacity(PREFIX_LEN + user.len());
                wire.put_slice(&keyspace.prefix(mode));
                wire.put_slice(&user);
                wire.freeze()
            }
        }
    }

    /// The user key of `wire`; shares its memory.
    pub fn user_key(self, wire: Bytes) -> Result<Bytes, KeyError> {
        match self {
            KeyCodec::V1 => Ok(wire),
            KeyCodec::V2 { mode, keyspace } if wire.starts_with(&keyspace.prefix(mode)) => {
                Ok(wire.slice(PREFIX_LEN..))
            }
            KeyCodec::V2 { mode, keyspace } => Err(KeyError::WrongKeyspace { keyspace: keyspace.0, mode }),
        }
    }

    /// The wire key where everything starts: empty in V1.
    pub fn range_start(self) -> Bytes {
        match self {
            KeyCodec::V1 => Bytes::new(),
            KeyCodec::V2 { mode, keyspace } => Bytes::copy_from_slice(&keyspace.prefix(mode)),
        }
    }

    /// The first wire key after everything; empty in V1, which means no end.
    pub fn range_end(self) -> Bytes {
        match self {
            KeyCodec::V1 => Bytes::new(),
            KeyCodec::V2 { mode, keyspace } => Bytes::copy_from_slice(&keyspace.prefix_end(mode)),
        }
    }
}

/// How wire keys stand in region boundaries. An empty boundary is no bound in either form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoundaryForm {
    /// As they are: raw keys of a V1 cluster.
    Plain,
    /// Memcomparable: everything in a V2 cluster, and transactional keys everywhere.
    Encoded,
}

impl BoundaryForm {
    /// The form of raw keys in a cluster of this API version.
    pub const fn of_raw(cluster: ApiVersion) -> BoundaryForm {
        match cluster {
            ApiVersion::V1 | ApiVersion::V1ttl => BoundaryForm::Plain,
            ApiVersion::V2 | ApiVersion::V3 => BoundaryForm::Encoded,
        }
    }

    /// The boundary that cuts before `wire`.
    pub fn boundary(self, wire: Bytes) -> Bytes {
        match self {
            BoundaryForm::Encoded if !wire.is_empty() => Bytes::from(encode(&wire)),
            _ => wire,
        }
    }

    /// The wire key a boundary cuts before.
    pub fn wire_key(self, boundary: Bytes) -> Result<Bytes, KeyError> {
        match self {
            BoundaryForm::Encoded if !boundary.is_empty() => decode(&boundary).map(Bytes::from),
            _ => Ok(boundary),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_encodings() {
        assert_eq!(encode(b""), [0, 0, 0, 0, 0, 0, 0, 0, 0xf7]);
        assert_eq!(encode(b"\x01\x02\x03"), [1, 2, 3, 0, 0, 0, 0, 0, 0xfa]);
        assert_eq!(
            encode(b"\x01\x02\x03\x04\x05\x06\x07\x08"),
            [1, 2, 3, 4, 5, 6, 7, 8, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0xf7]
        );
    }

    #[test]
    fn malformed_encodings_are_told_apart() {
        assert_eq!(decode(b""), Err(KeyError::Truncated { len: 0 }));
        assert_eq!(decode(&[0; 8]), Err(KeyError::Truncated { len: 8 }));
        assert_eq!(decode(&[1, 2, 3, 4, 5, 6, 7, 8, 0xff]), Err(KeyError::Truncated { len: 9 }));
        assert_eq!(
            decode(&[0, 0, 0, 0, 0, 0, 0, 0, 0xf6]),
            Err(KeyError::BadMarker { offset: 8, marker: 0xf6 })
        );
        assert_eq!(decode(&[0, 0, 0, 0, 0, 0, 0, 1, 0xf7]), Err(KeyError::BadPadding { offset: 0 }));
        let mut trailing = encode(b"a");
        trailing.push(0);
        assert_eq!(decode(&trailing), Err(KeyError::TrailingBytes { count: 1 }));
    }

    #[test]
    fn keyspace_prefixes_end_where_the_next_begins() {
        let id = KeyspaceId::new(0x01_02ff).unwrap();
        assert_eq!(id.prefix(Mode::Raw), [0x72, 0x01, 0x02, 0xff]);
        assert_eq!(id.prefix_end(Mode::Raw), [0x72, 0x01, 0x03, 0x00]);
        assert_eq!(KeyspaceId::MAX.prefix_end(Mode::Raw), [0x73, 0, 0, 0]);
        assert_eq!(KeyspaceId::MAX.prefix_end(Mode::Txn), [0x79, 0, 0, 0]);
        assert_eq!(KeyspaceId::new(0x100_0000), Err(KeyError::KeyspaceIdTooLarge(0x100_0000)));
    }

    #[test]
    fn a_key_of_another_keyspace_is_refused() {
        let codec = KeyCodec::V2 { mode: Mode::Raw, keyspace: KeyspaceId::DEFAULT };
        let wire = codec.wire_key(Bytes::from_static(b"k"));
        assert_eq!(wire, &b"r\0\0\0k"[..]);
        assert_eq!(split_wire_key(&wire), Some((Mode::Raw, KeyspaceId::DEFAULT, &b"k"[..])));
        assert!(codec.user_key(Bytes::from_static(b"r\0\0\x01k")).is_err());
        assert!(codec.user_key(Bytes::from_static(b"r\0")).is_err());
    }

    proptest! {
        #[test]
        fn encoding_is_reversible_and_ordered(a: Vec<u8>, b: Vec<u8>) {
            prop_assert_eq!(encode(&a).len(), encoded_len(a.len()));
            prop_assert_eq!(decode(&encode(&a)).unwrap(), a.clone());
            prop_assert_eq!(a.cmp(&b), encode(&a).cmp(&encode(&b)));
        }

        #[test]
        fn decoding_accepts_only_what_encoding_writes(bytes: Vec<u8>, shape in 0usize..4) {
            // Random bytes rarely have a legal marker, so some inputs get one.
            let mut bytes = bytes;
            if let (1..4, Some(last)) = (shape, bytes.last_mut()) {
                *last = 0xf7 + shape as u8;
            }
            if let Ok(key) = decode(&bytes) {
                prop_assert_eq!(encode(&key), bytes);
            }
        }

        #[test]
        fn decoding_returns_what_follows(key: Vec<u8>, tail: Vec<u8>) {
            let mut bytes = encode(&key);
            bytes.extend_from_slice(&tail);
            let mut out = Vec::new();
            prop_assert_eq!(decode_into(&bytes, &mut out).unwrap(), &tail[..]);
            prop_assert_eq!(out, key);
        }

        #[test]
        fn the_three_forms_convert_back(user: Vec<u8>, id in 0u32..=0xff_ffff, raw: bool) {
            let mode = if raw { Mode::Raw } else { Mode::Txn };
            let codec = KeyCodec::V2 { mode, keyspace: KeyspaceId::new(id).unwrap() };
            let wire = codec.wire_key(Bytes::from(user.clone()));
            prop_assert!(codec.range_start() <= wire && wire < codec.range_end());
            let boundary = BoundaryForm::Encoded.boundary(wire.clone());
            prop_assert_eq!(BoundaryForm::Encoded.wire_key(boundary).unwrap(), wire.clone());
            prop_assert_eq!(codec.user_key(wire).unwrap(), user);
        }
    }
}
