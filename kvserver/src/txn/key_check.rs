//! Which transactional keys a cluster takes: the API version of the request, the keyspace prefix, the size.
//!
//! A v2 cluster serves transactional clients of API V2, each in its keyspace, and those of V1 beside them: boundaries
//! of its regions are memcomparable encodings, as both expect. A V1 key that starts like a key of an allocated keyspace is
//! refused, for it would be that key. A v1 cluster cuts its regions at plain raw keys, where transactional clients could
//! not find their way: it refuses them all.

use kvproto::key::{KeyspaceId, Mode, PREFIX_LEN, split_wire_key};
use kvproto::kvrpcpb::ApiVersion;
use kvproto::limits::MAX_KEY_BYTES;
use kvproto::redact;

/// Why a request's keys are refused. The text is for the application's developer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TxnKeyRefusal {
    #[error(
        "this cluster was bootstrapped with [storage] api = \"v1\" and keeps raw keys only: bootstrap a cluster with \
         [storage] api = \"v2\", which serves transactions of clients in API V1 and V2"
    )]
    NeedsV2Cluster,
    #[error("API version {0:?} has no transactions: use V1, or V2 with a keyspace")]
    NoTransactions(ApiVersion),
    #[error(
        "key {0} is in no transactional keyspace: in API V2 such a key starts with 'x' and a 3-byte keyspace id"
    )]
    NoKeyspace(String),
    #[error("range {0} does not stay in one transactional keyspace")]
    CrossesKeyspaces(String),
    #[error("key {0} would lie in keyspace DEFAULT of API V2: use a client in API V2, or another key")]
    BelongsToKeyspace(String),
    #[error("an empty key cannot be written")]
    Empty,
    #[error("key of {bytes} bytes is over the limit of {max}")]
    TooLong { bytes: usize, max: usize },
}

/// The rules of one cluster.
#[derive(Clone, Copy, Debug)]
pub struct TxnKeyCheck {
    /// The form of keys the cluster was bootstrapped with.
    pub cluster: ApiVersion,
}

impl TxnKeyCheck {
    /// Checks the API version that a request names.
    pub fn api(self, request: ApiVersion) -> Result<(), TxnKeyRefusal> {
        if matches!(self.cluster, ApiVersion::V1 | ApiVersion::V1ttl) {
            return Err(TxnKeyRefusal::NeedsV2Cluster);
        }
        match request {
            ApiVersion::V1 | ApiVersion::V2 => Ok(()),
            other => Err(TxnKeyRefusal::NoTransactions(other)),
        }
    }

    /// Checks one key that is read or written.
    pub fn key(self, request: ApiVersion, key: &[u8]) -> Result<(), TxnKeyRefusal> {
        let max = MAX_KEY_BYTES + PREFIX_LEN;
        if key.len() > max {
            return Err(TxnKeyRefusal::TooLong { bytes: key.len(), max });
        }
        if key.is_empty() {
            return Err(TxnKeyRefusal::Empty);
        }
        match (request, split_wire_key(key)) {
            (ApiVersion::V2, Some((Mode::Txn, ..))) => Ok(()),
            (ApiVersion::V2, _) => Err(TxnKeyRefusal::NoKeyspace(redact::Key(key).to_string())),
            (_, Some((Mode::Txn, KeyspaceId::DEFAULT, _))) => {
                Err(TxnKeyRefusal::BelongsToKeyspace(redact::Key(key).to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Checks `[lower, upper)`; an empty `upper` is no bound. In API V2 an open range ends with its keyspace: the upper
    /// bound that this gives is returned.
    pub fn range(
        self,
        request: ApiVersion,
        lower: &[u8],
        upper: bytes::Bytes,
    ) -> Result<bytes::Bytes, TxnKeyRefusal> {
        if request != ApiVersion::V2 {
            return Ok(upper);
        }
        let Some((Mode::Txn, keyspace, _)) = split_wire_key(lower) else {
            return Err(TxnKeyRefusal::NoKeyspace(redact::Key(lower).to_string()));
        };
        let end = keyspace.prefix_end(Mode::Txn);
        if upper.is_empty() {
            return Ok(bytes::Bytes::copy_from_slice(&end));
        }
        if upper[..] > end[..] {
            return Err(TxnKeyRefusal::CrossesKeyspaces(redact::Range(lower, &upper).to_string()));
        }
        Ok(upper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: TxnKeyCheck = TxnKeyCheck { cluster: ApiVersion::V1 };
    const V2: TxnKeyCheck = TxnKeyCheck { cluster: ApiVersion::V2 };

    #[test]
    fn a_v2_cluster_serves_both_kinds_of_clients_and_a_v1_cluster_none() {
        assert!(V2.api(ApiVersion::V1).is_ok() && V2.api(ApiVersion::V2).is_ok());
        assert!(matches!(V2.api(ApiVersion::V1ttl), Err(TxnKeyRefusal::NoTransactions(_))));
        let refusal = V1.api(ApiVersion::V1).unwrap_err().to_string();
        assert!(refusal.contains("api = \"v2\""), "{refusal}");
    }

    #[test]
    fn a_v1_key_must_not_be_one_of_a_keyspace() {
        assert!(V2.key(ApiVersion::V1, b"x").is_ok() && V2.key(ApiVersion::V1, b"x\0\0\x01k").is_ok());
        assert!(matches!(V2.key(ApiVersion::V1, b"x\0\0\0k"), Err(TxnKeyRefusal::BelongsToKeyspace(_))));
        assert!(V2.key(ApiVersion::V2, b"x\0\0\0k").is_ok());
        assert!(matches!(V2.key(ApiVersion::V2, b"r\0\0\0k"), Err(TxnKeyRefusal::NoKeyspace(_))));
    }

    #[test]
    fn empty_and_long_keys_are_refused() {
        assert_eq!(V2.key(ApiVersion::V1, b""), Err(TxnKeyRefusal::Empty));
        let mut key = vec![b'k'; MAX_KEY_BYTES + PREFIX_LEN];
        assert!(V2.key(ApiVersion::V1, &key).is_ok());
        key.push(b'k');
        assert!(matches!(V2.key(ApiVersion::V1, &key), Err(TxnKeyRefusal::TooLong { .. })));
    }

    #[test]
    fn a_v2_range_stays_in_its_keyspace() {
        let range =
            |lower: &'static [u8], upper: &'static [u8]| V2.range(ApiVersion::V2, lower, upper.into());
        assert_eq!(range(b"x\0\0\x01a", b""), Ok("x\0\0\x02".into()));
        assert!(matches!(range(b"x\0\0\x01", b"y"), Err(TxnKeyRefusal::CrossesKeyspaces(_))));
        assert!(matches!(range(b"", b""), Err(TxnKeyRefusal::NoKeyspace(_))));
    }
}
