//! What a playground's directory holds: the description of the cluster, and where each server keeps its data.
//!
//! `playground.json` says which API the cluster has, how many stores, and on which ports they listened last. It is
//! written before a server starts and replaced by rename, so that a directory with data always has one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cli::Api;
use crate::error::{Error, Result};

const FILE: &str = "playground.json";
const FORMAT: u32 = 1;
const STORES_DEFAULT: u32 = 3;
/// Ports that users of the field know; store number n takes the n-th after them.
const STORE_PORT: u16 = 20160;
const STATUS_PORT: u16 = 20180;

/// The description of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    format: u32,
    /// What the cluster was bootstrapped with.
    pub api: Api,
    /// Its stores, in the order they were added.
    pub stores: Vec<SavedStore>,
}

/// A store of the description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedStore {
    /// Port of gRPC; 0 for any.
    pub port: u16,
    /// Port of HTTP; 0 for any.
    pub status_port: u16,
}

/// A playground's directory.
pub struct Layout {
    root: PathBuf,
    /// Removes the directory at the end.
    temporary: Option<tempfile::TempDir>,
    /// The cluster in it.
    pub saved: Saved,
}

impl Layout {
    /// Opens or creates a directory; without one, a temporary.
    pub fn open(
        data_dir: Option<&Path>,
        stores: Option<u32>,
        api: Option<Api>,
        any_port: bool,
    ) -> Result<Layout> {
        let (root, temporary) = match data_dir {
            Some(dir) => {
                std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
                (dir.to_owned(), None)
            }
            None => {
                let dir = tempfile::Builder::new().prefix("kvasir-playground-").tempdir();
                let dir = dir.map_err(Error::io(std::env::temp_dir()))?;
                (dir.path().to_owned(), Some(dir))
            }
        };
        let saved = describe(read(&root.join(FILE))?, stores, api, any_port)?;
        let layout = Layout { root, temporary, saved };
        layout.save()?;
        Ok(layout)
    }

    /// Writes the description.
    pub fn save(&self) -> Result<()> {
        let path = self.root.join(FILE);
        let temporary = path.with_extension("json.tmp");
        let text = serde_json::to_vec_pretty(&self.saved)
            .map_err(|error| Error::Failed(format!("{}: {error}", path.display())))?;
        std::fs::write(&temporary, text).map_err(Error::io(&temporary))?;
        std::fs::rename(&temporary, &path).map_err(Error::io(&path))
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it goes away at the end.
    pub fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// Where the scheduler keeps its metadata.
    pub fn scheduler_dir(&self) -> PathBuf {
        self.root.join("scheduler")
    }

    /// Where the store at `index` keeps its data.
    pub fn store_dir(&self, index: usize) -> PathBuf {
        self.root.join(format!("store-{}", index + 1))
    }

    /// Removes a temporary directory; leaves a kept one as it is.
    pub fn close(self) -> Result<()> {
        match self.temporary {
            Some(dir) => dir.close().map_err(Error::io(self.root)),
            None => Ok(()),
        }
    }
}

fn read(path: &Path) -> Result<Option<Saved>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path)(error)),
    };
    let saved: Saved = serde_json::from_slice(&text).map_err(|error| {
        Error::Failed(format!("{} is damaged ({error}); restore it or use another directory", path.display()))
    })?;
    if saved.format != FORMAT {
        return Err(Error::Failed(format!(
            "{} has format {}, this kvctl knows {FORMAT}; use the kvctl that wrote it",
            path.display(),
            saved.format
        )));
    }
    Ok(Some(saved))
}

/// The cluster to start: the one found, or a new one, with the stores and the API asked for.
fn describe(found: Option<Saved>, stores: Option<u32>, api: Option<Api>, any_port: bool) -> Result<Saved> {
    let mut saved = match found {
        Some(saved) => {
            if api.is_some_and(|api| api != saved.api) {
                return Err(Error::Usage(
                    "the data directory holds a cluster with the other API; leave --api out or use another directory"
                        .to_owned(),
                ));
            }
            saved
        }
        None => Saved { format: FORMAT, api: api.unwrap_or(Api::V2), stores: Vec::new() },
    };
    let has = saved.stores.len();
    let wanted = match stores {
        Some(stores) => stores as usize,
        None if has > 0 => has,
        None => STORES_DEFAULT as usize,
    };
    if wanted < has {
        return Err(Error::Usage(format!(
            "the data directory holds a cluster of {has} stores; start it with --stores {has} or more"
        )));
    }
    for index in has..wanted {
        let port = |first: u16| if any_port { 0 } else { first + index as u16 };
        saved.stores.push(SavedStore { port: port(STORE_PORT), status_port: port(STATUS_PORT) });
    }
    Ok(saved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_cluster_has_the_ports_users_know() {
        let saved = describe(None, None, None, false).unwrap();
        assert_eq!((saved.api, saved.stores.len()), (Api::V2, 3));
        assert_eq!(saved.stores[2], SavedStore { port: 20162, status_port: 20182 });
        assert_eq!(
            describe(None, Some(1), None, true).unwrap().stores,
            [SavedStore { port: 0, status_port: 0 }]
        );
    }

    #[test]
    fn a_found_cluster_keeps_its_api_and_may_only_grow() {
        let found = describe(None, Some(2), Some(Api::V1), false).unwrap();
        assert_eq!(describe(Some(found.clone()), None, None, true).unwrap(), found);
        assert_eq!(describe(Some(found.clone()), Some(3), None, false).unwrap().stores.len(), 3);
        assert_eq!(describe(Some(found.clone()), Some(1), None, false).unwrap_err().exit_code(), 2);
        assert_eq!(describe(Some(found), None, Some(Api::V2), false).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_description_survives_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut layout = Layout::open(Some(dir.path()), Some(1), None, true).unwrap();
        layout.saved.stores[0].port = 7;
        layout.save().unwrap();
        let again = Layout::open(Some(dir.path()), None, None, true).unwrap();
        assert_eq!(again.saved, layout.saved);
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let error = Layout::open(Some(dir.path()), None, None, true).err().unwrap().to_string();
        assert!(error.contains("damaged"), "{error}");
    }

    #[test]
    fn a_temporary_directory_goes_away() {
        let layout = Layout::open(None, None, None, true).unwrap();
        let root = layout.root().to_owned();
        assert!(root.join(FILE).exists() && layout.is_temporary());
        layout.close().unwrap();
        assert!(!root.exists());
    }
}
