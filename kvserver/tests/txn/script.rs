//! What can stand in a script, and the commands that it stands for.

use std::error::Error;

use bytes::Bytes;
use kvserver::txn::commands::{
    AcquirePessimisticLock, CheckTxnStatus, Claim, Mutation, MutationOp, PessimisticAction, Prewrite,
};
use kvserver::txn::mvcc::{Isolation, ReadRules};

use super::ts::Ts;

/// Keys and lists of timestamps are parted by slashes. A value `long` is 1 100 bytes.
#[derive(goldenscript::Command)]
pub enum Command {
    /// The region that the commands from here on are about; all keys at first.
    Region {
        start: String,
        end: String,
    },
    /// Somebody reads at a timestamp, somewhere on this store.
    MaxTs {
        ts: Ts,
    },
    /// Puts are `KEY=VALUE` or `insert.KEY=VALUE`, the rest is `delete.KEY`, `lock.KEY` or `absent.KEY`.
    Prewrite {
        start: Ts,
        #[arg(pos, optional, many)]
        others: Vec<String>,
        #[arg(key)]
        primary: String,
        #[arg(key, optional)]
        ttl: u64,
        #[arg(key, optional)]
        size: u64,
        #[arg(key, optional)]
        for_update: Ts,
        /// Keys that need not have been claimed.
        #[arg(key, optional)]
        skip: String,
        /// Keys that need not have been claimed, if nobody has written to them.
        #[arg(key, optional)]
        constraint: String,
        #[arg(key)]
        expected: Option<Ts>,
        #[arg(key, optional)]
        min_commit: Ts,
        #[arg(key, optional)]
        max_commit: Ts,
        #[arg(key, optional)]
        skip_check: bool,
        #[arg(key)]
        secondaries: Option<String>,
        #[arg(key, optional)]
        one_pc: bool,
        #[arg(key)]
        assert_exists: Option<bool>,
        #[arg(key, optional, many)]
        puts: Vec<(String, String)>,
    },
    Commit {
        start: Ts,
        commit: Ts,
        keys: Vec<String>,
    },
    Rollback {
        start: Ts,
        keys: Vec<String>,
    },
    Cleanup {
        start: Ts,
        key: String,
        #[arg(key, optional)]
        current: Ts,
    },
    Check {
        start: Ts,
        primary: String,
        #[arg(key, optional)]
        caller: Ts,
        #[arg(key, optional)]
        current: Ts,
        #[arg(key, optional)]
        rollback_missing: bool,
        #[arg(key, optional)]
        force_sync: bool,
        #[arg(key, optional)]
        claim: bool,
        #[arg(key, optional)]
        verify: bool,
    },
    Secondaries {
        start: Ts,
        keys: Vec<String>,
    },
    /// `START=COMMIT`, 0 for a rollback. Without keys the whole region, in pages of `page` keys.
    Resolve {
        #[arg(key, optional)]
        keys: String,
        #[arg(key)]
        page: Option<usize>,
        #[arg(key, many)]
        fates: Vec<(Ts, Ts)>,
    },
    Heartbeat {
        start: Ts,
        primary: String,
        #[arg(key, optional)]
        ttl: u64,
        #[arg(key, optional)]
        min_commit: Ts,
    },
    /// `absent.KEY` must not exist.
    Claim {
        start: Ts,
        keys: Vec<String>,
        #[arg(key)]
        primary: String,
        /// The start timestamp, if not given.
        #[arg(key)]
        for_update: Option<Ts>,
        #[arg(key, optional)]
        ttl: u64,
        #[arg(key, optional)]
        min_commit: Ts,
        #[arg(key, optional)]
        values: bool,
        #[arg(key, optional)]
        existence: bool,
        #[arg(key, optional)]
        only_existing: bool,
        #[arg(key, optional)]
        force: bool,
    },
    /// Gives claims back; without keys, all of the region.
    Unclaim {
        start: Ts,
        for_update: Ts,
        #[arg(pos, optional, many)]
        keys: Vec<String>,
    },
    /// Reads keys one by one and all at once, and prints when they differ.
    Get {
        ts: Ts,
        keys: Vec<String>,
        #[arg(key, optional)]
        rc: bool,
        #[arg(key, optional)]
        resolved: String,
        #[arg(key, optional)]
        committed: String,
    },
    Scan {
        ts: Ts,
        #[arg(key, optional)]
        from: String,
        #[arg(key, optional)]
        to: String,
        #[arg(key)]
        limit: Option<usize>,
        #[arg(key, optional)]
        reverse: bool,
        #[arg(key, optional)]
        key_only: bool,
        #[arg(key, optional)]
        rc: bool,
        #[arg(key, optional)]
        resolved: String,
        #[arg(key, optional)]
        committed: String,
    },
    Locks {
        max_ts: Ts,
        #[arg(key, optional)]
        from: String,
        #[arg(key, optional)]
        to: String,
        #[arg(key)]
        limit: Option<usize>,
    },
    DeleteRange {
        #[arg(key, optional)]
        from: String,
        #[arg(key, optional)]
        to: String,
    },
    /// All records of keys.
    Mvcc {
        keys: Vec<String>,
    },
    /// The first key of the region with a record of a transaction.
    Find {
        start: Ts,
    },
}

pub fn key(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

pub fn keys(list: &[String]) -> Vec<Bytes> {
    list.iter().map(|s| key(s)).collect()
}

pub fn parted(list: &str) -> Vec<Bytes> {
    list.split('/').filter(|s| !s.is_empty()).map(key).collect()
}

pub fn value(s: &str) -> Bytes {
    if s == "long" { Bytes::from(vec![b'v'; 1_100]) } else { key(s) }
}

pub fn rules(ts: Ts, rc: bool, resolved: &str, committed: &str) -> Result<ReadRules, Box<dyn Error>> {
    let list = |s: &str| -> Result<Vec<u64>, Box<dyn Error>> {
        s.split('/').filter(|s| !s.is_empty()).map(|s| Ok(s.parse::<Ts>()?.0)).collect()
    };
    let mut rules = ReadRules::at(ts.0).knowing(list(resolved)?, list(committed)?);
    rules.isolation = if rc { Isolation::ReadCommitted } else { Isolation::Snapshot };
    Ok(rules)
}

pub fn mutations(command: &Command) -> Result<Vec<Mutation>, Box<dyn Error>> {
    let Command::Prewrite { others, puts, for_update, skip, constraint, expected, assert_exists, .. } =
        command
    else {
        return Err("no prewrite".into());
    };
    let (skip, constraint) = (parted(skip), parted(constraint));
    let mutation = |op, name: &str, value: Bytes| {
        let key = key(name);
        let pessimistic = match () {
            _ if constraint.contains(&key) => PessimisticAction::Constraint,
            _ if skip.contains(&key) || for_update.0 == 0 => PessimisticAction::Skip,
            _ => PessimisticAction::Check,
        };
        let expected_for_update_ts = expected.map(|ts| ts.0);
        Mutation { op, key, value, pessimistic, expected_for_update_ts, assertion: *assert_exists }
    };
    let mut all = Vec::new();
    for (name, put) in puts {
        let (op, name) = match name.strip_prefix("insert.") {
            Some(name) => (MutationOp::Insert, name),
            None => (MutationOp::Put, &name[..]),
        };
        all.push(mutation(op, name, value(put)));
    }
    for other in others {
        let (op, name) = other.split_once('.').ok_or("delete.KEY, lock.KEY or absent.KEY")?;
        let op = match op {
            "delete" => MutationOp::Delete,
            "lock" => MutationOp::Lock,
            "absent" => MutationOp::CheckNotExists,
            other => return Err(format!("no mutation is called {other}").into()),
        };
        all.push(mutation(op, name, Bytes::new()));
    }
    Ok(all)
}

pub fn prewrite(command: &Command) -> Result<Prewrite, Box<dyn Error>> {
    let Command::Prewrite {
        start,
        primary,
        ttl,
        size,
        for_update,
        min_commit,
        max_commit,
        skip_check,
        secondaries,
        one_pc,
        ..
    } = command
    else {
        return Err("no prewrite".into());
    };
    Ok(Prewrite {
        mutations: mutations(command)?,
        primary: key(primary),
        start_ts: start.0,
        ttl: *ttl,
        txn_size: *size,
        for_update_ts: for_update.0,
        min_commit_ts: min_commit.0,
        max_commit_ts: max_commit.0,
        skip_constraint_check: *skip_check,
        secondaries: secondaries.as_ref().map(|list| parted(list)),
        try_one_pc: *one_pc,
    })
}

pub fn claim(command: &Command) -> Result<AcquirePessimisticLock, Box<dyn Error>> {
    let Command::Claim {
        start,
        keys,
        primary,
        for_update,
        ttl,
        min_commit,
        values,
        existence,
        only_existing,
        force,
    } = command
    else {
        return Err("no claim".into());
    };
    let claim = |s: &String| match s.strip_prefix("absent.") {
        Some(s) => Claim { key: key(s), must_not_exist: true },
        None => Claim { key: key(s), must_not_exist: false },
    };
    Ok(AcquirePessimisticLock {
        claims: keys.iter().map(claim).collect(),
        primary: key(primary),
        start_ts: start.0,
        ttl: *ttl,
        for_update_ts: for_update.unwrap_or(*start).0,
        min_commit_ts: min_commit.0,
        is_first_lock: false,
        return_values: *values,
        check_existence: *existence,
        lock_only_if_exists: *only_existing,
        lock_with_conflict: *force,
    })
}

pub fn check(command: &Command) -> Result<CheckTxnStatus, Box<dyn Error>> {
    let Command::Check { start, primary, caller, current, rollback_missing, force_sync, claim, verify } =
        command
    else {
        return Err("no check".into());
    };
    Ok(CheckTxnStatus {
        primary: key(primary),
        start_ts: start.0,
        caller_start_ts: caller.0,
        current_ts: current.0,
        rollback_if_not_exist: *rollback_missing,
        force_sync_commit: *force_sync,
        resolving_pessimistic_lock: *claim,
        verify_is_primary: *verify,
    })
}
