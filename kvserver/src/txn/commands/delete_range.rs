//! Delete range: everything that transactions have ever left in a range goes at once: versions, values and locks.
//!
//! It takes no latches and asks no lock. Who uses it sees to it that nobody else uses the range.

use bytes::Bytes;

use crate::engine::Cf;
use crate::raftstore::message::WriteSet;
use crate::raftstore::meta::region_view::RegionMeta;
use crate::txn::mvcc::scan::encoded_bounds;
use crate::txn::range::clamp;

/// The write that removes the part of `[start, end)` that lies in the region; an empty `end` is open. Empty when there
/// is none.
pub fn delete_range(region: &RegionMeta, start: &Bytes, end: &Bytes) -> WriteSet {
    let mut write = WriteSet::with_capacity(3 * (start.len() + end.len()) * 9 / 8 + 128);
    if let Some((lower, upper)) = clamp(region, start, end) {
        let (lower, upper) = encoded_bounds(&lower, &upper);
        for cf in [Cf::Lock, Cf::Write, Cf::Default] {
            write.delete_range(cf, &lower, &upper);
        }
    }
    write
}
