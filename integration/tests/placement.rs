//! Where replicas and leaders go, on real clusters: they are evened out, stores are emptied of leaders by order and
//! before they stop, a new store gets its share, and what people ask for is done or cancelled. Data stays where
//! clients find it all the while.

use std::collections::BTreeMap;
use std::time::Duration;

use integration::cluster::placement::{Placement, boundary};
use integration::cluster::wait_until;
use kvproto::pdpb;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_and_replicas_follow_stores_that_come_stop_and_are_emptied() {
    let mut placement = Placement::start().await.unwrap();
    for (what, time) in placement.journey(24).await.unwrap() {
        println!("{what}: {time:?}");
    }
    wait_until("rest", SOON, || placement.operators().unwrap() == json!([])).unwrap();
    let records = placement.cluster.api("/pd/api/v1/operators/records").unwrap();
    let of = |status: &str| records.as_array().unwrap().iter().filter(|r| r["status"] == status).count();
    assert!(of("success") > 24, "{records}");
    assert_eq!(of("timeout"), 0, "{records}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_cannot_go_on_is_cancelled() {
    let mut placement = Placement::start().await.unwrap();
    placement.put_all(10).await.unwrap();
    placement.pause(600).unwrap();
    placement.cluster.add_store().unwrap();
    let (first, fourth) = (placement.store_id(0).unwrap(), placement.store_id(3).unwrap());
    // It has reported, and is frozen before a replica can come.
    placement.cluster.stores[3].process.freeze();
    let region = placement.cluster.data_region_id().expect("a region");
    let path = format!("/pd/api/v1/operators/{region}");
    let order = json!({ "name": "transfer-peer", "region_id": region, "from_store_id": first, "to_store_id": fourth });
    placement.request("POST", "/pd/api/v1/operators", &order).unwrap();
    let running = placement.request("GET", &path, &json!({})).unwrap();
    assert_eq!((&running["status"], &running["desc"]), (&json!("running"), &json!("admin-move-peer")));
    let twice = placement.request("POST", "/pd/api/v1/operators", &order).unwrap_err().to_string();
    assert!(twice.contains("cancel it first") || twice.contains("has a peer of it"), "{twice}");
    // The learner is a member, and stays one: its store cannot catch up.
    let has_learner = || {
        let regions = placement.cluster.api("/pd/api/v1/regions").unwrap();
        let four = |region: &Value| region["peers"].as_array().is_some_and(|peers| peers.len() == 4);
        regions["regions"].as_array().unwrap().iter().any(four)
    };
    wait_until("the learner to be added", SOON, has_learner).expect("the operator begins");
    placement.request("DELETE", &path, &json!({})).unwrap();
    let ended = placement.request("GET", &path, &json!({})).unwrap();
    assert_eq!(
        (&ended["status"], &ended["reason"]),
        (&json!("cancel"), &json!("cancelled by an administrator"))
    );
    placement.cluster.stores[3].process.thaw();
    let is_whole = || {
        let regions = placement.cluster.api("/pd/api/v1/regions").unwrap();
        let whole = |region: &Value| region["peers"].as_array().is_some_and(|peers| peers.len() == 3);
        regions["regions"].as_array().unwrap().iter().all(whole)
    };
    wait_until("the learner to be removed", SOON, is_whole).expect("what was begun is cleaned up");
    placement.check_all(10).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_that_are_split_and_scattered_are_spread_over_four_stores() {
    let mut placement = Placement::start().await.unwrap();
    placement.pause(600).unwrap();
    placement.cluster.add_store().unwrap();
    let request = pdpb::SplitAndScatterRegionsRequest {
        header: placement.regions.header(),
        split_keys: (0..8).map(boundary).collect(),
        group: "g".into(),
        retry_limit: 0,
    };
    let answer = placement.regions.pd().split_and_scatter_regions(request).await.unwrap().into_inner();
    assert_eq!((answer.split_finished_percentage, answer.scatter_finished_percentage), (100, 100));
    let made = answer.regions_id;
    wait_until("the end of the scatter", SOON, || placement.operators().unwrap() == json!([])).unwrap();
    for region_id in &made {
        let request = pdpb::GetOperatorRequest { header: placement.regions.header(), region_id: *region_id };
        let told = placement.regions.pd().get_operator(request).await.unwrap().into_inner();
        assert_ne!(told.status(), pdpb::OperatorStatus::Running);
    }
    let regions = placement.cluster.api("/pd/api/v1/regions").unwrap();
    let mut leaders: BTreeMap<u64, usize> = BTreeMap::new();
    for region in regions["regions"].as_array().unwrap() {
        if made.contains(&region["id"].as_u64().unwrap()) {
            *leaders.entry(region["leader"]["store_id"].as_u64().unwrap()).or_default() += 1;
        }
    }
    assert_eq!(leaders.into_values().collect::<Vec<_>>(), [2, 2, 2, 2]);
}
