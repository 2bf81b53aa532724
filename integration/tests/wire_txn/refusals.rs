//! What is refused, and with which words: transactions in a v1 cluster, V1 keys that look like those of a keyspace, keys
//! and values that are too large. The cluster goes on serving everybody else.

use tikv_client::Error;
use tikv_client::transaction::ResolveLocksOptions;

use super::*;

/// One read and one commit.
async fn use_it(client: &TransactionClient) -> Result<(), Error> {
    let mut txn = client.begin_with_options(abandoned(TransactionOptions::new_optimistic())).await?;
    txn.get("k".to_string()).await?;
    txn.put("k".to_string(), "v").await?;
    txn.commit().await.map(drop)
}

fn assert_names(error: &Error, words: &[&str]) {
    let text = format!("{error} {error:?}").replace('\\', "");
    assert!(words.iter().all(|word| text.contains(word)), "not helpful: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_v1_cluster_says_how_to_have_transactions() {
    let store_config = "[storage]\napi = \"v1\"\n".to_string();
    let options = ClusterOptions { store_config, ..ClusterOptions::default() };
    let cluster = ProcessCluster::start(options).expect("a v1 cluster");
    for api in BOTH {
        let refused = match client(cluster.endpoint(), api).await {
            Ok(client) => use_it(&client).await,
            Err(error) => Err(error),
        };
        assert_names(&refused.expect_err("no transactions here"), &["api", "v2"]);
    }
    let v1 = client(cluster.endpoint(), Api::V1).await.expect("a client");
    let mut txn = v1.begin_pessimistic().await.expect("a timestamp");
    let refused = txn.get_for_update("k".to_string()).await.expect_err("no transactions here");
    assert_names(&refused, &["api", "v2"]);
    txn.rollback().await.expect("nothing to roll back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_both_apis_share_a_cluster_and_see_nothing_of_each_other() {
    let cluster = cluster();
    let [v2, v1] = [World::of(&cluster, Api::V2).await, World::of(&cluster, Api::V1).await];
    for world in [&v2, &v1] {
        use_it(&world.client).await.expect("a transaction");
    }
    let mut txn = v1.client.begin_optimistic().await.expect("a transaction");
    txn.put("k".to_string(), "of V1").await.expect("buffered");
    txn.commit().await.expect("a commit");
    let found = v2.now().await.get("k".to_string()).await.expect("a value");
    assert_eq!(found, Some(b"v".to_vec()));

    // A V1 key may not be one of a keyspace.
    for key in ["x\0\0\0k", "x\0\0\0"] {
        let refused = v1.now().await.get(key.to_string()).await.expect_err("a key of a keyspace");
        assert_names(&refused, &["keyspace"]);
        let options = abandoned(TransactionOptions::new_optimistic());
        let mut txn = v1.client.begin_with_options(options).await.expect("a transaction");
        txn.put(key.to_string(), "v").await.expect("buffered");
        let refused = txn.commit().await.expect_err("a key of a keyspace");
        assert_names(&refused, &["keyspace"]);
    }
    let found = v2.now().await.get("k".to_string()).await.expect("a value");
    assert_eq!(found, Some(b"v".to_vec()));
    // One that only begins with the same letter is like any other.
    let mut txn = v1.client.begin_optimistic().await.expect("a transaction");
    txn.put("xyz".to_string(), "v").await.expect("buffered");
    txn.commit().await.expect("a commit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_values_that_are_too_large_are_refused_and_nothing_is_left() {
    let cluster = cluster();
    for api in BOTH {
        let world = World::of(&cluster, api).await;
        for (kind, options) in kinds() {
            let long = [world.key("large/").into_bytes(), vec![b'k'; 9 << 10]].concat();
            let refused = write(&world, options.clone(), long.clone(), b"v".to_vec()).await;
            assert_names(&refused.expect_err(kind), &["key", "limit"]);
            world.now().await.get(long).await.expect_err("such a key cannot be");
            let key = world.key("large/value").into_bytes();
            let refused = write(&world, options, key, vec![b'v'; 9 << 20]).await;
            refused.expect_err(kind);
            // What the client has locked beside it, and does not roll back itself.
            world.cleanup("large/", ResolveLocksOptions::default()).await;
            assert_eq!(world.get("large/value").await, None, "{kind}");
            assert_eq!(world.get("large/beside").await, None, "{kind}");
        }
        world.put(&[("large/value", "small")]).await;
        assert_eq!(world.get("large/value").await.as_deref(), Some("small"));
    }
}

/// Writes a small pair and this one.
async fn write(
    world: &World,
    options: TransactionOptions,
    key: Vec<u8>,
    value: Vec<u8>,
) -> Result<(), Error> {
    let mut txn = world.client.begin_with_options(abandoned(options)).await?;
    let beside = txn.put(world.key("large/beside"), "v").await;
    let written = match beside {
        Ok(()) => txn.put(key, value).await,
        Err(error) => Err(error),
    };
    let done = match written {
        Ok(()) => txn.commit().await.map(drop),
        Err(error) => Err(error),
    };
    txn.rollback().await.ok();
    done
}
