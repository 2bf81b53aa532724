//! Where each transactional reply tells that its request failed.
//!
//! Some have room for one error, some for one per key; reads of many keys tell the first one in a pair as well, for
//! clients that look only there.

use kvproto::kvrpcpb as pb;

use crate::server::convert::{Failure, Reply, pair_with_error};

macro_rules! reply_with_key_error {
    ($($reply:ident),* $(,)?) => {$(
        impl Reply for pb::$reply {
            fn fail(&mut self, failure: Failure) {
                match failure.into_keys() {
                    Ok(errors) => self.error = errors.into_iter().next(),
                    Err(error) => self.region_error = Some(*error),
                }
            }
        }
    )*};
}

reply_with_key_error!(
    GetResponse,
    CommitResponse,
    CleanupResponse,
    BatchRollbackResponse,
    CheckTxnStatusResponse,
    CheckSecondaryLocksResponse,
    TxnHeartBeatResponse,
    ResolveLockResponse,
    ScanLockResponse,
);

macro_rules! reply_with_key_errors {
    ($($reply:ident),* $(,)?) => {$(
        impl Reply for pb::$reply {
            fn fail(&mut self, failure: Failure) {
                match failure.into_keys() {
                    Ok(errors) => self.errors = errors,
                    Err(error) => self.region_error = Some(*error),
                }
            }
        }
    )*};
}

reply_with_key_errors!(PrewriteResponse, PessimisticLockResponse, PessimisticRollbackResponse);

macro_rules! reply_with_error_and_pairs {
    ($($reply:ident),* $(,)?) => {$(
        impl Reply for pb::$reply {
            fn fail(&mut self, failure: Failure) {
                match failure.into_keys() {
                    Ok(errors) => {
                        self.error = errors.first().cloned();
                        self.pairs = errors.into_iter().take(1).map(pair_with_error).collect();
                    }
                    Err(error) => self.region_error = Some(*error),
                }
            }
        }
    )*};
}

reply_with_error_and_pairs!(BatchGetResponse, ScanResponse);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_that_fails_says_so_in_both_places() {
        let reply = pb::ScanResponse::failed(Failure::Request("no".into()));
        let error = Some(pb::KeyError { abort: "no".into(), ..Default::default() });
        assert_eq!((&reply.error, &reply.pairs[0].error), (&error, &error));
    }

    #[test]
    fn a_prewrite_tells_every_key_that_is_locked() {
        let errors = vec![pb::KeyError::default(); 3];
        assert_eq!(pb::PrewriteResponse::failed(Failure::Keys(errors)).errors.len(), 3);
    }
}
