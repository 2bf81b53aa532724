//! The network between the processes of a cluster, as TCP proxies that can be told to misbehave.
//!
//! Every store advertises a proxy's address, so stores and clients dial each other through here. Who dialled is
//! found by the process that owns the socket, so a fault can hit one direction between one pair and leave the rest
//! alone. A held direction keeps its bytes and its connection, as a cut cable does, and delivers them once it
//! flows again; connections made meanwhile look open and carry nothing.
//!
//! Owns one thread with the listeners and all connections; they end when it is dropped.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::ports::free_address;

/// Bytes that a direction holds at most besides the sockets' own buffers.
const CHUNK: usize = 64 << 10;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// A store, by its place in the cluster.
    Store(usize),
    /// Anybody else: clients, the scheduler.
    Outside,
}

/// What one direction does with bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Nothing gets through for now.
    pub held: bool,
    /// Added to every piece of data.
    pub delay: Duration,
}

#[derive(Debug, Default)]
struct Rules {
    ways: BTreeMap<(End, End), Rule>,
    /// How often all connections were broken.
    resets: u64,
}

impl Rules {
    fn way(&self, way: (End, End)) -> Rule {
        self.ways.get(&way).copied().unwrap_or_default()
    }
}

/// See the file's head.
#[derive(Debug)]
pub struct Links {
    runtime: Option<Runtime>,
    rules: watch::Sender<Rules>,
    stores: Arc<Mutex<Vec<Arc<AtomicU32>>>>,
}

impl Links {
    /// A network that behaves.
    pub fn new() -> io::Result<Links> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("proxy")
            .enable_all()
            .build()?;
        Ok(Links { runtime: Some(runtime), rules: watch::Sender::default(), stores: Arc::default() })
    }

    /// Puts a proxy before the next store, which listens at `target` and whose process id `pid` will hold.
    /// Gives the address that the store should advertise.
    pub fn add_store(&self, target: SocketAddr, pid: Arc<AtomicU32>) -> io::Result<SocketAddr> {
        let address = free_address();
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let store = {
            let mut stores = self.stores.lock();
            stores.push(pid);
            stores.len() - 1
        };
        let Some(runtime) = &self.runtime else { return Err(io::Error::other("the network is gone")) };
        let _in_runtime = runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        runtime.spawn(accept(
            listener,
            End::Store(store),
            target,
            self.rules.subscribe(),
            self.stores.clone(),
        ));
        Ok(address)
    }

    /// Sets what happens to bytes from one end to the other.
    pub fn set(&self, from: End, to: End, rule: Rule) {
        self.rules.send_modify(|rules| {
            rules.ways.insert((from, to), rule);
        });
    }

    /// Nothing gets from one end to the other any more; the other way still works.
    pub fn cut_one_way(&self, from: End, to: End) {
        self.set(from, to, Rule { held: true, ..Rule::default() });
    }

    /// Nothing gets through between two ends.
    pub fn cut(&self, one: End, other: End) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// Cuts a store off from all other stores. Clients still reach it.
    pub fn isolate(&self, store: usize) {
        let others = self.stores.lock().len();
        (0..others).filter(|other| *other != store).for_each(|o| self.cut(End::Store(store), End::Store(o)));
    }

    /// Breaks every connection; what was on its way is lost.
    pub fn reset(&self) {
        self.rules.send_modify(|rules| rules.resets += 1);
    }

    /// Delays everything between stores.
    pub fn delay(&self, delay: Duration) {
        let stores = self.stores.lock().len();
        let pairs =
            (0..stores).flat_map(|from| (0..stores).map(move |to| (End::Store(from), End::Store(to))));
        pairs.for_each(|(from, to)| self.set(from, to, Rule { held: false, delay }));
    }

    /// Everything works again, and what was held is delivered.
    pub fn heal(&self) {
        self.rules.send_modify(|rules| rules.ways.clear());
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(
    listener: TcpListener,
    to: End,
    target: SocketAddr,
    rules: watch::Receiver<Rules>,
    stores: Arc<Mutex<Vec<Arc<AtomicU32>>>>,
) {
    loop {
        let Ok((dialled, peer)) = listener.accept().await else {
            // Out of descriptors: others will close theirs.
            tokio::task::yield_now().await;
            continue;
        };
        let from =
            listener.local_addr().ok().map_or(End::Outside, |local| dialler(peer, local, &stores.lock()));
        tokio::spawn(carry(dialled, target, from, to, rules.clone()));
    }
}

/// Carries one connection until either side closes it.
async fn carry(dialled: TcpStream, target: SocketAddr, from: End, to: End, rules: watch::Receiver<Rules>) {
    if flows(&mut rules.clone(), (from, to)).await.is_none() {
        return;
    }
    let Ok(reached) = TcpStream::connect(target).await else { return };
    if dialled.set_nodelay(true).and(reached.set_nodelay(true)).is_err() {
        return;
    }
    let ((dialled_in, dialled_out), (reached_in, reached_out)) = (dialled.into_split(), reached.into_split());
    let before = rules.borrow().resets;
    let mut reset = rules.clone();
    tokio::select! {
        _ = reset.wait_for(|rules| rules.resets != before) => {}
        () = pump(dialled_in, reached_out, (from, to), rules.clone()) => {}
        () = pump(reached_in, dialled_out, (to, from), rules) => {}
    }
}

/// Waits until a direction flows and gives its delay; `None` when the network is gone.
async fn flows(rules: &mut watch::Receiver<Rules>, way: (End, End)) -> Option<Duration> {
    let flowing = rules.wait_for(|rules| !rules.way(way).held).await.ok()?;
    Some(flowing.way(way).delay)
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: (End, End),
    mut rules: watch::Receiver<Rules>,
) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let Ok(n @ 1..) = from.read(&mut chunk).await else { return };
        let Some(delay) = flows(&mut rules, way).await else { return };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&chunk[..n]).await.is_err() {
            return;
        }
    }
}

/// Who owns the socket at `peer` that is connected to `local`.
fn dialler(peer: SocketAddr, local: SocketAddr, stores: &[Arc<AtomicU32>]) -> End {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let Some(inode) = inode(&table, peer, local) else { return End::Outside };
    let name = format!("socket:[{inode}]");
    let owns = |pid: &Arc<AtomicU32>| {
        let descriptors = format!("/proc/{}/fd", pid.load(Ordering::Relaxed));
        let files = std::fs::read_dir(descriptors).into_iter().flatten().flatten();
        files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|link| link == Path::new(&name))
    };
    stores.iter().position(owns).map_or(End::Outside, End::Store)
}

/// The inode of the socket at `peer` in the kernel's table of IPv4 connections.
fn inode(table: &str, peer: SocketAddr, local: SocketAddr) -> Option<&str> {
    let ends = |port: u16| format!(":{port:04X}");
    let (peer, local) = (ends(peer.port()), ends(local.port()));
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (own, remote) = (fields.nth(1)?, fields.next()?);
        // State, queues, timer, retransmits, user, timeout, inode.
        (own.ends_with(&peer) && remote.ends_with(&local)).then(|| fields.nth(6)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    /// Long enough to be noticed if bytes came through that must not.
    const A_WHILE: Duration = Duration::from_millis(100);

    /// A connection through the proxy of store 0, whose process has this id.
    fn connection(links: &Links, pid: u32) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pid = Arc::new(AtomicU32::new(pid));
        let address = links.add_store(listener.local_addr().unwrap(), pid).unwrap();
        let dialled = TcpStream::connect(address).unwrap();
        let (reached, _) = listener.accept().unwrap();
        for stream in [&dialled, &reached] {
            stream.set_read_timeout(Some(SOON)).unwrap();
        }
        (dialled, reached)
    }

    fn read(stream: &mut TcpStream, n: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; n];
        stream.read_exact(&mut bytes).map(|()| bytes)
    }

    #[test]
    fn bytes_go_both_ways_and_an_end_is_passed_on() {
        let links = Links::new().unwrap();
        let (mut dialled, mut reached) = connection(&links, 0);
        dialled.write_all(b"ping").unwrap();
        assert_eq!(read(&mut reached, 4).unwrap(), b"ping");
        reached.write_all(b"pong").unwrap();
        assert_eq!(read(&mut dialled, 4).unwrap(), b"pong");
        drop(reached);
        assert_eq!(dialled.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_cut_way_holds_its_bytes_while_the_other_flows_and_delivers_them_when_healed() {
        let links = Links::new().unwrap();
        let (mut dialled, mut reached) = connection(&links, 0);
        links.cut_one_way(End::Outside, End::Store(0));
        dialled.write_all(b"late").unwrap();
        reached.write_all(b"flows").unwrap();
        assert_eq!(read(&mut dialled, 5).unwrap(), b"flows");
        reached.set_read_timeout(Some(A_WHILE)).unwrap();
        assert!(read(&mut reached, 1).is_err(), "a cut way let bytes through");
        links.heal();
        reached.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(read(&mut reached, 4).unwrap(), b"late");
    }

    #[test]
    fn a_reset_ends_what_is_open_and_nothing_later() {
        let links = Links::new().unwrap();
        let (mut dialled, mut reached) = connection(&links, 0);
        dialled.write_all(b"ping").unwrap();
        assert_eq!(read(&mut reached, 4).unwrap(), b"ping");
        links.reset();
        assert!(matches!(dialled.read(&mut [0; 1]), Ok(0) | Err(_)), "it is still open");
        let (mut dialled, mut reached) = connection(&links, 0);
        dialled.write_all(b"ping").unwrap();
        assert_eq!(read(&mut reached, 4).unwrap(), b"ping");
    }

    #[test]
    fn a_store_that_dials_is_told_from_others_by_its_process() {
        let links = Links::new().unwrap();
        let (mut dialled, mut reached) = connection(&links, std::process::id());
        links.cut_one_way(End::Outside, End::Store(0));
        dialled.write_all(b"mine").unwrap();
        assert_eq!(read(&mut reached, 4).unwrap(), b"mine", "not from outside");
        links.cut_one_way(End::Store(0), End::Store(0));
        dialled.write_all(b"held").unwrap();
        reached.set_read_timeout(Some(A_WHILE)).unwrap();
        assert!(read(&mut reached, 1).is_err(), "it is store 0 that dialled");
    }
}
