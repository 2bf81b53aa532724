//! What the scheduler knows: members, stores, regions, time.
//!
//! `cargo run -p kvclient --example cluster_info -- 127.0.0.1:2379`

use kvclient::{Bytes, Result, SchedulerClient};

#[tokio::main]
async fn main() -> Result<()> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:2379".to_string());
    let scheduler = SchedulerClient::connect(&[endpoint]).await?;

    println!("cluster {}, led by {}", scheduler.cluster_id(), scheduler.leader_url());
    for store in scheduler.get_all_stores(true).await? {
        println!("store {} at {}", store.id, store.address);
    }
    for info in scheduler.scan_regions(Bytes::new(), Bytes::new(), 10).await? {
        let leader = info.leader.map_or(0, |leader| leader.store_id);
        println!("region {} with {} peers, led by store {leader}", info.region.id, info.region.peers.len());
    }
    let now = scheduler.get_timestamp(1).await?;
    println!("timestamp {now}: {} ms since 1970", now.physical_ms());
    Ok(())
}
