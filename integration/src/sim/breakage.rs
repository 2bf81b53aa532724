//! Deliberate mistakes of the driver and its surroundings, one per guarded rule. Tests switch one on and demand
//! that a checker notices: a checker that finds nothing here finds nothing anywhere.

/// See the file's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Breakage {
    #[default]
    None,
    /// The disks claim durability and keep nothing that a crash could not take (INV-LOG).
    AckBeforePersist,
    /// The same, with the check of acknowledgements switched off: lost entries must be noticed by their effects.
    LostEntries,
    /// Readers trust the view they loaded first and look neither at the lease's end nor for a newer view (INV-LEASE).
    StaleLease,
    /// One store's clock runs at less than half speed: its leases last too long (INV-LEASE).
    SlowClock,
    /// Requests made for an old region version are proposed as if they were for the present one (INV-EPOCH).
    EpochAtPropose,
    /// Entries made for an old region version are applied as if they were for the present one (INV-EPOCH).
    EpochAtApply,
    /// Now and then a store loses one entry between commit and apply (INV-APPLY).
    ApplyGap,
    /// Now and then a store applies an empty entry in place of a committed one (INV-APPLY).
    ApplyOther,
    /// The applied index reaches the engine without the effects (INV-APPLY).
    ApplyTorn,
    /// A region that is divided keeps its lease for the undivided range (INV-LEASE).
    LeaseOverSplit,
    /// What follows from a split leaves before the split is on the disk (INV-DURABLE).
    SplitWithoutSync,
    /// Commits write their records although the lock is gone.
    CommitWithoutLock,
    /// Optimistic prewrites do not look for versions that are newer than their snapshot.
    PrewriteWithoutConflicts,
    /// Prewrites of the same keys do not take turns (INV-LATCH).
    CommandsWithoutLatches,
    /// Reads pass locks that should make them wait.
    ReadsPassLocks,
    /// Transactions choose commit timestamps below those of reads that did not see them (INV-MAXTS).
    MinCommitTsBelowReads,
    /// Reads pass transactions that have chosen their timestamp and are not applied yet (INV-MAXTS).
    ReadsPassMemoryLocks,
    /// What earlier leaders of a region have read is not asked for (INV-MAXTS).
    MaxTsNotSynced,
}
