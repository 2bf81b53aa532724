//! The JSON of the HTTP interface: names and shapes are those that the field's tools read.

use kvproto::{metapb, pdpb};
use serde::Serialize;

use crate::core::region::RegionInfo;
use crate::core::store::{StoreInfo, StoreState};

/// `/pd/api/v1/stores`
#[derive(Debug, Serialize)]
pub struct Stores {
    pub count: usize,
    pub stores: Vec<Store>,
}

/// `/pd/api/v1/store/{id}`
#[derive(Debug, Serialize)]
pub struct Store {
    pub store: StoreMeta,
    pub status: StoreStatus,
}

/// What a store registered, and its state.
#[derive(Debug, Serialize)]
pub struct StoreMeta {
    pub id: u64,
    pub address: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Label>,
    pub version: String,
    pub peer_address: String,
    pub status_address: String,
    pub git_hash: String,
    pub start_timestamp: i64,
    pub deploy_path: String,
    /// Unix nanoseconds.
    pub last_heartbeat: u64,
    pub state: i32,
    pub state_name: &'static str,
    pub node_state: i32,
}

/// A label of a store.
#[derive(Debug, Serialize)]
pub struct Label {
    pub key: String,
    pub value: String,
}

/// What a store reported, and what the scheduler counts on it.
#[derive(Debug, Serialize)]
pub struct StoreStatus {
    pub capacity: String,
    pub available: String,
    pub used_size: String,
    pub leader_count: usize,
    pub region_count: usize,
    pub sending_snap_count: u32,
    pub receiving_snap_count: u32,
    pub applying_snap_count: u32,
    pub is_busy: bool,
    pub slow_score: u64,
    pub start_ts: String,
    pub last_heartbeat_ts: String,
    pub uptime: String,
}

impl Store {
    /// A store as the scheduler sees it. `state` is its state now.
    pub fn new(info: &StoreInfo, state: StoreState, leader_count: usize, region_count: usize) -> Store {
        let meta = &info.meta;
        let stats = info.stats.clone().unwrap_or_default();
        let start_ms = u64::try_from(meta.start_timestamp).unwrap_or(0).saturating_mul(1000);
        let labels = meta.labels.iter().map(|l| Label { key: l.key.clone(), value: l.value.clone() });
        Store {
            store: StoreMeta {
                id: meta.id,
                address: meta.address.clone(),
                labels: labels.collect(),
                version: meta.version.clone(),
                peer_address: meta.peer_address.clone(),
                status_address: meta.status_address.clone(),
                git_hash: meta.git_hash.clone(),
                start_timestamp: meta.start_timestamp,
                deploy_path: meta.deploy_path.clone(),
                last_heartbeat: info.last_seen_ms.saturating_mul(1_000_000),
                state: meta.state,
                state_name: state.name(),
                node_state: meta.node_state,
            },
            status: StoreStatus {
                capacity: bytes_text(stats.capacity),
                available: bytes_text(stats.available),
                used_size: bytes_text(stats.used_size),
                leader_count,
                region_count,
                sending_snap_count: stats.sending_snap_count,
                receiving_snap_count: stats.receiving_snap_count,
                applying_snap_count: stats.applying_snap_count,
                is_busy: stats.is_busy,
                slow_score: stats.slow_score,
                start_ts: rfc3339(start_ms),
                last_heartbeat_ts: rfc3339(info.last_seen_ms),
                uptime: duration_text(info.last_seen_ms.saturating_sub(start_ms) / 1000),
            },
        }
    }
}

/// `/pd/api/v1/regions`
#[derive(Debug, Serialize)]
pub struct Regions {
    pub count: usize,
    pub regions: Vec<Region>,
}

/// `/pd/api/v1/region/id/{id}`
#[derive(Debug, Serialize)]
pub struct Region {
    pub id: u64,
    /// Upper-case hexadecimal.
    pub start_key: String,
    pub end_key: String,
    pub epoch: Epoch,
    pub peers: Vec<Peer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<Peer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub down_peers: Vec<DownPeer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pending_peers: Vec<Peer>,
    pub written_bytes: u64,
    pub read_bytes: u64,
    pub written_keys: u64,
    pub read_keys: u64,
    /// MiB.
    pub approximate_size: u64,
    pub approximate_keys: u64,
}

/// The epoch of a region.
#[derive(Debug, Serialize)]
pub struct Epoch {
    pub conf_ver: u64,
    pub version: u64,
}

/// A peer of a region.
#[derive(Debug, Serialize)]
pub struct Peer {
    pub id: u64,
    pub store_id: u64,
    pub role: i32,
    pub role_name: &'static str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
}

/// A peer that its leader misses.
#[derive(Debug, Serialize)]
pub struct DownPeer {
    pub down_sec: u64,
    pub peer: Peer,
}

impl From<&metapb::Peer> for Peer {
    fn from(peer: &metapb::Peer) -> Peer {
        let role_name = match peer.role() {
            metapb::PeerRole::Voter => "Voter",
            metapb::PeerRole::Learner => "Learner",
            metapb::PeerRole::IncomingVoter => "IncomingVoter",
            metapb::PeerRole::DemotingVoter => "DemotingVoter",
        };
        let is_learner = peer.role() == metapb::PeerRole::Learner;
        Peer { id: peer.id, store_id: peer.store_id, role: peer.role, role_name, is_learner }
    }
}

impl From<&RegionInfo> for Region {
    fn from(region: &RegionInfo) -> Region {
        let down = |stats: &pdpb::PeerStats| DownPeer {
            down_sec: stats.down_seconds,
            peer: Peer::from(&stats.peer.unwrap_or_default()),
        };
        Region {
            id: region.id(),
            start_key: hex(&region.meta.start_key),
            end_key: hex(&region.meta.end_key),
            epoch: Epoch { conf_ver: region.conf_ver(), version: region.version() },
            peers: region.meta.peers.iter().map(Peer::from).collect(),
            leader: region.leader.as_ref().map(Peer::from),
            down_peers: region.down_peers.iter().map(down).collect(),
            pending_peers: region.pending_peers.iter().map(Peer::from).collect(),
            written_bytes: region.bytes_written,
            read_bytes: region.bytes_read,
            written_keys: region.keys_written,
            read_keys: region.keys_read,
            approximate_size: region.approximate_size,
            approximate_keys: region.approximate_keys,
        }
    }
}

/// `/pd/api/v1/members`
#[derive(Debug, Serialize)]
pub struct Members {
    pub header: Header,
    pub members: Vec<Member>,
    /// Absent while none is elected.
    pub leader: Option<Member>,
    pub etcd_leader: Option<Member>,
}

/// The header of `members`.
#[derive(Debug, Serialize)]
pub struct Header {
    pub cluster_id: u64,
}

/// A scheduler.
#[derive(Debug, Clone, Serialize)]
pub struct Member {
    pub name: String,
    pub member_id: u64,
    pub client_urls: Vec<String>,
    pub binary_version: &'static str,
}

/// `/pd/api/v1/health`
#[derive(Debug, Serialize)]
pub struct MemberHealth {
    pub name: String,
    pub member_id: u64,
    pub client_urls: Vec<String>,
    pub health: bool,
}

impl Member {
    /// The member for JSON.
    pub fn new(member: &crate::member::Member) -> Member {
        Member {
            name: member.name.clone(),
            member_id: member.id,
            client_urls: member.client_urls.clone(),
            binary_version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// Upper-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

/// Decodes hexadecimal of either case; None when it is not.
pub fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |c: u8| char::from(c).to_digit(16);
    text.chunks(2).map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect()
}

/// Decodes `%XX`; None when an escape is broken.
pub fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut rest = text.as_bytes();
    let mut out = Vec::with_capacity(rest.len());
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        out.extend(unhex(tail.get(..2)?)?);
        rest = &tail[2..];
    }
    Some(out)
}

/// Bytes with a binary unit, as in `1.5GiB`.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value.fract() == 0.0 { 0 } else { 2 };
    format!("{value:.digits$}{}", UNITS[unit])
}

fn duration_text(secs: u64) -> String {
    let (hours, minutes, secs) = (secs / 3600, secs / 60 % 60, secs % 60);
    match (hours, minutes) {
        (0, 0) => format!("{secs}s"),
        (0, _) => format!("{minutes}m{secs}s"),
        _ => format!("{hours}h{minutes}m{secs}s"),
    }
}

/// Unix milliseconds as a UTC date and time.
pub fn rfc3339(ms: u64) -> String {
    let (secs, millis) = (ms / 1000, ms % 1000);
    let (days, of_day) = (secs / 86_400, secs % 86_400);
    // Civil date from days since 1970, in eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_709_251_199_999), "2024-02-29T23:59:59.999Z");
        assert_eq!(rfc3339(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn keys_survive_hex_and_percent_encoding() {
        assert_eq!(hex(&[0, 0xab, 0xff]), "00ABFF");
        assert_eq!(unhex(b"00aBfF"), Some(vec![0, 0xab, 0xff]));
        assert_eq!((unhex(b"0"), unhex(b"0g")), (None, None));
        assert_eq!(percent_decode("a%00%ffb"), Some(vec![b'a', 0, 0xff, b'b']));
        assert_eq!((percent_decode("%"), percent_decode("%0")), (None, None));
    }

    #[test]
    fn sizes_have_a_unit() {
        let texts = [0, 1023, 1024, 1536 << 20, u64::MAX].map(bytes_text);
        assert_eq!(texts, ["0B", "1023B", "1KiB", "1.50GiB", "16EiB"]);
    }
}
