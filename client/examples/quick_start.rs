//! The first steps: connect, write, read, scan, clean up.
//!
//! `cargo run -p kvclient --example quick_start -- 127.0.0.1:2379`

use futures::StreamExt;
use kvclient::{RawClient, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let scheduler = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:2379".to_string());
    let client = RawClient::connect([scheduler]).await?;

    client.put("fruit/apple", "red").await?;
    client.batch_put([("fruit/banana", "yellow"), ("fruit/plum", "blue")]).await?;
    println!("apple is {:?}", client.get("fruit/apple").await?);

    let mut fruits = client.scan(kvclient::prefix("fruit/")).stream();
    while let Some(pair) = fruits.next().await {
        let pair = pair?;
        println!("{:?} is {:?}", pair.key, pair.value);
    }
    client.delete_range(kvclient::prefix("fruit/")).await
}
