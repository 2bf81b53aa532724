//! Runs the scripts in `tests/scripts/raftstore` against real shards over memory engines. A script plays the
//! network, the disks and the clock; what peers send, write and answer is printed. File names are the spec.

#[path = "raftstore/world.rs"]
mod world;

use std::error::Error;
use std::fmt::Write as _;

use kvserver::raftstore::message::input::ChangePeerKind;
use world::World;

#[derive(goldenscript::Command)]
pub enum Command {
    /// Starts stores 1 to N, each with a peer (11 to 10+N) of region 1; the rest exists without peers.
    Cluster {
        #[arg(key)]
        peers: u64,
        #[arg(key)]
        stores: Option<u64>,
        #[arg(key, optional)]
        log_gc_threshold: u64,
        #[arg(key, optional)]
        log_gc_count_limit: u64,
    },
    /// Lets every running store (or the given ones) tick; prints nothing.
    Tick {
        #[arg(key)]
        n: Option<u64>,
        #[arg(optional)]
        stores: Vec<u64>,
    },
    /// Ticks one store alone until it campaigns, and delivers everything.
    Elect { store: u64 },
    /// Delivers what is in flight and what follows from it, printing each message.
    Deliver,
    /// The same without printing, ticking in between, for this many ticks.
    Settle { ticks: u64 },
    /// Proposes a write; with `version`, of a client that believes in that version of the region.
    Put {
        store: u64,
        key: String,
        value: String,
        #[arg(key)]
        version: Option<u64>,
    },
    /// The region that the commands from here on are about; 1 at first.
    Region { id: u64 },
    /// Divides the region at these keys. The scheduler's ids are the next ones; peers are region * 10 + store.
    Split {
        store: u64,
        #[arg(optional)]
        keys: Vec<String>,
        #[arg(key)]
        version: Option<u64>,
    },
    /// Asks for a confirmed read.
    Read { store: u64, key: String },
    /// Reads under the lease, as request tasks do.
    LeaseRead { store: u64, key: String },
    /// Reads what the store's engine has, whoever leads.
    Get { store: u64, key: String },
    /// Cuts the connections between stores, both ways, or one way with `one_way=true`.
    Cut {
        a: u64,
        b: u64,
        #[arg(key, optional)]
        one_way: bool,
    },
    /// Heals all connections.
    Heal,
    /// From now on log writes of the store wait for `disk`.
    Hold { store: u64 },
    /// Completes the log writes that wait, and those to come.
    Disk { store: u64 },
    /// Stops a store; what was not synced is lost.
    Crash { store: u64 },
    /// Starts it again.
    Start { store: u64 },
    /// A membership change, as the scheduler orders it: add-learner, add-voter or remove, peer@store.
    Change { store: u64, kind: String, peer: String },
    /// An order to hand over leadership, to the peer on the other store.
    Transfer { store: u64, to: u64 },
    /// Tells a store that another one's process is gone.
    Lost { store: u64, gone: u64 },
    /// What the peers look like.
    Status {
        #[arg(optional)]
        stores: Vec<u64>,
    },
}

impl goldenscript::Runner for World {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
        match command {
            Command::Cluster { peers, stores, log_gc_threshold, log_gc_count_limit } => {
                let stores = stores.unwrap_or(*peers);
                *self = World::new(*peers, stores, *log_gc_threshold, *log_gc_count_limit);
            }
            Command::Tick { n, stores } => {
                for _ in 0..n.unwrap_or(1) {
                    self.tick(stores);
                }
            }
            Command::Elect { store } => self.elect(*store)?,
            Command::Deliver => self.deliver(),
            Command::Settle { ticks } => self.settle(*ticks),
            Command::Put { store, key, value, version } => self.put(*store, key, value, *version),
            Command::Region { id } => self.region(*id),
            Command::Split { store, keys, version } => self.split(*store, keys, *version),
            Command::Read { store, key } => self.read(*store, key),
            Command::LeaseRead { store, key } => self.lease_read(*store, key),
            Command::Get { store, key } => {
                let value = self.get(*store, key);
                self.say(format!("{key} = {value}"));
            }
            Command::Cut { a, b, one_way } => self.cut(*a, *b, *one_way),
            Command::Heal => self.heal(),
            Command::Hold { store } => self.hold(*store),
            Command::Disk { store } => self.disk(*store),
            Command::Crash { store } => self.crash(*store),
            Command::Start { store } => self.start(*store),
            Command::Change { store, kind, peer } => {
                let kind = match kind.as_str() {
                    "add-learner" => ChangePeerKind::AddLearner,
                    "add-voter" => ChangePeerKind::AddVoter,
                    "remove" => ChangePeerKind::Remove,
                    other => return Err(format!("no change is called {other}").into()),
                };
                let (peer, on) = peer.split_once('@').ok_or("a peer is written peer@store")?;
                self.change(*store, kind, peer.parse()?, on.parse()?);
            }
            Command::Transfer { store, to } => self.transfer(*store, *to),
            Command::Lost { store, gone } => self.lost(*store, *gone),
            Command::Status { stores } => self.status(stores),
        }
        let mut out = String::new();
        for line in self.said() {
            writeln!(out, "{line}")?;
        }
        Ok(out)
    }
}

#[test]
fn scripts() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts/raftstore");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "the scripts are there");
    for file in files {
        goldenscript::run(&mut World::default(), &file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
}
