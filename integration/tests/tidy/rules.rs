//! The house rules themselves: each takes texts and returns what is wrong, one line per finding. Reading the
//! tree and failing the test is the caller's part.

use std::collections::BTreeMap;

use crate::source;

/// Longest file and function that need no entry in the ratchet.
pub const FILE_LINES_MAX: usize = 600;
pub const FUNCTION_LINES_MAX: usize = 70;

/// Which crates of the workspace a crate may name in its manifest.
const CRATE_ARROWS: [(&str, &[&str]); 6] = [
    ("kvproto", &[]),
    ("kvclient", &["kvproto"]),
    ("scheduler", &["kvproto"]),
    ("kvserver", &["kvproto", "kvclient"]),
    ("kvctl", &["kvproto", "kvclient", "kvserver", "scheduler"]),
    ("integration", &["kvproto", "kvclient", "kvserver", "scheduler", "kvctl"]),
];

/// The layers of kvserver, lowest first: a layer names itself and those before it.
const LAYERS: [&str; 5] = ["engine", "raftstore", "storage", "txn", "server"];

/// Directories (with a trailing slash) and files whose code is pure.
const PURE: &[&str] = &[
    "kvserver/src/raftstore/",
    "kvserver/src/engine/mod.rs",
    "kvserver/src/engine/mem.rs",
    "kvserver/src/engine/log_store.rs",
    "kvserver/src/txn/deadlock.rs",
    "kvserver/src/txn/latches.rs",
    "kvserver/src/txn/lock_waits.rs",
    "kvserver/src/txn/lock_waits/",
    "kvserver/src/txn/error.rs",
    "kvserver/src/txn/key_check.rs",
    "kvserver/src/txn/pairs.rs",
    "kvserver/src/txn/range.rs",
    "kvserver/src/txn/raw.rs",
    "kvserver/src/txn/raw/",
    "kvserver/src/txn/mvcc/",
    "kvserver/src/txn/commands/",
    "kvserver/src/txn/gc/filter.rs",
    "kvserver/src/txn/gc/orphans.rs",
    "kvserver/src/txn/gc/walk.rs",
    "kvserver/src/safe_points.rs",
    "kvserver/src/server/admission.rs",
    "kvserver/src/server/convert.rs",
    "kvserver/src/server/convert/",
    "scheduler/src/cluster.rs",
    "scheduler/src/cluster/",
    "scheduler/src/coordinator.rs",
    "scheduler/src/gc.rs",
    "scheduler/src/core/",
    "scheduler/src/schedule/",
    "scheduler/src/schedulers/",
    "scheduler/src/tso/oracle.rs",
    "scheduler/src/member/lease.rs",
    "scheduler/src/kv/location.rs",
    "client/src/region_cache.rs",
    "client/src/backoff.rs",
    "client/src/request/retry.rs",
    "client/src/request/shard.rs",
    "client/src/txn/buffer.rs",
    "client/src/txn/committer.rs",
    "client/src/txn/key_error.rs",
    "client/src/txn/resolution.rs",
];

/// What drives the pure core: threads, clocks, files and sockets live here.
const EDGES: [&str; 14] = [
    "kvserver/src/raftstore/node.rs",
    "kvserver/src/raftstore/damage.rs",
    "kvserver/src/raftstore/raft_worker.rs",
    "kvserver/src/raftstore/log_writer.rs",
    "kvserver/src/raftstore/apply_worker.rs",
    "kvserver/src/raftstore/router.rs",
    "kvserver/src/raftstore/inbox.rs",
    "kvserver/src/raftstore/runner/",
    "kvserver/src/raftstore/scheduler_client/grpc.rs",
    "kvserver/src/raftstore/snap/snap_builder.rs",
    "kvserver/src/raftstore/snap/snap_manager.rs",
    "kvserver/src/raftstore/snap/snap_receiver.rs",
    "kvserver/src/raftstore/snap/snap_sender.rs",
    "kvserver/src/raftstore/util/worker.rs",
];

/// Words that make code depend on more than its arguments.
const IMPURE_WORDS: [&str; 9] = [
    "tokio",
    "tonic",
    "Instant::now",
    "SystemTime",
    "rand::",
    "HashMap",
    "HashSet",
    "std::fs",
    "std::thread",
];

fn covers(entries: &[&str], path: &str) -> bool {
    entries.iter().any(|entry| if entry.ends_with('/') { path.starts_with(entry) } else { path == *entry })
}

/// Whether the file at this path, relative to the repository, holds pure code.
pub fn is_pure(path: &str) -> bool {
    covers(PURE, path) && !covers(&EDGES, path)
}

/// A crate's manifest names only crates that its place in the house allows.
pub fn crate_arrows(name: &str, manifest: &toml::Table) -> Vec<String> {
    let Some((_, allowed)) = CRATE_ARROWS.iter().find(|(krate, _)| *krate == name) else {
        return vec![format!(
            "{name}: a crate without a place in the house; add its arrows to the tidy test"
        )];
    };
    let mut found = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
        for dependency in table.keys() {
            let ours = CRATE_ARROWS.iter().any(|(krate, _)| krate == dependency);
            if ours && !allowed.contains(&dependency.as_str()) {
                found.push(format!("{name}: [{section}] must not name {dependency}"));
            }
        }
    }
    found
}

/// Code of a kvserver layer names no layer above it.
pub fn layer_arrows(path: &str, code: &str) -> Vec<String> {
    let Some(rest) = path.strip_prefix("kvserver/src/") else { return Vec::new() };
    let layer = rest.split(['/', '.']).next().unwrap_or(rest);
    let Some(rank) = LAYERS.iter().position(|name| *name == layer) else { return Vec::new() };
    let code = source::without_tests(code);
    let mut named: Vec<(usize, String)> = source::imports(&code);
    named.extend(source::word_positions(&code, "crate::").map(|at| {
        let path: String =
            code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
        (source::line_of(&code, at), path)
    }));
    let mut found: Vec<String> = named
        .into_iter()
        .filter_map(|(line, named)| {
            let target = named.strip_prefix("crate::")?.split("::").next()?.to_string();
            let above = LAYERS.iter().position(|name| *name == target)? > rank;
            above.then(|| format!("{path}:{line}: {layer} must not name {target}"))
        })
        .collect();
    found.dedup();
    found
}

/// Pure code has no clock, thread, channel, async, randomness, unordered iteration, file or socket.
pub fn purity(path: &str, code: &str) -> Vec<String> {
    if !is_pure(path) {
        return Vec::new();
    }
    let code = source::without_tests(code);
    let mut found = Vec::new();
    for word in IMPURE_WORDS {
        let mut lines: Vec<usize> =
            source::word_positions(&code, word).map(|at| source::line_of(&code, at)).collect();
        // A group import splits a path: `use std::{fs, thread}`.
        let in_group =
            |path: &str| path == word || path.strip_prefix(word).is_some_and(|rest| rest.starts_with("::"));
        lines.extend(source::imports(&code).iter().filter(|(_, path)| in_group(path)).map(|(line, _)| *line));
        lines.sort_unstable();
        lines.dedup();
        found.extend(lines.iter().map(|line| format!("{path}:{line}: `{word}` in pure code")));
    }
    found
}

/// Every file opens with `//!` and at least one sentence about its job.
pub fn opening(path: &str, text: &str) -> Option<String> {
    let block: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).collect();
    let prose = block.join(" ");
    let states_its_job = prose.split_whitespace().count() >= 4
        && prose.trim_end().ends_with(['.', '`', ')', ':', '|'])
        || prose.contains(". ");
    (!states_its_job).then(|| format!("{path}:1: must open with `//!` and a sentence that states its job"))
}

/// Leftovers of work in progress, and tests that do not run.
pub fn leftovers(path: &str, text: &str, code: &str) -> Vec<String> {
    let note = concat!("FIX", "ME");
    let mut found: Vec<String> = source::word_positions(text, note)
        .map(|at| format!("{path}:{}: {note}", source::line_of(text, at)))
        .collect();
    for word in ["dbg!", "todo!", "unimplemented!", "#[ignore"] {
        let at = code.match_indices(word).map(|(at, _)| at);
        found.extend(at.map(|at| format!("{path}:{}: `{word}`", source::line_of(code, at))));
    }
    found
}

/// A size above its limit: what it is of, and how many lines it has.
pub type Sizes = BTreeMap<String, usize>;

/// What in this file is above the limits.
pub fn oversized(path: &str, text: &str, code: &str) -> Sizes {
    let mut sizes = Sizes::new();
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        sizes.insert(format!("file {path}"), lines);
    }
    for function in source::functions(code) {
        if function.lines > FUNCTION_LINES_MAX {
            let entry = sizes.entry(format!("fn {path} {}", function.name)).or_default();
            *entry = function.lines.max(*entry);
        }
    }
    sizes
}

/// The ratchet's entries: `file PATH LINES` and `fn PATH NAME LINES`; `#` begins a comment.
pub fn parse_ratchet(text: &str) -> Result<Sizes, String> {
    let mut sizes = Sizes::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let entry = line.rsplit_once(' ').and_then(|(what, lines)| Some((what, lines.parse().ok()?)));
        let (what, lines) =
            entry.ok_or_else(|| format!("not `file PATH LINES` or `fn PATH NAME LINES`: {line}"))?;
        sizes.insert(what.to_string(), lines);
    }
    Ok(sizes)
}

/// Sizes may only shrink, and the ratchet follows them down.
pub fn ratchet(actual: &Sizes, allowed: &Sizes) -> Vec<String> {
    let mut found = Vec::new();
    for (what, lines) in actual {
        match allowed.get(what) {
            None => found.push(format!("{what} has {lines} lines: split it")),
            Some(limit) if lines > limit => {
                found.push(format!("{what} grew from {limit} to {lines} lines: split it"))
            }
            Some(limit) if lines < limit => {
                found.push(format!("{what} shrank: its entry is now `{what} {lines}`"))
            }
            Some(_) => {}
        }
    }
    let gone = allowed.keys().filter(|what| !actual.contains_key(*what));
    found.extend(gone.map(|what| format!("{what} is within the limits: remove its entry")));
    found
}
