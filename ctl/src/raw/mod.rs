//! `kvctl raw`: single pairs and scans. Import and export have their own files.

pub mod export;
pub mod import;

use bytes::Bytes;
use kvclient::{RawClient, Ttl};
use serde::Serialize;

use crate::cli::{Global, Raw, Scan};
use crate::connect;
use crate::error::{Error, Result};
use crate::output::{Output, json, print_line};
use crate::pairs::{absent, acknowledge, one_more, parse, print_pairs, print_value, range};
use crate::text::{Coding, JsonEncoding, json_text};

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

async fn get(client: &RawClient, key: Bytes, coding: Coding, output: Output) -> Result<()> {
    print_value(&key, client.get(key.clone()).await?, coding, output)
}

async fn scan(global: &Global, args: Scan) -> Result<()> {
    let range = range(&args.range)?;
    let client = connect::raw(global).await?;
    let mut scan = client.scan(range);
    if let Some(limit) = one_more(&args) {
        scan = scan.limit(limit);
    }
    if args.reverse {
        scan = scan.reverse();
    }
    if args.keys_only {
        scan = scan.keys_only();
    }
    print_pairs(scan.stream(), &args, global.output).await
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
