//! Placement as methods of the scheduler connection: ids for splits, and reports of what came out of them.

use kvproto::metapb;
use kvproto::pdpb::{AskBatchSplitRequest, ReportBatchSplitRequest, SplitId, SplitReason};

use crate::error::{Error, Result};
use crate::scheduler_client::SchedulerClient;

impl SchedulerClient {
    /// Ids for `count` new regions that are to be cut off `region`: one for each region and, in the order of
    /// `region.peers`, one for each of its peers. [`Error::Scheduler`] when the region may not be split now.
    pub async fn ask_batch_split(
        &self,
        region: metapb::Region,
        count: u32,
        reason: SplitReason,
    ) -> Result<Vec<SplitId>> {
        let peers = region.peers.len();
        let ids = self
            .inner
            .call(self.timeout, |mut pd, header| {
                let request = AskBatchSplitRequest {
                    header: Some(header),
                    region: Some(region.clone()),
                    split_count: count,
                    reason: reason as i32,
                };
                async move { pd.ask_batch_split(request).await }
            })
            .await?
            .ids;
        let is_whole = |id: &SplitId| {
            id.new_region_id > 0 && id.new_peer_ids.len() == peers && !id.new_peer_ids.contains(&0)
        };
        match ids.len() == count as usize && ids.iter().all(is_whole) {
            true => Ok(ids),
            false => Err(Error::Protocol(format!("incomplete ids for {count} regions of {peers} peers"))),
        }
    }

    /// Reports the regions that came out of a split, left to right.
    pub async fn report_batch_split(&self, regions: Vec<metapb::Region>) -> Result<()> {
        self.inner
            .call(self.timeout, |mut pd, header| {
                let request = ReportBatchSplitRequest { header: Some(header), regions: regions.clone() };
                async move { pd.report_batch_split(request).await }
            })
            .await
            .map(|_| ())
    }
}
