//! Timestamps: the arithmetic (`oracle`, pure) and the stream that hands them out (`service`).

pub mod oracle;
pub(crate) mod service;
