//! Transactional requests as messages: decodes them, has [`Txn`] carry them out, and words the reply.
//!
//! `requests` makes commands of messages, `errors` words failures, `replies` knows where they go, `reads` and `writes`
//! are the requests one by one. No request fails but in its reply.

use std::sync::Arc;

use kvproto::kvrpcpb as pb;

use super::{Failure, api_version, region_context};
use crate::error::RegionError;
use crate::storage::RegionContext;
use crate::txn::error::TxnError;
use crate::txn::scheduler::{Txn, TxnCall};

pub mod errors;
mod looks;
mod reads;
mod replies;
pub mod requests;
mod writes;

/// Transactional commands of a server. Clones share the runner.
#[derive(Clone)]
pub struct TxnCommands {
    txn: Arc<Txn>,
    /// How long a request waits for a lock when it does not say, milliseconds.
    wait_ms: u64,
}

impl TxnCommands {
    /// Requests wait for locks for a second when they do not say how long.
    pub fn new(txn: Arc<Txn>) -> TxnCommands {
        TxnCommands { txn, wait_ms: 1_000 }
    }

    /// The same, but they wait for so many milliseconds.
    pub fn waiting(self, wait_ms: u64) -> TxnCommands {
        TxnCommands { wait_ms, ..self }
    }
}

/// What a request says about itself.
fn call(ctx: &Option<pb::Context>) -> TxnCall {
    let (ctx, api) = match ctx {
        Some(ctx) => (region_context(ctx), api_version(ctx.api_version)),
        None => (RegionContext::default(), pb::ApiVersion::V1),
    };
    TxnCall { ctx, api }
}

/// Keeps the sign of a failed step until the reply is made.
type Answered<T> = Result<T, Failure>;

/// A refusal of what the request asks for.
fn invalid<T>(text: String) -> Answered<T> {
    Err(TxnError::Invalid(text).into())
}

/// No timestamp is known up to which every replica has everything: clients read from leaders then.
fn not_stale(ctx: &Option<pb::Context>) -> Answered<()> {
    let Some(ctx) = ctx.as_ref().filter(|ctx| ctx.stale_read) else { return Ok(()) };
    let RegionContext { region_id, peer_id, .. } = region_context(ctx);
    Err(TxnError::Region(RegionError::DataIsNotReady { region_id, peer_id }).into())
}
