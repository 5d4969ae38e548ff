//! The administrator's side of a backup that a running server makes.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

/// Where it is asked for.
pub(super) const BACKUP: &str = "/backup";
/// Bytes of a sentence that says why there is none.
const REFUSAL: usize = 64 * 1024;

/// Asks the server behind this connection for a backup. The error is a sentence.
pub(crate) async fn fetch_backup(stream: UnixStream, target: &mut (impl AsyncWrite + Unpin)) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    tokio::spawn(connection);
    let request = http::Request::post(BACKUP)
        .header(http::header::HOST, "localhost")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| text(&error))?;
    let response = sender.send_request(request).await.map_err(|error| text(&error))?;
    let status = response.status();
    let mut body = response.into_body();
    if !status.is_success() {
        let body = Limited::new(body, REFUSAL).collect().await.map_err(|error| text(&error))?.to_bytes();
        return Err(String::from_utf8_lossy(&body).into_owned());
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| text(&error))?;
        if let Some(piece) = frame.data_ref() {
            target.write_all(piece).await.map_err(|error| text(&error))?;
        }
    }
    Ok(())
}
