//! Compiles the message definitions in `proto/` with the machine's `protoc`. Every `bytes` field becomes
//! `bytes::Bytes`, so that a decoded request shares the frame it came in.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let names = [
        "metapb",
        "errorpb",
        "deadlock",
        "kvrpcpb",
        "pdpb",
        "keyspacepb",
        "raft_serverpb",
        "tikvpb",
        "eraftpb",
        "healthpb",
        "mvccpb",
        "etcdserverpb",
        "memberpb",
    ];
    let files: Vec<String> = names.iter().map(|n| format!("proto/{n}.proto")).collect();
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure().bytes(".").compile_protos(&files, &["proto".to_string()])?;
    Ok(())
}
