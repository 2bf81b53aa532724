//! Keyspaces: names for disjoint parts of the key space.
//!
//! Owns the table of keyspaces by id. `DEFAULT` (id 0) exists from the moment the cluster is bootstrapped, and
//! is the one that clients use when they name none. Names are unique.

use std::collections::BTreeMap;

use kvproto::keyspacepb::{self, KeyspaceMeta, KeyspaceState};

/// Name of the keyspace every cluster has.
pub const DEFAULT_NAME: &str = "DEFAULT";
/// Its id.
pub const DEFAULT_ID: u32 = 0;

/// The id of a keyspace (the wire has it in a one-of with a single member).
pub fn id_of(meta: &KeyspaceMeta) -> u32 {
    match meta.keyspace {
        Some(keyspacepb::keyspace_meta::Keyspace::Id(id)) => id,
        None => DEFAULT_ID,
    }
}

/// The keyspace that bootstrap creates. `created_at` is in unix seconds.
pub fn default_keyspace(created_at: i64) -> KeyspaceMeta {
    KeyspaceMeta {
        name: DEFAULT_NAME.into(),
        state: KeyspaceState::Enabled as i32,
        created_at,
        state_changed_at: created_at,
        config: Default::default(),
        keyspace: Some(keyspacepb::keyspace_meta::Keyspace::Id(DEFAULT_ID)),
    }
}

/// The table of keyspaces.
#[derive(Debug, Clone, Default)]
pub struct Keyspaces {
    by_id: BTreeMap<u32, KeyspaceMeta>,
}

impl Keyspaces {
    /// Adds a keyspace, or replaces the one with the same id.
    pub fn put(&mut self, meta: KeyspaceMeta) {
        self.by_id.insert(id_of(&meta), meta);
    }

    /// The keyspace with this id.
    pub fn by_id(&self, id: u32) -> Option<&KeyspaceMeta> {
        self.by_id.get(&id)
    }

    /// The keyspace with this name.
    pub fn by_name(&self, name: &str) -> Option<&KeyspaceMeta> {
        self.by_id.values().find(|meta| meta.name == name)
    }

    /// Keyspaces from id `start` on, in id order; `limit` 0 means all.
    pub fn list(&self, start: u32, limit: u32) -> impl Iterator<Item = &KeyspaceMeta> {
        let limit = if limit == 0 { usize::MAX } else { limit as usize };
        self.by_id.range(start..).map(|(_, meta)| meta).take(limit)
    }
}
