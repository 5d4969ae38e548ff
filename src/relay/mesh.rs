//! Links to the other relays of the region, so that a client of one reaches a client of another.
//!
//! Each relay connects to each other one and watches who is there; packets for those who are go out on that link.
//! A link that ends is made again, for as long as the relay runs.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::Relay;
use super::dial::Target;
use super::error::RelayError;
use warren_shell::DIAL_TIME;

/// How long connecting, TLS and the upgrade may take.
const CONNECT: Duration = DIAL_TIME.saturating_add(Duration::from_secs(10));
/// The first wait before a link is made again.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest.
const RETRY_MOST: Duration = Duration::from_secs(30);
const PATH: &str = "/derp";

type Fault = Box<dyn Error + Send + Sync>;

/// Keeps a link to the relay at this URL until it turns out to be this relay itself.
pub(super) async fn keep(relay: Arc<Relay>, peer: Target) {
    let url = peer.url();
    let mut wait = RETRY_FIRST;
    loop {
        let begun = tokio::time::Instant::now();
        match timeout(CONNECT, connect(&peer)).await {
            Ok(Ok(io)) => match relay.link(TokioIo::new(io)).await {
                Err(RelayError::Oneself) => return info!(%url, "this relay of the region is ourselves"),
                Err(error) => warn!(%url, %error, "the link to a relay of the region ended"),
                Ok(()) => warn!(%url, "a relay of the region closed the link; is its mesh key ours?"),
            },
            Ok(Err(error)) => warn!(%url, %error, "connecting to a relay of the region"),
            Err(_) => warn!(%url, "connecting to a relay of the region took too long"),
        }
        if begun.elapsed() > RETRY_MOST {
            wait = RETRY_FIRST;
        }
        // Relays that start together should not stay in step.
        let share = rand::random_range(0.5..1.0);
        tokio::time::sleep(wait.mul_f64(share)).await;
        wait = (2 * wait).min(RETRY_MOST);
    }
}

/// The bytes of the relay protocol.
async fn connect(peer: &Target) -> Result<hyper::upgrade::Upgraded, Fault> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(peer.connect().await?)).await?;
    let moving = tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "HTTP to a relay of the region");
        }
    });
    let path = match peer.url().path() {
        "" | "/" => PATH,
        path => path,
    };
    let request = Request::get(path)
        .header(header::HOST, peer.authority())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "DERP")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        moving.abort();
        return Err(format!("it answers {}", response.status()).into());
    }
    Ok(hyper::upgrade::on(response).await?)
}
