//! The administrator's side of a backup that a running server makes.

use http::Method;
use http_body_util::BodyExt;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use warren_shell::unix_client;

use super::client::HOST;
use warren_core::wire::admin::BACKUP_PATH;

/// Bytes of a sentence that says why there is none.
const REFUSAL: usize = 64 * 1024;

/// Asks the server behind this connection for a backup. The error is a sentence.
pub(crate) async fn fetch_backup(stream: UnixStream, target: &mut (impl AsyncWrite + Unpin)) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let request = unix_client::request(Method::POST, BACKUP_PATH, HOST, Vec::new()).map_err(|error| text(&error))?;
    let response = unix_client::send_on(stream, request).await.map_err(|error| text(&error))?;
    let status = response.status();
    let mut body = response.into_body();
    if !status.is_success() {
        let body = unix_client::whole(body, REFUSAL).await.map_err(|error| text(&error))?;
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
