//! kvctl on transactions as a user meets it: timestamps, safe points, and the data itself.

mod common;

use common::*;

#[test]
fn timestamps_and_what_they_stand_for() {
    let cluster = Playground::start(&["--stores", "1"]);
    let [first, second] = [(), ()].map(|()| cluster.json(&["tso"]));
    let number = |view: &serde_json::Value| view["timestamp"].as_u64().unwrap();
    assert!(number(&first) < number(&second), "{first} {second}");
    let again = cluster.json(&["tso", &number(&second).to_string()]);
    assert_eq!(again, second);
    assert_eq!(
        again["physical_ms"].as_u64().unwrap() << 18 | again["logical"].as_u64().unwrap(),
        number(&second)
    );
    assert!(cluster.ok(&["tso", "0"]).contains("1970-01-01 00:00:00.000 UTC"));
    assert_eq!(code(&cluster.kvctl(&["tso", "tomorrow"])), 2);
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn safe_points_move_and_barriers_hold_them() {
    let cluster = Playground::start(&["--stores", "1"]);
    let state = cluster.json(&["gc"]);
    assert_eq!((&state["settings"]["gc.enable"], &state["barriers"]), (&true.into(), &serde_json::json!([])));
    // Nothing moves by itself from here on.
    cluster.ok(&["config", "set", "gc.enable", "false"]);
    assert_eq!(cluster.json(&["gc", "show"])["settings"]["gc.enable"], false);
    let now = cluster.json(&["tso"])["timestamp"].as_u64().unwrap();
    let barrier = cluster.json(&["gc", "barrier", "set", "backup", &now.to_string(), "--ttl", "1h"]);
    assert_eq!((barrier["name"].as_str(), barrier["timestamp"].as_u64()), (Some("backup"), Some(now)));
    assert!(barrier["ttl_seconds"].as_u64().is_some_and(|left| (3_500..=3_600).contains(&left)), "{barrier}");
    let moved = cluster.json(&["gc", "set-safe-point", "now"]);
    assert_eq!(moved["txn_safe_point"]["timestamp"].as_u64(), Some(now), "{moved}");
    assert!(moved["blocker"].as_str().is_some_and(|text| text.contains("backup")), "{moved}");
    assert!(cluster.ok(&["gc"]).contains("backup"));

    // Before the safe point there is nothing left to keep, and it does not go back.
    assert_eq!(code(&cluster.kvctl(&["gc", "barrier", "set", "late", "1h"])), 2);
    assert_eq!(code(&cluster.kvctl(&["gc", "set-safe-point", "1h"])), 2);
    assert_eq!(code(&cluster.kvctl(&["gc", "set-safe-point", "yesterday"])), 2);
    assert_eq!(code(&cluster.kvctl(&["gc", "barrier", "set", "b", "now", "--ttl", "long"])), 2);
    assert!(cluster.ok(&["gc", "barrier", "delete", "backup"]).contains("deleted"));
    assert_eq!(code(&cluster.kvctl(&["gc", "barrier", "delete", "backup"])), 3);
    let moved = cluster.json(&["gc", "set-safe-point", "now"]);
    assert_eq!((&moved["moved"], &moved["blocker"]), (&true.into(), &serde_json::Value::Null));
    assert!(moved["txn_safe_point"]["timestamp"].as_u64() > Some(now), "{moved}");
    assert_eq!(cluster.stop(), Some(0));
}
