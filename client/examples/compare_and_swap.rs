//! A counter that several processes may raise, and what to do when an outcome is unknown.
//!
//! `cargo run -p kvclient --example compare_and_swap -- 127.0.0.1:2379`

use kvclient::{Error, RawClient, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let scheduler = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:2379".to_string());
    // All writers of keys that are swapped must use atomic clients.
    let client = RawClient::connect([scheduler]).await?.atomic();

    client.put("counter", "0").await?;
    for _ in 0..10 {
        println!("counter is {}", increment(&client, "counter").await?);
    }
    let last = client.get("counter").await?.unwrap_or_default();
    assert!(client.compare_and_delete("counter", last).await?.swapped);
    Ok(())
}

async fn increment(client: &RawClient, key: &'static str) -> Result<u64> {
    let mut current = client.get(key).await?;
    loop {
        let number =
            current.as_deref().and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()).unwrap_or(0u64);
        let next = number + 1;
        match client.compare_and_swap(key, current.clone(), next.to_string()).await {
            Ok(cas) if cas.swapped => return Ok(next),
            // Someone else was faster: start from the value that was found.
            Ok(cas) => current = cas.previous,
            // The swap may have happened. A counter of visits would try again; one of money must find out first.
            Err(error @ Error::Undetermined { .. }) => return Err(error),
            Err(error) if error.is_retryable() => continue,
            Err(error) => return Err(error),
        }
    }
}
