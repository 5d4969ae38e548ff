//! The embedded relay: opened before the registry, admitting whom the registry knows.

use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tracing::warn;

use super::config::{RelaySettings, Settings, StunListen};
use super::ending::Ending;
use super::hub::Hub;
use super::service::{EmbeddedRelay, RelayMap};
use warren_core::derp::Limits;
use warren_core::types::NodePrivate;
use warren_relay::{Admission, Applicant, Relay, RelayConfig, SelfSigned, kept_node_key, serve_stun};
use warren_shell::{bind, bind_udp, vital};

const KEY_FILE: &str = "relay.key";
/// The key of the certificate that we make ourselves.
pub(crate) const TLS_KEY_FILE: &str = "relay-tls.key";
const STUN_PORT: u16 = 3478;
/// How long the word of the end may take to reach the clients.
const FAREWELL: Duration = Duration::from_millis(500);
/// Clients are asked to come back after this: a restarted service is up again by then.
const RECONNECT_IN: Duration = Duration::from_secs(2);
/// And to keep trying for this long before they look for another relay.
const TRY_FOR: Duration = Duration::from_secs(30);
/// How often the registry is asked whether a client is still admitted.
const ASK_AGAIN: Duration = Duration::from_secs(300);
/// How often the year is looked at, which a certificate's hash depends on: one of a wrong year does not outlive the clock's
/// correction by more.
const YEAR_CHECK: Duration = Duration::from_secs(5);

/// What the embedded relay listens on and who it is, before it serves.
pub(crate) struct Opened {
    key: NodePrivate,
    stun: Option<UdpSocket>,
    /// A TLS port of its own.
    pub(crate) listener: Option<TcpListener>,
    /// What makes the certificate that nodes know by its hash.
    pub(crate) certificate: Option<Arc<SelfSigned>>,
}

/// Opens the relay, where there is to be one, and tells what the map has to say. The error is a sentence.
pub(crate) fn open(settings: &Settings) -> Result<(Option<Opened>, RelayMap), String> {
    let Some(relay) = &settings.relay else {
        return Ok((None, RelayMap::new(None, settings.derp_map.clone())));
    };
    let failed = |what: &dyn std::fmt::Display, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let certificate = relay.is_pinned.then(|| SelfSigned::open(&settings.state_dir.join(TLS_KEY_FILE))).transpose()?;
    let listener = relay.listen.map(|address| bind(address).map_err(|error| failed(&address, &error))).transpose()?;
    let opened = Opened {
        key: kept_node_key(&settings.state_dir.join(KEY_FILE))?,
        stun: open_stun(relay)?,
        listener,
        certificate: certificate.clone(),
    };
    let own = EmbeddedRelay {
        settings: relay.clone(),
        stun_port: opened.stun.as_ref().and_then(|socket| socket.local_addr().ok()).map(|address| address.port()),
        tls_port: opened.listener.as_ref().and_then(|socket| socket.local_addr().ok()).map(|address| address.port()),
        certificate,
    };
    Ok((Some(opened), RelayMap::new(Some(own), settings.derp_map.clone())))
}

fn open_stun(settings: &RelaySettings) -> Result<Option<UdpSocket>, String> {
    match settings.stun {
        StunListen::Off => Ok(None),
        StunListen::At(address) => bind_udp(address).map(Some).map_err(|error| format!("STUN on {address}: {error}")),
        StunListen::Usual => {
            let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, STUN_PORT));
            // Without it nodes measure over TLS and find no direct path through a NAT by us: worse, and not down.
            let bound = bind_udp(address).inspect_err(|error| {
                warn!(stun = %address, %error, "STUN is not answered; --stun-listen names another place, or none");
            });
            Ok(bound.ok())
        }
    }
}

impl Opened {
    /// Starts the relay's tasks. It ends some time after `ending` turns true.
    pub(crate) fn start(
        self,
        hub: &Hub,
        relays: &Arc<RelayMap>,
        tasks: &mut JoinSet<()>,
        ending: &Ending,
    ) -> Arc<Relay> {
        if let Some(certificate) = self.certificate {
            tasks.spawn(vital(
                "keeper of the certificate",
                renew(certificate, Arc::clone(relays), hub.clone(), ending.clone()),
            ));
        }
        let asked = hub.clone();
        let admits = move |applicant: Applicant| {
            let hub = asked.clone();
            // A registry that does not answer admits nobody.
            async move { hub.knows(applicant.node).await == Ok(true) }
        };
        // Which keys are withdrawn the registry says by itself; only one that was let in at that very moment is missed.
        let admission = Admission::ask(admits, ASK_AGAIN);
        let config = RelayConfig { key: self.key, mesh: None, limits: Limits::default(), admission };
        let relay = Arc::new(Relay::new(config));
        if let Some(socket) = self.stun {
            let mut ending = ending.clone();
            tasks.spawn(vital("STUN server", async move {
                tokio::select! {
                    () = serve_stun(socket) => {}
                    () = ending.wait() => {}
                }
            }));
        }
        tasks.spawn(vital("relay's clock", keep(Arc::clone(&relay), ending.clone())));
        relay
    }
}

/// Keeps clients alive, and says goodbye.
async fn keep(relay: Arc<Relay>, mut ending: Ending) {
    tokio::select! {
        () = relay.keep_alive() => {}
        () = ending.wait() => {}
    }
    relay.announce_restart(RECONNECT_IN, TRY_FOR);
    tokio::time::sleep(FAREWELL).await;
    relay.end();
}

/// Turns to the new certificate when the year has turned, and tells nodes its hash in the same moment.
async fn renew(certificate: Arc<SelfSigned>, relays: Arc<RelayMap>, hub: Hub, mut ending: Ending) {
    let mut is_told = true;
    loop {
        tokio::select! {
            () = tokio::time::sleep(YEAR_CHECK) => {}
            () = ending.wait() => return,
        }
        is_told &= !certificate.renew();
        if !is_told {
            is_told = hub.renew(relays.shared()).await.is_ok();
        }
    }
}
