//! A closed loop: so many clients, each sending its next operation when the last is answered. Latencies go into
//! one histogram per client, merged at the end, so that measuring costs no shared state.

use std::future::Future;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Latencies up to a minute, in microseconds, to three digits.
const LATENCY_US_MAX: u64 = 60_000_000;
const DIGITS: u8 = 3;

/// How long and by how many.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub clients: usize,
    pub warm_up: Duration,
    pub duration: Duration,
}

/// What came out.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Measured {
    pub operations_per_second: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub errors: u64,
    pub first_error: Option<String>,
}

/// A sequence of numbers that looks random and is the same each time: which keys a client picks.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1))
    }

    /// The next number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// One client's share.
struct Share {
    latencies: Histogram<u64>,
    errors: u64,
    first_error: Option<String>,
}

/// Runs the loop. `operation` is called with the client's numbers and returns the operation to wait for.
pub async fn run<O, F, E>(load: Load, operation: O) -> Measured
where
    O: Fn(&mut Numbers) -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    let begin = Instant::now() + load.warm_up;
    let end = begin + load.duration;
    let clients: Vec<_> = (0..load.clients)
        .map(|index| tokio::spawn(client(index as u64, begin, end, operation.clone())))
        .collect();
    let mut all = Share { latencies: histogram(), errors: 0, first_error: None };
    for client in clients {
        let share = client.await.expect("a client does not panic");
        all.latencies.add(&share.latencies).expect("the histograms have one range");
        all.errors += share.errors;
        all.first_error = all.first_error.or(share.first_error);
    }
    Measured {
        operations_per_second: all.latencies.len() as f64 / load.duration.as_secs_f64(),
        p50_us: all.latencies.value_at_quantile(0.5),
        p99_us: all.latencies.value_at_quantile(0.99),
        p999_us: all.latencies.value_at_quantile(0.999),
        errors: all.errors,
        first_error: all.first_error,
    }
}

async fn client<O, F, E>(index: u64, begin: Instant, end: Instant, operation: O) -> Share
where
    O: Fn(&mut Numbers) -> F,
    F: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    let mut share = Share { latencies: histogram(), errors: 0, first_error: None };
    let mut numbers = Numbers::new(index);
    let mut sent = Instant::now();
    while sent < end {
        let result = operation(&mut numbers).await;
        let answered = Instant::now();
        match result {
            Ok(()) if answered >= begin && answered < end => {
                share.latencies.saturating_record((answered - sent).as_micros() as u64);
            }
            Ok(()) => {}
            Err(error) => {
                share.errors += 1;
                share.first_error.get_or_insert_with(|| error.to_string());
                // A subject that fails at once must not turn into a busy loop.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        sent = answered;
    }
    share
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).expect("valid bounds")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(clients: usize) -> Load {
        Load { clients, warm_up: Duration::ZERO, duration: Duration::from_millis(200) }
    }

    #[tokio::test]
    async fn counts_what_was_answered() {
        let measured = run(load(4), |_| async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok::<(), std::io::Error>(())
        })
        .await;
        assert!(
            measured.operations_per_second > 4.0 && measured.operations_per_second <= 400.0,
            "{measured:?}"
        );
        assert!(measured.p50_us >= 10_000, "{measured:?}");
        assert_eq!(measured.errors, 0);
    }

    #[tokio::test]
    async fn an_error_is_counted_and_kept_and_not_a_latency() {
        let measured = run(load(1), |_| async { Err::<(), _>("refused") }).await;
        assert!(measured.errors > 0 && measured.operations_per_second == 0.0);
        assert_eq!(measured.first_error.as_deref(), Some("refused"));
    }

    #[test]
    fn numbers_are_spread_and_repeat() {
        let draw = |seed| (0..1000).scan(Numbers::new(seed), |n, _| Some(n.below(10))).collect::<Vec<_>>();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!((0..10).all(|digit| draw(1).iter().filter(|n| **n == digit).count() > 50));
    }
}
