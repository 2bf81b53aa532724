//! Pairs that expire by themselves.
//!
//! `cargo run -p kvclient --example expiry -- 127.0.0.1:2379`

use kvclient::{RawClient, Result, Ttl};

#[tokio::main]
async fn main() -> Result<()> {
    let scheduler = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:2379".to_string());
    let client = RawClient::connect([scheduler]).await?;

    client.put_with_ttl("session/42", "alice", 30).await?;
    match client.ttl("session/42").await? {
        Ttl::Seconds(left) => println!("expires in {left} s"),
        Ttl::Never => println!("never expires"),
        Ttl::NotFound => println!("already gone"),
    }
    // A put without TTL makes it permanent.
    client.put("session/42", "alice").await?;
    assert_eq!(client.ttl("session/42").await?, Ttl::Never);
    client.delete("session/42").await
}
