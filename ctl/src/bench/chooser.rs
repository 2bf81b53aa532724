//! Which keys a workload touches and what it does to them: distributions and mixes. Pure.

use super::report::Operation;
use crate::cli::Workload;

/// Exponent of the Zipf distribution, as the YCSB has it: the most popular of many keys gets some percent of all.
const ZIPF_EXPONENT: f64 = 0.99;

/// Pseudo-random numbers (splitmix64): good enough to choose keys, and free.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// The next number below `limit`, which is not zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(limit)) >> 64) as u64
    }

    /// The next number from 0 to 1, without 1.
    fn unit(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Ranks from 0 to `count - 1`; rank r comes up in proportion to `1 / (r + 1)^0.99`. By rejection-inversion (Hörmann and
/// Derflinger 1996): no table, the same cost for any number of keys.
#[derive(Debug, Clone)]
pub struct Zipf {
    count: f64,
    low: f64,
    high: f64,
    /// Ranks this near to their sample need no second look.
    near: f64,
}

impl Zipf {
    /// Over so many ranks, at least one.
    pub fn new(count: u64) -> Zipf {
        let count = count.max(1) as f64;
        Zipf {
            count,
            low: integral(1.5) - 1.0,
            high: integral(count + 0.5),
            near: 2.0 - integral_inverse(integral(2.5) - density(2.0)),
        }
    }

    /// The next rank.
    pub fn draw(&self, random: &mut Random) -> u64 {
        loop {
            let area = self.high + random.unit() * (self.low - self.high);
            let x = integral_inverse(area);
            let rank = x.round().clamp(1.0, self.count);
            if rank - x <= self.near || area >= integral(rank + 0.5) - density(rank) {
                return rank as u64 - 1;
            }
        }
    }
}

fn density(x: f64) -> f64 {
    x.powf(-ZIPF_EXPONENT)
}

fn integral(x: f64) -> f64 {
    (x.powf(1.0 - ZIPF_EXPONENT) - 1.0) / (1.0 - ZIPF_EXPONENT)
}

fn integral_inverse(x: f64) -> f64 {
    (1.0 + x * (1.0 - ZIPF_EXPONENT)).powf(1.0 / (1.0 - ZIPF_EXPONENT))
}

/// How the keys of a workload are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Popularity {
    /// All alike.
    Even,
    /// Few much more often than the rest, anywhere among the keys.
    Skewed,
    /// The newest most often.
    Latest,
}

/// What a worker does next, with which share in percent.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    shares: &'static [(Operation, u64)],
    /// Which keys.
    pub popularity: Popularity,
}

impl Mix {
    /// The mix of a workload; `reads` is the share of gets where that can be chosen, in percent.
    pub fn of(workload: Workload) -> Mix {
        use Popularity::{Even, Latest, Skewed};
        let (popularity, shares): (_, &[(Operation, u64)]) = match workload {
            Workload::RawPut => (Even, &[(Operation::Put, 100)]),
            Workload::RawGet | Workload::TxnGet => (Even, &[(Operation::Get, 100)]),
            Workload::RawScan => (Even, &[(Operation::Scan, 100)]),
            // The share is the user's; see `draw`.
            Workload::RawMixed => (Even, &[(Operation::Get, 50), (Operation::Put, 50)]),
            Workload::TxnUpdate => (Even, &[(Operation::Update, 100)]),
            Workload::YcsbA => (Skewed, &[(Operation::Get, 50), (Operation::Put, 50)]),
            Workload::YcsbB => (Skewed, &[(Operation::Get, 95), (Operation::Put, 5)]),
            Workload::YcsbC => (Skewed, &[(Operation::Get, 100)]),
            Workload::YcsbD => (Latest, &[(Operation::Get, 95), (Operation::Insert, 5)]),
            Workload::YcsbE => (Skewed, &[(Operation::Scan, 95), (Operation::Insert, 5)]),
            Workload::YcsbF => (Skewed, &[(Operation::Get, 50), (Operation::Update, 50)]),
            Workload::TpccPayment => (Even, &[(Operation::Payment, 100)]),
        };
        Mix { shares, popularity }
    }

    /// The next operation. `reads` is the percentage of gets in a mix whose shares are the user's.
    pub fn draw(&self, random: &mut Random, reads: Option<u8>) -> Operation {
        if let [(only, _)] = self.shares {
            return *only;
        }
        let mut left = random.below(100);
        if let Some(reads) = reads {
            return if left < u64::from(reads) { Operation::Get } else { Operation::Put };
        }
        for (kind, share) in self.shares {
            if left < *share {
                return *kind;
            }
            left -= share;
        }
        self.shares[0].0
    }
}

/// Chooses keys by number.
#[derive(Debug, Clone)]
pub struct Chooser {
    zipf: Zipf,
    keys: u64,
    popularity: Popularity,
}

impl Chooser {
    /// Among the numbers below `keys`, which is not zero.
    pub fn new(keys: u64, popularity: Popularity) -> Chooser {
        Chooser { zipf: Zipf::new(keys), keys, popularity }
    }

    /// The next key's number, when those below `visible` are there.
    pub fn draw(&self, random: &mut Random, visible: u64) -> u64 {
        match self.popularity {
            Popularity::Even => random.below(self.keys),
            // Popular keys are not neighbours.
            Popularity::Skewed => mix(self.zipf.draw(random).wrapping_add(1)) % self.keys,
            Popularity::Latest => visible.saturating_sub(1 + self.zipf.draw(random)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_keys_cover_the_range_evenly() {
        let chooser = Chooser::new(10, Popularity::Even);
        let mut random = Random::new(7);
        let mut hits = [0u32; 10];
        for _ in 0..10_000 {
            hits[chooser.draw(&mut random, 10) as usize] += 1;
        }
        assert!(hits.iter().all(|count| (800..1200).contains(count)), "{hits:?}");
        assert_ne!(Random::new(1).draw(), Random::new(2).draw());
    }

    #[test]
    fn ranks_come_up_as_the_distribution_has_it() {
        const DRAWS: u32 = 200_000;
        for count in [1_u64, 2, 10, 1_000] {
            let zipf = Zipf::new(count);
            let mut random = Random::new(count);
            let mut hits = vec![0u32; count as usize];
            for _ in 0..DRAWS {
                hits[zipf.draw(&mut random) as usize] += 1;
            }
            let weight = |rank: usize| (rank as f64 + 1.0).powf(-ZIPF_EXPONENT);
            let total: f64 = (0..count as usize).map(weight).sum();
            for (rank, hits) in hits.iter().enumerate().take(20) {
                let expected = f64::from(DRAWS) * weight(rank) / total;
                let error = (f64::from(*hits) - expected).abs();
                assert!(
                    error < 6.0 * expected.sqrt() + 1.0,
                    "rank {rank} of {count}: {hits}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn popular_keys_are_spread_and_the_latest_are_at_the_end() {
        let mut random = Random::new(3);
        let skewed = Chooser::new(1_000, Popularity::Skewed);
        let drawn: Vec<u64> = (0..10_000).map(|_| skewed.draw(&mut random, 1_000)).collect();
        let most = (0..1_000).map(|key| drawn.iter().filter(|drawn| **drawn == key).count()).max().unwrap();
        assert!(most > 800, "{most} of 10000 go to one key");
        assert!(drawn.iter().any(|key| *key > 900) && drawn.iter().any(|key| *key < 100));
        let latest = Chooser::new(1_000, Popularity::Latest);
        let drawn: Vec<u64> = (0..10_000).map(|_| latest.draw(&mut random, 5_000)).collect();
        assert!(drawn.iter().all(|key| (4_000..5_000).contains(key)));
        assert!(drawn.iter().filter(|key| **key == 4_999).count() > 800);
    }

    #[test]
    fn mixes_have_the_shares_they_are_known_for() {
        let share = |workload, kind, reads| {
            let (mix, mut random) = (Mix::of(workload), Random::new(1));
            (0..10_000).filter(|_| mix.draw(&mut random, reads) == kind).count() / 100
        };
        assert!((48..=52).contains(&share(Workload::YcsbA, Operation::Put, None)));
        assert!((94..=96).contains(&share(Workload::YcsbE, Operation::Scan, None)));
        assert!((4..=6).contains(&share(Workload::YcsbD, Operation::Insert, None)));
        assert!((48..=52).contains(&share(Workload::YcsbF, Operation::Update, None)));
        assert_eq!(share(Workload::YcsbC, Operation::Get, None), 100);
        assert!((78..=82).contains(&share(Workload::RawMixed, Operation::Get, Some(80))));
    }
}
