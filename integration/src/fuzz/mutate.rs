//! Changes valid inputs as broken disks, networks and programs do: bits, bytes, lengths, pieces.

use crate::sim::rng::Rng;

/// Numbers at the edges of what fields hold.
const EDGES: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 62, i64::MAX as u64, u64::MAX];
/// Changes of one input, at most.
const CHANGES_MAX: u64 = 6;
/// Longest input of noise alone.
const NOISE_MAX: u64 = 200;

/// One of the inputs, changed; sometimes noise alone.
pub fn mutate(rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    if rng.chance(0.03) || corpus.is_empty() {
        return noise(rng);
    }
    let mut input = corpus[rng.index(corpus.len())].clone();
    for _ in 0..rng.range(1, CHANGES_MAX) {
        change(rng, &mut input, corpus);
    }
    input
}

fn noise(rng: &mut Rng) -> Vec<u8> {
    (0..rng.below(NOISE_MAX)).map(|_| rng.draw() as u8).collect()
}

fn change(rng: &mut Rng, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = rng.index(input.len() + 1);
    match rng.below(9) {
        0 if at < input.len() => input[at] ^= 1 << rng.below(8),
        1 if at < input.len() => input[at] = EDGES[rng.index(5)] as u8,
        2 if at < input.len() => input[at] = rng.draw() as u8,
        3 => input.truncate(at),
        4 => {
            let more = noise(rng);
            input.splice(at..at, more);
        }
        5 => {
            let end = at + rng.index(input.len() - at + 1).min(16);
            input.drain(at..end);
        }
        6 => {
            let end = at + rng.index(input.len() - at + 1);
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
        7 => overwrite(rng, input, at),
        _ => {
            let other = &corpus[rng.index(corpus.len())];
            let from = rng.index(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}

/// Puts a number from the edge over what is there, in one of the widths and orders that formats use.
fn overwrite(rng: &mut Rng, input: &mut [u8], at: usize) {
    let (edge, width) = (EDGES[rng.index(EDGES.len())], [2, 4, 8][rng.index(3)]);
    let bytes = if rng.chance(0.5) { edge.to_le_bytes() } else { (edge << (64 - 8 * width)).to_be_bytes() };
    for (to, byte) in input[at..].iter_mut().zip(&bytes[..width]) {
        *to = *byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_changed_in_every_way_and_stay_bounded() {
        let corpus = vec![b"first valid input".to_vec(), vec![7; 100], vec![]];
        let mut seen = std::collections::BTreeSet::new();
        for case in 0..2_000 {
            let input = mutate(&mut Rng::new(3, case), &corpus);
            assert!(input.len() < 20_000, "{} bytes", input.len());
            seen.insert(input);
        }
        assert!(seen.len() > 1_500, "only {} different inputs", seen.len());
    }
}
