//! `kvctl tso`: a new timestamp of the cluster, or what an old one stands for.

use kvproto::ts::Timestamp;

use crate::cli::Global;
use crate::error::Result;
use crate::moment::TimestampView;
use crate::{connect, table};

/// Prints a timestamp: the one given, or a new one.
pub async fn run(global: &Global, given: Option<u64>) -> Result<()> {
    let ts = match given {
        Some(number) => Timestamp::new(number),
        None => connect::scheduler(global).await?.get_timestamp(1).await?,
    };
    global.output.print(&TimestampView::from(ts), |view| {
        table::facts([
            ("timestamp", view.timestamp.to_string()),
            ("physical ms", view.physical_ms.to_string()),
            ("logical", view.logical.to_string()),
            ("time", view.time.clone()),
        ])
    })
}
