//! Sizes that both ends of a wire rely on.

/// Largest key in bytes, without a keyspace prefix.
pub const MAX_KEY_BYTES: usize = 8 << 10;

/// A reply must stay below this many bytes: clients of the field decode no more.
pub const MAX_REPLY_BYTES: usize = 4 << 20;

/// A server may answer a scan with fewer pairs than its limit before the end of the region only when keys and
/// values of the reply add up to at least this many bytes, and the client has said that it knows this rule by
/// [`CUT_AWARE_SOURCE`]. A client that got fewer pairs and fewer bytes knows that
/// the region holds no more.
pub const SCAN_CUT_BYTES: usize = 1 << 20;

/// A client whose requests name a `request_source` that starts with this knows that scans may be cut. Others take
/// a reply with fewer pairs than the limit for the end of the region.
pub const CUT_AWARE_SOURCE: &str = "kvasir";
