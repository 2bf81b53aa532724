//! Bytes on the ports that are no requests: the connection ends, the server does not.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Victim;

const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The same noise every time.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// An HTTP/2 frame.
fn frame(length: u32, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let after_preface = |frames: Vec<u8>| [PREFACE, &frames].concat();
    let settings = frame(0, 4, 0, 0, b"");
    vec![
        ("nothing", vec![]),
        ("noise", noise(64 << 10)),
        ("zeros", vec![0; 64 << 10]),
        ("TLS", [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &noise(512)].concat()),
        ("HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n".to_vec()),
        ("another protocol", b"*1\r\n$4\r\nPING\r\n".to_vec()),
        ("an endless header", [&b"GET / HTTP/1.1\r\nx: "[..], &vec![b'a'; 1 << 20]].concat()),
        (
            "a length that lies",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\nshort".to_vec(),
        ),
        ("half a preface", PREFACE[..10].to_vec()),
        ("noise after the preface", after_preface(noise(64 << 10))),
        (
            "a frame that is too long",
            after_preface([settings.clone(), frame(0xff_ffff, 0, 0, 1, b"x")].concat()),
        ),
        (
            "headers that cannot be read",
            after_preface([settings.clone(), frame(8, 1, 4, 1, &[0xff; 8])].concat()),
        ),
        ("data without a stream", after_preface([settings.clone(), frame(4, 0, 1, 7, b"data")].concat())),
        (
            "a window of the maximum",
            after_preface([settings.clone(), frame(4, 8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])].concat()),
        ),
        ("a storm of settings", after_preface(settings.repeat(5_000))),
        (
            "a storm of pings",
            after_preface([settings, frame(8, 6, 0, 0, b"pingping").repeat(5_000)].concat()),
        ),
    ]
}

/// Sends bytes and lets the server say what it wants to say, for a short time.
async fn throw(address: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.expect("the port is open");
    // The server may hang up in the middle.
    if stream.write_all(bytes).await.is_err() || stream.shutdown().await.is_err() {
        return;
    }
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let ended = tokio::time::timeout(ANSWERED_WITHIN, read).await;
    assert!(ended.is_ok(), "the connection stays open after its end: {} bytes answered", answer.len());
}

#[tokio::test]
async fn garbage_on_any_port_ends_its_connection_only() {
    let mut victim = Victim::start().await;
    let store = &victim.cluster.stores[0];
    let ports = [store.address, store.status_address, victim.cluster.scheduler_address];
    // Connections that say nothing stay open all the while.
    let mut silent = Vec::new();
    for port in ports {
        silent.push(TcpStream::connect(port).await.expect("the port is open"));
    }
    for (what, bytes) in garbage() {
        for port in ports {
            throw(port, &bytes).await;
        }
        assert_eq!(victim.get("stays").await, Some("v".into()), "after {what}");
    }
    victim.assert_well().await;
    for (port, path) in [(ports[1], "/status"), (ports[1], "/metrics"), (ports[2], "/pd/api/v1/health")] {
        let reply = integration::cluster::get(port, path, ANSWERED_WITHIN).expect("an answer");
        assert!(reply.is_ok(), "{path}");
    }
    drop(silent);
}
