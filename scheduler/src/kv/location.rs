//! Where metadata is kept, as the operator writes it: a directory, or `etcd://host:port,host:port/prefix`.
//!
//! Owns the syntax only. Several clusters may share an etcd: each has a prefix of its own.

use std::path::PathBuf;

/// The prefix of a cluster that is not given one.
const DEFAULT_PREFIX: &str = "default";
/// Under this all keys of all Kvasir clusters lie.
const ROOT: &str = "/kvasir";

/// Where metadata is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory of this scheduler alone.
    Directory(PathBuf),
    /// An etcd that several schedulers share.
    Etcd {
        /// Client URLs, `http://host:port`; never empty.
        endpoints: Vec<String>,
        /// What every key of this cluster begins with; ends without a slash.
        root: String,
    },
}

impl Location {
    /// Reads what `--metadata` says. The error says what to write instead.
    pub fn parse(text: &str) -> Result<Location, String> {
        let Some(rest) = text.strip_prefix("etcd://") else {
            return match text.split_once("://") {
                Some((scheme, _)) => {
                    Err(format!("{scheme}:// is not known; write etcd://HOST:PORT,… or a directory"))
                }
                None => Ok(Location::Directory(text.into())),
            };
        };
        let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if hosts.contains('@') {
            return Err("user names and passwords are not supported".into());
        }
        let mut endpoints = Vec::new();
        for host in hosts.split(',').map(str::trim).filter(|host| !host.is_empty()) {
            let port = host.rsplit_once(':').and_then(|(name, port)| {
                let port = port.parse::<u16>().ok()?;
                (!name.is_empty()).then_some(port)
            });
            if port.is_none() {
                return Err(format!("{host:?} is not HOST:PORT (etcd's clients usually use port 2379)"));
            }
            endpoints.push(format!("http://{host}"));
        }
        if endpoints.is_empty() {
            return Err("no etcd is named; write etcd://HOST:PORT,HOST:PORT".into());
        }
        let prefix = prefix.trim_end_matches('/');
        let prefix = if prefix.is_empty() { DEFAULT_PREFIX } else { prefix };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !prefix.chars().all(is_plain) {
            return Err(format!("the prefix {prefix:?} may only have letters, digits, '-', '_' and '.'"));
        }
        Ok(Location::Etcd { endpoints, root: format!("{ROOT}/{prefix}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_urls_name_members_and_a_prefix() {
        let etcd = |endpoints: &[&str], root: &str| Location::Etcd {
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
            root: root.into(),
        };
        let parse = |text| Location::parse(text).unwrap();
        assert_eq!(parse("etcd://a:2379"), etcd(&["http://a:2379"], "/kvasir/default"));
        let two = etcd(&["http://a:1", "http://[::1]:2"], "/kvasir/blue-1");
        assert_eq!(parse("etcd://a:1, [::1]:2/blue-1/"), two);
        assert_eq!(parse("/var/lib/kv"), Location::Directory("/var/lib/kv".into()));
    }

    #[test]
    fn what_cannot_work_is_refused_with_advice() {
        let wrong = [
            "etcd://",
            "etcd://a",
            "etcd://:1",
            "etcd://a:x",
            "etcd://u:p@a:1",
            "etcd://a:1/x/y",
            "consul://a:1",
        ];
        for text in wrong {
            assert!(Location::parse(text).is_err(), "{text}");
        }
    }
}
