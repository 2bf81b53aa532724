//! kvctl as a user meets it: the program against a playground, by exit codes, standard output and files.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use common::*;

/// Lines that are sorted by bytes and have what formats find hard.
fn words() -> Vec<u8> {
    let mut words: Vec<String> = (0..20_000).map(|n| format!("word-{:05}", n * 7 % 20_000)).collect();
    words.extend(["Ångström", "naïve", "with space", "'quoted'"].map(str::to_owned));
    words.sort();
    (words.join("\n") + "\n").into_bytes()
}

#[test]
fn single_pairs_and_their_exit_codes() {
    let cluster = Playground::start(&["--stores", "1"]);
    assert_eq!(code(&cluster.kvctl(&["raw", "put", "k", "v1"])), 0);
    assert_eq!(stdout(&cluster.kvctl(&["raw", "get", "k"])), "v1\n");
    assert_eq!(code(&cluster.kvctl(&["raw", "cas", "k", "v2", "--previous", "v0"])), 5);
    assert_eq!(code(&cluster.kvctl(&["raw", "cas", "k", "v2", "--if-absent"])), 5);
    assert_eq!(code(&cluster.kvctl(&["raw", "cas", "k", "v2", "--previous", "v1"])), 0);
    assert_eq!(stdout(&cluster.kvctl(&["raw", "ttl", "k"])), "none\n");
    assert_eq!(code(&cluster.kvctl(&["raw", "put", "--ttl", "1000", "t", "v"])), 0);
    let left: u64 = stdout(&cluster.kvctl(&["raw", "ttl", "t"])).trim().parse().unwrap();
    assert!((900..=1000).contains(&left), "{left} seconds");
    assert_eq!(code(&cluster.kvctl(&["raw", "put", "--escaped", r"b\x00\n", r"\xff"])), 0);
    assert_eq!(stdout(&cluster.kvctl(&["raw", "get", "--hex", "62000a"])), "ff\n");
    assert_eq!(stdout(&cluster.kvctl(&["raw", "scan"])), "b\\0\\n\t\\xff\nk\tv2\nt\tv\n");
    let reverse = cluster.kvctl(&["raw", "scan", "--reverse", "--keys-only", "--limit", "1"]);
    assert_eq!((stdout(&reverse).as_str(), stderr(&reverse).contains("more")), ("t\n", true));
    assert_eq!(code(&cluster.kvctl(&["raw", "delete", "k"])), 0);
    let absent = cluster.kvctl(&["raw", "get", "k"]);
    assert_eq!((code(&absent), stdout(&absent).as_str()), (3, ""));
    assert_eq!(stdout(&cluster.kvctl(&["raw", "ttl", "k"])), "absent\n");
    assert_eq!(code(&cluster.kvctl(&["raw", "put", "--hex", "6", "v"])), 2);
    assert_eq!(code(&cluster.kvctl(&["raw", "nonsense"])), 2);
    let nobody = cluster.kvctl(&["cluster", "--scheduler", "127.0.0.1:1", "--timeout", "1"]);
    assert_eq!(code(&nobody), 1);
    assert!(stderr(&nobody).contains("kvctl playground"), "{}", stderr(&nobody));
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn three_stores_show_what_they_hold() {
    let cluster = Playground::start(&[]);
    assert_eq!(cluster.ready["stores"].as_array().unwrap().len(), 3);
    let shown = cluster.json(&["cluster"]);
    assert_eq!((&shown["health"], &shown["api"]), (&"healthy".into(), &"v2".into()), "{shown}");
    assert_eq!((&shown["stores_up"], &shown["max_replicas"]), (&3.into(), &3.into()));
    let stores = cluster.json(&["store", "list"]);
    assert!(stores.as_array().unwrap().iter().all(|store| store["peers"] == 5), "{stores}");
    let id = stores[0]["id"].to_string();
    assert_eq!(cluster.json(&["store", "show", &id])["address"], stores[0]["address"]);
    assert_eq!(code(&cluster.kvctl(&["store", "show", "999999"])), 3);
    let regions = cluster.json(&["region", "list"]);
    assert_eq!(regions[0]["peers"].as_array().unwrap().len(), 3, "{regions}");
    let id = regions[0]["id"].to_string();
    assert_eq!(cluster.json(&["region", "show", &id])["id"], regions[0]["id"]);
    assert_eq!(cluster.json(&["region", "key", "apple"])["id"], regions[1]["id"], "DEFAULT's own region");
    assert_eq!(code(&cluster.kvctl(&["region", "show", "999999"])), 3);
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn what_is_imported_is_exported_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Playground::start(&["--stores", "1"]);
    let input = dir.path().join("words.tsv");
    std::fs::write(&input, words()).unwrap();
    let summary = cluster.json(&["raw", "import", "--format", "tsv", path_text(&input)]);
    assert_eq!((&summary["lines"], &summary["bad"]), (&20_004.into(), &0.into()));
    let output = dir.path().join("out.tsv");
    cluster.json(&["raw", "export", "--format", "tsv", path_text(&output)]);
    assert!(std::fs::read(&output).unwrap() == words(), "the export differs from the import");
    for format in ["csv", "jsonl"] {
        let exported = cluster.kvctl(&["raw", "export", "--format", format, "-"]).stdout;
        assert_eq!(exported.iter().filter(|byte| **byte == b'\n').count(), 20_004);
        let imported = cluster.kvctl_with_input(&["raw", "import", "--format", format, "-"], &exported);
        assert_eq!(code(&imported), 0, "{}", stderr(&imported));
        assert!(cluster.kvctl(&["raw", "export", "--format", format, "-"]).stdout == exported);
    }
    let part = cluster.kvctl(&["raw", "export", "--format", "tsv", "--prefix", "word-0000", "-"]);
    assert_eq!(stdout(&part).lines().count(), 10);
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn bad_lines_are_named_and_the_good_ones_stored() {
    let cluster = Playground::start(&["--stores", "1"]);
    let long_key = "k".repeat(100_000);
    let input = format!("a\t1\n\nb\\q\t2\n{long_key}\t3\nc\t4\na\t5\n");
    let imported = cluster.kvctl_with_input(&["raw", "import", "--format", "tsv", "-"], input.as_bytes());
    assert_eq!(code(&imported), 4, "{}", stderr(&imported));
    let told = stderr(&imported);
    for line in ["line 2: ", "line 3: ", "line 4: ", "3 of 6 lines"] {
        assert!(told.contains(line), "no {line:?} in {told}");
    }
    assert_eq!(stdout(&cluster.kvctl(&["raw", "scan"])), "a\t5\nc\t4\n");
    let few = cluster.kvctl_with_input(
        &["raw", "import", "--format", "jsonl", "--show-bad", "1", "-"],
        b"x\ny\n{\"key\":\"d\",\"value\":\"/w==\",\"ttl\":600,\"encoding\":\"base64\"}\n{\"key\":\"ZA==\",\"value\":\"/w==\",\"ttl\":600,\"encoding\":\"base64\"}\n",
    );
    assert_eq!(code(&few), 4);
    assert!(stderr(&few).contains("and 2 more bad lines"), "{}", stderr(&few));
    assert_eq!(stdout(&cluster.kvctl(&["raw", "get", "d", "--hex"])), "");
    assert_eq!(stdout(&cluster.kvctl(&["raw", "get", "64", "--hex"])), "ff\n");
    assert_ne!(stdout(&cluster.kvctl(&["raw", "ttl", "d"])), "none\n");
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn data_and_api_are_kept_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--stores", "1", "--api", "v1", "--data-dir", path_text(dir.path())];
    let cluster = Playground::start(&args);
    assert_eq!(code(&cluster.kvctl(&["raw", "put", "kept", "yes"])), 0);
    let address = cluster.ready["stores"][0]["address"].clone();
    assert_eq!(cluster.stop(), Some(0));
    let cluster = Playground::start(&["--data-dir", path_text(dir.path())]);
    assert_eq!((&cluster.ready["api"], &cluster.ready["stores"][0]["address"]), (&"v1".into(), &address));
    assert_eq!(stdout(&cluster.kvctl(&["raw", "get", "kept"])), "yes\n");
    assert_eq!(cluster.json(&["cluster"])["api"], "v1");
    let taken = cluster.kvctl(&["playground", "--port", "0", "--data-dir", path_text(dir.path())]);
    assert_eq!(code(&taken), 1, "{}", stderr(&taken));
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn a_signal_before_the_cluster_is_ready_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(KVCTL)
        .env("TMPDIR", dir.path())
        .args(["playground", "--port", "0"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Its first file is there: signals are caught from now on, and the servers are not up.
    let deadline = Instant::now() + STOP_DEADLINE;
    while std::fs::read_dir(dir.path()).unwrap().next().is_none() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    signal("-INT", child.id());
    assert_eq!(wait(child), Some(1));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn temporary_data_goes_away_and_every_workload_runs() {
    let cluster = Playground::start(&["--stores", "1"]);
    let directory = cluster.ready["data_dir"].as_str().unwrap().to_owned();
    assert!(Path::new(&directory).is_dir());
    for workload in ["raw-put", "raw-get", "raw-mixed", "raw-scan"] {
        let report = cluster.json(&[
            "bench",
            "--workload",
            workload,
            "--concurrency",
            "4",
            "--keys",
            "500",
            "--duration",
            "1",
            "--warmup",
            "0",
            "--clean",
        ]);
        assert!(report["operations"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(report["errors"], 0, "{report}");
        assert!(report["latency_us"]["p50"].as_u64() <= report["latency_us"]["p999"].as_u64());
    }
    assert_eq!(stdout(&cluster.kvctl(&["raw", "scan"])), "", "--clean leaves nothing");
    assert_eq!(cluster.stop(), Some(0));
    assert!(!Path::new(&directory).exists());
}

fn leader_store(region: &serde_json::Value) -> u64 {
    region["leader_store"].as_u64().expect("a leader")
}

#[test]
fn regions_are_split_moved_and_kept_off_stores_by_hand() {
    let playground = Playground::start(&["--stores", "3"]);
    playground.ok(&["raw", "put", "a", "1"]);
    playground.ok(&["raw", "put", "x", "2"]);
    let whole = playground.json(&["region", "key", "a"]);
    let id = whole["id"].to_string();
    // The store's members may still be growing: a split is refused meanwhile.
    playground.until(&["region", "split", &id, "--key", "m"]);
    let (left, right) = (playground.json(&["region", "key", "a"]), playground.json(&["region", "key", "x"]));
    assert_ne!(left["id"], right["id"]);
    assert_eq!(left["end"]["text"], "raw/0/m");
    assert_eq!(playground.ok(&["raw", "get", "x"]), "2\n");

    let right_id = right["id"].to_string();
    let from = leader_store(&right);
    let to = right["peers"].as_array().unwrap().iter().map(|peer| peer["store"].as_u64().unwrap());
    let to = to.filter(|store| *store != from).max().unwrap();
    playground.ok(&["scheduler", "pause", "all", "600"]);
    playground.until(&["region", "transfer-leader", &right_id, &to.to_string()]);
    assert_eq!(leader_store(&playground.json(&["region", "show", &right_id])), to);
    assert_eq!(playground.ok(&["raw", "get", "x"]), "2\n");
    let refused = playground.kvctl(&["region", "transfer-leader", &right_id, &to.to_string()]);
    assert!(stderr(&refused).contains("leads it already"), "{}", stderr(&refused));

    let history = playground.json(&["operator", "history"]);
    assert_eq!(
        (&history[0]["desc"], &history[0]["status"]),
        (&"admin-transfer-leader".into(), &"success".into())
    );
    let shown = playground.json(&["operator", "show", &right_id]);
    assert_eq!(shown["status"], "success");
    assert_eq!(code(&playground.kvctl(&["operator", "cancel", &right_id])), 3);
    assert_eq!(code(&playground.kvctl(&["operator", "show", "999999"])), 3);

    let schedulers = playground.json(&["scheduler", "list"]);
    assert!(schedulers.as_array().unwrap().iter().all(|scheduler| scheduler["status"] == "paused"));
    playground.ok(&["scheduler", "resume", "all"]);
    playground.ok(&["scheduler", "add", "evict-leader-scheduler", "--store", &to.to_string()]);
    assert_eq!(
        code(&playground.kvctl(&["scheduler", "add", "evict-leader-scheduler", "--store", "999999"])),
        3
    );
    assert_eq!(code(&playground.kvctl(&["scheduler", "add", "no-such-scheduler"])), 2);
    playground.wait_for("a store without leaders", || {
        playground.json(&["store", "show", &to.to_string()])["leaders"] == 0
    });
    let set = playground.json(&["config", "set", "leader-schedule-limit", "16"]);
    assert_eq!((&set["leader-schedule-limit"], &set["region-schedule-limit"]), (&16.into(), &2048.into()));
    assert_eq!(playground.json(&["config", "show"]), set);
    assert_eq!(code(&playground.kvctl(&["config", "set", "no-such-limit", "1"])), 2);
    playground.ok(&["scheduler", "remove", "evict-leader-scheduler"]);
    playground.wait_for("leaders everywhere", || {
        let stores = playground.json(&["store", "list"]);
        stores.as_array().unwrap().iter().all(|store| store["leaders"].as_u64() >= Some(1))
    });
    assert_eq!(playground.stop(), Some(0));
}
