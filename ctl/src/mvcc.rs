//! `kvctl mvcc`: what a store keeps of a key: its lock and its versions.

use kvproto::key::split_wire_key;
use kvproto::kvrpcpb::{MvccInfo, MvccLock, MvccWrite, Op};
use kvproto::ts::Timestamp;
use serde::Serialize;

use crate::cli::{Global, Mvcc};
use crate::connect;
use crate::error::{Error, Result};
use crate::moment::TimestampView;
use crate::pairs::parse;
use crate::table::{self, Align};
use crate::text::{Coding, JsonEncoding, json_text};

/// Everything about a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MvccView {
    /// The key.
    pub key: Text,
    /// Null when it is not locked.
    pub lock: Option<LockView>,
    /// The newest first.
    pub versions: Vec<VersionView>,
}

/// A key or value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Text {
    /// Itself, or in hex when it is not UTF-8.
    pub text: String,
    /// Which of both.
    pub encoding: JsonEncoding,
    #[serde(skip)]
    bytes: Vec<u8>,
}

impl Text {
    fn new(bytes: &[u8]) -> Text {
        let (text, encoding) = json_text(bytes);
        Text { text: text.into_owned(), encoding, bytes: bytes.to_vec() }
    }
}

/// The lock of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LockView {
    /// `put`, `delete`, `lock` or `pessimistic`.
    pub kind: &'static str,
    /// Names the transaction.
    pub start: TimestampView,
    /// The key whose fate is the transaction's.
    pub primary: Text,
    /// Milliseconds from the start until others may roll the transaction back.
    pub ttl_ms: u64,
    /// Zero for a lock that is not pessimistic.
    pub for_update_ts: u64,
    /// Committed as soon as every key is locked.
    pub async_commit: bool,
    /// The other keys of an asynchronous commit, at its primary.
    pub secondaries: Vec<Text>,
    /// The value to be, when it is short.
    pub value: Option<Text>,
}

/// A version, or the mark of a transaction that wrote none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionView {
    /// `put`, `delete`, `lock` or `rollback`.
    pub kind: &'static str,
    /// Visible from here on.
    pub commit: TimestampView,
    /// Names the transaction.
    pub start: TimestampView,
    /// Of a put.
    pub value: Option<Text>,
}

/// Runs a verb.
pub async fn run(global: &Global, verb: Mvcc) -> Result<()> {
    let Mvcc::Get { key, coding } = verb;
    let coding = coding.coding();
    let key = parse(coding, "key", &key)?;
    let info = connect::transactions(global).await?.mvcc(key.clone()).await?;
    let view = view(&key, info);
    if view.lock.is_none() && view.versions.is_empty() {
        return Err(Error::NotFound(format!("key {} has no lock and no versions", coding.show(&key))));
    }
    global.output.print(&view, |view| text(view, coding))
}

/// A key as the user knows it: stores keep it with its keyspace.
fn user_key(wire: &[u8]) -> &[u8] {
    split_wire_key(wire).map_or(wire, |(_, _, user)| user)
}

fn kind(op: i32) -> &'static str {
    match Op::try_from(op) {
        Ok(Op::Put | Op::Insert) => "put",
        Ok(Op::Del) => "delete",
        Ok(Op::Lock | Op::SharedLock) => "lock",
        Ok(Op::Rollback) => "rollback",
        Ok(Op::PessimisticLock | Op::SharedPessimisticLock) => "pessimistic",
        Ok(Op::CheckNotExists) | Err(_) => "unknown",
    }
}

fn view(key: &[u8], info: MvccInfo) -> MvccView {
    let long =
        |start: u64| info.values.iter().find(|value| value.start_ts == start).map(|value| &value.value[..]);
    let lock = |lock: &MvccLock| LockView {
        kind: kind(lock.r#type),
        start: Timestamp::new(lock.start_ts).into(),
        primary: Text::new(user_key(&lock.primary)),
        ttl_ms: lock.ttl,
        for_update_ts: lock.for_update_ts,
        async_commit: lock.use_async_commit,
        secondaries: lock.secondaries.iter().map(|key| Text::new(user_key(key))).collect(),
        value: value(kind(lock.r#type), &lock.short_value, long(lock.start_ts)),
    };
    let version = |write: &MvccWrite| VersionView {
        kind: kind(write.r#type),
        commit: Timestamp::new(write.commit_ts).into(),
        start: Timestamp::new(write.start_ts).into(),
        value: value(kind(write.r#type), &write.short_value, long(write.start_ts)),
    };
    let mut versions: Vec<VersionView> = info.writes.iter().map(version).collect();
    versions.sort_by_key(|version| std::cmp::Reverse(version.commit.timestamp));
    MvccView { key: Text::new(key), lock: info.lock.as_ref().map(lock), versions }
}

/// The value of a put: beside the record when it is long, else in it.
fn value(kind: &str, short: &[u8], long: Option<&[u8]>) -> Option<Text> {
    (kind == "put").then(|| Text::new(long.unwrap_or(short)))
}

fn text(view: &MvccView, coding: Coding) -> String {
    let show = |text: &Text| coding.show(&text.bytes);
    let mut parts = Vec::new();
    if let Some(lock) = &view.lock {
        let mut facts = vec![
            ("lock", lock.kind.to_owned()),
            ("transaction", lock.start.line()),
            ("primary", show(&lock.primary)),
            ("ttl", format!("{} ms", lock.ttl_ms)),
        ];
        if lock.for_update_ts > 0 {
            facts.push(("for update", lock.for_update_ts.to_string()));
        }
        if lock.async_commit {
            let keys: Vec<String> = lock.secondaries.iter().map(&show).collect();
            facts.push((
                "async commit",
                if keys.is_empty() { "yes".into() } else { format!("with {}", keys.join(" ")) },
            ));
        }
        facts.extend(lock.value.as_ref().map(|value| ("value", show(value))));
        parts.push(table::facts(facts));
    }
    if !view.versions.is_empty() {
        let header = [
            ("VERSION", Align::Left),
            ("COMMITTED", Align::Left),
            ("TRANSACTION", Align::Right),
            ("VALUE", Align::Left),
        ];
        let row = |version: &VersionView| {
            let value = version.value.as_ref().map_or_else(|| "-".into(), &show);
            vec![version.kind.into(), version.commit.line(), version.start.timestamp.to_string(), value]
        };
        parts.push(table::rows(&header, view.versions.iter().map(row)));
    }
    parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kvproto::kvrpcpb::MvccValue;

    use super::*;

    fn info() -> MvccInfo {
        let write = |op: Op, start_ts: u64, short: &'static str| MvccWrite {
            r#type: op as i32,
            start_ts,
            commit_ts: start_ts + 1,
            short_value: short.into(),
            ..Default::default()
        };
        MvccInfo {
            lock: Some(MvccLock {
                r#type: Op::Put as i32,
                start_ts: 90,
                primary: Bytes::from_static(b"x\0\0\0p"),
                ttl: 3_000,
                use_async_commit: true,
                secondaries: vec!["s".into()],
                short_value: "next".into(),
                ..Default::default()
            }),
            writes: vec![
                write(Op::Put, 10, "old"),
                write(Op::Put, 70, ""),
                write(Op::Del, 40, ""),
                write(Op::Rollback, 50, ""),
            ],
            values: vec![MvccValue { start_ts: 70, value: "long".into() }],
        }
    }

    #[test]
    fn versions_are_shown_newest_first_with_their_values() {
        let view = view(b"k", info());
        let shown: Vec<_> = view
            .versions
            .iter()
            .map(|v| (v.kind, v.commit.timestamp, v.value.as_ref().map(|value| value.text.as_str())))
            .collect();
        assert_eq!(
            shown,
            [
                ("put", 71, Some("long")),
                ("rollback", 51, None),
                ("delete", 41, None),
                ("put", 11, Some("old"))
            ]
        );
        let lock = view.lock.as_ref().unwrap();
        assert_eq!(
            (lock.kind, lock.start.timestamp, lock.value.as_ref().unwrap().text.as_str()),
            ("put", 90, "next")
        );
        let text = text(&view, Coding::Text);
        assert!(
            text.contains("primary       p\n")
                && text.contains("async commit  with s")
                && text.contains("ttl           3000 ms"),
            "{text}"
        );
        assert_eq!(text.lines().filter(|line| line.starts_with("put ")).count(), 2, "{text}");
    }

    #[test]
    fn json_tells_text_from_hex() {
        let json = serde_json::to_value(view(b"\xff", info())).unwrap();
        assert_eq!(
            (json["key"]["text"].as_str(), json["key"]["encoding"].as_str()),
            (Some("ff"), Some("hex"))
        );
        assert_eq!(json["versions"][0]["value"]["text"], "long");
        assert_eq!(json["lock"]["secondaries"][0]["encoding"], "text");
    }
}
