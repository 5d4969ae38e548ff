//! What a face knows of whoever is at the other end of a connection, before a word is said.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http::{HeaderMap, header};
use tracing::warn;
use warren_shell::{HeldPlace, Rates};

use crate::clock;
use crate::ending::Ending;

/// Who is at the other end, and our share in the bound on connections.
#[derive(Clone)]
pub(crate) struct Connection {
    /// The address it came from.
    pub(crate) from: SocketAddr,
    /// Whether TLS protects it.
    pub(crate) tls: bool,
    /// Held as long as the connection lives, also by what takes it over.
    pub(crate) place: Arc<HeldPlace>,
    /// Turns true when the program ends.
    pub(crate) ending: Ending,
}

/// How often each site may ask for something. Locked for a few steps at a time, never across an `await`.
pub(crate) struct SiteRate(Mutex<Rates>);

impl SiteRate {
    /// So many times a second, and ten seconds' worth at once; 0 for no limit.
    pub(crate) fn new(a_second: u32) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Rates::new(a_second))))
    }

    /// Takes one token of a site, or says how long until there is one.
    pub(crate) fn take(&self, place: &HeldPlace) -> Result<(), Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(place.site(), clock::instant())
    }

    /// So many times a second from here on.
    pub(crate) fn set(&self, a_second: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).set(a_second);
    }
}

/// How this server is reached from outside.
pub(crate) struct PublicUrl {
    /// As the operator said.
    configured: Option<String>,
    /// A request said that it came through a proxy that speaks TLS, and nobody said how nodes reach us.
    unnamed_proxy: OnceLock<()>,
}

/// What an operator whose proxy was noticed should know.
const UNNAMED_PROXY: &str = "a request came through a proxy that speaks TLS (X-Forwarded-Proto: https), and server_url is not \
                             set: set it to the address of the proxy, so that links and the relay's place do not depend on \
                             what it passes on";

impl PublicUrl {
    pub(crate) fn new(configured: Option<String>) -> Arc<Self> {
        Arc::new(Self { configured, unnamed_proxy: OnceLock::new() })
    }

    /// How a client reaches us: what the operator said, else what the client itself asked for.
    pub(crate) fn seen_by(&self, connection: &Connection, headers: &HeaderMap) -> String {
        if let Some(url) = &self.configured {
            return url.clone();
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.filter(|host| host.parse::<http::uri::Authority>().is_ok()).unwrap_or("localhost");
        let through_tls = !connection.tls && came_by_tls(headers);
        if through_tls {
            // It may be said by anybody who can ask, so it is said once, and counts for who says it alone.
            self.unnamed_proxy.get_or_init(|| warn!("{UNNAMED_PROXY}"));
        }
        format!("{}://{host}", if connection.tls || through_tls { "https" } else { "http" })
    }

    /// What the operator should know of it.
    pub(crate) fn warning(&self) -> Option<&'static str> {
        self.unnamed_proxy.get().map(|()| UNNAMED_PROXY)
    }
}

/// Whether a proxy says that TLS ends at it.
fn came_by_tls(headers: &HeaderMap) -> bool {
    let said = headers.get("x-forwarded-proto").and_then(|said| said.to_str().ok()).unwrap_or_default();
    said.split(',').next().is_some_and(|first| first.trim().eq_ignore_ascii_case("https"))
}
