//! HTTP to the agent's socket.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Error;
use warren_core::wire::control::DerpMap;
use warren_core::wire::local::{Mask, MaskedPrefs, Notify, PingKind, PingReply, Prefs, Status, path};
use warren_shell::unix_client;

/// The largest answer that is read: the status of a network of the largest size.
const ANSWER: usize = 64 << 20;
/// The longest line of a stream of notices; each holds a part of a status at most.
const LINE: usize = 16 << 20;

/// Asks the agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Notices, as they come.
#[derive(Debug)]
pub struct Notices {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Client {
    /// For the socket at this path. Nothing is opened yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// The state of this node, with or without its peers.
    pub async fn status(&self, peers: bool) -> Result<Status, Error> {
        let call = format!("{}status?peers={peers}", path::TAILSCALE);
        self.ask(Method::GET, &call, Vec::new()).await
    }

    /// The preferences.
    pub async fn prefs(&self) -> Result<Prefs, Error> {
        self.ask(Method::GET, &format!("{}prefs", path::TAILSCALE), Vec::new()).await
    }

    /// Changes some preferences; the answer is all of them.
    pub async fn edit_prefs(&self, change: &MaskedPrefs) -> Result<Prefs, Error> {
        let call = format!("{}prefs", path::TAILSCALE);
        self.ask(Method::PATCH, &call, encode(&call, change)?).await
    }

    /// Asks for something to be done that has no answer.
    pub async fn post(&self, call: &str, body: &impl Serialize) -> Result<(), Error> {
        let call = format!("{}{call}", path::TAILSCALE);
        self.whole(Method::POST, &call, encode(&call, body)?).await.map(|_| ())
    }

    /// Sends one ping, and waits for what comes of it.
    pub async fn ping(&self, address: IpAddr, kind: PingKind) -> Result<PingReply, Error> {
        let call = format!("{}ping?ip={address}&type={kind}&size=0", path::TAILSCALE);
        self.ask(Method::POST, &call, Vec::new()).await
    }

    /// Where the relays are.
    pub async fn derp_map(&self) -> Result<DerpMap, Error> {
        self.ask(Method::GET, &format!("{}derpmap", path::TAILSCALE), Vec::new()).await
    }

    /// One of our own questions.
    pub async fn own<T: DeserializeOwned>(&self, call: &str) -> Result<T, Error> {
        self.ask(Method::GET, &format!("{}{call}", path::WARREN), Vec::new()).await
    }

    /// Asks for something of our own to be done that has no answer.
    pub async fn post_own(&self, call: &str) -> Result<(), Error> {
        self.whole(Method::POST, &format!("{}{call}", path::WARREN), Vec::new()).await.map(|_| ())
    }

    /// A question that official clients ask too.
    pub async fn theirs<T: DeserializeOwned>(&self, call: &str) -> Result<T, Error> {
        self.ask(Method::GET, &format!("{}{call}", path::TAILSCALE), Vec::new()).await
    }

    /// Watches the agent. From here on no notice is missed.
    pub async fn watch(&self, mask: Mask) -> Result<Notices, Error> {
        let call = format!("{}watch-ipn-bus?mask={}", path::TAILSCALE, mask.0);
        let response = self.send(Method::GET, &call, Vec::new()).await?;
        Ok(Notices { body: response.into_body(), buffer: Vec::new() })
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, call: &str, body: Vec<u8>) -> Result<T, Error> {
        let answer = self.whole(method, call, body).await?;
        serde_json::from_slice(&answer).map_err(|error| broken(call, error))
    }

    async fn whole(&self, method: Method, call: &str, body: Vec<u8>) -> Result<Bytes, Error> {
        let body = self.send(method, call, body).await?.into_body();
        unix_client::whole(body, ANSWER).await.map_err(|error| broken(call, error))
    }

    /// Sends a request on a connection of its own; an answer that is a refusal becomes an error.
    async fn send(&self, method: Method, call: &str, body: Vec<u8>) -> Result<Response<Incoming>, Error> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| Error::NoAgent { socket: self.socket.display().to_string(), reason: error.to_string() })?;
        let request = unix_client::request(method, call, path::HOST, body).map_err(|error| broken(call, error))?;
        let response = unix_client::send_on(stream, request).await.map_err(|error| broken(call, error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = unix_client::whole(response.into_body(), ANSWER).await.map_err(|error| broken(call, error))?;
        Err(Error::Refused { status: status.as_u16(), text: refusal_text(&text) })
    }
}

impl Notices {
    /// The next notice. The end of the stream is an error: the agent has gone.
    pub async fn next(&mut self) -> Result<Notify, Error> {
        const CALL: &str = "watch";
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|error| broken(CALL, error));
            }
            let frame = self.body.frame().await.ok_or_else(|| broken(CALL, "the agent went away"))?;
            let data = frame.map_err(|error| broken(CALL, error))?.into_data().unwrap_or_default();
            if self.buffer.len() + data.len() > LINE {
                return Err(broken(CALL, "a notice is too long"));
            }
            self.buffer.extend_from_slice(&data);
        }
    }
}

fn encode(call: &str, body: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(body).map_err(|error| broken(call, error))
}

fn broken(call: &str, reason: impl std::fmt::Display) -> Error {
    Error::Broken { call: call.to_owned(), reason: reason.to_string() }
}

/// The text within a refusal, or the whole of it where it is not ours.
fn refusal_text(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Refused {
        error: String,
    }
    serde_json::from_slice::<Refused>(body)
        .map_or_else(|_| String::from_utf8_lossy(body).trim().to_owned(), |refused| refused.error)
}
