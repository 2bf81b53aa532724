//! Starts that must not succeed: each ends with a message that says what is wrong, and harms nobody.

use std::path::Path;
use std::time::Duration;

use integration::cluster::{Launch, Process, binary};

use super::Victim;

const SOON: Duration = Duration::from_secs(60);

/// Starts a program that must refuse to run; returns its last words.
fn refused(launch: Launch) -> String {
    let mut process = Process::start(launch).expect("it starts");
    let status = process.wait_exit(SOON).expect("it gives up");
    let words = process.log_tail();
    assert!(!status.success(), "it ended well: {words}");
    words
}

/// The launch with another value of a flag.
fn with(mut launch: Launch, flag: &str, value: &str) -> Launch {
    match launch.args.iter().position(|arg| arg == flag) {
        Some(at) => launch.args[at + 1] = value.to_string(),
        None => launch.args.extend([flag.to_string(), value.to_string()]),
    }
    launch
}

fn config(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("a file");
    path.display().to_string()
}

#[tokio::test]
async fn a_store_does_not_start_on_data_that_is_not_its_own() {
    let (mut ours, mut theirs) = (Victim::start().await, Victim::start().await);
    let dir = tempfile::tempdir().expect("a directory");
    let data_dir = |victim: &Victim| victim.cluster.stores[0].data_dir.display().to_string();
    let launch = ours.cluster.second_on(0).expect("a launch");

    let words = refused(launch.clone());
    assert!(words.contains(&data_dir(&ours)) && words.contains("another process"), "{words}");

    // The data of a store of another cluster, which is stopped for it.
    theirs.cluster.stores[0].process.kill();
    let words = refused(with(launch.clone(), "--data-dir", &data_dir(&theirs)));
    let (our_id, their_id) =
        (ours.regions.header().unwrap().cluster_id, theirs.regions.header().unwrap().cluster_id);
    assert!(words.contains(&our_id.to_string()) && words.contains(&their_id.to_string()), "{words}");
    assert!(words.contains("belongs to cluster"), "{words}");
    theirs.cluster.stores[0].restart().expect("its own cluster takes it back");
    theirs.assert_well().await;

    // Its own data in another form of keys.
    ours.cluster.stores[0].process.kill();
    let words = refused(with(launch.clone(), "--api", "v1"));
    assert!(words.contains("storage.api"), "{words}");
    // A file where a directory should be, and a directory of something else.
    let file = config(dir.path(), "file", "no directory");
    let words = refused(with(launch.clone(), "--data-dir", &file));
    assert!(words.contains(&file), "{words}");
    let strange = dir.path().join("strange");
    std::fs::create_dir_all(strange.join("db")).expect("a directory");
    std::fs::write(strange.join("db/CURRENT"), "MANIFEST-999999\n").expect("a file");
    let words = refused(with(launch.clone(), "--data-dir", &strange.display().to_string()));
    assert!(words.contains("strange"), "{words}");
    ours.cluster.stores[0].restart().expect("the store comes back");
    ours.assert_well().await;
}

#[tokio::test]
async fn configurations_that_cannot_be_meant_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let launch = |program: &str, args: &[&str]| Launch {
        name: program.to_string(),
        program: binary(program).expect("it is built"),
        args: args.iter().map(|arg| arg.to_string()).collect(),
        log: dir.path().join(format!("{program}.log")),
    };
    let data = dir.path().join("data").display().to_string();
    for (text, names) in [
        ("[coprocessor]\nregion-splitsize = \"1MiB\"\n", ["kv.toml:2", "region-split-size"]),
        ("[coprocesor]\n", ["kv.toml:1", "coprocessor"]),
        ("[raftstore]\nraft-entry-max-size = \"lots\"\n", ["kv.toml:2", "64MiB"]),
        ("[coprocessor]\nregion-max-size = \"1MiB\"\n", ["coprocessor.region-max-size", "region-split-size"]),
        ("[server]\nmax-requests = 0\n", ["server.max-requests", "0"]),
        ("[storage]\napi = \"v9\"\n", ["kv.toml:2", "v9"]),
        ("memory-limit = \n", ["kv.toml:1", ""]),
        ("\u{0}\u{1}\u{fffd}", ["kv.toml:1", ""]),
    ] {
        let file = config(dir.path(), "kv.toml", text);
        let words = refused(launch("kvserver", &["--data-dir", &data, "--config", &file]));
        assert!(names.iter().all(|name| words.contains(name)), "{text:?}: {words}");
    }
    for (text, names) in [
        ("[schedule]\nmax-store-downtime = '1h'\n", ["schedule.max-store-downtime", "max-store-down-time"]),
        ("[replication]\nmax-replicas = -1\n", ["max-replicas", "-1"]),
    ] {
        let file = config(dir.path(), "scheduler.toml", text);
        let words = refused(launch("scheduler", &["--data-dir", &data, "--config", &file]));
        assert!(names.iter().all(|name| words.contains(name)), "{text:?}: {words}");
    }
    for program in ["kvserver", "scheduler"] {
        let words = refused(launch(program, &["--data-dir", &data, "--config", "/no/such/file.toml"]));
        assert!(words.contains("/no/such/file.toml"), "{words}");
        let words = refused(launch(program, &["--data-dri", &data]));
        assert!(words.contains("--data-dir"), "{words}");
    }
    assert!(!dir.path().join("data").exists(), "nothing was created on the way");
}
