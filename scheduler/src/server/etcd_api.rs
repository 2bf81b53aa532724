//! The slice of etcd's interface that clients of the field ask of a scheduler: its members, and a few keys.
//!
//! Holds no state: keys live in the cluster, and are durable when `Put` answers. What this slice cannot do (leases,
//! past revisions) is refused by name; other methods of etcd are UNIMPLEMENTED.

use bytes::Bytes;
use kvproto::etcdserverpb::cluster_server::Cluster;
use kvproto::etcdserverpb::kv_server::Kv;
use kvproto::etcdserverpb::range_request::{SortOrder, SortTarget};
use kvproto::etcdserverpb::{self as etcd, ResponseHeader};
use kvproto::mvccpb::KeyValue;
use kvproto::pdpb::{self, pd_server::Pd};
use tonic::{Request, Response, Status};

use super::grpc_service::{GrpcService, unavailable};
use super::state::ChangeError;
use crate::core::client_keys::{ClientKeyError, ClientKeys, KeyRange};
use crate::error::ClusterError;

impl GrpcService {
    fn etcd_header(&self, revision: i64) -> Option<ResponseHeader> {
        let (cluster_id, member_id) = (self.state.cluster_id(), self.state.member.id);
        Some(ResponseHeader { cluster_id, member_id, revision, raft_term: 1 })
    }
}

/// Refuses what only a store of past revisions could answer.
#[allow(clippy::result_large_err, reason = "Status is what tonic wants")]
fn check_revision(asked: i64, present: i64) -> Result<(), Status> {
    match asked {
        0 => Ok(()),
        _ if asked == present => Ok(()),
        _ if asked > present => {
            Err(Status::out_of_range("etcdserver: mvcc: required revision is a future revision"))
        }
        _ => Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted")),
    }
}

/// The keys of a range, in the order and number asked for.
#[allow(clippy::result_large_err, reason = "Status is what tonic wants")]
fn range(keys: &ClientKeys, request: &etcd::RangeRequest) -> Result<etcd::RangeResponse, Status> {
    check_revision(request.revision, keys.revision())?;
    let range = KeyRange { start: request.key.clone(), end: request.range_end.clone() };
    let mut kvs: Vec<KeyValue> = keys.range(&range).cloned().collect();
    let count = i64::try_from(kvs.len()).unwrap_or(i64::MAX);
    if request.count_only {
        return Ok(etcd::RangeResponse { count, ..Default::default() });
    }
    match request.sort_target() {
        SortTarget::Key => {}
        SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
        SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
        SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
        SortTarget::Value => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
    }
    if request.sort_order() == SortOrder::Descend {
        kvs.reverse();
    }
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    Ok(etcd::RangeResponse { header: None, kvs, more, count })
}

#[tonic::async_trait]
impl Kv for GrpcService {
    async fn range(
        &self,
        request: Request<etcd::RangeRequest>,
    ) -> Result<Response<etcd::RangeResponse>, Status> {
        let request = request.into_inner();
        if request.key.is_empty() {
            return Err(Status::invalid_argument("etcdserver: key is not provided"));
        }
        let (found, revision) = self.state.read(|cluster, _| {
            let keys = cluster.client_keys();
            (range(keys, &request), keys.revision())
        });
        Ok(Response::new(etcd::RangeResponse { header: self.etcd_header(revision), ..found? }))
    }

    async fn put(&self, request: Request<etcd::PutRequest>) -> Result<Response<etcd::PutResponse>, Status> {
        let request = request.into_inner();
        if request.lease != 0 || request.ignore_lease || request.ignore_value {
            return Err(Status::unimplemented(
                "a scheduler keeps keys without leases; put the key with its value and no lease",
            ));
        }
        let (key, value) = (request.key, request.value);
        let changed = self.state.change(|cluster, _, _| cluster.put_client_key(key, value)).await;
        let (revision, before) = changed.map_err(|error| match error {
            ChangeError::Cluster(ClusterError::ClientKey(ClientKeyError::EmptyKey)) => {
                Status::invalid_argument("etcdserver: key is not provided")
            }
            ChangeError::Cluster(ClusterError::ClientKey(error @ ClientKeyError::TooMany)) => {
                Status::resource_exhausted(error.to_string())
            }
            ChangeError::Cluster(error) => Status::invalid_argument(error.to_string()),
            ChangeError::Kv(error) => unavailable(error),
        })?;
        let prev_kv = before.filter(|_| request.prev_kv);
        Ok(Response::new(etcd::PutResponse { header: self.etcd_header(revision), prev_kv }))
    }
}

#[tonic::async_trait]
impl Cluster for GrpcService {
    async fn member_list(
        &self,
        _request: Request<etcd::MemberListRequest>,
    ) -> Result<Response<etcd::MemberListResponse>, Status> {
        let members = self.get_members(Request::new(pdpb::GetMembersRequest::default())).await?;
        let member = |member: pdpb::Member| etcd::Member {
            id: member.member_id,
            name: member.name,
            peer_ur_ls: member.peer_urls,
            client_ur_ls: member.client_urls,
            is_learner: false,
        };
        let members = members.into_inner().members.into_iter().map(member).collect();
        let revision = self.state.read(|cluster, _| cluster.client_keys().revision());
        Ok(Response::new(etcd::MemberListResponse { header: self.etcd_header(revision), members }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> ClientKeys {
        let mut keys = ClientKeys::default();
        for (key, value) in [("a", "3"), ("b", "1"), ("c", "2"), ("a", "4")] {
            keys.put(key.into(), value.into()).unwrap();
        }
        keys
    }

    fn all() -> etcd::RangeRequest {
        etcd::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }
    }

    fn names(request: &etcd::RangeRequest) -> Vec<Bytes> {
        range(&keys(), request).unwrap().kvs.into_iter().map(|kv| kv.key).collect()
    }

    #[test]
    fn order_number_and_shape_are_as_asked() {
        assert_eq!(names(&all()), ["a", "b", "c"]);
        let descend = etcd::RangeRequest { sort_order: SortOrder::Descend as i32, ..all() };
        assert_eq!(names(&descend), ["c", "b", "a"]);
        let by = |target: SortTarget| etcd::RangeRequest { sort_target: target as i32, ..all() };
        assert_eq!(names(&by(SortTarget::Mod)), ["b", "c", "a"]);
        assert_eq!(names(&by(SortTarget::Value)), ["b", "c", "a"]);
        assert_eq!(names(&by(SortTarget::Create)), ["a", "b", "c"]);
        assert_eq!(names(&by(SortTarget::Version)), ["b", "c", "a"]);
        let two = range(&keys(), &etcd::RangeRequest { limit: 2, keys_only: true, ..all() }).unwrap();
        assert_eq!((two.kvs.len(), two.more, two.count), (2, true, 3));
        assert!(two.kvs.iter().all(|kv| kv.value.is_empty()));
        let counted = range(&keys(), &etcd::RangeRequest { count_only: true, ..all() }).unwrap();
        assert_eq!((counted.kvs.len(), counted.count), (0, 3));
    }

    #[test]
    fn other_revisions_than_the_present_are_refused() {
        let at = |revision| range(&keys(), &etcd::RangeRequest { revision, ..all() });
        assert!(at(0).is_ok() && at(4).is_ok());
        assert!(at(3).unwrap_err().message().contains("compacted"));
        assert!(at(5).unwrap_err().message().contains("future"));
    }
}
