//! Region boundaries for people: the keyspace and the key behind the encoded bytes. Pure.
//!
//! A boundary is shown as `raw/KEYSPACE/KEY` or `txn/KEYSPACE/KEY`, as `key/KEY` when the key is in no keyspace, as
//! `-inf` or `+inf` when there is no bound, and as `hex/BYTES` when it is not what the cluster's form says.

use bytes::Bytes;
use kvproto::key::{BoundaryForm, KeyCodec, KeyspaceId, Mode, split_wire_key};
use kvproto::kvrpcpb::ApiVersion;
use serde::Serialize;

use crate::text;

/// One end of a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// For people.
    pub text: String,
    /// The bytes that the scheduler knows, in hex; empty for no bound.
    pub hex: String,
}

/// Which end of a range a boundary is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Included.
    Start,
    /// Excluded.
    End,
}

/// Describes a boundary of a cluster of this API version.
pub fn describe(boundary: &Bytes, api: ApiVersion, side: Side) -> Bound {
    Bound { text: readable(boundary, api, side), hex: text::to_hex(boundary) }
}

fn readable(boundary: &Bytes, api: ApiVersion, side: Side) -> String {
    if boundary.is_empty() {
        return match side {
            Side::Start => "-inf".to_owned(),
            Side::End => "+inf".to_owned(),
        };
    }
    let Ok(wire) = BoundaryForm::of_raw(api).wire_key(boundary.clone()) else {
        return format!("hex/{}", text::to_hex(boundary));
    };
    let in_keyspaces = BoundaryForm::of_raw(api) == BoundaryForm::Encoded;
    match split_wire_key(&wire).filter(|_| in_keyspaces) {
        Some((mode, keyspace, user)) => {
            let mode = match mode {
                Mode::Raw => "raw",
                Mode::Txn => "txn",
            };
            format!("{mode}/{}/{}", keyspace.get(), text::escape(user))
        }
        None => format!("key/{}", text::escape(&wire)),
    }
}

/// The boundary form of a raw key in the default keyspace, to ask the scheduler which region holds it.
pub fn boundary_of_raw(user: Vec<u8>, api: ApiVersion) -> Bytes {
    let codec = match BoundaryForm::of_raw(api) {
        BoundaryForm::Plain => KeyCodec::V1,
        BoundaryForm::Encoded => KeyCodec::V2 { mode: Mode::Raw, keyspace: KeyspaceId::DEFAULT },
    };
    BoundaryForm::of_raw(api).boundary(codec.wire_key(Bytes::from(user)))
}

/// The API version as it is written in configurations.
pub fn api_name(api: ApiVersion) -> &'static str {
    match api {
        ApiVersion::V1 => "v1",
        ApiVersion::V1ttl => "v1ttl",
        ApiVersion::V2 => "v2",
        ApiVersion::V3 => "v3",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_of_a_v2_cluster_show_keyspace_and_key() {
        let boundary = boundary_of_raw(b"apple\xff".to_vec(), ApiVersion::V2);
        assert_eq!(describe(&boundary, ApiVersion::V2, Side::Start).text, r"raw/0/apple\xff");
        let txn = Bytes::from(kvproto::key::encode(b"x\0\0\x07k"));
        assert_eq!(describe(&txn, ApiVersion::V2, Side::End).text, "txn/7/k");
        let plain = Bytes::from(kvproto::key::encode(b"t1"));
        assert_eq!(describe(&plain, ApiVersion::V2, Side::End).text, "key/t1");
    }

    #[test]
    fn boundaries_of_a_v1_cluster_are_the_keys() {
        let boundary = boundary_of_raw(b"r\0\0\x01".to_vec(), ApiVersion::V1);
        assert_eq!(describe(&boundary, ApiVersion::V1, Side::Start).text, r"key/r\0\0\x01");
    }

    #[test]
    fn open_and_odd_ends_are_marked() {
        assert_eq!(describe(&Bytes::new(), ApiVersion::V2, Side::Start).text, "-inf");
        assert_eq!(describe(&Bytes::new(), ApiVersion::V2, Side::End).text, "+inf");
        let odd = describe(&Bytes::from_static(b"odd"), ApiVersion::V2, Side::End);
        assert_eq!((odd.text.as_str(), odd.hex.as_str()), ("hex/6f6464", "6f6464"));
    }
}
