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

#[test]
fn single_transactions_and_their_exit_codes() {
    let cluster = Playground::start(&["--stores", "1"]);
    let before = cluster.json(&["tso"])["timestamp"].to_string();
    assert!(cluster.ok(&["txn", "put", "k", "v1"]).starts_with("committed at "));
    let first = cluster.json(&["tso"])["timestamp"].to_string();
    let committed = cluster.json(&["txn", "put", "k", "v2"])["committed"].as_u64().unwrap();
    assert!(committed > first.parse().unwrap());
    assert_eq!(cluster.ok(&["txn", "get", "k"]), "v2\n");
    assert_eq!(cluster.ok(&["txn", "get", "k", "--at", &first]), "v1\n");
    assert_eq!(code(&cluster.kvctl(&["txn", "get", "k", "--at", &before])), 3, "it was not there then");
    assert_eq!(cluster.ok(&["txn", "get", "k", "--at", "now"]), "v2\n");
    assert_eq!(code(&cluster.kvctl(&["txn", "get", "k", "--at", "soon"])), 2);
    cluster.ok(&["txn", "put", "--escaped", r"b\x00", r"\xff"]);
    assert_eq!(cluster.ok(&["txn", "get", "--hex", "6200"]), "ff\n");
    assert_eq!(cluster.ok(&["txn", "scan"]), "b\\0\t\\xff\nk\tv2\n");
    let reverse = cluster.kvctl(&["txn", "scan", "--reverse", "--keys-only", "--limit", "1"]);
    assert_eq!((stdout(&reverse).as_str(), stderr(&reverse).contains("more")), ("k\n", true));
    assert_eq!(cluster.ok(&["txn", "scan", "--at", &first]), "k\tv1\n");
    // Raw pairs are others.
    assert_eq!(code(&cluster.kvctl(&["raw", "get", "k"])), 3);
    cluster.ok(&["txn", "delete", "k"]);
    assert_eq!(code(&cluster.kvctl(&["txn", "get", "k"])), 3);
    assert_eq!(code(&cluster.kvctl(&["txn", "nonsense"])), 2);
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn a_shell_runs_scripts() {
    let cluster = Playground::start(&["--stores", "1"]);
    let script = "\
        # a transfer\n\
        put alice 10\n\
        put bob 5\n\
        begin pessimistic\n\
        get alice\n\
        put alice 7\n\
        put bob 8\n\
        insert \"carol smith\" 1\n\
        lock dave\n\
        get bob\n\
        get nobody\n\
        scan a z limit 2 reverse\n\
        commit\n\
        begin\n\
        delete bob\n\
        scan\n\
        rollback\n\
        get bob\n";
    let done = cluster.kvctl_with_input(&["txn"], script.as_bytes());
    assert_eq!(code(&done), 0, "{}", stderr(&done));
    let lines: Vec<String> = stdout(&done).lines().map(str::to_owned).collect();
    let shown: Vec<&str> = lines
        .iter()
        .map(|line| line.trim_end_matches(|c: char| c.is_ascii_digit() && line.contains(" transaction ")))
        .map(|line| if line.starts_with("committed at ") { "committed" } else { line })
        .collect();
    let wanted = [
        "committed",
        "committed",
        "pessimistic transaction ",
        "10",
        "8",
        "(absent)",
        "carol smith\t1",
        "bob\t8",
        "committed",
        "optimistic transaction ",
        "alice\t7",
        "carol smith\t1",
        "8",
    ];
    assert_eq!(shown, wanted);
}

#[test]
fn a_shell_ends_with_the_first_error_and_leaves_nothing_open() {
    let cluster = Playground::start(&["--stores", "1"]);
    let run =
        |script: &str| cluster.kvctl_with_input(&["txn", "shell", "--output", "json"], script.as_bytes());
    let wrong = run("put a 1\nbegin\nput a 2\nput a\nput a 3\ncommit\n");
    assert_eq!(code(&wrong), 2, "{}", stderr(&wrong));
    assert!(
        stderr(&wrong).contains("put KEY VALUE") && stderr(&wrong).contains("rolled back"),
        "{}",
        stderr(&wrong)
    );
    assert_eq!(stdout(&wrong).lines().count(), 3, "{}", stdout(&wrong));
    let exists = run("begin pessimistic\nput b 1\ninsert a 2\n");
    assert_eq!(code(&exists), 5, "{}", stderr(&exists));
    let left = run("begin pessimistic\nput a 9\nquit\nput a 10\n");
    assert_eq!(code(&left), 0, "{}", stderr(&left));
    // Nobody holds a lock, and nothing was written.
    let after = run("begin pessimistic\nget a\nlock a b\nrollback\ncommit\n");
    assert_eq!(code(&after), 2, "nothing is open for the commit");
    assert!(stdout(&after).contains(r#""value":"1""#), "{}", stdout(&after));
    assert_eq!(code(&run("begin\nbegin\n")), 2);
    assert_eq!(code(&run("lock a\n")), 2);
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn an_interrupt_ends_a_command_that_waits_and_rolls_back() {
    let cluster = Playground::start(&["--stores", "1"]);
    let is_locked = |key: &str| !cluster.json(&["mvcc", "get", key])["lock"].is_null();
    for key in ["k", "mine"] {
        cluster.ok(&["txn", "put", key, "1"]);
    }
    let mut holder = cluster.spawn(&["txn", "shell"]);
    holder.send("begin pessimistic\nlock k\n");
    cluster.wait_for("the holder", || is_locked("k"));
    let mut waiter = cluster.spawn(&["txn", "shell", "--timeout", "600"]);
    waiter.send("begin pessimistic\nlock mine\nlock k\n");
    cluster.wait_for("the waiter", || is_locked("mine"));
    assert!(waiter.interrupt().is_some(), "it ended by itself");
    assert!(!is_locked("mine") && is_locked("k"));
    holder.send("rollback\n");
    assert_eq!(holder.finish(), Some(0));
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn every_transactional_workload_runs() {
    let cluster = Playground::start(&["--stores", "1"]);
    let bench = |args: &[&str]| {
        let common = [
            "bench",
            "--keys",
            "500",
            "--concurrency",
            "4",
            "--duration",
            "1",
            "--warmup",
            "0",
            "--workload",
        ];
        cluster.json(&[&common, args].concat())
    };
    let kinds = |report: &serde_json::Value| -> Vec<String> {
        let kinds = report["kinds"].as_array().unwrap();
        kinds.iter().map(|kind| kind["kind"].as_str().unwrap().to_owned()).collect()
    };
    for (args, wanted) in [
        (&["txn-get"][..], &["get"][..]),
        (&["txn-update"], &["update"]),
        (&["txn-update", "--commit", "two-phase", "--pessimistic"], &["update"]),
        (&["ycsb-a", "--txn"], &["get", "put"]),
        (&["ycsb-d"], &["get", "insert"]),
        (&["ycsb-e", "--txn", "--scan-length", "20"], &["insert", "scan"]),
        (&["ycsb-f", "--txn", "--commit", "async"], &["get", "update"]),
        (&["ycsb-f"], &["get", "update"]),
        (&["tpcc-payment", "--warehouses", "1", "--pessimistic", "--clean"], &["payment"]),
    ] {
        let report = bench(args);
        assert_eq!(
            (report["errors"].as_u64(), kinds(&report)),
            (Some(0), wanted.iter().map(|w| w.to_string()).collect()),
            "{args:?}: {report}"
        );
    }
    assert_eq!(cluster.ok(&["txn", "scan", "--prefix", "kvctl-bench/"]), "", "cleaned");
    assert_eq!(code(&cluster.kvctl(&["bench", "--workload", "raw-get", "--txn"])), 2);
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn versions_and_locks_of_a_key() {
    let cluster = Playground::start(&["--stores", "1"]);
    let long = "long ".repeat(100);
    let committed: Vec<u64> = [Some("first"), None, Some(long.as_str())]
        .into_iter()
        .map(|value| match value {
            Some(value) => cluster.json(&["txn", "put", "k", value]),
            None => cluster.json(&["txn", "delete", "k"]),
        })
        .map(|done| done["committed"].as_u64().unwrap())
        .collect();
    let shown = cluster.json(&["mvcc", "get", "k"]);
    let versions = shown["versions"].as_array().unwrap();
    let of = |field: &str| versions.iter().map(|version| version[field].clone()).collect::<Vec<_>>();
    assert_eq!(of("kind"), ["put", "delete", "put"], "{shown}");
    let at: Vec<u64> = of("commit").iter().map(|commit| commit["timestamp"].as_u64().unwrap()).collect();
    assert!(at.iter().eq(committed.iter().rev()), "{at:?} {committed:?}");
    assert_eq!(
        (&versions[0]["value"]["text"], &versions[2]["value"]["text"]),
        (&long.into(), &"first".into())
    );
    assert!(cluster.ok(&["mvcc", "get", "k"]).contains("delete"));
    assert_eq!(code(&cluster.kvctl(&["mvcc", "get", "nothing"])), 3);

    // A lock is shown while its transaction is open.
    let mut shell = cluster.spawn(&["txn", "shell"]);
    shell.send("begin pessimistic\nlock k other\nput k next\n");
    cluster.wait_for("the lock", || !cluster.json(&["mvcc", "get", "k"])["lock"].is_null());
    let lock = &cluster.json(&["mvcc", "get", "k"])["lock"];
    assert_eq!((&lock["kind"], &lock["primary"]["text"]), (&"pessimistic".into(), &"k".into()), "{lock}");
    shell.send("rollback\n");
    assert_eq!(shell.finish(), Some(0));
    assert!(cluster.json(&["mvcc", "get", "k"])["lock"].is_null());
    assert_eq!(cluster.stop(), Some(0));
}
