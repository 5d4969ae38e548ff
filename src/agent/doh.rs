//! Asks a name server that speaks HTTP (RFC 8484).

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

use super::relay_tls::RelayTls;
use warren_shell::{DialTarget, Dialler, chain};

/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_secs(4);
/// The longest answer (RFC 1035 §4.2.2).
const ANSWER: usize = u16::MAX as usize;
const MESSAGE: &str = "application/dns-message";

/// Posts a question, and gives the answer. `known` are addresses of the server, so that its name need not be looked up.
/// No proxy is asked.
pub(super) async fn ask(
    dialler: &Dialler,
    tls: &RelayTls,
    url: &str,
    known: &[IpAddr],
    question: Vec<u8>,
) -> Result<Vec<u8>, String> {
    let uri: Uri = url.parse().map_err(|error| format!("{url:?}: {error}"))?;
    let host = uri.host().ok_or_else(|| format!("{url:?}: no host"))?;
    let is_plain = uri.scheme_str() == Some("http");
    let port = uri.port_u16().unwrap_or(if is_plain { 80 } else { 443 });
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let target = DialTarget::new(bare, port);
    let target = if known.is_empty() { target } else { target.at(known.to_vec(), [false; 2]) };
    let stream = dialler.clone().within(CONNECT).dial_straight(&target).await?;
    if is_plain {
        return post(stream, &uri, question).await;
    }
    let name = ServerName::try_from(bare.to_owned()).map_err(|error| format!("{bare:?}: {error}"))?;
    let tls = tls.connector("", false)?;
    let stream = tls.connect(name, stream).await.map_err(|error| format!("TLS with {bare}: {}", chain(&error)))?;
    post(stream, &uri, question).await
}

async fn post<S>(stream: S, uri: &Uri, mut question: Vec<u8>) -> Result<Vec<u8>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
    // Ends with the request.
    tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    // The number of the message is 0, so that answers can be kept on the way (RFC 8484 §4.1), and is put back.
    let number: Vec<u8> = question.iter().take(2).copied().collect();
    question.iter_mut().take(2).for_each(|byte| *byte = 0);
    let request = Request::post(path)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, MESSAGE)
        .header(header::ACCEPT, MESSAGE)
        .body(Full::new(Bytes::from(question)))
        .map_err(|error| format!("POST {uri}: {error}"))?;
    let response = requests.send_request(request).await.map_err(|error| chain(&error))?;
    if !response.status().is_success() {
        return Err(format!("{uri}: answered {}", response.status()));
    }
    let body = Limited::new(response.into_body(), ANSWER).collect().await.map_err(|error| format!("{uri}: {error}"))?;
    let mut answer = body.to_bytes().to_vec();
    answer.iter_mut().zip(number).for_each(|(byte, number)| *byte = number);
    Ok(answer)
}
