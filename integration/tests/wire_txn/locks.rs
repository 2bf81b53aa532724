//! Locks of clients that died: found by `scan_locks`, ended by `resolve_locks`, `cleanup_locks` and `gc`; and whole ranges
//! that are destroyed. The locks are left by hand, one way for each step at which a client can die.

use integration::cluster::by_hand::Draft;
use kvproto::tikvpb::batch_commands_request::request::Cmd;
use kvproto::tikvpb::batch_commands_response::response::Cmd as Answer;
use tikv_client::transaction::ResolveLocksOptions;
use tikv_client::{Backoff, ProtoLockInfo, Timestamp, TimestampExt};

use super::*;

impl World {
    /// A transaction whose primary is this key.
    async fn draft(&self, primary: &str) -> Draft {
        self.hand.begin(&self.key(primary)).await.expect("a timestamp")
    }

    /// Locks one key with a value.
    async fn leave(&self, draft: &Draft, name: &str, value: &str) {
        let answer = self.hand.prewrite(draft, &[(&self.key(name), value)]).await.expect("an answer");
        assert_eq!(answer.errors, [], "{name}");
    }

    /// Takes the pessimistic lock of the primary.
    async fn leave_pessimistic(&self, draft: &Draft) {
        let key = self.hand.key(&draft.primary);
        let request = self.hand.pessimistic(draft);
        let command = |context| {
            let context = Some(context);
            Cmd::PessimisticLock(kvproto::kvrpcpb::PessimisticLockRequest { context, ..request.clone() })
        };
        match self.hand.ask(&key, command).await.expect("an answer") {
            Answer::PessimisticLock(answer) => assert_eq!(answer.errors, []),
            other => panic!("{other:?}"),
        }
    }

    /// Ends every transaction with a lock under this prefix; returns how many locks there were.
    pub(super) async fn cleanup(&self, prefix: &str, options: ResolveLocksOptions) -> usize {
        let now = self.client.current_timestamp().await.expect("a timestamp");
        let range = self.key(prefix)..self.key(&format!("{prefix}~"));
        self.client.cleanup_locks(range, &now, options).await.expect("a cleaning").resolved_locks
    }
}

/// One transaction for each step at which a client can die. Returns what each key must hold when they have ended.
async fn leave_all(world: &World) -> Vec<(&'static str, Option<&'static str>)> {
    let old = [
        "plain/a", "plain/z", "half/a", "half/z", "async/a", "async/z", "part/a", "part/z", "orphan/z",
        "pess/a",
    ];
    world.put(&old.map(|name| (name, "old"))).await;

    // In two phases, all locked and nothing committed.
    let draft = world.draft("plain/a").await;
    world.leave(&draft, "plain/a", "new").await;
    world.leave(&draft, "plain/z", "new").await;
    // In two phases, the primary committed.
    let draft = world.draft("half/a").await;
    world.leave(&draft, "half/a", "new").await;
    world.leave(&draft, "half/z", "new").await;
    let commit_ts = world.hand.timestamp().await.expect("a timestamp");
    let done =
        world.hand.commit(draft.start_ts, commit_ts, &[&world.key("half/a")]).await.expect("an answer");
    assert_eq!(done.error, None);
    // Asynchronously, all locked: it is committed.
    let (a, z) = (world.key("async/z"), world.key("async/new"));
    let draft = world.draft("async/a").await.with_async_commit(&[&a, &z]);
    for name in ["async/a", "async/z", "async/new"] {
        world.leave(&draft, name, "new").await;
    }
    // Asynchronously, one key missing.
    let draft = world.draft("part/a").await.with_async_commit(&[&world.key("part/z")]);
    world.leave(&draft, "part/a", "new").await;
    // The primary was never locked.
    let draft = world.draft("orphan/a").await;
    world.leave(&draft, "orphan/z", "new").await;
    // Locked, not written.
    world.leave_pessimistic(&world.draft("pess/a").await).await;
    world.leave_pessimistic(&world.draft("pess/absent").await).await;
    vec![
        ("plain/a", Some("old")),
        ("plain/z", Some("old")),
        ("half/a", Some("new")),
        ("half/z", Some("new")),
        ("async/a", Some("new")),
        ("async/z", Some("new")),
        ("async/new", Some("new")),
        ("part/a", Some("old")),
        ("part/z", Some("old")),
        ("orphan/a", None),
        ("orphan/z", Some("old")),
        ("pess/a", Some("old")),
        ("pess/absent", None),
    ]
}

const LEFT: [&str; 10] = [
    "async/a",
    "async/new",
    "async/z",
    "half/z",
    "orphan/z",
    "part/a",
    "pess/a",
    "pess/absent",
    "plain/a",
    "plain/z",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cleanup_locks_ends_every_transaction_that_was_left() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        for (round, batch_size) in [1024, 1, 3].into_iter().enumerate() {
            let wanted = leave_all(&world).await;
            let found = world.locks("").await;
            let names: Vec<_> =
                found.iter().map(|lock| String::from_utf8(lock.key.clone()).expect("text")).collect();
            assert_eq!(names, LEFT.map(|name| world.key(name)), "{api:?}, round {round}");
            check_infos(&world, &found);

            // Asynchronous ones only, then the rest. Which locks are counted depends on who cleaned what first.
            let options = ResolveLocksOptions { async_commit_only: true, batch_size };
            let cleaned = world.cleanup("", options).await;
            assert!(cleaned > 0, "{api:?}, round {round}");
            assert_eq!(world.locks("async/").await, []);
            assert_eq!(world.locks("plain/").await.len(), 2, "those of living clients stay");
            let options = ResolveLocksOptions { async_commit_only: false, batch_size };
            world.cleanup("", options).await;
            assert_eq!(world.locks("").await, [], "{api:?}, round {round}");
            for (name, value) in wanted {
                assert_eq!(world.get(name).await.as_deref(), value, "{api:?}, round {round}, {name}");
            }
            let mut txn = world.client.begin_optimistic().await.expect("a transaction");
            txn.delete(world.key("async/new")).await.expect("a deletion");
            txn.commit().await.expect("a commit");
            // From the second round on the keys of a transaction lie in different regions.
            world.split(&["async/m", "half/m", "orphan/m", "part/m", "plain/m"]).await;
        }
    }
}

/// Locks are described completely: another client can end them from this alone.
fn check_infos(world: &World, found: &[ProtoLockInfo]) {
    let lock = |name: &str| {
        let key = world.key(name).into_bytes();
        found.iter().find(|lock| lock.key == key).expect("a lock").clone()
    };
    let bytes = |name: &str| world.key(name).into_bytes();
    assert_eq!(lock("plain/z").primary_lock, bytes("plain/a"));
    assert_eq!(lock("plain/z").lock_version, lock("plain/a").lock_version);
    assert!(lock("plain/a").lock_ttl >= 60_000 && !lock("plain/a").use_async_commit);
    let primary = lock("async/a");
    assert!(primary.use_async_commit && primary.min_commit_ts > primary.lock_version, "{primary:?}");
    assert_eq!(primary.secondaries.len(), 2, "{primary:?}");
    let pessimistic = kvproto::kvrpcpb::Op::PessimisticLock as i32;
    assert_eq!((lock("pess/a").lock_type, lock("plain/a").lock_type), (pessimistic, 0));
    assert_eq!(lock("pess/a").lock_for_update_ts, lock("pess/a").lock_version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_are_found_by_time_range_and_number_and_the_dead_ones_resolved() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        world.split(&["find/5"]).await;
        let mut starts = Vec::new();
        for n in 0..10 {
            let draft = world.draft(&format!("find/{n}")).await;
            world.leave(&draft, &format!("find/{n}"), "v").await;
            starts.push(draft.start_ts);
        }
        let range = || world.key("find/")..world.key("find/~");
        let found = async |at: u64, range: std::ops::Range<String>, limit| {
            world.client.scan_locks(&Timestamp::from_version(at), range, limit).await.expect("locks").len()
        };
        assert_eq!(found(starts[9], range(), 1024).await, 10);
        assert_eq!(found(starts[6], range(), 1024).await, 7, "those that began no later");
        assert_eq!(found(starts[9], world.key("find/3")..world.key("find/7"), 1024).await, 4);
        assert_eq!(found(starts[9], world.key("find/0")..world.key("find/5"), 3).await, 3, "of one region");

        // Living ones stay, dead ones go.
        let now = world.client.current_timestamp().await.expect("a timestamp");
        let locks = world.locks("find/").await;
        let once = Backoff::no_backoff();
        let live = world.client.resolve_locks(locks, now.clone(), once.clone()).await.expect("an answer");
        assert_eq!(live.len(), 10);
        world.cleanup("find/", ResolveLocksOptions::default()).await;
        let dead = world.draft("find/0").await.expired();
        let name = world.key("find/9");
        world.leave(&dead, "find/0", "v").await;
        world.hand.prewrite(&dead, &[(&name, "v")]).await.expect("an answer");
        let mut locks = world.locks("find/").await;
        // The store may have ended it already.
        until("an end of the dead transaction", async || {
            let now = world.client.current_timestamp().await.expect("a timestamp");
            locks = world.client.resolve_locks(locks.clone(), now, once.clone()).await.expect("an answer");
            locks.is_empty()
        })
        .await;
        assert_eq!(world.locks("find/").await, []);
        assert_eq!(world.get("find/0").await, None);
    }
}

/// A safe point ends what began before it and is taken at its word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gc_ends_old_transactions_and_moves_the_safe_point() {
    let cluster = cluster();
    // Each with its own locks: a client of one API cannot ask about transactions of the other.
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        let wanted = leave_all(&world).await;
        let safe_point = world.client.current_timestamp().await.expect("a timestamp");
        assert!(world.client.gc(safe_point.clone()).await.expect("a safe point"), "{api:?}");
        assert_eq!(world.locks("").await, []);
        for (name, value) in wanted {
            assert_eq!(world.get(name).await.as_deref(), value, "{api:?}, {name}");
        }
        let earlier = Timestamp { physical: safe_point.physical - 1, ..safe_point };
        assert!(!world.client.gc(earlier).await.expect("an answer"), "{api:?}: it never goes back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destroyed_range_is_empty_in_every_region() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        let names: Vec<String> = (0..30).map(|n| format!("gone/{n:02}")).collect();
        let pairs: Vec<_> = names.iter().map(|name| (name.as_str(), "value")).collect();
        world.put(&pairs).await;
        world.split(&["gone/07", "gone/20"]).await;
        world.put(&pairs).await;
        let draft = world.draft("gone/10").await;
        world.leave(&draft, "gone/10", "locked").await;
        let range = world.key("gone/05")..world.key("gone/25");
        world.client.unsafe_destroy_range(range.clone()).await.expect("an end");
        let mut now = world.now().await;
        assert_eq!(now.scan_keys(range, 100).await.expect("a scan").count(), 0, "{api:?}");
        let all = world.key("gone/")..world.key("gone/~");
        assert_eq!(now.scan_keys(all, 100).await.expect("a scan").count(), 10, "{api:?}");
        assert_eq!(world.locks("gone/").await, []);
        // The keys can be written again, and an empty range destroyed.
        world.put(&[("gone/10", "again")]).await;
        assert_eq!(world.get("gone/10").await.as_deref(), Some("again"));
        let nothing = world.key("gone/x")..world.key("gone/y");
        world.client.unsafe_destroy_range(nothing).await.expect("an end");
    }
}

/// A client that is dropped in the middle leaves locks, and they do no harm for longer than they live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_transaction_is_cleaned_up_after() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        let options = abandoned(TransactionOptions::new_pessimistic());
        let mut txn = world.client.begin_with_options(options).await.expect("a transaction");
        txn.put(world.key("drop/a"), "never").await.expect("a lock");
        drop(txn);
        assert_eq!(world.locks("drop/").await.len(), 1);
        assert_eq!(world.cleanup("drop/", ResolveLocksOptions::default()).await, 1);
        assert_eq!(world.locks("drop/").await, []);
        let mut next = world.client.begin_pessimistic().await.expect("a transaction");
        next.put(world.key("drop/a"), "next").await.expect("a lock");
        next.commit().await.expect("a commit");
        assert_eq!(world.get("drop/a").await.as_deref(), Some("next"));

        let mut warned = world.client.begin_optimistic().await.expect("a transaction");
        warned.put(world.key("drop/a"), "never").await.expect("buffered");
        let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(warned)));
        assert!(dropped.is_err(), "the client's own check");
    }
}
