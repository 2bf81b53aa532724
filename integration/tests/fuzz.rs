//! A short run of the fuzzer over every decoder. `cargo run -p integration --bin fuzz -- run --seconds 3600` goes on for
//! longer, from other seeds.

use integration::fuzz::TARGETS;

const CASES: u64 = 3_000;

#[test]
fn no_decoder_breaks_its_promise() {
    let findings: Vec<String> = TARGETS
        .iter()
        .filter_map(|target| target.run(1, CASES).err())
        .map(|finding| finding.to_string())
        .collect();
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}
