//! Which raw keys a cluster takes: the API version of the request, the keyspace prefix, the size.
//!
//! A v2 cluster keeps raw keys of API V2 only, a v1 cluster those of V1 and V1TTL. A request of the other kind
//! is told both ways out, because the client's configuration and the cluster's are often in different hands.

use bytes::Bytes;
use kvproto::key::{Mode, PREFIX_LEN, split_wire_key};
use kvproto::kvrpcpb::ApiVersion;
use kvproto::limits::MAX_KEY_BYTES;
use kvproto::redact;

/// Why a request's keys are refused. The text is for the application's developer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    #[error(
        "this cluster keeps raw keys of API V2: use a client in API V2 with keyspace DEFAULT, or bootstrap a \
         cluster with [storage] api = \"v1\""
    )]
    NeedsV2,
    #[error(
        "this cluster was bootstrapped with [storage] api = \"v1\": use a client in API V1, or bootstrap a \
         cluster with [storage] api = \"v2\""
    )]
    NeedsV1,
    #[error("key {0} is in no raw keyspace: in API V2 a raw key starts with 'r' and a 3-byte keyspace id")]
    NoKeyspace(String),
    #[error("range {0} does not stay in one raw keyspace")]
    CrossesKeyspaces(String),
    #[error("key of {bytes} bytes is over the limit of {max}")]
    TooLong { bytes: usize, max: usize },
    #[error("raw keys have no column family {0:?}: leave it empty or use \"default\"")]
    ColumnFamily(String),
}

/// The rules of one cluster.
#[derive(Clone, Copy, Debug)]
pub struct KeyCheck {
    /// The form of keys the cluster was bootstrapped with.
    pub cluster: ApiVersion,
}

impl KeyCheck {
    fn v2(self) -> bool {
        matches!(self.cluster, ApiVersion::V2 | ApiVersion::V3)
    }

    /// Checks the API version that a request names.
    pub fn api(self, request: ApiVersion) -> Result<(), KeyRefusal> {
        match (self.v2(), request) {
            (true, ApiVersion::V2) | (false, ApiVersion::V1 | ApiVersion::V1ttl) => Ok(()),
            (true, _) => Err(KeyRefusal::NeedsV2),
            (false, _) => Err(KeyRefusal::NeedsV1),
        }
    }

    /// Checks one key.
    pub fn key(self, key: &[u8]) -> Result<(), KeyRefusal> {
        let max = MAX_KEY_BYTES + if self.v2() { PREFIX_LEN } else { 0 };
        if key.len() > max {
            return Err(KeyRefusal::TooLong { bytes: key.len(), max });
        }
        if self.v2() && !matches!(split_wire_key(key), Some((Mode::Raw, ..))) {
            return Err(KeyRefusal::NoKeyspace(redact::Key(key).to_string()));
        }
        Ok(())
    }

    /// Checks `[lower, upper)`; an empty `upper` is no bound. In a v2 cluster an open range ends with its
    /// keyspace, and the upper bound that this gives is returned.
    pub fn range(self, lower: &[u8], upper: Bytes) -> Result<Bytes, KeyRefusal> {
        if !self.v2() {
            return Ok(upper);
        }
        let Some((Mode::Raw, keyspace, _)) = split_wire_key(lower) else {
            return Err(KeyRefusal::NoKeyspace(redact::Key(lower).to_string()));
        };
        let end = keyspace.prefix_end(Mode::Raw);
        if upper.is_empty() {
            return Ok(Bytes::copy_from_slice(&end));
        }
        // The end of the last keyspace is sometimes written without its trailing zeros.
        if upper[..] > end[..] {
            return Err(KeyRefusal::CrossesKeyspaces(redact::Range(lower, &upper).to_string()));
        }
        Ok(upper)
    }
}

/// Checks the column family that a request names. Raw data has one of its own under any accepted name.
pub fn column_family(name: &str) -> Result<(), KeyRefusal> {
    match name {
        "" | "default" => Ok(()),
        other => Err(KeyRefusal::ColumnFamily(other.chars().take(32).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: KeyCheck = KeyCheck { cluster: ApiVersion::V1 };
    const V2: KeyCheck = KeyCheck { cluster: ApiVersion::V2 };

    #[test]
    fn requests_of_the_other_api_are_told_both_ways_out() {
        let refusal = V2.api(ApiVersion::V1).unwrap_err().to_string();
        assert!(refusal.contains("keyspace DEFAULT") && refusal.contains("api = \"v1\""), "{refusal}");
        let refusal = V1.api(ApiVersion::V2).unwrap_err().to_string();
        assert!(refusal.contains("API V1") && refusal.contains("api = \"v2\""), "{refusal}");
        assert!(V1.api(ApiVersion::V1ttl).is_ok() && V1.api(ApiVersion::V1).is_ok());
        assert!(V2.api(ApiVersion::V2).is_ok() && V2.api(ApiVersion::V3).is_err());
    }

    #[test]
    fn a_v2_key_needs_a_raw_keyspace() {
        assert!(V2.key(b"r\0\0\0").is_ok() && V2.key(b"r\0\0\x07k").is_ok());
        for bad in [&b"x\0\0\0k"[..], b"r\0\0", b"", b"k"] {
            assert!(matches!(V2.key(bad), Err(KeyRefusal::NoKeyspace(_))), "{bad:?}");
            assert!(V1.key(bad).is_ok());
        }
    }

    #[test]
    fn the_prefix_does_not_count_against_the_key_limit() {
        let mut key = b"r\0\0\0".to_vec();
        key.resize(PREFIX_LEN + MAX_KEY_BYTES, b'k');
        assert!(V2.key(&key).is_ok());
        assert!(V1.key(&key).is_err());
        key.push(b'k');
        let max = PREFIX_LEN + MAX_KEY_BYTES;
        assert_eq!(V2.key(&key), Err(KeyRefusal::TooLong { bytes: max + 1, max }));
    }

    #[test]
    fn a_v2_range_stays_in_its_keyspace() {
        let range = |lower: &'static [u8], upper: &'static [u8]| V2.range(lower, Bytes::from_static(upper));
        assert_eq!(range(b"r\0\0\x01a", b""), Ok(Bytes::from_static(b"r\0\0\x02")));
        assert_eq!(range(b"r\0\0\x01", b"r\0\0\x02"), Ok(Bytes::from_static(b"r\0\0\x02")));
        assert!(range(b"r\xff\xff\xff", b"s").is_ok());
        assert!(matches!(range(b"r\0\0\x01", b"r\0\0\x02\0"), Err(KeyRefusal::CrossesKeyspaces(_))));
        assert!(matches!(range(b"", b"r\0\0\x02"), Err(KeyRefusal::NoKeyspace(_))));
        assert_eq!(V1.range(b"", Bytes::new()), Ok(Bytes::new()));
    }
}
