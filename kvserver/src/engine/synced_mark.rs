//! A small file beside a database that says how far its writes were known to be on disk.
//!
//! A write-ahead log whose files are recycled cannot tell rot in its middle from its end: RocksDB opens such a log,
//! and everything after the damage is gone without a word. A store that goes on from there has forgotten votes and
//! entries that it acknowledged. So the number of the last synced write is kept here, and a database that comes
//! back with less is refused ([`EngineError::LostWrites`]).
//!
//! Owns the file `SYNCED`: two slots in different sectors, written in turn, each a number with a checksum, so that a
//! torn write leaves the other. Invariant: the number in the file never exceeds what the database has durably. It is
//! written after every sync but synced itself only now and then: a crash of the process loses nothing of it, a loss
//! of power up to the last [`SYNC_EVERY`] raises, or what the system writes back by itself in about half a minute.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::{EngineError, Result};

const NAME: &str = "SYNCED";
const FORMAT: u8 = 1;
/// Format, number, checksum of both.
const SLOT_BYTES: usize = 1 + 8 + 4;
/// Slots are a page apart.
const SLOT_DISTANCE: u64 = 4096;
/// Every so many raises the file is synced: a sync here costs as much as one of the log.
const SYNC_EVERY: u64 = 1024;

/// See the file's head.
pub(super) struct SyncedMark {
    file: File,
    state: Mutex<State>,
}

struct State {
    number: u64,
    raises: u64,
}

impl SyncedMark {
    /// Opens the mark of the database in `path`, which has come back with everything up to `recovered`.
    ///
    /// # Errors
    /// [`EngineError::LostWrites`] when that is less than what was once synced.
    pub(super) fn open(path: &Path, recovered: u64) -> Result<SyncedMark> {
        let name = path.join(NAME);
        let failed = |e: io::Error| EngineError::Io(format!("{}: {e}", name.display()));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&name);
        let file = file.map_err(failed)?;
        let slots = [0, 1].map(|slot| read_slot(&file, slot));
        let [first, second] = slots;
        let number = match (first.map_err(failed)?, second.map_err(failed)?) {
            (Slot::Damaged, Slot::Damaged) => {
                return Err(EngineError::Corrupt(format!("{} cannot be read", name.display())));
            }
            (first, second) => first.number().max(second.number()),
        };
        if recovered < number {
            return Err(EngineError::LostWrites { path: PathBuf::from(path), recovered, synced: number });
        }
        Ok(SyncedMark { file, state: Mutex::new(State { number, raises: 0 }) })
    }

    /// Notes that everything up to write `number` is on disk.
    pub(super) fn raise(&self, number: u64) -> Result<()> {
        let failed = |e: io::Error| EngineError::Io(format!("{NAME}: {e}"));
        let sync = {
            let mut state = self.state.lock();
            if number <= state.number {
                return Ok(());
            }
            // Into the page cache only; whoever waits here comes from a sync of its own.
            self.file.write_all_at(&slot(number), state.raises % 2 * SLOT_DISTANCE).map_err(failed)?;
            state.number = number;
            state.raises += 1;
            state.raises.is_multiple_of(SYNC_EVERY)
        };
        if sync { self.file.sync_data().map_err(failed) } else { Ok(()) }
    }

    /// Syncs the file, for a clean stop.
    pub(super) fn close(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| EngineError::Io(format!("{NAME}: {e}")))
    }
}

/// What a slot holds.
enum Slot {
    /// Never written.
    Empty,
    Number(u64),
    Damaged,
}

impl Slot {
    fn number(&self) -> u64 {
        match self {
            Slot::Number(number) => *number,
            Slot::Empty | Slot::Damaged => 0,
        }
    }
}

fn slot(number: u64) -> [u8; SLOT_BYTES] {
    let mut bytes = [FORMAT; SLOT_BYTES];
    bytes[1..9].copy_from_slice(&number.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..9]);
    bytes[9..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn read_slot(file: &File, n: u64) -> io::Result<Slot> {
    let mut bytes = [0; SLOT_BYTES];
    if file.metadata()?.len() < n * SLOT_DISTANCE + SLOT_BYTES as u64 {
        return Ok(Slot::Empty);
    }
    file.read_exact_at(&mut bytes, n * SLOT_DISTANCE)?;
    if bytes == [0; SLOT_BYTES] {
        return Ok(Slot::Empty);
    }
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[1..9]);
    let number = u64::from_le_bytes(number);
    Ok(if slot(number) == bytes { Slot::Number(number) } else { Slot::Damaged })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flip(dir: &Path, at: u64) {
        let file = OpenOptions::new().read(true).write(true).open(dir.join(NAME)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
    }

    fn lost(dir: &Path, recovered: u64) -> bool {
        match SyncedMark::open(dir, recovered) {
            Ok(_) => false,
            Err(EngineError::LostWrites { .. }) => true,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn less_than_what_was_synced_is_refused_as_often_as_it_is_tried() {
        let dir = tempfile::tempdir().unwrap();
        let mark = SyncedMark::open(dir.path(), 0).unwrap();
        [7, 9, 8, 12].into_iter().for_each(|n| mark.raise(n).unwrap());
        mark.close().unwrap();
        drop(mark);
        assert!(!lost(dir.path(), 12));
        assert!(!lost(dir.path(), 13));
        assert!(lost(dir.path(), 11));
        assert!(lost(dir.path(), 0));
    }

    #[test]
    fn a_torn_slot_leaves_the_one_before_and_two_are_damage() {
        let dir = tempfile::tempdir().unwrap();
        let mark = SyncedMark::open(dir.path(), 0).unwrap();
        [1, 2, 3].into_iter().for_each(|n| mark.raise(n).unwrap());
        drop(mark);
        flip(dir.path(), 3);
        assert!(!lost(dir.path(), 2), "3 is torn");
        assert!(lost(dir.path(), 1));
        flip(dir.path(), SLOT_DISTANCE + 3);
        assert!(matches!(SyncedMark::open(dir.path(), 9), Err(EngineError::Corrupt(_))));
    }
}
