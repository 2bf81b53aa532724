//! The scheduler's HTTP interface, for what has no place in the clients' protocol: JSON in, JSON out, one connection a
//! request, always to the leader.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::cli::Global;
use crate::connect;
use crate::error::{Error, Result};

/// The largest answer taken.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// See the file's head.
pub struct AdminApi {
    /// `host:port`
    authority: String,
    timeout: Duration,
}

impl AdminApi {
    /// Finds the leader.
    pub async fn connect(global: &Global) -> Result<AdminApi> {
        let url = connect::scheduler(global).await?.leader_url();
        let authority = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        Ok(AdminApi { authority, timeout: Duration::from_secs(global.timeout) })
    }

    /// Reads a document.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        parse(self.call(Method::GET, path, None).await?)
    }

    /// Posts a document and reads the answer.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        parse(self.call(Method::POST, path, Some(body)).await?)
    }

    /// Deletes what is at `path`.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.call(Method::DELETE, path, None).await.map(drop)
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes> {
        match tokio::time::timeout(self.timeout, self.exchange(method, path, body)).await {
            Ok(done) => done,
            Err(_) => {
                let (seconds, authority) = (self.timeout.as_secs(), &self.authority);
                Err(Error::Failed(format!(
                    "the scheduler at {authority} has not answered within {seconds} s; try again, or with --timeout"
                )))
            }
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes> {
        let broken = |error: &dyn std::fmt::Display| {
            Error::Failed(format!("scheduler at {}: {error}", self.authority))
        };
        let stream = TcpStream::connect(&self.authority).await.map_err(|e| broken(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
        // Ends with the exchange: the sender is dropped then. A failure shows in the answer.
        let _driver = tokio::spawn(connection);
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(text)))
            .map_err(|e| broken(&e))?;
        let answer = sender.send_request(request).await.map_err(|e| broken(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let bytes = body.map_err(|e| broken(&e))?.to_bytes();
        if status.is_success() { Ok(bytes) } else { Err(refusal(status, &bytes)) }
    }
}

/// What the scheduler said no with.
fn refusal(status: StatusCode, body: &Bytes) -> Error {
    let of_json = |body: &Bytes| -> Option<String> {
        let value: Value = serde_json::from_slice(body).ok()?;
        Some(value.get("error")?.as_str()?.to_owned())
    };
    let text = of_json(body).unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    match status {
        StatusCode::NOT_FOUND => Error::NotFound(text),
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Error::Usage(text),
        _ => Error::Failed(text),
    }
}

fn parse<T: DeserializeOwned>(body: Bytes) -> Result<T> {
    serde_json::from_slice(&body)
        .map_err(|error| Error::Failed(format!("the scheduler's answer is not understood: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_keep_their_text_and_find_their_exit_code() {
        let refused =
            |status, body: &'static str| refusal(StatusCode::from_u16(status).unwrap(), &Bytes::from(body));
        let missing = refused(404, r#"{"error":"region 7 has no operator"}"#);
        assert_eq!((missing.exit_code(), missing.to_string().as_str()), (3, "region 7 has no operator"));
        assert_eq!(refused(400, "not JSON").exit_code(), 2);
        let busy = refused(409, r#"{"error":"has-operator"}"#);
        assert_eq!((busy.exit_code(), busy.to_string().as_str()), (1, "has-operator"));
    }
}
