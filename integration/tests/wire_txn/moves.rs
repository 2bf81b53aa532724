//! Transactions while the cluster changes under them: regions are divided and change their leaders, and money that is moved
//! between accounts is neither lost nor made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tikv_client::{Error, TransactionOptions};

use super::kinds::is_passing;
use super::*;

const ACCOUNTS: usize = 30;
const EACH: i64 = 100;
/// Of each writer.
const TRANSFERS: usize = 40;
/// Regions that are divided, and leaders that change.
const ROUNDS: usize = 24;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_go_on_while_regions_are_divided_and_led_elsewhere() {
    let cluster = cluster();
    let world = World::of(&cluster, Api::V2).await;
    let names: Vec<String> = (0..ACCOUNTS).map(account).collect();
    let pairs: Vec<_> = names.iter().map(|name| (name.as_str(), "100")).collect();
    world.put(&pairs).await;
    let accounts: Arc<Vec<String>> = Arc::new(names.iter().map(|name| world.key(name)).collect());
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writers: Vec<_> = kinds()
        .into_iter()
        .enumerate()
        .map(|(n, (_, options))| {
            let (client, accounts, done) = (world.client.clone(), accounts.clone(), done.clone());
            tokio::spawn(transfers(client, accounts, n, options, done))
        })
        .collect();
    let reader = tokio::spawn(sums(world.client.clone(), accounts.clone(), stop.clone()));
    for round in 0..ROUNDS {
        // Spread over the time that all of it takes.
        let due = round * kinds().len() * TRANSFERS / ROUNDS;
        let is_over = || writers.iter().any(|writer| writer.is_finished());
        until("some transfers", async || done.load(Ordering::Relaxed) >= due || is_over()).await;
        let cut = world.hand.key(&world.key(&account(round * 7 % ACCOUNTS)));
        world.hand.regions().split(&[cut]).await.expect("a division");
        move_a_leader(&cluster, &world, round).await;
    }
    for writer in writers {
        writer.await.expect("no wrong answer");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reader.await.expect("no wrong sum") > 0, "nobody could read");
    let total = sum(&world.client, &accounts).await.expect("a sum");
    assert_eq!(total, EACH * ACCOUNTS as i64);
    until("the locks to go", async || world.locks("bank/").await.is_empty()).await;
}

fn account(n: usize) -> String {
    format!("bank/{n:02}")
}

/// Has another store lead the region of an account, and waits until it does.
async fn move_a_leader(cluster: &ProcessCluster, world: &World, round: usize) {
    let key = world.hand.key(&world.key(&account(round * 11 % ACCOUNTS)));
    let at = world.hand.regions().of(&key).await.expect("a region");
    let others: Vec<u64> =
        at.region.peers.iter().map(|p| p.store_id).filter(|id| *id != at.leader.store_id).collect();
    let target = others[round % others.len()];
    let order = serde_json::json!({
        "name": "transfer-leader", "region_id": at.region.id, "to_store_id": target,
    });
    let (address, path) = (cluster.scheduler_address, "/pd/api/v1/operators");
    until("the leader to move", async || {
        // Refused while another order for the region is under way.
        integration::cluster::send(address, "POST", path, &order.to_string(), SOON).expect("an answer");
        let now = world.hand.regions().of(&key).await.expect("a region");
        now.leader.store_id != at.leader.store_id
    })
    .await;
}

/// Besides conflicts: a client that meets a lock whose primary is still on its way does not wait for it, but tells; and
/// a transaction whose locks ran out while its regions moved is to be tried again.
fn may_pass(error: &Error) -> bool {
    let errors = key_errors(error);
    let passes = |error: &&ProtoKeyError| error.txn_not_found.is_some() || !error.retryable.is_empty();
    is_passing(error) || !errors.is_empty() && errors.iter().all(passes)
}

fn number(value: Option<Vec<u8>>) -> i64 {
    let value = value.expect("the account is there");
    std::str::from_utf8(&value).expect("text").parse().expect("a number")
}

/// Moves one from account to account, each time until it is done.
async fn transfers(
    client: TransactionClient,
    accounts: Arc<Vec<String>>,
    worker: usize,
    options: TransactionOptions,
    done: Arc<AtomicUsize>,
) {
    let options = options.drop_check(CheckLevel::None);
    for n in 0..TRANSFERS {
        let from = (worker * 5 + n * 3) % ACCOUNTS;
        let to = (from + 1 + n % (ACCOUNTS - 1)) % ACCOUNTS;
        // In the same order everywhere, so that nobody waits in a circle.
        let (low, high, amount) = if from < to { (from, to, -1) } else { (to, from, 1) };
        let deadline = Instant::now() + SOON;
        loop {
            let mut txn = client.begin_with_options(options.clone()).await.expect("a transaction");
            let tried = async {
                let first = number(txn.get_for_update(accounts[low].clone()).await?);
                let second = number(txn.get_for_update(accounts[high].clone()).await?);
                txn.put(accounts[low].clone(), (first + amount).to_string()).await?;
                txn.put(accounts[high].clone(), (second - amount).to_string()).await?;
                txn.commit().await.map(drop)
            };
            match tried.await {
                Ok(()) => break,
                Err(error) => {
                    assert!(may_pass(&error) && Instant::now() < deadline, "{error}");
                    txn.rollback().await.expect("a rollback");
                }
            }
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads all accounts in one snapshot, again and again; returns how often that worked.
async fn sums(client: TransactionClient, accounts: Arc<Vec<String>>, stop: Arc<AtomicBool>) -> usize {
    let mut read = 0;
    while !stop.load(Ordering::Relaxed) {
        match sum(&client, &accounts).await {
            Ok(total) => {
                assert_eq!(total, EACH * ACCOUNTS as i64);
                read += 1;
            }
            Err(error) => assert!(may_pass(&error), "{error}"),
        }
    }
    read
}

async fn sum(client: &TransactionClient, accounts: &[String]) -> Result<i64, Error> {
    let now = client.current_timestamp().await?;
    let mut snapshot = client.snapshot(now, TransactionOptions::new_optimistic());
    let found: Vec<_> = snapshot.batch_get(accounts.to_vec()).await?.collect();
    assert_eq!(found.len(), accounts.len());
    Ok(found.into_iter().map(|pair| number(Some(pair.1))).sum())
}
