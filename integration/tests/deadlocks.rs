//! Deadlocks between transactions whose locks lie on different stores: a third store finds them, and when it dies
//! another one does.

use std::time::Duration;

use integration::cluster::by_hand::{ByHand, Draft};
use integration::cluster::placement::Placement;
use integration::cluster::wait_until;
use kvproto::kvrpcpb::{self as pb, ApiVersion};
use kvproto::tikvpb::batch_commands_request::request::Cmd;
use kvproto::tikvpb::batch_commands_response::response::Cmd as Answer;
use serde_json::json;

/// Longer than any test takes: who waits so long is woken, or told of a deadlock.
const WAIT_MS: i64 = 60_000;
/// Place of the store that finds deadlocks.
const DETECTOR: usize = 0;
const PATIENCE: Duration = Duration::from_secs(30);

/// Three stores: one leads the first region, and so finds deadlocks; the others lead one half each of the keys that
/// transactions use.
struct World {
    placement: Placement,
    by_hand: ByHand,
}

impl World {
    async fn start() -> World {
        let placement = Placement::start().await.expect("a cluster");
        placement.pause(3_600).expect("leaders stay where they are");
        let by_hand =
            ByHand::connect(&placement.cluster.endpoint(), ApiVersion::V2).await.expect("a connection");
        by_hand.regions().split(&[by_hand.key("m")]).await.expect("two halves");
        placement.cluster.wait_replicated().expect("three replicas of each half");
        let world = World { placement, by_hand };
        for (key, place) in [("", DETECTOR), ("x\0\0\0a", 1), ("x\0\0\0z", 2)] {
            world.lead(key.as_bytes(), place).await;
        }
        world
    }

    /// Has the region of a wire key led by the store at this place.
    async fn lead(&self, key: &[u8], place: usize) {
        let region = self.by_hand.regions().of(key).await.expect("a region").region.id;
        let store = self.placement.store_id(place).expect("a store");
        let order = json!({ "name": "transfer-leader", "region_id": region, "to_store_id": store });
        wait_until("the region to be led there", PATIENCE, || {
            let path = format!("/pd/api/v1/region/id/{region}");
            let leader =
                self.placement.cluster.api(&path).map(|region| region["leader"]["store_id"].as_u64());
            if matches!(leader, Ok(Some(leader)) if leader == store) {
                return true;
            }
            // Refused while an earlier one for the region is carried out.
            let _ordered = self.placement.request("POST", "/pd/api/v1/operators", &order);
            false
        })
        .expect("it moves");
    }

    async fn begin(&self, primary: &str) -> Draft {
        self.by_hand.begin(primary).await.expect("a timestamp")
    }
}

/// Claims a key for a transaction, and waits for it.
async fn claim(by_hand: &ByHand, draft: &Draft, name: &str, wait_timeout: i64) -> Vec<pb::KeyError> {
    let key = by_hand.key(name);
    let mutation =
        pb::Mutation { op: pb::Op::PessimisticLock as i32, key: key.clone(), ..Default::default() };
    let request =
        pb::PessimisticLockRequest { mutations: vec![mutation], wait_timeout, ..by_hand.pessimistic(draft) };
    let command = |context| {
        Cmd::PessimisticLock(pb::PessimisticLockRequest { context: Some(context), ..request.clone() })
    };
    match by_hand.ask(&key, command).await.expect("an answer") {
        Answer::PessimisticLock(answer) => answer.errors,
        other => panic!("{other:?}"),
    }
}

async fn give_back(by_hand: &ByHand, draft: &Draft, name: &str) {
    let key = by_hand.key(name);
    let command = |context| {
        Cmd::PessimisticRollback(pb::PessimisticRollbackRequest {
            context: Some(context),
            start_version: draft.start_ts,
            for_update_ts: draft.start_ts,
            keys: vec![key.clone()],
        })
    };
    match by_hand.ask(&key, command).await.expect("an answer") {
        Answer::PessimisticRollback(answer) => assert_eq!(answer.errors, []),
        other => panic!("{other:?}"),
    }
}

/// Two transactions that each want what the other has, on two stores. One of them is told, the other gets its lock.
async fn one_of_two_gives_way(world: &World, (a, z): (&str, &str)) {
    let (one, two) = (world.begin(a).await, world.begin(z).await);
    assert_eq!(claim(&world.by_hand, &one, a, -1).await, []);
    assert_eq!(claim(&world.by_hand, &two, z, -1).await, []);
    let (by_hand, first, wanted) = (world.by_hand.clone(), one.clone(), z.to_string());
    let waiting = tokio::spawn(async move { claim(&by_hand, &first, &wanted, WAIT_MS).await });
    let (by_hand, second, wanted) = (world.by_hand.clone(), two.clone(), a.to_string());
    let closing = tokio::spawn(async move { claim(&by_hand, &second, &wanted, WAIT_MS).await });
    let (told, mut other, loser, kept) = tokio::time::timeout(PATIENCE, async {
        let (mut waiting, mut closing) = (waiting, closing);
        tokio::select! {
            errors = &mut waiting => (errors.expect("it ends"), closing, &one, a),
            errors = &mut closing => (errors.expect("it ends"), waiting, &two, z),
        }
    })
    .await
    .expect("somebody is told of the deadlock");
    let deadlock = told.first().and_then(|error| error.deadlock.as_ref()).expect("a deadlock");
    let mut circle: Vec<_> = deadlock.wait_chain.iter().map(|edge| (edge.txn, edge.wait_for_txn)).collect();
    circle.sort_unstable();
    assert_eq!(circle, [(one.start_ts, two.start_ts), (two.start_ts, one.start_ts)]);
    assert_eq!(deadlock.deadlock_key, world.by_hand.key(kept));
    give_back(&world.by_hand, loser, kept).await;
    let got = tokio::time::timeout(PATIENCE, &mut other).await.expect("the other one is woken");
    assert_eq!(got.expect("it ends"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_across_stores_is_found_also_after_its_finder_has_died() {
    let mut world = World::start().await;
    one_of_two_gives_way(&world, ("a", "z")).await;
    world.placement.cluster.stores[DETECTOR].process.kill();
    one_of_two_gives_way(&world, ("b", "y")).await;
}
