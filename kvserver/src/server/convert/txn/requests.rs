//! Transactional requests as commands. What cannot be a request of a sane client is refused here, before anything is
//! looked up: every refusal says what is wrong with it.

use std::collections::BTreeSet;

use bytes::Bytes;
use kvproto::kvrpcpb as pb;

use crate::txn::commands::{
    AcquirePessimisticLock, Claim, Mutation, MutationOp, PessimisticAction, Prewrite, check_start_ts,
};
use crate::txn::error::{TxnError, TxnResult};

/// How long a request may wait for a lock, milliseconds.
const WAIT_MS_MAX: u64 = 3_600_000;

fn invalid<T>(text: String) -> TxnResult<T> {
    Err(TxnError::Invalid(text))
}

/// Refuses a read at no time.
pub fn read_ts(ts: u64) -> TxnResult<u64> {
    match ts {
        0 => invalid("0 is no timestamp to read at: take one from the scheduler".into()),
        ts => Ok(ts),
    }
}

/// Refuses a key that is named twice, and a request without any.
pub fn distinct<'a>(keys: impl IntoIterator<Item = &'a Bytes>) -> TxnResult<()> {
    let mut seen = BTreeSet::new();
    for key in keys {
        if !seen.insert(key) {
            return invalid(format!("key {} is named twice in one request", kvproto::redact::Key(key)));
        }
    }
    match seen.is_empty() {
        true => invalid("the request names no keys".into()),
        false => Ok(()),
    }
}

fn primary(key: Bytes) -> TxnResult<Bytes> {
    if key.is_empty() { invalid("the primary key is empty".into()) } else { Ok(key) }
}

fn assertion(number: i32) -> TxnResult<Option<bool>> {
    match pb::Assertion::try_from(number) {
        Ok(pb::Assertion::None) => Ok(None),
        Ok(pb::Assertion::Exist) => Ok(Some(true)),
        Ok(pb::Assertion::NotExist) => Ok(Some(false)),
        Err(_) => invalid(format!("assertion {number} is not known")),
    }
}

fn op(number: i32) -> TxnResult<MutationOp> {
    match pb::Op::try_from(number) {
        Ok(pb::Op::Put) => Ok(MutationOp::Put),
        Ok(pb::Op::Del) => Ok(MutationOp::Delete),
        Ok(pb::Op::Lock) => Ok(MutationOp::Lock),
        Ok(pb::Op::Insert) => Ok(MutationOp::Insert),
        Ok(pb::Op::CheckNotExists) => Ok(MutationOp::CheckNotExists),
        Ok(other) => invalid(format!("operation {} has no place in a prewrite", other.as_str_name())),
        Err(_) => invalid(format!("operation {number} is not known")),
    }
}

fn pessimistic(number: i32) -> TxnResult<PessimisticAction> {
    use pb::prewrite_request::PessimisticAction as Wire;
    match Wire::try_from(number) {
        Ok(Wire::SkipPessimisticCheck) => Ok(PessimisticAction::Skip),
        Ok(Wire::DoPessimisticCheck) => Ok(PessimisticAction::Check),
        Ok(Wire::DoConstraintCheck) => Ok(PessimisticAction::Constraint),
        Err(_) => invalid(format!("pessimistic action {number} is not known")),
    }
}

/// One action for each mutation, or none. A client that cuts a transaction into several requests may leave the actions of
/// the whole in each: as long as they are all the same, which belongs to which mutation makes no difference.
fn check_actions(request: &pb::PrewriteRequest) -> TxnResult<()> {
    let (mutations, actions) = (request.mutations.len(), &request.pessimistic_actions);
    let of_the_whole = actions.len() > mutations && actions.windows(2).all(|pair| pair[0] == pair[1]);
    if actions.is_empty() || actions.len() == mutations || of_the_whole {
        return Ok(());
    }
    invalid(format!("{} pessimistic actions for {mutations} mutations: give one for each", actions.len()))
}

/// A prewrite.
pub fn prewrite(request: pb::PrewriteRequest) -> TxnResult<Prewrite> {
    let start_ts = request.start_version;
    check_start_ts(start_ts)?;
    distinct(request.mutations.iter().map(|m| &m.key))?;
    if !request.txn_file_chunks.is_empty() {
        return invalid("transactions kept in files are not supported".into());
    }
    if request.for_update_ts > 0 && request.for_update_ts < start_ts {
        return invalid(format!(
            "for-update timestamp {} is before the start timestamp {start_ts}",
            request.for_update_ts
        ));
    }
    check_actions(&request)?;
    let assert = request.assertion_level != pb::AssertionLevel::Off as i32;
    let mut mutations = Vec::with_capacity(request.mutations.len());
    for (i, m) in request.mutations.into_iter().enumerate() {
        let action = request.pessimistic_actions.get(i).copied().unwrap_or_default();
        mutations.push(Mutation {
            op: op(m.op)?,
            key: m.key,
            value: m.value,
            pessimistic: pessimistic(action)?,
            expected_for_update_ts: None,
            assertion: if assert { assertion(m.assertion)? } else { None },
        });
    }
    for constraint in request.for_update_ts_constraints {
        let Some(mutation) = mutations.get_mut(constraint.index as usize) else {
            return invalid(format!("a constraint is on mutation {}, which is not there", constraint.index));
        };
        mutation.expected_for_update_ts = Some(constraint.expected_for_update_ts);
    }
    Ok(Prewrite {
        mutations,
        primary: primary(request.primary_lock)?,
        start_ts,
        ttl: request.lock_ttl,
        txn_size: request.txn_size,
        for_update_ts: request.for_update_ts,
        min_commit_ts: request.min_commit_ts,
        max_commit_ts: request.max_commit_ts,
        skip_constraint_check: request.skip_constraint_check,
        secondaries: request.use_async_commit.then_some(request.secondaries),
        try_one_pc: request.try_one_pc,
    })
}

/// Claims of a pessimistic transaction, and how long to wait for them, milliseconds: `wait_ms` when the request does
/// not say.
pub fn pessimistic_lock(
    request: pb::PessimisticLockRequest,
    wait_ms: u64,
) -> TxnResult<(AcquirePessimisticLock, u64)> {
    let start_ts = request.start_version;
    check_start_ts(start_ts)?;
    distinct(request.mutations.iter().map(|m| &m.key))?;
    let lock_with_conflict =
        request.wake_up_mode == pb::PessimisticLockWakeUpMode::WakeUpModeForceLock as i32;
    if lock_with_conflict && request.mutations.len() != 1 {
        return invalid(format!("{} keys to lock by force: give one", request.mutations.len()));
    }
    let mut claims = Vec::with_capacity(request.mutations.len());
    for m in request.mutations {
        if m.op != pb::Op::PessimisticLock as i32 {
            return invalid(format!("operation {} is no claim: use PessimisticLock", m.op));
        }
        claims.push(Claim { must_not_exist: assertion(m.assertion)? == Some(false), key: m.key });
    }
    let wait_ms = match request.wait_timeout {
        0 => wait_ms,
        wait => u64::try_from(wait).unwrap_or(0).min(WAIT_MS_MAX),
    };
    let command = AcquirePessimisticLock {
        claims,
        primary: primary(request.primary_lock)?,
        start_ts,
        ttl: request.lock_ttl,
        for_update_ts: request.for_update_ts,
        min_commit_ts: request.min_commit_ts,
        is_first_lock: request.is_first_lock,
        return_values: request.return_values,
        check_existence: request.check_existence,
        lock_only_if_exists: request.lock_only_if_exists,
        lock_with_conflict,
    };
    Ok((command, wait_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str) -> pb::Mutation {
        pb::Mutation { key: key.into(), value: "v".into(), ..Default::default() }
    }

    fn request(mutations: Vec<pb::Mutation>) -> pb::PrewriteRequest {
        let primary_lock = "a".into();
        pb::PrewriteRequest { mutations, primary_lock, start_version: 10, lock_ttl: 3, ..Default::default() }
    }

    fn refusal(change: impl FnOnce(&mut pb::PrewriteRequest)) -> String {
        let mut bad = request(vec![put("a"), put("b")]);
        change(&mut bad);
        prewrite(bad).unwrap_err().to_string()
    }

    #[test]
    fn a_prewrite_is_taken_over() {
        let command = prewrite(request(vec![put("a")])).unwrap();
        assert_eq!((command.start_ts, command.ttl, command.for_update_ts), (10, 3, 0));
        assert_eq!((command.secondaries, command.try_one_pc), (None, false));
        assert_eq!(command.mutations[0].op, MutationOp::Put);
        // Some clients name secondaries although they do not ask for async commit.
        let named = pb::PrewriteRequest { secondaries: vec!["b".into()], ..request(vec![put("a")]) };
        assert_eq!(prewrite(named.clone()).unwrap().secondaries, None);
        let asked = pb::PrewriteRequest { use_async_commit: true, ..named };
        assert_eq!(prewrite(asked).unwrap().secondaries, Some(vec!["b".into()]));
    }

    #[test]
    fn a_piece_may_carry_the_actions_of_the_whole_transaction() {
        let piece =
            pb::PrewriteRequest { pessimistic_actions: vec![1; 5], ..request(vec![put("a"), put("b")]) };
        let command = prewrite(piece).unwrap();
        assert!(command.mutations.iter().all(|m| m.pessimistic == PessimisticAction::Check));
    }

    #[test]
    fn what_no_sane_client_sends_is_refused_with_a_reason() {
        let cases = [
            (refusal(|r| r.mutations.clear()), "no keys"),
            (refusal(|r| r.mutations[1].key = "a".into()), "twice"),
            (refusal(|r| r.start_version = 0), "0 is no start timestamp"),
            (refusal(|r| r.start_version = u64::MAX), "no start timestamp"),
            (refusal(|r| r.primary_lock = Bytes::new()), "primary"),
            (refusal(|r| r.for_update_ts = 9), "before the start timestamp"),
            (refusal(|r| r.mutations[0].op = 77), "77 is not known"),
            (refusal(|r| r.mutations[0].op = pb::Op::Rollback as i32), "no place"),
            (refusal(|r| r.pessimistic_actions = vec![1]), "1 pessimistic actions for 2"),
            (refusal(|r| r.pessimistic_actions = vec![1, 1, 2]), "3 pessimistic actions for 2"),
            (refusal(|r| r.pessimistic_actions = vec![1, 9]), "9 is not known"),
            (refusal(|r| r.txn_file_chunks = vec![1]), "files"),
            (
                refusal(|r| r.for_update_ts_constraints = vec![Default::default(), out_of_range()]),
                "mutation 2",
            ),
            (
                refusal(|r| {
                    r.assertion_level = pb::AssertionLevel::Strict as i32;
                    r.mutations[0].assertion = 5;
                }),
                "assertion 5",
            ),
        ];
        for (text, expected) in cases {
            assert!(text.contains(expected), "{text:?} does not say {expected:?}");
        }
    }

    fn out_of_range() -> pb::prewrite_request::ForUpdateTsConstraint {
        pb::prewrite_request::ForUpdateTsConstraint { index: 2, expected_for_update_ts: 1 }
    }

    #[test]
    fn the_wait_for_a_lock_is_bounded() {
        let wait = |wait_timeout| {
            let mutations = vec![pb::Mutation {
                op: pb::Op::PessimisticLock as i32,
                key: "k".into(),
                ..Default::default()
            }];
            let primary_lock = "k".into();
            let request = pb::PessimisticLockRequest {
                mutations,
                primary_lock,
                start_version: 10,
                for_update_ts: 10,
                wait_timeout,
                ..Default::default()
            };
            pessimistic_lock(request, 700).unwrap().1
        };
        assert_eq!((wait(0), wait(-1), wait(300)), (700, 0, 300));
        assert_eq!(wait(i64::MAX), WAIT_MS_MAX);
    }

    #[test]
    fn a_claim_by_force_is_for_one_key() {
        let mutations = ["a", "b"].map(|key| pb::Mutation {
            op: pb::Op::PessimisticLock as i32,
            key: key.into(),
            ..Default::default()
        });
        let request = pb::PessimisticLockRequest {
            mutations: mutations.to_vec(),
            primary_lock: "a".into(),
            start_version: 10,
            wake_up_mode: pb::PessimisticLockWakeUpMode::WakeUpModeForceLock as i32,
            ..Default::default()
        };
        assert!(pessimistic_lock(request.clone(), 700).unwrap_err().to_string().contains("by force"));
        let normal = pb::PessimisticLockRequest { wake_up_mode: 0, ..request };
        assert_eq!(pessimistic_lock(normal, 700).unwrap().0.claims.len(), 2);
    }
}
