//! Regions of a cluster as a client sees them on the wire, without any SDK: where a key lives, what to put into a
//! request's context, how to have a region divided. For tests that look at the protocol itself.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvproto::key::{Mode, split_wire_key};
use kvproto::kvrpcpb::{self, ApiVersion};
use kvproto::metapb;
use kvproto::pdpb::{self, pd_client::PdClient};
use kvproto::tikvpb::tikv_client::TikvClient;
use tonic::Status;
use tonic::transport::Channel;

/// How long a region may have no leader, or be busy.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A region with its leader.
#[derive(Clone, Debug)]
pub struct Led {
    pub region: metapb::Region,
    pub leader: metapb::Peer,
}

impl Led {
    /// The context of a request to the leader, in API V2.
    pub fn context(&self) -> kvrpcpb::Context {
        kvrpcpb::Context {
            region_id: self.region.id,
            region_epoch: self.region.region_epoch,
            peer: Some(self.leader),
            api_version: ApiVersion::V2 as i32,
            ..Default::default()
        }
    }
}

/// Connections to a cluster in API V2.
#[derive(Clone)]
pub struct Regions {
    pd: PdClient<Channel>,
    cluster_id: u64,
}

/// A connection on which a call that gets no answer fails in the end.
async fn connect(address: &str) -> Result<Channel, Status> {
    let endpoint = Channel::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|e| Status::invalid_argument(e.to_string()))?.timeout(SETTLED_WITHIN);
    endpoint.connect().await.map_err(|e| Status::unavailable(e.to_string()))
}

/// The key of keyspace DEFAULT as requests carry it.
pub fn raw_key(user: &str) -> Bytes {
    [b"r\0\0\0", user.as_bytes()].concat().into()
}

impl Regions {
    /// Connects to the scheduler at `host:port`.
    pub async fn connect(endpoint: &str) -> Result<Regions, Status> {
        let mut pd = PdClient::new(connect(endpoint).await?);
        let members = pd.get_members(pdpb::GetMembersRequest::default()).await?.into_inner();
        Ok(Regions { pd, cluster_id: members.header.unwrap_or_default().cluster_id })
    }

    /// The header that requests to the scheduler carry.
    pub fn header(&self) -> Option<pdpb::RequestHeader> {
        Some(pdpb::RequestHeader { cluster_id: self.cluster_id, ..Default::default() })
    }

    /// The scheduler.
    pub fn pd(&self) -> PdClient<Channel> {
        self.pd.clone()
    }

    /// The region of a wire key, once it has a leader.
    pub async fn of(&self, wire_key: &[u8]) -> Result<Led, Status> {
        let region_key = Bytes::from(kvproto::key::encode(wire_key));
        self.settle(|| async {
            let request = pdpb::GetRegionRequest {
                header: self.header(),
                region_key: region_key.clone(),
                ..Default::default()
            };
            let found = self.pd().get_region(request).await?.into_inner();
            Ok(found.region.zip(found.leader).map(|(region, leader)| Led { region, leader }))
        })
        .await
    }

    /// Every region, in key order.
    pub async fn all(&self) -> Result<Vec<metapb::Region>, Status> {
        let request = pdpb::ScanRegionsRequest { header: self.header(), ..Default::default() };
        let found = self.pd().scan_regions(request).await?.into_inner();
        Ok(found.regions.into_iter().filter_map(|region| region.region).collect())
    }

    /// A connection to a store.
    pub async fn store(&self, store_id: u64) -> Result<TikvClient<Channel>, Status> {
        let request = pdpb::GetStoreRequest { header: self.header(), store_id };
        let store = self.pd().get_store(request).await?.into_inner().store.unwrap_or_default();
        let client = TikvClient::new(connect(&store.address).await?);
        Ok(client.max_decoding_message_size(usize::MAX))
    }

    /// Divides the region of the first key before each of these wire keys, which lie in it.
    pub async fn split(&self, keys: &[Bytes]) -> Result<Vec<metapb::Region>, Status> {
        let first = keys.first().cloned().unwrap_or_default();
        let is_raw_kv = split_wire_key(&first).is_some_and(|(mode, ..)| mode == Mode::Raw);
        self.settle(|| async {
            let at = self.of(&first).await?;
            let request = kvrpcpb::SplitRegionRequest {
                context: Some(at.context()),
                split_keys: keys.to_vec(),
                is_raw_kv,
                ..Default::default()
            };
            let answer = self.store(at.leader.store_id).await?.split_region(request).await?.into_inner();
            match answer.errors.first() {
                Some(error) => Err(Status::invalid_argument(error.abort.clone())),
                None => Ok(answer.region_error.is_none().then_some(answer.regions)),
            }
        })
        .await
    }

    /// Asks until there is an answer or it is hopeless.
    pub async fn settle<T, F>(&self, ask: impl Fn() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Option<T>, Status>>,
    {
        let deadline = Instant::now() + SETTLED_WITHIN;
        loop {
            if let Some(answer) = ask().await? {
                return Ok(answer);
            }
            if Instant::now() >= deadline {
                return Err(Status::deadline_exceeded("the region does not settle"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
