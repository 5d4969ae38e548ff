//! The asking side of HTTP on a unix socket: one request on a connection of its own.

use std::path::Path;

use bytes::Bytes;
use http::header::HOST;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Sends a request to whoever listens at this path. The error says what went wrong.
pub async fn send(socket: &Path, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, std::io::Error> {
    send_on(UnixStream::connect(socket).await?, request).await
}

/// Sends a request on this connection.
pub async fn send_on(stream: UnixStream, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, std::io::Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(std::io::Error::other)
}

/// A request with this body, to the host by which a server of this host goes.
pub fn request(method: Method, uri: &str, host: &'static str, body: Vec<u8>) -> http::Result<Request<Full<Bytes>>> {
    Request::builder().method(method).uri(uri).header(HOST, host).body(Full::new(Bytes::from(body)))
}

/// The whole of an answer, if it has no more bytes than this.
pub async fn whole(body: Incoming, most: usize) -> Result<Bytes, std::io::Error> {
    let body = Limited::new(body, most).collect().await.map_err(std::io::Error::other)?;
    Ok(body.to_bytes())
}
