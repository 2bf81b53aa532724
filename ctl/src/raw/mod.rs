//! `kvctl raw`: single pairs and scans. Import and export have their own files.

pub mod export;
pub mod import;

use std::io::Write as _;
use std::ops::Bound;

use bytes::Bytes;
use futures::TryStreamExt as _;
use kvclient::{RawClient, Ttl};
use serde::Serialize;

use crate::cli::{Global, RangeArgs, Raw, Scan};
use crate::connect;
use crate::error::{Error, Result};
use crate::output::{Output, json, print_line, stdout_error};
use crate::text::{Coding, JsonEncoding, json_text};

/// A range of user keys.
pub(crate) type KeyRange = (Bound<Bytes>, Bound<Bytes>);

/// Runs a verb.
pub async fn run(global: &Global, verb: Raw) -> Result<()> {
    let output = global.output;
    match verb {
        Raw::Get { key, coding } => {
            let coding = coding.coding();
            let key = parse(coding, "key", &key)?;
            get(&connect::raw(global).await?, key, coding, output).await
        }
        Raw::Put { key, value, ttl, coding } => {
            let coding = coding.coding();
            let (key, value) = (parse(coding, "key", &key)?, parse(coding, "value", &value)?);
            // Ordered with compare-and-swap: people mix both, and one put does not notice the price.
            let client = connect::raw(global).await?.atomic();
            client.put_with_ttl(key, value, ttl.unwrap_or(0)).await?;
            acknowledge(output)
        }
        Raw::Delete { key, coding } => {
            let key = parse(coding.coding(), "key", &key)?;
            connect::raw(global).await?.atomic().delete(key).await?;
            acknowledge(output)
        }
        Raw::Scan(args) => scan(global, args).await,
        Raw::Cas { key, value, previous, if_absent: _, coding } => {
            let coding = coding.coding();
            let key = parse(coding, "key", &key)?;
            let value = parse(coding, "value", &value)?;
            let previous = previous.map(|previous| parse(coding, "previous value", &previous)).transpose()?;
            let client = connect::raw(global).await?;
            compare_and_swap(&client, key, previous, value, coding, output).await
        }
        Raw::Ttl { key, coding } => {
            let coding = coding.coding();
            let key = parse(coding, "key", &key)?;
            ttl(&connect::raw(global).await?, key, coding, output).await
        }
        Raw::Import(args) => import::run(global, args).await,
        Raw::Export(args) => export::run(global, args).await,
    }
}

/// The bytes of an argument, or a usage error that names it.
pub(crate) fn parse(coding: Coding, name: &str, argument: &str) -> Result<Bytes> {
    match coding.parse(argument) {
        Ok(bytes) => Ok(Bytes::from(bytes)),
        Err(error) => Err(Error::Usage(format!("{name} {argument:?}: {error}"))),
    }
}

/// The range that the flags name.
pub(crate) fn range(args: &RangeArgs) -> Result<KeyRange> {
    let coding = args.coding.coding();
    if let Some(prefix) = &args.prefix {
        return Ok(kvclient::prefix(parse(coding, "--prefix", prefix)?));
    }
    let bound = |name, argument: &Option<String>| {
        argument.as_deref().map(|argument| parse(coding, name, argument)).transpose()
    };
    let start = bound("--start", &args.start)?.map_or(Bound::Unbounded, Bound::Included);
    let end = bound("--end", &args.end)?.map_or(Bound::Unbounded, Bound::Excluded);
    Ok((start, end))
}

/// A pair in JSON.
#[derive(Serialize)]
struct PairJson<'a> {
    key: &'a str,
    key_encoding: JsonEncoding,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_encoding: Option<JsonEncoding>,
}

fn pair_json(key: &[u8], value: Option<&[u8]>) -> Result<Vec<u8>> {
    let (key, key_encoding) = json_text(key);
    let value = value.map(json_text);
    json(&PairJson {
        key: &key,
        key_encoding,
        value: value.as_ref().map(|(text, _)| &**text),
        value_encoding: value.as_ref().map(|(_, encoding)| *encoding),
    })
}

fn absent(key: &[u8], coding: Coding) -> Error {
    Error::NotFound(format!("key {} has no value", coding.show(key)))
}

fn acknowledge(output: Output) -> Result<()> {
    #[derive(Serialize)]
    struct Done {
        done: bool,
    }
    match output {
        Output::Table => Ok(()),
        Output::Json => print_line(&json(&Done { done: true })?),
    }
}

async fn get(client: &RawClient, key: Bytes, coding: Coding, output: Output) -> Result<()> {
    let value = client.get(key.clone()).await?.ok_or_else(|| absent(&key, coding))?;
    match (output, coding) {
        (Output::Json, _) => print_line(&pair_json(&key, Some(&value))?),
        // The bytes as they are, so that a value can be sent on.
        (Output::Table, Coding::Text) => print_line(&value),
        (Output::Table, _) => print_line(coding.show(&value).as_bytes()),
    }
}

async fn scan(global: &Global, args: Scan) -> Result<()> {
    let range = range(&args.range)?;
    let coding = args.range.coding.coding();
    let client = connect::raw(global).await?;
    let mut scan = client.scan(range);
    // One more than is printed tells whether there is more.
    if args.limit > 0 {
        scan = scan.limit(args.limit.saturating_add(1));
    }
    if args.reverse {
        scan = scan.reverse();
    }
    if args.keys_only {
        scan = scan.keys_only();
    }
    let mut pairs = scan.stream();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut printed = 0;
    while let Some(pair) = pairs.try_next().await? {
        if printed == args.limit && args.limit > 0 {
            out.flush().map_err(stdout_error)?;
            eprintln!("stopped after {printed} pairs and there are more; --limit 0 prints all");
            return Ok(());
        }
        let value = (!args.keys_only).then_some(&pair.value[..]);
        let mut line = match global.output {
            Output::Json => pair_json(&pair.key, value)?,
            Output::Table => pair_text(&pair.key, value, coding).into_bytes(),
        };
        line.push(b'\n');
        out.write_all(&line).map_err(stdout_error)?;
        printed += 1;
    }
    out.flush().map_err(stdout_error)
}

fn pair_text(key: &[u8], value: Option<&[u8]>, coding: Coding) -> String {
    match value {
        Some(value) => format!("{}\t{}", coding.show(key), coding.show(value)),
        None => coding.show(key),
    }
}

#[derive(Serialize)]
struct SwapJson {
    swapped: bool,
    previous: Option<String>,
    previous_encoding: Option<JsonEncoding>,
}

async fn compare_and_swap(
    client: &RawClient,
    key: Bytes,
    previous: Option<Bytes>,
    value: Bytes,
    coding: Coding,
    output: Output,
) -> Result<()> {
    let result = client.compare_and_swap(key, previous, value).await?;
    let found = result.previous.as_deref();
    if output.is_json() {
        let shown = found.map(json_text);
        print_line(&json(&SwapJson {
            swapped: result.swapped,
            previous: shown.as_ref().map(|(text, _)| text.to_string()),
            previous_encoding: shown.map(|(_, encoding)| encoding),
        })?)?;
    }
    match (result.swapped, found) {
        (true, _) => Ok(()),
        (false, Some(found)) => Err(Error::NotSwapped(format!("the value is {}", coding.show(found)))),
        (false, None) => Err(Error::NotSwapped("the key has no value".to_owned())),
    }
}

/// What is known about the expiry of a key.
#[derive(Serialize)]
struct TtlJson {
    exists: bool,
    /// Seconds left; null when the key does not expire or is absent.
    ttl: Option<u64>,
}

async fn ttl(client: &RawClient, key: Bytes, coding: Coding, output: Output) -> Result<()> {
    let shown = match client.ttl(key.clone()).await? {
        Ttl::NotFound => TtlJson { exists: false, ttl: None },
        Ttl::Never => TtlJson { exists: true, ttl: None },
        Ttl::Seconds(seconds) => TtlJson { exists: true, ttl: Some(seconds) },
    };
    output.print(&shown, |ttl| match (ttl.exists, ttl.ttl) {
        (false, _) => "absent".to_owned(),
        (true, None) => "none".to_owned(),
        (true, Some(seconds)) => seconds.to_string(),
    })?;
    if shown.exists { Ok(()) } else { Err(absent(&key, coding)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::CodingArgs;

    fn args(start: Option<&str>, end: Option<&str>, prefix: Option<&str>) -> RangeArgs {
        RangeArgs {
            start: start.map(str::to_owned),
            end: end.map(str::to_owned),
            prefix: prefix.map(str::to_owned),
            coding: CodingArgs { hex: false, escaped: true },
        }
    }

    #[test]
    fn ranges_follow_the_flags() {
        let key = |bytes: &'static [u8]| Bytes::from_static(bytes);
        let both = range(&args(Some("a"), Some("b"), None)).unwrap();
        assert_eq!(both, (Bound::Included(key(b"a")), Bound::Excluded(key(b"b"))));
        assert_eq!(range(&args(None, None, None)).unwrap(), (Bound::Unbounded, Bound::Unbounded));
        let prefix = range(&args(None, None, Some(r"a\xff"))).unwrap();
        assert_eq!(prefix, (Bound::Included(key(b"a\xff")), Bound::Excluded(key(b"b"))));
        assert_eq!(range(&args(Some(r"\q"), None, None)).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn pairs_in_json_name_their_encoding() {
        let line = pair_json(b"k", Some(b"\xff")).unwrap();
        assert_eq!(line, br#"{"key":"k","key_encoding":"text","value":"ff","value_encoding":"hex"}"#);
        assert_eq!(pair_json(b"k", None).unwrap(), br#"{"key":"k","key_encoding":"text"}"#);
        assert_eq!(pair_text(b"a\tb", Some(b"1\n"), Coding::Text), "a\\tb\t1\\n");
    }
}
