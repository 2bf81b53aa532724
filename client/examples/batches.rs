//! Many keys in one call: the client groups them by region and sends the groups at the same time.
//!
//! `cargo run -p kvclient --example batches -- 127.0.0.1:2379`

use kvclient::{RawClient, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let scheduler = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:2379".to_string());
    let client = RawClient::connect([scheduler]).await?;

    // Not atomic together: after an error, some of the pairs may have been written.
    client.batch_put((0..1000).map(|n| (format!("batch/{n:04}"), format!("value {n}")))).await?;
    // These expire after an hour.
    client.batch_put_with_ttl([("batch/guest", "gone soon")], 3600).await?;

    // Only keys that exist come back, in key order.
    let pairs = client.batch_get(["batch/0999", "batch/none", "batch/0001"]).await?;
    for pair in &pairs {
        println!("{:?} = {:?}", pair.key, pair.value);
    }
    client.batch_delete((0..1000).map(|n| format!("batch/{n:04}"))).await?;
    client.delete("batch/guest").await
}
