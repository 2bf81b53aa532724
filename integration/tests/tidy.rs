//! The house rules as tests: who may name whom, which code is pure, how files open, how long they may get.
//! The rules are in `tidy/rules.rs`; here they meet the tree, and planted bad text that each must find.

#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const CRATES: [&str; 6] = ["proto", "kvserver", "scheduler", "client", "ctl", "integration"];

/// One source file: its path relative to the repository, its text, and its code without comments and literals.
struct File {
    path: String,
    text: String,
    code: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_path_buf()
}

fn tree() -> Vec<File> {
    let mut files = Vec::new();
    for krate in CRATES {
        collect(&root().join(krate), &mut files);
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn collect(dir: &Path, files: &mut Vec<File>) {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for path in entries.map(|entry| entry.expect("a directory entry").path()) {
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text =
                std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let relative = path.strip_prefix(root()).expect("under the root").display().to_string();
            files.push(File { path: relative, code: source::code_only(&text), text });
        }
    }
}

/// Files that only tests compile: those declared under `#[cfg(test)]`, with everything below them.
fn test_only(files: &[File]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in files {
        for (name, _) in source::declared_modules(&file.code).into_iter().filter(|(_, test)| *test) {
            let prefix = format!("{}/{name}", child_dir(&file.path));
            let below = format!("{prefix}/");
            let covered =
                files.iter().filter(|f| f.path == format!("{prefix}.rs") || f.path.starts_with(&below));
            found.extend(covered.map(|f| f.path.clone()));
        }
    }
    found
}

/// Directory in which the modules declared by this file lie.
fn child_dir(path: &str) -> String {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "mod.rs" | "lib.rs" | "main.rs" => dir.to_string(),
        _ => path.trim_end_matches(".rs").to_string(),
    }
}

fn assert_none(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn crates_name_only_what_the_house_allows() {
    let mut found = Vec::new();
    for krate in CRATES {
        let text = std::fs::read_to_string(root().join(krate).join("Cargo.toml")).expect("a manifest");
        let manifest: toml::Table = text.parse().expect("a valid manifest");
        let name = manifest["package"]["name"].as_str().expect("a package name");
        found.extend(rules::crate_arrows(name, &manifest));
    }
    assert_none(found);
}

#[test]
fn layers_name_only_those_below() {
    let files = tree();
    let tests = test_only(&files);
    let files = files.iter().filter(|file| !tests.contains(&file.path));
    assert_none(files.flat_map(|file| rules::layer_arrows(&file.path, &file.code)).collect());
}

#[test]
fn pure_code_is_pure() {
    let files = tree();
    let tests = test_only(&files);
    let files = files.iter().filter(|file| !tests.contains(&file.path));
    assert_none(files.flat_map(|file| rules::purity(&file.path, &file.code)).collect());
}

#[test]
fn every_file_states_its_job() {
    assert_none(tree().iter().filter_map(|file| rules::opening(&file.path, &file.text)).collect());
}

#[test]
fn nothing_unfinished_is_left() {
    assert_none(
        tree().iter().flat_map(|file| rules::leftovers(&file.path, &file.text, &file.code)).collect(),
    );
}

#[test]
fn sizes_only_shrink() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/size_ratchet.txt");
    let text = std::fs::read_to_string(path).expect("the ratchet");
    let allowed = rules::parse_ratchet(&text).unwrap_or_else(|error| panic!("{error}"));
    let mut actual = BTreeMap::new();
    for file in tree() {
        actual.extend(rules::oversized(&file.path, &file.text, &file.code));
    }
    assert_none(rules::ratchet(&actual, &allowed));
}

#[test]
fn no_file_is_orphaned() {
    let files = tree();
    let mut reached = BTreeSet::new();
    for file in &files {
        for (name, _) in source::declared_modules(&file.code) {
            let prefix = format!("{}/{name}", child_dir(&file.path));
            reached.extend([format!("{prefix}.rs"), format!("{prefix}/mod.rs")]);
        }
    }
    let is_root = |path: &str| {
        path.ends_with("src/lib.rs") || path.ends_with("src/main.rs") || path.contains("/src/bin/")
    };
    let orphans = files.iter().filter(|file| file.path.contains("/src/") && !is_root(&file.path));
    let orphans = orphans.filter(|file| !reached.contains(&file.path));
    assert_none(orphans.map(|file| format!("{}: no `mod` names it", file.path)).collect());
}

/// Planted bad text: a rule that finds nothing here finds nothing anywhere.
mod planted {
    use super::{rules, source};

    const PURE: &str = "kvserver/src/raftstore/peer.rs";

    fn purity(text: &str) -> Vec<String> {
        rules::purity(PURE, &source::code_only(text))
    }

    fn layers(path: &str, text: &str) -> Vec<String> {
        rules::layer_arrows(path, &source::code_only(text))
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        let text = r##"let a = "fn x() {"; // { tokio
            let b = r#"" { "#; let c = '"'; let d = '\''; let e = b'{'; /* { /* */ { */ fn f<'a>(x: &'a str) {}"##;
        let code = source::code_only(text);
        assert_eq!(code.len(), text.len());
        assert!(!code.contains("tokio"));
        assert_eq!(code.matches('{').count(), 1, "{code}");
        assert!(code.contains("fn f<'a>(x: &'a str) {}"));
    }

    #[test]
    fn a_clock_in_pure_code_is_found() {
        assert_eq!(
            purity("fn f() {\n    Instant::now();\n}"),
            [format!("{PURE}:2: `Instant::now` in pure code")]
        );
        assert_eq!(purity("use std::time::SystemTime;").len(), 1);
    }

    #[test]
    fn an_impure_group_import_is_found() {
        assert_eq!(purity("use std::{fs, io};").len(), 1);
        assert_eq!(
            purity("use std::{\n    collections::{BTreeMap, HashMap},\n    thread as t,\n};").len(),
            2
        );
        assert_eq!(purity("use tokio::sync::mpsc;").len(), 1);
    }

    #[test]
    fn what_only_looks_impure_is_left_alone() {
        assert!(
            purity("// tokio\nlet my_tokio = operand::new(); use std::format; struct FxHashMap;").is_empty()
        );
        assert!(
            purity("#[cfg(test)]\nmod tests {\n    use std::fs;\n    fn f() { tokio::spawn(g()); }\n}")
                .is_empty()
        );
        assert!(rules::purity("kvserver/src/raftstore/node.rs", "use tokio::sync;").is_empty());
    }

    #[test]
    fn code_after_a_test_module_is_checked() {
        assert_eq!(purity("#[cfg(test)]\nmod tests { fn f() {} }\nuse std::fs;").len(), 1);
    }

    #[test]
    fn a_layer_that_names_one_above_is_found() {
        let found =
            layers("kvserver/src/engine/rocks.rs", "fn f() { crate::raftstore::meta::keys::data(); }");
        assert_eq!(found, ["kvserver/src/engine/rocks.rs:1: engine must not name raftstore"]);
        assert_eq!(layers(PURE, "use crate::{engine::Cf, txn::raw};").len(), 1);
        assert!(layers("kvserver/src/txn/raw.rs", "use crate::{engine::Cf, storage::Storage};").is_empty());
        assert!(layers("kvserver/src/main.rs", "use crate::server;").is_empty());
    }

    #[test]
    fn a_wrong_arrow_between_crates_is_found() {
        let manifest = |text: &str| text.parse::<toml::Table>().expect("toml");
        assert_eq!(
            rules::crate_arrows("kvclient", &manifest("[dependencies]\nkvserver = { workspace = true }"))
                .len(),
            1
        );
        assert_eq!(
            rules::crate_arrows("scheduler", &manifest("[dev-dependencies]\nkvclient.workspace = true"))
                .len(),
            1
        );
        assert_eq!(rules::crate_arrows("newcomer", &manifest("")).len(), 1);
        assert!(
            rules::crate_arrows(
                "kvserver",
                &manifest("[dependencies]\nkvclient.workspace = true\nbytes = '1'")
            )
            .is_empty()
        );
    }

    #[test]
    fn a_file_that_does_not_state_its_job_is_found() {
        assert!(rules::opening("a.rs", "use std::io;\n//! Too late to say it here.").is_some());
        assert!(rules::opening("a.rs", "//! Peer").is_some());
        assert!(rules::opening("a.rs", "//! Holds the peers of a store.\n\nmod a;").is_none());
    }

    #[test]
    fn leftovers_are_found() {
        let text =
            format!("fn f() {{ {}!(x); }}\n#[{}]\n// {}: later", "dbg", "ignore", concat!("FIX", "ME"));
        assert_eq!(rules::leftovers("a.rs", &text, &source::code_only(&text)).len(), 3);
    }

    #[test]
    fn long_functions_and_files_are_found() {
        let long = format!("fn long(a: [u8; 2]) -> Fn() {{\n{}}}\nfn short() {{}}", "    x();\n".repeat(70));
        let sizes = rules::oversized("a.rs", &long, &source::code_only(&long));
        assert_eq!(sizes.into_iter().collect::<Vec<_>>(), [("fn a.rs long".to_string(), 72)]);
        let file = "\n".repeat(601);
        assert_eq!(rules::oversized("a.rs", &file, &file).get("file a.rs"), Some(&601));
    }

    #[test]
    fn the_ratchet_turns_one_way() {
        let sizes = |text: &str| rules::parse_ratchet(text).expect("a ratchet");
        let allowed = sizes("# why\nfile a.rs 700\nfn a.rs long 90\n");
        assert!(rules::ratchet(&allowed, &allowed).is_empty());
        assert_eq!(rules::ratchet(&sizes("file a.rs 701\nfn a.rs long 90"), &allowed).len(), 1, "grown");
        assert_eq!(rules::ratchet(&sizes("file a.rs 650\nfn a.rs long 90"), &allowed).len(), 1, "shrunk");
        assert_eq!(rules::ratchet(&sizes("file a.rs 700"), &allowed).len(), 1, "gone");
        assert_eq!(rules::ratchet(&sizes("file b.rs 800"), &sizes("")).len(), 1, "new");
        assert!(rules::parse_ratchet("file a.rs many").is_err());
    }

    #[test]
    fn modules_are_read_with_their_tests() {
        let code = source::code_only("pub mod a;\n#[cfg(test)]\nmod tests;\nmod inline {}\n// mod c;");
        assert_eq!(source::declared_modules(&code), [("a".to_string(), false), ("tests".to_string(), true)]);
    }
}
