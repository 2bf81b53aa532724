//! Commits: every kind of transaction writes, in one region and over several, small and large; inserts, deletions,
//! locks without values, empty transactions, rollbacks; and none of them loses what the others add.

use integration::cluster::Standalone;
use tikv_client::transaction::Mutation;
use tikv_client::{Error, TimestampExt, Transaction, TransactionOptions};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_transaction_commits() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        for (kind, options) in kinds() {
            commits(&world, kind, options.clone()).await.unwrap_or_else(|e| panic!("{api:?}, {kind}: {e}"));
        }
        // The same when the keys lie in three regions.
        world.split(&["kinds/b", "kinds/c"]).await;
        for (kind, options) in kinds() {
            commits(&world, kind, options.clone()).await.unwrap_or_else(|e| panic!("{api:?}, {kind}: {e}"));
            is_large(&world, options).await.unwrap_or_else(|e| panic!("{api:?}, {kind}: {e}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_store_runs_every_kind_of_transaction() {
    let standalone = Standalone::start("").expect("a standalone store");
    for api in BOTH {
        let world = World::at(standalone.endpoint(), api).await;
        for (kind, options) in kinds() {
            commits(&world, kind, options.clone()).await.unwrap_or_else(|e| panic!("{api:?}, {kind}: {e}"));
        }
        inserts(&world).await.expect("inserts");
        locks_without_values(&world).await.expect("locks");
        rollbacks(&world).await.expect("rollbacks");
    }
}

/// Puts, overwrites and deletes; reads its own writes; is seen by later readers as a whole and by earlier ones not at all.
async fn commits(world: &World, kind: &str, options: TransactionOptions) -> Result<(), Error> {
    let [a, b, c] = ["kinds/a", "kinds/b", "kinds/c"].map(|name| world.key(name));
    world.put(&[("kinds/a", "old"), ("kinds/b", "old"), ("kinds/c", "old")]).await;
    let mut before = world.now().await;
    let mut txn = world.client.begin_with_options(options).await?;
    let start = txn.start_timestamp().version();
    assert_eq!(txn.get(a.clone()).await?, Some(b"old".to_vec()));
    txn.put(a.clone(), kind).await?;
    txn.put(b.clone(), "own").await?;
    txn.put(b.clone(), kind).await?;
    txn.delete(c.clone()).await?;
    assert_eq!(txn.get(b.clone()).await?, Some(kind.as_bytes().to_vec()));
    assert_eq!(txn.get(c.clone()).await?, None);
    let own = txn.scan(a.clone()..=c.clone(), 10).await?;
    assert_eq!(texts(own), [(a.clone(), kind.into()), (b.clone(), kind.into())]);
    let committed = txn.commit().await?.expect("a timestamp").version();
    assert!(committed > start, "{kind}: {committed} is not after {start}");
    assert!(matches!(txn.put(a.clone(), "late").await, Err(Error::OperationAfterCommitError)));

    let now = world.client.current_timestamp().await?;
    assert!(now.version() >= committed, "{kind}: later timestamps see it");
    assert_eq!(world.get("kinds/a").await.as_deref(), Some(kind));
    assert_eq!(world.get("kinds/b").await.as_deref(), Some(kind));
    assert_eq!(world.get("kinds/c").await, None);
    let found = texts(before.batch_get([a, b, c]).await?);
    assert!(found.len() == 3 && found.iter().all(|(_, value)| value == "old"), "{kind}: {found:?}");
    Ok(())
}

/// More than the client puts into one request, over all regions.
async fn is_large(world: &World, options: TransactionOptions) -> Result<(), Error> {
    let name = |n: usize| format!("kinds/{}{n:03}", ['a', 'b', 'c'][n % 3]);
    let value = |n: usize| -> Vec<u8> { (0..2_000).map(|at| (n * 7 + at * 3 % 251) as u8).collect() };
    let mut txn = world.client.begin_with_options(options).await?;
    let puts = (0..120).map(|n| Mutation::Put(world.key(&name(n)).into(), value(n)));
    txn.batch_mutate(puts).await?;
    txn.commit().await?;
    let found = world.now().await.batch_get((0..120).map(|n| world.key(&name(n)))).await?;
    let mut found: Vec<_> = found.map(|pair| (pair.0, pair.1)).collect();
    found.sort();
    let mut wanted: Vec<_> = (0..120).map(|n| (world.key(&name(n)).into(), value(n))).collect();
    wanted.sort();
    assert!(found == wanted, "{} pairs", found.len());
    let mut txn = world.client.begin_optimistic().await?;
    txn.batch_mutate((0..120).map(|n| Mutation::Delete(world.key(&name(n)).into()))).await?;
    txn.commit().await?;
    let rest = world.now().await.scan_keys(world.key("kinds/a")..world.key("kinds/c~"), 200).await?;
    assert_eq!(rest.count(), 2, "those that are not large");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inserts_locks_rollbacks_and_empty_transactions() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        inserts(&world).await.expect("inserts");
        locks_without_values(&world).await.expect("locks");
        rollbacks(&world).await.expect("rollbacks");
        nothing_to_commit(&world).await.expect("empty transactions");
        sizes(&world).await.expect("sizes");
    }
}

fn already_exists(error: &Error) -> bool {
    key_errors(error).iter().any(|error| error.already_exist.is_some())
}

async fn inserts(world: &World) -> Result<(), Error> {
    let key = || world.key("insert/there");
    for (kind, options) in kinds() {
        let is_pessimistic = options.is_pessimistic();
        world.put(&[("insert/there", "first")]).await;
        let mut txn = world.client.begin_with_options(options.clone().drop_check(CheckLevel::None)).await?;
        let inserted = txn.insert(key(), "second").await;
        let refused = match inserted {
            Ok(()) => txn.commit().await.map(drop).expect_err(kind),
            Err(error) => {
                assert!(is_pessimistic, "{kind}: {error}");
                error
            }
        };
        assert!(already_exists(&refused), "{kind}: {refused}");
        txn.rollback().await?;
        assert_eq!(world.get("insert/there").await.as_deref(), Some("first"), "{kind}");

        let mut txn = world.client.begin_with_options(options).await?;
        txn.delete(key()).await?;
        txn.commit().await?;
        let mut txn = world.client.begin_optimistic().await?;
        txn.insert(key(), "third").await?;
        assert!(matches!(txn.insert(key(), "again").await, Err(Error::DuplicateKeyInsertion)));
        txn.commit().await?;
        assert_eq!(world.get("insert/there").await.as_deref(), Some("third"), "{kind}");
    }
    // A key that is inserted and deleted again must not have been there.
    let mut txn = world.client.begin_optimistic().await?;
    txn.insert(key(), "fourth").await?;
    txn.delete(key()).await?;
    let refused = txn.commit().await.expect_err("it is there");
    assert!(already_exists(&refused), "{refused}");
    txn.rollback().await?;
    let mut txn = world.client.begin_optimistic().await?;
    txn.put(world.key("insert/beside"), "fifth").await?;
    txn.insert(world.key("insert/absent"), "fourth").await?;
    txn.delete(world.key("insert/absent")).await?;
    txn.commit().await?;
    assert_eq!(world.get("insert/absent").await, None);
    Ok(())
}

/// A lock changes no value, and is gone after the commit; the key can be read and written as before.
async fn locks_without_values(world: &World) -> Result<(), Error> {
    world.put(&[("lock/a", "1"), ("lock/b", "2")]).await;
    for (kind, options) in kinds() {
        let mut txn = world.client.begin_with_options(options.clone()).await?;
        txn.lock_keys([world.key("lock/a"), world.key("lock/absent")]).await?;
        assert_eq!(txn.get_for_update(world.key("lock/a")).await?, Some(b"1".to_vec()), "{kind}");
        let absent = txn.get_for_update(world.key("lock/absent")).await?;
        assert_eq!(absent, None, "{kind}");
        let both = ["lock/a", "lock/absent", "lock/b"].map(|name| world.key(name));
        let mut found = texts(txn.batch_get_for_update(both).await?);
        found.sort();
        assert_eq!(found, [(world.key("lock/a"), "1".into()), (world.key("lock/b"), "2".into())], "{kind}");
        txn.commit().await?;
        assert_eq!(world.get("lock/a").await.as_deref(), Some("1"), "{kind}");
        assert_eq!(world.get("lock/absent").await, None, "{kind}");
        until("the locks to go", async || world.locks("lock/").await.is_empty()).await;
    }
    Ok(())
}

async fn rollbacks(world: &World) -> Result<(), Error> {
    world.put(&[("rollback/a", "1")]).await;
    for (kind, options) in kinds() {
        let mut txn = world.client.begin_with_options(options).await?;
        txn.put(world.key("rollback/a"), "2").await?;
        txn.put(world.key("rollback/b"), "2").await?;
        txn.rollback().await?;
        assert_eq!(world.locks("rollback/").await, [], "{kind}");
        assert_eq!(world.get("rollback/a").await.as_deref(), Some("1"), "{kind}");
        assert_eq!(world.get("rollback/b").await, None, "{kind}");
        assert!(matches!(txn.commit().await, Err(Error::OperationAfterCommitError)));
    }
    Ok(())
}

async fn nothing_to_commit(world: &World) -> Result<(), Error> {
    for (kind, options) in kinds() {
        let mut txn = world.client.begin_with_options(options.clone()).await?;
        assert_eq!(txn.get(world.key("empty/a")).await?, None);
        assert!(!txn.key_exists(world.key("empty/a")).await?);
        assert_eq!(txn.commit().await?, None, "{kind}");
        let mut txn = world.client.begin_with_options(options.read_only()).await?;
        assert_eq!(txn.scan(world.key("empty/")..world.key("empty/~"), 10).await?.count(), 0);
    }
    Ok(())
}

/// Empty values, long keys and values, bytes of every kind.
async fn sizes(world: &World) -> Result<(), Error> {
    let binary: Vec<u8> = world.key("size/").into_bytes().into_iter().chain(0..=255).collect();
    let long_key = [world.key("size/").into_bytes(), vec![b'k'; 4 << 10]].concat();
    let pairs = [
        (world.key("size/empty").into_bytes(), Vec::new()),
        (binary.clone(), binary),
        (long_key.clone(), vec![b'v'; 256]),
        (world.key("size/inline").into_bytes(), vec![b'i'; 255]),
        (world.key("size/apart").into_bytes(), vec![b'a'; 256]),
        (world.key("size/large").into_bytes(), (0..1 << 20).map(|n| (n * 31 % 251) as u8).collect()),
    ];
    for (kind, options) in kinds() {
        let mut txn = world.client.begin_with_options(options).await?;
        for (key, value) in pairs.iter().cloned() {
            txn.put(key, value).await?;
        }
        txn.commit().await?;
        let mut now = world.now().await;
        for (key, value) in &pairs {
            let found = now.get(key.clone()).await?;
            assert!(found.as_ref() == Some(value), "{kind}: {} bytes", value.len());
        }
    }
    Ok(())
}

/// Tasks add to one counter in transactions of every kind, beginning again after a conflict: no addition is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_lose_nothing_and_sums_stay() {
    const TASKS: usize = 8;
    const ADDITIONS: usize = 6;
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        world.put(&[("count/a", "0"), ("count/z", "0")]).await;
        let add = |task: usize| {
            let (client, options) = (world.client.clone(), kinds().swap_remove(task).1);
            let keys = [world.key("count/a"), world.key("count/z")];
            async move {
                for _ in 0..ADDITIONS {
                    loop {
                        let options = options.clone().drop_check(CheckLevel::None);
                        let mut txn = client.begin_with_options(options).await.expect("a transaction");
                        match add_one(&mut txn, &keys).await {
                            Ok(()) => break,
                            Err(error) => {
                                assert!(is_passing(&error), "{error}");
                                txn.rollback().await.expect("a rollback");
                            }
                        }
                    }
                }
            }
        };
        let tasks: Vec<_> = (0..TASKS).map(|task| tokio::spawn(add(task))).collect();
        for task in tasks {
            task.await.expect("no wrong answer");
        }
        let wanted = (TASKS * ADDITIONS).to_string();
        assert_eq!(world.get("count/a").await.as_ref(), Some(&wanted), "{api:?}");
        assert_eq!(world.get("count/z").await.as_ref(), Some(&wanted), "{api:?}");
    }
}

/// Both counters are one higher when it commits, and were equal.
async fn add_one(txn: &mut Transaction, keys: &[String; 2]) -> Result<(), Error> {
    let number = |value: Option<Vec<u8>>| -> u32 {
        let value = value.expect("the counter is there");
        std::str::from_utf8(&value).expect("text").parse().expect("a number")
    };
    let first = number(txn.get_for_update(keys[0].clone()).await?);
    let second = number(txn.get_for_update(keys[1].clone()).await?);
    // An optimistic transaction reads one snapshot; a pessimistic one reads what it has locked.
    assert_eq!(first, second);
    for key in keys {
        txn.put(key.clone(), (first + 1).to_string()).await?;
    }
    txn.commit().await.map(drop)
}

/// Whether another transaction was in the way: by a newer version, or by a lock that stayed for longer than the client
/// waits.
pub(super) fn is_passing(error: &Error) -> bool {
    let locked = |error: &Error| matches!(error, Error::ResolveLockError(_));
    match error {
        Error::PessimisticLockError { inner, .. } => is_passing(inner),
        Error::ExtractedErrors(errors) | Error::MultipleKeyErrors(errors) => errors.iter().all(is_passing),
        error => locked(error) || is_conflict(error),
    }
}
