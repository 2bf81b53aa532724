//! What the two ends of a wire must agree on: messages, key encoding, timestamps, sizes.
//!
//! The modules named after protobuf packages hold generated types; their field numbers follow TiKV's public
//! protocol, so that programs written for TiKV speak to Kvasir unchanged. Everything else here is plain,
//! pure code without I/O.

macro_rules! package {
    ($name:ident, $package:literal) => {
        #[allow(clippy::all, missing_docs)]
        pub mod $name {
            tonic::include_proto!($package);
        }
    };
}

package!(metapb, "metapb");
package!(errorpb, "errorpb");
package!(deadlock, "deadlock");
package!(kvrpcpb, "kvrpcpb");
package!(pdpb, "pdpb");
package!(keyspacepb, "keyspacepb");
package!(raft_serverpb, "raft_serverpb");
package!(tikvpb, "tikvpb");
package!(eraftpb, "eraftpb");
package!(health, "grpc.health.v1");
package!(mvccpb, "mvccpb");
package!(etcdserverpb, "etcdserverpb");
package!(memberpb, "memberpb");

pub mod key;
pub mod limits;
pub mod redact;
pub mod ts;
