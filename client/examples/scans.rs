//! Reading ranges: streams, limits, reverse order, keys only, several ranges, checksums.
//!
//! `cargo run -p kvclient --example scans -- 127.0.0.1:2379`

use futures::TryStreamExt;
use kvclient::{RawClient, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let scheduler = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:2379".to_string());
    let client = RawClient::connect([scheduler]).await?;
    client.batch_put((0..5000).map(|n| (format!("scan/{n:04}"), format!("value {n}")))).await?;

    // A stream holds two pages at most, however long the range is.
    let everything = client.scan(kvclient::prefix("scan/")).page_size(500).stream();
    let bytes = everything.try_fold(0, |sum, pair| async move { Ok(sum + pair.value.len()) }).await?;
    println!("values take {bytes} bytes");

    let newest = client.scan("scan/".."scan0").reverse().limit(3).collect().await?;
    println!("the last three: {newest:?}");

    let keys = client.scan("scan/0010"..="scan/0012").keys_only().collect().await?;
    println!("keys alone: {keys:?}");

    let both = client.batch_scan(["scan/1".."scan/2", "scan/3".."scan/4"], 2).await?;
    println!("two of each range: {both:?}");

    println!("{:?}", client.checksum(kvclient::prefix("scan/")).await?);
    client.delete_range(kvclient::prefix("scan/")).await
}
