//! Free loopback ports for servers that a test may restart on the same port. They are taken from below the
//! range that the kernel gives to outgoing connections, or one of those could sit on a port between two starts.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 20_200;
const COUNT: u32 = 12_000;

static TAKEN: AtomicU32 = AtomicU32::new(0);

/// A loopback address on which nothing listens. Not given twice by one process; processes that run side by
/// side begin at different places.
pub fn free_address() -> SocketAddr {
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let port = FIRST + (start.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed))) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_no_port_twice_and_none_in_use() {
        let first = free_address();
        let held = TcpListener::bind(first).unwrap();
        let more: Vec<_> = (0..8).map(|_| free_address()).collect();
        assert!(!more.contains(&held.local_addr().unwrap()));
        assert!(more.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
