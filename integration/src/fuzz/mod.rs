//! A mutation fuzzer for everything that reads bytes from a network, a disk or a person.
//!
//! A target knows valid inputs and checks one input: the decoder must not panic, and what it accepts must survive being
//! encoded and decoded again. Cases come from a seed, so that a finding repeats anywhere; its input is printed as well.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::sim::rng::Rng;

mod mutate;
mod targets;

pub use targets::TARGETS;

/// One decoder.
pub struct Target {
    pub name: &'static str,
    /// Valid inputs.
    corpus: fn() -> Vec<Vec<u8>>,
    /// Makes a changed input pass the decoder's checksum, where it has one.
    reseal: Option<fn(&mut Vec<u8>)>,
    /// Panics when the decoder breaks a promise.
    check: fn(&[u8]),
}

/// An input that breaks a promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub target: &'static str,
    pub seed: u64,
    pub case: u64,
    pub input: Vec<u8>,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hex: String = self.input.iter().map(|byte| format!("{byte:02x}")).collect();
        write!(
            f,
            "{} breaks at case {} of seed {}; replay: cargo run -p integration --bin fuzz -- replay {} {hex}",
            self.target, self.case, self.seed, self.target
        )
    }
}

/// The target with this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

impl Target {
    /// Checks one input.
    pub fn holds(&self, input: &[u8]) -> bool {
        catch_unwind(AssertUnwindSafe(|| (self.check)(input))).is_ok()
    }

    /// Checks the valid inputs and `cases` changed ones.
    pub fn run(&self, seed: u64, cases: u64) -> Result<(), Finding> {
        let corpus = (self.corpus)();
        let found = |case, input| Finding { target: self.name, seed, case, input };
        if let Some(valid) = corpus.iter().find(|valid| !self.holds(valid)) {
            return Err(found(0, valid.clone()));
        }
        for case in 1..=cases {
            let mut rng = Rng::new(seed, case);
            let mut input = mutate::mutate(&mut rng, &corpus);
            if let Some(reseal) = self.reseal
                && rng.chance(0.8)
            {
                reseal(&mut input);
            }
            if !self.holds(&input) {
                return Err(found(case, input));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKEN: Target = Target {
        name: "broken",
        corpus: || vec![b"a valid input".to_vec()],
        reseal: None,
        check: |input| assert!(!input.contains(&0xff), "planted"),
    };

    #[test]
    fn a_planted_mistake_is_found_and_the_finding_repeats() {
        let finding = BROKEN.run(1, 10_000).expect_err("it is easy to find");
        assert_eq!(BROKEN.run(1, 10_000), Err(finding.clone()));
        assert!(!BROKEN.holds(&finding.input) && BROKEN.holds(b"a valid input"));
        assert!(finding.to_string().contains("replay broken"), "{finding}");
    }
}
