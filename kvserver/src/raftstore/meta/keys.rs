//! Keys of the `meta` column family.
//!
//! `i` is the store's identity; `r`, region id (u64, big-endian), kind is a region's record: kind `s` its state,
//! `a` its apply state. Records of one region are neighbours, and regions are in the order of their ids.

use bytes::{BufMut, Bytes, BytesMut};

/// Where the store's identity is kept.
pub const STORE_IDENT: &[u8] = b"i";
/// First key of the region records.
pub const REGIONS_START: &[u8] = b"r";
/// First key after the region records.
pub const REGIONS_END: &[u8] = b"s";

const STATE: u8 = b's';
const APPLY: u8 = b'a';

/// The key of a region's state.
pub fn region_state(region_id: u64) -> Bytes {
    record(region_id, STATE)
}

/// The key of a region's apply state.
pub fn apply_state(region_id: u64) -> Bytes {
    record(region_id, APPLY)
}

/// The region id when `key` is that of a region's state.
pub fn region_of_state(key: &[u8]) -> Option<u64> {
    match key {
        [b'r', id @ .., STATE] => Some(u64::from_be_bytes(id.try_into().ok()?)),
        _ => None,
    }
}

fn record(region_id: u64, kind: u8) -> Bytes {
    let mut key = BytesMut::with_capacity(10);
    key.put_u8(b'r');
    key.put_u64(region_id);
    key.put_u8(kind);
    key.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_state_keys_name_a_region() {
        assert_eq!(region_of_state(&region_state(7)), Some(7));
        assert_eq!(region_of_state(&apply_state(7)), None);
        assert_eq!(region_of_state(b"rs"), None);
        assert!(region_state(7) < region_state(256) && &region_state(7)[..] > REGIONS_START);
        assert!(&apply_state(u64::MAX)[..] < REGIONS_END);
    }
}
