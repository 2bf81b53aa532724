//! Sizes that both ends of a wire rely on.

/// Largest key in bytes, without a keyspace prefix.
pub const MAX_KEY_BYTES: usize = 8 << 10;

/// A reply must stay below this many bytes: clients of the field decode no more.
pub const MAX_REPLY_BYTES: usize = 4 << 20;

/// A server may answer a scan with fewer pairs than its limit before the end of the region only when keys and
/// values of the reply add up to at least this many bytes. A client that got fewer pairs and fewer bytes knows that
/// the region holds no more.
pub const SCAN_CUT_BYTES: usize = 1 << 20;
