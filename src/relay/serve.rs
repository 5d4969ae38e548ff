//! From settings to a running relay, and down again.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info};

use super::acme::Acme;
use super::dial::Target;
use super::listen::{self, Port, Purpose};
use super::settings::{Clients, Settings, Tls};
use super::verify::Verifier;
use super::{Admission, Applicant, Relay, RelayConfig, clock, kept_node_key, mesh, metrics, serve_stun};
use warren_core::derp::{Limits, MeshKey};
use warren_shell::{
    CertificateFiles, DirectoryLock, Heartbeat, Places, Rates, bind, bind_udp, lasting, make_directory,
    possible_connections, tell_manager, vital,
};

const KEY_FILE: &str = "relay.key";
/// How long the word of the restart may take to reach the clients.
const FAREWELL: Duration = Duration::from_millis(500);
/// Clients are asked to come back after this: a restarted service is up again by then.
const RECONNECT_IN: Duration = Duration::from_secs(2);
/// And to keep trying for this long before they look for another relay.
const TRY_FOR: Duration = Duration::from_secs(30);

/// Connections at once on the port where captive portals are noticed; each asks once.
const PORTAL_CHECKS: usize = 256;

/// Serves until SIGTERM or SIGINT. The error is a sentence.
pub(super) async fn run(settings: Settings) -> Result<(), String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| format!("SIGTERM: {error}"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| format!("SIGINT: {error}"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(|error| format!("SIGHUP: {error}"))?;
    make_directory(&settings.state_dir).map_err(|error| format!("{}: {error}", settings.state_dir.display()))?;
    let _lock = DirectoryLock::take(&settings.state_dir).map_err(|error| error.to_string())?;
    let mut tasks = JoinSet::new();
    let Protection { tls, files, acme } = protection(&settings, &mut tasks)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let relay = Arc::new(Relay::new(RelayConfig {
        key: kept_node_key(&settings.state_dir.join(KEY_FILE))?,
        mesh: settings.mesh.as_ref().map(|mesh| mesh_key(&mesh.key_file)).transpose()?,
        limits: Limits { bytes_per_second: settings.client_rate, ..Limits::default() },
        admission: admission(&settings.clients)?,
    }));

    let places = Places::new(possible_connections(settings.max_connections));
    let port = Port {
        listener: open(settings.listen)?,
        tls,
        places: Arc::clone(&places),
        rates: Rates::new(settings.accept_rate),
        purpose: Purpose::Relay,
    };
    let address = port.listener.local_addr().map_err(|error| error.to_string())?;
    let stun = settings.stun.map(|address| answer_stun(address, &mut tasks)).transpose()?;
    let stun = stun.map_or("none".to_owned(), |address| address.to_string());
    let accepting = tasks.spawn(lasting("relay's port", listen::serve(port, Arc::clone(&relay))));
    start_siblings(&settings, &relay, acme, &mut tasks)?;
    let keeping = Arc::clone(&relay);
    tasks.spawn(lasting("relay's clock", async move { keeping.keep_alive().await }));
    info!(%address, scheme, %stun, key = %relay.public(), "serving");
    tell_manager(&[NotifyState::Ready]);

    let mut heartbeat = Heartbeat::expected();
    loop {
        // Whoever holds the relay for good holds this up too.
        relay.connected();
        heartbeat.beat(clock::now());
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => reload(files.as_deref()),
            () = until(heartbeat.poll_timeout()) => {}
        }
    }
    tell_manager(&[NotifyState::Stopping]);
    accepting.abort();
    relay.announce_restart(RECONNECT_IN, TRY_FOR);
    // Clients leave when we do: whoever still has to read the word has until then.
    let _ = timeout(FAREWELL, places.all_free()).await;
    let counters = relay.counters();
    info!(packets_in = counters.packets_in, packets_out = counters.packets_out, "ended");
    Ok(())
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// TLS, and what keeps its certificate.
#[derive(Default)]
struct Protection {
    tls: Option<TlsAcceptor>,
    files: Option<Arc<CertificateFiles>>,
    acme: Option<Arc<Acme>>,
}

fn protection(settings: &Settings, tasks: &mut JoinSet<()>) -> Result<Protection, String> {
    match &settings.tls {
        Tls::Off => Ok(Protection::default()),
        Tls::Files { cert, key } => {
            let files = CertificateFiles::open(cert, key)?;
            tasks.spawn(lasting("watch on the certificate", Arc::clone(&files).watch()));
            Ok(Protection { tls: Some(files.acceptor()), files: Some(files), acme: None })
        }
        Tls::Acme(acme) => {
            let acme = Acme::open(acme.clone(), &settings.state_dir);
            tasks.spawn(lasting("keeper of the certificate", Arc::clone(&acme).keep()));
            Ok(Protection { tls: Some(acme.acceptor()), files: None, acme: Some(acme) })
        }
    }
}

/// SIGHUP: the certificate's files are read again. Options come from the command line and the environment, which a
/// program has from its start.
fn reload(files: Option<&CertificateFiles>) {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell_manager(&[NotifyState::Reloading, now]);
    }
    match files.map(CertificateFiles::reload) {
        Some(Ok(true)) => info!(changed = "certificate", "reloaded; options need a restart"),
        Some(Err(error)) => error!("{error}"),
        Some(Ok(false)) | None => info!(changed = "nothing", "reloaded; options need a restart"),
    }
    tell_manager(&[NotifyState::Ready]);
}

/// Starts what stands beside the relay's port: the port of captive portals, metrics, links to other relays.
fn start_siblings(
    settings: &Settings,
    relay: &Arc<Relay>,
    acme: Option<Arc<Acme>>,
    tasks: &mut JoinSet<()>,
) -> Result<(), String> {
    if let Some(address) = settings.http_listen {
        let port = Port {
            listener: open(address)?,
            tls: None,
            places: Places::new(PORTAL_CHECKS),
            rates: Rates::new(settings.accept_rate),
            purpose: Purpose::SmallQuestions(acme),
        };
        info!(http = %address, "answering the small questions of plain HTTP");
        tasks.spawn(lasting("port of plain HTTP", listen::serve(port, Arc::clone(relay))));
    }
    if let Some(address) = settings.metrics {
        tasks.spawn(lasting("port of metrics", metrics::serve(open(address)?, Arc::clone(relay))));
    }
    for url in settings.mesh.iter().flat_map(|mesh| &mesh.peers) {
        // A link to this relay itself ends.
        tasks.spawn(vital("link of the region", mesh::keep(Arc::clone(relay), Target::new(url.clone())?)));
    }
    Ok(())
}

fn open(address: SocketAddr) -> Result<TcpListener, String> {
    bind(address).map_err(|error| format!("{address}: {error}"))
}

fn mesh_key(file: &Path) -> Result<MeshKey, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    MeshKey::new(text.trim().to_owned()).ok_or_else(|| format!("{}: not 64 hexadecimal digits", file.display()))
}

fn answer_stun(address: SocketAddr, tasks: &mut JoinSet<()>) -> Result<SocketAddr, String> {
    let failed = |error| format!("STUN on {address}: {error}");
    let socket = bind_udp(address).map_err(failed)?;
    let chosen = socket.local_addr().map_err(failed)?;
    tasks.spawn(lasting("STUN server", serve_stun(socket)));
    Ok(chosen)
}

fn admission(clients: &Clients) -> Result<Admission, String> {
    let Clients::Verified { url, fail_open, again_every } = clients else { return Ok(Admission::Everyone) };
    let verifier = Arc::new(Verifier::new(url.clone(), *fail_open)?);
    let admits = move |applicant: Applicant| {
        let verifier = Arc::clone(&verifier);
        async move { verifier.admits(applicant).await }
    };
    Ok(Admission::ask(admits, *again_every))
}
