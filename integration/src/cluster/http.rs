//! One HTTP/1.1 request, written out: enough for status pages of processes that the tests started themselves, and
//! one dependency less. Blocking, with a deadline; the body must come with a length or end with the connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Largest reply taken, in bytes.
const REPLY_BYTES_MAX: u64 = 16 << 20;

/// Status code and body of a reply.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: String,
}

impl Reply {
    pub fn is_ok(&self) -> bool {
        self.status == 200
    }

    /// The body as JSON.
    pub fn json(&self) -> io::Result<serde_json::Value> {
        serde_json::from_str(&self.body).map_err(io::Error::other)
    }
}

/// Asks `address` for `path`; every step takes at most `timeout`.
pub fn get(address: SocketAddr, path: &str, timeout: Duration) -> io::Result<Reply> {
    send(address, "GET", path, "", timeout)
}

/// Asks `address` to remove what is at `path`.
pub fn delete(address: SocketAddr, path: &str, timeout: Duration) -> io::Result<Reply> {
    send(address, "DELETE", path, "", timeout)
}

/// Sends a request with a JSON body, or none when it is empty; every step takes at most `timeout`.
pub fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    timeout: Duration,
) -> io::Result<Reply> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut raw = Vec::new();
    stream.take(REPLY_BYTES_MAX).read_to_end(&mut raw)?;
    parse(&raw)
}

fn parse(raw: &[u8]) -> io::Result<Reply> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP reply: {what}"));
    let head_end = raw.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(|| bad("no end of headers"))?;
    let head = std::str::from_utf8(&raw[..head_end]).map_err(|_| bad("headers are not text"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| bad("no status"))?;
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_string())
    };
    let body = &raw[head_end + 4..];
    let body = match header("transfer-encoding") {
        Some(encoding) if encoding.eq_ignore_ascii_case("chunked") => {
            unchunk(body).ok_or_else(|| bad("bad chunk"))?
        }
        _ => body.to_vec(),
    };
    if let Some(length) = header("content-length").and_then(|length| length.parse::<usize>().ok())
        && body.len() != length
    {
        return Err(bad("the body was cut short"));
    }
    Ok(Reply { status, body: String::from_utf8_lossy(&body).into_owned() })
}

/// Body of a chunked reply; `None` when it is malformed or cut short.
fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..line]).ok()?.split(';').next()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let chunk = rest.get(line + 2..)?.get(..size)?;
        body.extend_from_slice(chunk);
        rest = rest[line + 2 + size..].strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_plain_and_chunked_bodies() {
        let plain = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (200, "hi"));
        let chunked =
            b"HTTP/1.1 503 no\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3\r\n you\r\n0\r\n\r\n";
        assert!(parse(chunked).is_err(), "a chunk longer than announced");
        let chunked =
            b"HTTP/1.1 503 no\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n4\r\n you\r\n0\r\n\r\n";
        let chunked = parse(chunked).unwrap();
        assert_eq!((chunked.status, chunked.body.as_str()), (503, "hi you"));
    }

    #[test]
    fn refuses_what_is_cut_short_or_no_http() {
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhi").is_err());
        assert!(parse(b"hello").is_err());
    }
}
