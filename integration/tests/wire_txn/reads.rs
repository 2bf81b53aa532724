//! Reads: scans in both directions over several regions, batches, snapshots at old timestamps, and readers that meet the
//! locks of others.

use std::collections::BTreeMap;

use tikv_client::{BoundRange, Error, Key, TimestampExt};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scans_go_both_ways_over_several_regions() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        let names: Vec<String> = (0..60).map(|n| format!("scan/{n:02}")).collect();
        let pairs: Vec<_> = names.iter().map(|name| (name.as_str(), name.as_str())).collect();
        world.put(&pairs).await;
        scans(&world).await.expect("scans of one region");
        world.split(&["scan/07", "scan/20", "scan/205", "scan/44"]).await;
        scans(&world).await.expect("scans of five regions");
        buffered(&world).await.expect("scans over own writes");
    }
}

/// Every way to scan keys 0 to 59 finds what a list would.
async fn scans(world: &World) -> Result<(), Error> {
    let name = |n: u32| world.key(&format!("scan/{n:02}"));
    let forward = |from: u32, to: u32| (from..to).map(name).collect::<Vec<_>>();
    let mut now = world.now().await;
    for (from, to, limit) in
        [(0, 60, 100), (0, 60, 60), (0, 60, 13), (5, 21, 100), (20, 21, 5), (7, 44, 30), (30, 30, 5)]
    {
        let mut wanted = forward(from, to);
        wanted.truncate(limit as usize);
        let pairs: Vec<_> = wanted.iter().map(|key| (key.clone(), key[3..].to_string())).collect();
        assert_eq!(texts(now.scan(name(from)..name(to), limit).await?), pairs, "{from}..{to} by {limit}");
        assert_eq!(keys(now.scan_keys(name(from)..name(to), limit).await?), wanted);
        let mut wanted: Vec<_> = forward(from, to).into_iter().rev().collect();
        wanted.truncate(limit as usize);
        let pairs: Vec<_> = wanted.iter().map(|key| (key.clone(), key[3..].to_string())).collect();
        let found = texts(now.scan_reverse(name(from)..name(to), limit).await?);
        assert_eq!(found, pairs, "{to}..{from} by {limit}");
        assert_eq!(keys(now.scan_keys_reverse(name(from)..name(to), limit).await?), wanted);
    }
    let inclusive = keys(now.scan_keys(name(6)..=name(8), 10).await?);
    assert_eq!(inclusive, [name(6), name(7), name(8)]);
    assert_eq!(keys(now.scan_keys_reverse(name(6)..=name(8), 2).await?), [name(8), name(7)]);
    if world.api == Api::V2 {
        // All keys of a keyspace; V1 has no end before other keyspaces' data.
        let all = keys(now.scan_keys(.., 1000).await?);
        assert_eq!(all, forward(0, 60));
        let reverse = keys(now.scan_keys_reverse(BoundRange::range_from(Key::EMPTY), 3).await?);
        assert_eq!(reverse, [name(59), name(58), name(57)]);
    }
    let wanted = [name(3), name(20), name(59)];
    let asked = [name(59), world.key("scan/absent"), name(3), name(20)];
    let mut found: Vec<_> = texts(now.batch_get(asked).await?).into_iter().map(|(key, _)| key).collect();
    found.sort();
    assert_eq!(found, wanted);
    Ok(())
}

fn keys(keys: impl Iterator<Item = Key>) -> Vec<String> {
    keys.map(|key| String::from_utf8(key.into()).expect("these tests write text")).collect()
}

/// A transaction scans what it has written itself together with what is there.
async fn buffered(world: &World) -> Result<(), Error> {
    let name = |n: u32| world.key(&format!("scan/{n:02}"));
    for (kind, options) in kinds() {
        let mut txn = world.client.begin_with_options(options).await?;
        txn.delete(name(10)).await?;
        txn.put(world.key("scan/105"), "new").await?;
        txn.put(name(11), "changed").await?;
        let wanted = [
            (name(9), "scan/09".to_string()),
            (world.key("scan/105"), "new".into()),
            (name(11), "changed".into()),
            (name(12), "scan/12".into()),
        ];
        assert_eq!(texts(txn.scan(name(9)..name(13), 10).await?), wanted, "{kind}");
        let reversed: Vec<_> = wanted.iter().rev().take(3).cloned().collect();
        assert_eq!(texts(txn.scan_reverse(name(9)..name(13), 3).await?), reversed, "{kind}");
        txn.rollback().await?;
    }
    Ok(())
}

/// What was committed at each timestamp is found at that timestamp, however much was written since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_show_every_key_as_it_was() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        world.split(&["old/4"]).await;
        let mut states =
            vec![(world.client.current_timestamp().await.expect("a timestamp"), BTreeMap::new())];
        for round in 0..24_u32 {
            let mut state = states[states.len() - 1].1.clone();
            let (_, options) = kinds().swap_remove(round as usize % 8);
            let mut txn = world.client.begin_with_options(options).await.expect("a transaction");
            for n in (round % 3..8).step_by(2) {
                let key = world.key(&format!("old/{n}"));
                if (round + n) % 5 == 0 {
                    txn.delete(key.clone()).await.expect("a deletion");
                    state.remove(&key);
                } else {
                    let value = format!("{round}").repeat(1 + 200 * (n as usize % 2));
                    txn.put(key.clone(), value.clone()).await.expect("a put");
                    state.insert(key, value);
                }
            }
            let committed = txn.commit().await.expect("a commit").expect("a timestamp");
            states.push((committed, state));
        }
        for (at, state) in &states {
            let mut snapshot = world.client.snapshot(at.clone(), TransactionOptions::new_optimistic());
            let range = world.key("old/")..world.key("old/~");
            let wanted: Vec<_> = state.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            assert_eq!(texts(snapshot.scan(range.clone(), 100).await.expect("a scan")), wanted, "{at:?}");
            let reversed: Vec<_> = wanted.iter().rev().cloned().collect();
            let mut snapshot = world.client.snapshot(at.clone(), TransactionOptions::new_optimistic());
            assert_eq!(texts(snapshot.scan_reverse(range, 100).await.expect("a scan")), reversed, "{at:?}");
            let mut snapshot = world.client.snapshot(at.clone(), TransactionOptions::new_optimistic());
            for n in 0..8 {
                let key = world.key(&format!("old/{n}"));
                let found = snapshot.get(key.clone()).await.expect("a get");
                assert_eq!(found.as_deref(), state.get(&key).map(String::as_bytes), "{key} at {at:?}");
            }
        }
    }
}

/// More than fits one piece, from three regions; and as much as one reply may hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_reads_come_whole() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        let name = |n: usize| world.key(&format!("long/{n:05}"));
        for chunk in (0..6_000).collect::<Vec<usize>>().chunks(1_000) {
            let mut txn = world.client.begin_optimistic().await.expect("a transaction");
            for n in chunk {
                txn.put(name(*n), vec![b'v'; 500]).await.expect("a put");
            }
            txn.commit().await.expect("a commit");
        }
        let mut now = world.now().await;
        assert_eq!(now.scan(name(0)..name(6_000), 6_000).await.expect("a scan").count(), 6_000);
        assert_eq!(now.scan_reverse(name(0)..name(6_000), 6_000).await.expect("a scan").count(), 6_000);
        world.split(&["long/02000", "long/04000"]).await;
        let mut now = world.now().await;
        assert_eq!(now.scan_keys(name(0)..name(6_000), 10_000).await.expect("a scan").count(), 6_000);
        let found = now.batch_get((0..6_000).map(name)).await.expect("a batch get");
        assert!(found.filter(|pair| pair.1 == vec![b'v'; 500]).count() == 6_000);
    }
}

/// A reader ends the transactions of dead clients, and waits for those of living ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_get_past_the_locks_of_others() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        world.split(&["met/m"]).await;
        world.put(&[("met/a", "0"), ("met/z", "0")]).await;
        let keys = [world.key("met/a"), world.key("met/z")];
        // A transaction whose client died before it committed: it is as if it had not been.
        let dead = world.hand.begin(&keys[0]).await.expect("a timestamp").expired();
        for key in &keys {
            let locked = world.hand.prewrite(&dead, &[(key, "never")]).await.expect("an answer");
            assert_eq!(locked.errors, []);
        }
        assert_eq!(world.get("met/z").await.as_deref(), Some("0"));
        assert_eq!(world.get("met/a").await.as_deref(), Some("0"));
        // One that died after it had committed its primary: it is done to the end.
        let dead = world.hand.begin(&keys[0]).await.expect("a timestamp");
        for key in &keys {
            let locked = world.hand.prewrite(&dead, &[(key, "1")]).await.expect("an answer");
            assert_eq!(locked.errors, []);
        }
        let commit_ts = world.hand.timestamp().await.expect("a timestamp");
        let done = world.hand.commit(dead.start_ts, commit_ts, &[&keys[0]]).await.expect("an answer");
        assert_eq!(done.error, None);
        assert_eq!(world.get("met/z").await.as_deref(), Some("1"));
        // Readers before the transaction do not wait for it.
        let mut before = world.now().await;
        let alive = world.hand.begin(&keys[0]).await.expect("a timestamp");
        for key in &keys {
            let locked = world.hand.prewrite(&alive, &[(key, "2")]).await.expect("an answer");
            assert_eq!(locked.errors, []);
        }
        for key in &keys {
            assert_eq!(before.get(key.clone()).await.expect("a value"), Some(b"1".to_vec()));
        }
        // Those after it do, until it has ended.
        let reader = tokio::spawn(read_at_last(world.client.clone(), keys.clone()));
        let commit_ts = world.hand.timestamp().await.expect("a timestamp");
        for key in &keys {
            let done = world.hand.commit(alive.start_ts, commit_ts, &[key]).await.expect("an answer");
            assert!(done.error.as_ref().is_none_or(|error| error.commit_ts_expired.is_some()), "{done:?}");
            if done.error.is_some() {
                // The reader has moved the lowest timestamp up.
                let later = world.hand.timestamp().await.expect("a timestamp");
                for key in &keys {
                    let done = world.hand.commit(alive.start_ts, later, &[key]).await.expect("an answer");
                    assert_eq!(done.error, None);
                }
                break;
            }
        }
        reader.await.expect("no wrong answer");
        assert_eq!(world.get("met/a").await.as_deref(), Some("2"));
        assert_eq!(world.get("met/z").await.as_deref(), Some("2"));
    }
}

/// Reads both keys in one snapshot: both as before the transaction, or both as after it.
async fn read_at_last(client: TransactionClient, keys: [String; 2]) {
    let deadline = Instant::now() + SOON;
    loop {
        let now = client.current_timestamp().await.expect("a timestamp");
        let mut snapshot = client.snapshot(now.clone(), TransactionOptions::new_optimistic());
        match snapshot.batch_get(keys.clone()).await {
            Ok(found) => {
                let values: Vec<_> = texts(found).into_iter().map(|(_, value)| value).collect();
                assert!(values == ["1", "1"] || values == ["2", "2"], "{values:?} at {}", now.version());
                return;
            }
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}
