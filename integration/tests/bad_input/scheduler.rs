//! Requests to the scheduler: of another cluster, with numbers at both ends, about things that cannot be.

use bytes::Bytes;
use kvproto::pdpb::{self, pd_client::PdClient};
use kvproto::{keyspacepb, metapb};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::Victim;

fn header_of(cluster_id: u64) -> Option<pdpb::RequestHeader> {
    Some(pdpb::RequestHeader { cluster_id, ..Default::default() })
}

/// The error that an answer carries in its header.
fn error(header: Option<pdpb::ResponseHeader>) -> pdpb::Error {
    header.expect("every answer has a header").error.expect("it is refused")
}

impl Victim {
    fn pd(&self) -> (PdClient<Channel>, Option<pdpb::RequestHeader>) {
        (self.regions.pd(), self.regions.header())
    }

    async fn timestamps(&self, header: Option<pdpb::RequestHeader>, count: u32) -> Result<u32, Status> {
        let request = pdpb::TsoRequest { header, count, ..Default::default() };
        let mut stream = self.regions.pd().tso(tokio_stream::iter([request])).await?.into_inner();
        Ok(stream.message().await?.expect("an answer").count)
    }
}

#[tokio::test]
async fn requests_of_another_cluster_are_refused() {
    let mut victim = Victim::start().await;
    let (mut pd, right) = victim.pd();
    for wrong in [header_of(0), header_of(right.as_ref().expect("a header").cluster_id + 1), None] {
        let header = wrong.clone();
        let codes = [
            pd.alloc_id(pdpb::AllocIdRequest { header: header.clone(), count: 1 }).await.map(drop),
            pd.get_all_stores(pdpb::GetAllStoresRequest { header: header.clone(), ..Default::default() })
                .await
                .map(drop),
            pd.get_region(pdpb::GetRegionRequest { header: header.clone(), ..Default::default() })
                .await
                .map(drop),
            pd.put_store(pdpb::PutStoreRequest { header: header.clone(), ..Default::default() })
                .await
                .map(drop),
            pd.bootstrap(pdpb::BootstrapRequest { header: header.clone(), ..Default::default() })
                .await
                .map(drop),
            victim.timestamps(header, 1).await.map(drop),
        ];
        for refused in codes {
            let status = refused.expect_err("another cluster");
            assert_eq!(status.code(), Code::FailedPrecondition);
            assert!(status.message().contains("mismatch cluster id"), "{}", status.message());
        }
    }
    victim.assert_well().await;
}

#[tokio::test]
async fn numbers_at_both_ends_are_answered() {
    let mut victim = Victim::start().await;
    let (mut pd, header) = victim.pd();
    for count in [0, u32::MAX] {
        assert!(victim.timestamps(header.clone(), count).await.is_err(), "{count} timestamps");
    }
    assert_eq!(victim.timestamps(header.clone(), 1).await.expect("an answer"), 1);
    // Ids ascend whatever is asked for; zero is taken for one, as in the field.
    let mut last = 0;
    for count in [1, 0, 1] {
        let request = pdpb::AllocIdRequest { header: header.clone(), count };
        let id = pd.alloc_id(request).await.expect("ids").into_inner().id;
        assert!(id > last, "{id} after {last}");
        last = id;
    }
    let request = pdpb::AllocIdRequest { header: header.clone(), count: u32::MAX };
    let status = pd.alloc_id(request).await.expect_err("too many");
    assert!(status.message().contains("at once"), "{}", status.message());
    for limit in [i32::MIN, -1, 0, i32::MAX] {
        let request = pdpb::ScanRegionsRequest { header: header.clone(), limit, ..Default::default() };
        let found = pd.scan_regions(request).await.expect("an answer").into_inner();
        assert_eq!(found.regions.len(), 5, "limit {limit}");
    }
    let swapped = pdpb::ScanRegionsRequest {
        header: header.clone(),
        start_key: "z".into(),
        end_key: "a".into(),
        ..Default::default()
    };
    assert!(pd.scan_regions(swapped).await.expect("an answer").into_inner().regions.is_empty());
    let region_key = Bytes::from(vec![0xff; 1 << 20]);
    let far = pdpb::GetRegionRequest { header: header.clone(), region_key, ..Default::default() };
    assert!(pd.get_region(far).await.expect("an answer").into_inner().region.is_some());
    for region_id in [0, u64::MAX] {
        let request = pdpb::GetRegionByIdRequest { header: header.clone(), region_id, ..Default::default() };
        assert!(pd.get_region_by_id(request).await.expect("an answer").into_inner().region.is_none());
        let request = pdpb::GetStoreRequest { header: header.clone(), store_id: region_id };
        let answer = pd.get_store(request).await.expect("an answer").into_inner();
        assert!(answer.store.is_some(), "clients look into it before they look at the error");
        assert!(error(answer.header).message.contains("not found"));
    }
    victim.assert_well().await;
}

#[tokio::test]
async fn things_that_cannot_be_are_refused_and_change_nothing() {
    let mut victim = Victim::start().await;
    let (mut pd, header) = victim.pd();
    let before = victim.regions.all().await.expect("regions");
    let at = victim.at().await;
    let id = at.leader.store_id;

    let store = |id, address: &str| metapb::Store { id, address: address.into(), ..Default::default() };
    for wrong in [None, Some(store(0, "a:1")), Some(store(id, "")), Some(store(u64::MAX, "b:1"))] {
        let request =
            pdpb::PutStoreRequest { header: header.clone(), store: wrong.clone(), ..Default::default() };
        let answer = pd.put_store(request).await.expect("an answer").into_inner();
        assert!(!error(answer.header).message.is_empty(), "{wrong:?}");
    }
    for stats in [None, Some(pdpb::StoreStats { store_id: u64::MAX, ..Default::default() })] {
        let request = pdpb::StoreHeartbeatRequest { header: header.clone(), stats };
        let answer = pd.store_heartbeat(request).await.expect("an answer").into_inner();
        assert!(error(answer.header).message.contains("store"));
    }
    let stranger = metapb::Region { id: 987_654, ..at.region.clone() };
    for (region, split_count) in
        [(None, 1), (Some(stranger), 1), (Some(at.region.clone()), 0), (Some(at.region.clone()), u32::MAX)]
    {
        let request =
            pdpb::AskBatchSplitRequest { header: header.clone(), region, split_count, ..Default::default() };
        let answer = pd.ask_batch_split(request).await.expect("an answer").into_inner();
        assert!(!error(answer.header).message.is_empty());
    }
    let backwards = metapb::Region { start_key: "z".into(), end_key: "a".into(), ..at.region.clone() };
    let whole = metapb::Region { start_key: Bytes::new(), end_key: Bytes::new(), ..at.region.clone() };
    for regions in [
        vec![],
        vec![at.region.clone()],
        vec![backwards.clone(), at.region.clone()],
        vec![whole.clone(), whole],
    ] {
        let request = pdpb::ReportBatchSplitRequest { header: header.clone(), regions };
        let answer = pd.report_batch_split(request).await.expect("an answer").into_inner();
        assert!(!error(answer.header).message.is_empty());
    }
    let nobody = metapb::Region { peers: vec![], ..at.region.clone() };
    for region in [None, Some(backwards), Some(nobody)] {
        let report = pdpb::RegionHeartbeatRequest {
            header: header.clone(),
            region,
            leader: Some(at.leader),
            ..Default::default()
        };
        let mut stream =
            pd.region_heartbeat(tokio_stream::iter([report])).await.expect("a stream").into_inner();
        let answer = stream.message().await.expect("no broken stream").expect("an answer");
        assert!(!error(answer.header).message.is_empty());
    }
    assert_eq!(victim.regions.all().await.expect("regions"), before);
    victim.assert_well().await;
}

#[tokio::test]
async fn requests_of_a_hundred_mebibytes_are_refused() {
    let mut victim = Victim::start().await;
    let (mut pd, header) = victim.pd();
    let huge = Bytes::from(vec![b'k'; 100 << 20]);
    let request =
        pdpb::GetRegionRequest { header: header.clone(), region_key: huge.clone(), ..Default::default() };
    let status = pd.get_region(request).await.expect_err("too large");
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
    let channel = Channel::from_shared(format!("http://{}", victim.cluster.endpoint())).expect("an address");
    let channel = channel.connect().await.expect("a connection");
    let mut keyspaces = keyspacepb::keyspace_client::KeyspaceClient::new(channel);
    let name = String::from_utf8(huge.to_vec()).expect("text");
    let request = keyspacepb::LoadKeyspaceRequest { header, name };
    let status = keyspaces.load_keyspace(request).await.expect_err("too large");
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
    victim.assert_well().await;
}
