//! Transactions that meet: write conflicts, locks that are waited for, locks that are given up, deadlocks on one store
//! and across stores.

use std::future::Future;

use integration::cluster::ProcessCluster;
use kvproto::kvrpcpb::GetLockWaitInfoRequest;
use tikv_client::transaction::HeartbeatOption;
use tikv_client::{Error, TimestampExt, Transaction};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_optimistic_writers_the_first_to_commit_wins() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        world.put(&[("race/a", "0"), ("race/b", "0")]).await;
        for (kind, options) in kinds().into_iter().filter(|(_, options)| !options.is_pessimistic()) {
            lost_update(&world, kind, options.clone()).await.expect(kind);
            write_skew(&world, kind, options).await.expect(kind);
        }
    }
}

async fn lost_update(world: &World, kind: &str, options: TransactionOptions) -> Result<(), Error> {
    let key = || world.key("race/a");
    let mut slow = world.client.begin_with_options(options.clone()).await?;
    let mut fast = world.client.begin_with_options(options).await?;
    slow.get(key()).await?;
    fast.get(key()).await?;
    slow.put(key(), "slow").await?;
    fast.put(key(), kind).await?;
    let committed = fast.commit().await?.expect("a timestamp").version();
    let refused = slow.commit().await.expect_err("it would lose an update");
    assert!(is_conflict(&refused), "{kind}: {refused}");
    let conflict = key_errors(&refused)[0].conflict.clone().expect("a conflict");
    assert_eq!(
        (conflict.start_ts, conflict.conflict_ts),
        (slow.start_timestamp().version(), fast.start_timestamp().version())
    );
    assert_eq!(conflict.conflict_commit_ts, committed, "{kind}");
    assert_eq!(conflict.key, world.hand.key(&key()), "{kind}");
    slow.rollback().await?;
    assert_eq!(world.get("race/a").await.as_deref(), Some(kind));
    Ok(())
}

/// Each reads what the other writes. Locking what was read makes the second one fail.
async fn write_skew(world: &World, kind: &str, options: TransactionOptions) -> Result<(), Error> {
    let mut slow = world.client.begin_with_options(options.clone()).await?;
    let mut fast = world.client.begin_with_options(options).await?;
    slow.lock_keys([world.key("race/b")]).await?;
    slow.put(world.key("race/a"), "slow").await?;
    fast.lock_keys([world.key("race/a")]).await?;
    fast.put(world.key("race/b"), kind).await?;
    fast.commit().await?;
    let refused = slow.commit().await.expect_err("what it has read was changed");
    assert!(is_conflict(&refused), "{kind}: {refused}");
    slow.rollback().await?;
    assert_eq!(world.get("race/a").await.as_deref(), Some(kind), "written by the first pair");
    Ok(())
}

/// The value of a key once it can be locked: a newer version is the caller's to ask for again.
async fn lock_at_last(txn: &mut Transaction, key: &str) -> Result<Option<Vec<u8>>, Error> {
    let deadline = Instant::now() + SOON;
    loop {
        match txn.get_for_update(key.to_string()).await {
            Err(error) if is_conflict(&error) || matches!(error, Error::ResolveLockError(_)) => {
                assert!(Instant::now() < deadline, "{error}");
            }
            other => return other,
        }
    }
}

/// Waits until the store that leads a key has a transaction waiting for it.
async fn somebody_waits(world: &World, key: &str) {
    let wire = world.hand.key(key);
    until("somebody who waits", async || {
        let at = world.hand.regions().of(&wire).await.expect("a region");
        let mut store = world.hand.regions().store(at.leader.store_id).await.expect("a connection");
        let waiting = store.get_lock_wait_info(GetLockWaitInfoRequest::default()).await.expect("an answer");
        waiting.into_inner().entries.iter().any(|entry| entry.key == wire)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pessimistic_lock_is_waited_for() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        for (kind, options) in kinds().into_iter().filter(|(_, options)| options.is_pessimistic()) {
            world.put(&[("wait/a", "0")]).await;
            for commits in [true, false] {
                let mut first = world.client.begin_with_options(options.clone()).await.expect(kind);
                assert!(first.get_for_update(world.key("wait/a")).await.expect(kind).is_some());
                let mut second = world.client.begin_with_options(options.clone()).await.expect(kind);
                let key = world.key("wait/a");
                let waiting = tokio::spawn(async move {
                    let value = lock_at_last(&mut second, &key).await.expect("a lock");
                    second.put(key, "second").await.expect("a put");
                    second.commit().await.expect("a commit");
                    value
                });
                somebody_waits(&world, &world.key("wait/a")).await;
                assert!(!waiting.is_finished(), "{kind}: the lock is taken");
                first.put(world.key("wait/a"), "first").await.expect(kind);
                let wanted: &[u8] = if commits { b"first" } else { b"second" };
                match commits {
                    true => first.commit().await.map(drop).expect(kind),
                    false => first.rollback().await.expect(kind),
                }
                let seen = waiting.await.expect("no panic");
                assert_eq!(seen.as_deref(), Some(wanted), "{kind}");
                assert_eq!(world.get("wait/a").await.as_deref(), Some("second"), "{kind}");
            }
        }
    }
}

/// Who does not want to wait is told at once who has the lock, and who waits too long is told in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_stays_is_told() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        let mut holder = world.client.begin_pessimistic().await.expect("a transaction");
        holder.put(world.key("hold/a"), "held").await.expect("a lock");
        let options = abandoned(TransactionOptions::new_pessimistic().no_resolve_locks());
        let mut other = world.client.begin_with_options(options).await.expect("a transaction");
        let refused = other.get_for_update(world.key("hold/a")).await.expect_err("it is locked");
        let Error::ResolveLockError(locks) = innermost(&refused) else { panic!("{refused}") };
        assert_eq!(locks[0].lock_version, holder.start_timestamp().version());
        // An optimistic writer does not get past it either.
        let options = abandoned(TransactionOptions::new_optimistic().no_resolve_locks());
        let mut writer = world.client.begin_with_options(options).await.expect("a transaction");
        writer.put(world.key("hold/a"), "other").await.expect("buffered");
        let refused = writer.commit().await.expect_err("it is locked");
        assert!(matches!(innermost(&refused), Error::ResolveLockError(_)), "{refused}");
        // A reader does: the lock is not for a value yet.
        assert_eq!(world.get("hold/a").await, None);
        holder.commit().await.expect("a commit");
        assert_eq!(world.get("hold/a").await.as_deref(), Some("held"));
    }
}

fn innermost(error: &Error) -> &Error {
    match error {
        Error::PessimisticLockError { inner, .. } => innermost(inner),
        Error::ExtractedErrors(errors) | Error::MultipleKeyErrors(errors) if errors.len() == 1 => {
            innermost(&errors[0])
        }
        other => other,
    }
}

/// Locks the first key, meets the other there, and wants the second.
async fn crosswise<M: Future<Output = ()>>(
    mut txn: Transaction,
    first: String,
    second: String,
    meet: M,
) -> Result<(), Error> {
    txn.put(first, "own").await?;
    meet.await;
    match lock_at_last(&mut txn, &second).await {
        Ok(_) => txn.commit().await.map(drop),
        Err(error) => {
            txn.rollback().await?;
            Err(error)
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_ends_with_one_victim() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        deadlock(&world).await;
        world.split(&["dead/m"]).await;
        lead_elsewhere(&cluster, &world, "dead/a", "dead/z").await;
        deadlock(&world).await;
    }
}

/// Two transactions that want each other's lock: one of them fails with a deadlock, the other commits.
async fn deadlock(world: &World) {
    let (a, z) = (world.key("dead/a"), world.key("dead/z"));
    let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(2));
    let start = |first: &String, second: &String| {
        let (first, second, barrier) = (first.clone(), second.clone(), barrier.clone());
        let client = world.client.clone();
        tokio::spawn(async move {
            let options = TransactionOptions::new_pessimistic().drop_check(CheckLevel::None);
            let txn = client.begin_with_options(options).await.expect("a transaction");
            crosswise(txn, first, second, async move {
                barrier.wait().await;
            })
            .await
        })
    };
    let (one, two) = (start(&a, &z), start(&z, &a));
    let ended = [one.await.expect("no panic"), two.await.expect("no panic")];
    let failed: Vec<_> = ended.iter().filter_map(|ended| ended.as_ref().err()).collect();
    assert_eq!(failed.len(), 1, "{ended:?}");
    let found = key_errors(failed[0]);
    let deadlock = found.iter().find_map(|error| error.deadlock.as_ref());
    let deadlock = deadlock.unwrap_or_else(|| panic!("{:?}", failed[0]));
    assert!(!deadlock.wait_chain.is_empty() && deadlock.lock_ts > 0, "{deadlock:?}");
    until("the locks to go", async || world.locks("dead/").await.is_empty()).await;
}

/// Has another store lead the region of the second key than that of the first.
async fn lead_elsewhere(cluster: &ProcessCluster, world: &World, first: &str, second: &str) {
    let of = async |name: &str| {
        let key = world.hand.key(&world.key(name));
        world.hand.regions().of(&key).await.expect("a region")
    };
    let (here, there) = (of(first).await, of(second).await);
    let target = there.region.peers.iter().find(|peer| peer.store_id != here.leader.store_id);
    let target = target.expect("three peers").store_id;
    let order =
        serde_json::json!({ "name": "transfer-leader", "region_id": there.region.id, "to_store_id": target });
    until("the leader to move", async || {
        if of(first).await.leader.store_id != of(second).await.leader.store_id {
            return true;
        }
        // Refused while another order for this region is under way.
        let _ = integration::cluster::send(
            cluster.scheduler_address,
            "POST",
            "/pd/api/v1/operators",
            &order.to_string(),
            SOON,
        );
        false
    })
    .await;
}

/// A transaction that takes its time keeps its locks, because its client renews them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_keep_locks_alive() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        let every = HeartbeatOption::FixedTime(Duration::from_millis(20));
        let options = TransactionOptions::new_pessimistic().heartbeat_option(every);
        let mut txn = world.client.begin_with_options(options).await.expect("a transaction");
        txn.put(world.key("beat/a"), "1").await.expect("a lock");
        txn.put(world.key("beat/b"), "1").await.expect("a lock");
        let ttl = async || {
            let locks = world.locks("beat/").await;
            let primary = locks.iter().find(|lock| lock.key == lock.primary_lock).expect("a primary");
            primary.lock_ttl
        };
        let first = ttl().await;
        until("a longer life", async || ttl().await > first).await;
        assert!(txn.send_heart_beat().await.expect("a time to live") > first);
        txn.commit().await.expect("a commit");
        assert_eq!(world.get("beat/b").await.as_deref(), Some("1"));
        let mut ended = world.client.begin_pessimistic().await.expect("a transaction");
        assert!(matches!(ended.send_heart_beat().await, Err(Error::NoPrimaryKey)));
        ended.rollback().await.expect("a rollback");
    }
}
