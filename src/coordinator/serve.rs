//! `warren-coordinator serve`: from settings to a running server, and down again.

use std::fs;
use std::future::Future;
use std::sync::Arc;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info};

use super::config::{Certificate, Settings};
use super::ending::Ending;
use super::face::health::HealthFace;
use super::face::node::NodeFace;
use super::face::relay::RelayFace;
use super::face::sign_in::SignInFace;
use super::face::{self, PublicUrl, SiteRate};
use super::hub::Task;
use super::listen::{self, Cover};
use super::metrics::Metrics;
use super::reload::{InForce, Reload, Watched, notify};
use super::service::{ServerKeys, Service, SignIn};
use super::site::Site;
use super::state_dir::StateDir;
use super::store::{Ledger, SqliteStore};
use super::{clock, ending, limits, relay};
use warren_core::registry;
use warren_core::wire::control::DerpMap;
use warren_relay::{Acme, Relay, SelfSigned};
use warren_shell::{CertificateFiles, DirectoryLock, Places, bind, make_directory, possible_connections, vital};

/// Serves until SIGTERM or SIGINT. The error is a sentence.
pub(crate) async fn run(mut settings: Settings, reload: Reload) -> Result<(), String> {
    let (end, ending) = ending::channel();
    let mut signals = Signals::listen()?;

    let (dir, _lock) = own_directory(&settings)?;
    dir.backup_draft().map_err(|error| format!("{}: {error}", dir.path().display()))?;
    let sign_in = Arc::new(sign_in(&settings)?);
    let listener = bind(settings.listen).map_err(|error| format!("{}: {error}", settings.listen))?;
    let socket = face::admin_socket::bind(&settings.socket)
        .map_err(|error| format!("{}: {error}", settings.socket.display()))?;
    let (mut relay, relays) = relay::open(&settings)?;
    let (files, acme) = keepers(&settings, &dir)?;
    let ports = ports(listener, &dir, files.as_ref().map(|files| files.acceptor()), relay.as_mut(), acme.as_ref())?;
    let places = Places::new(possible_connections(settings.limits.connections.0));
    let (metrics, relays) = (Arc::new(Metrics::default()), Arc::new(relays));
    let ledger = ledger(&settings, &dir, relays.shared()).await?;
    dir.check_key(!ledger.state().is_empty())?;
    let keys = Arc::new(ServerKeys::open(dir.path())?);
    let (hub, mut registry) = Task::new(ledger, Arc::clone(&metrics));
    let service = Service::new(hub.clone(), Arc::clone(&keys), Arc::clone(&relays), sign_in);

    let mut tasks = JoinSet::new();
    if let Some(files) = files.clone() {
        tasks.spawn(vital("watch on the certificate", until(files.watch(), ending.clone())));
    }
    let relay = relay.map(|relay| relay.start(&hub, &relays, &mut tasks, &ending));
    relay.iter().for_each(|relay| registry.set_relay(Arc::clone(relay)));
    let mut registry = tokio::spawn(vital("registry", registry.run(ending.clone())));
    tasks.spawn(vital("administration", face::admin_socket::serve(socket, service.clone(), dir, ending.clone())));
    if let Some(address) = settings.metrics.map(|metrics| metrics.0) {
        let listener = TcpListener::bind(address).await.map_err(|error| format!("{address}: {error}"))?;
        let figures = (relay.clone(), Arc::clone(&places));
        let serving = face::metrics::serve(listener, service.clone(), Arc::clone(&metrics), figures, ending.clone());
        tasks.spawn(vital("port of metrics", serving));
    }
    report(&settings, &ports, &keys)?;
    let handshakes = SiteRate::new(settings.limits.handshake_rate);
    let site = Arc::new(site(&settings, &service, relay, metrics, &handshakes));
    let in_force = InForce { files: files.clone(), hub, relays, handshakes };
    for (listener, cover) in ports {
        let serving = listen::serve(listener, cover, Arc::clone(&site), Arc::clone(&places), ending.clone());
        tasks.spawn(vital("port", serving));
    }
    acme.into_iter().for_each(|acme| drop(tasks.spawn(vital("certificate", until(acme.keep(), ending.clone())))));
    notify(&[Some(NotifyState::Ready)]);

    let mut records = Watched::new(settings.dns.extra_records_path.as_deref());
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            _ = signals.hangup.recv() => reload.run(&mut settings, &in_force).await,
            () = records.written(settings.dns.extra_records_path.as_deref()) => {
                reload.read_records(&mut settings, &in_force).await;
            }
            // Neither ends before it is told to.
            _ = &mut registry => return Err("the registry ended by itself".to_owned()),
            Some(_) = tasks.join_next() => return Err("a part of the server ended by itself".to_owned()),
        }
    }
    info!("ending");
    notify(&[Some(NotifyState::Stopping)]);
    end.say();
    tasks.join_all().await;
    let (store, saved) = registry.await.map_err(|error| format!("the registry's task: {error}"))?;
    if let Some(store) = store {
        store.close().await;
    }
    let _ = tokio::time::timeout(limits::FAREWELL_TIME, places.all_free()).await;
    let _ = fs::remove_file(&settings.socket);
    saved.map_err(|error| format!("when nodes were last seen is not saved: {error}"))
}

/// The providers by which people sign in.
fn sign_in(settings: &Settings) -> Result<SignIn, String> {
    let url = settings.server_url.as_ref().map(ToString::to_string);
    SignIn::new(url, settings.oidc.clone())
}

/// The faces that share the port.
fn site(
    settings: &Settings,
    service: &Service,
    relay: Option<Arc<Relay>>,
    metrics: Arc<Metrics>,
    handshakes: &Arc<SiteRate>,
) -> Site {
    let url = PublicUrl::new(settings.server_url.as_ref().map(ToString::to_string));
    let questions = SiteRate::new(limits::QUESTION_RATE);
    let of_nodes = NodeFace::new(service.clone(), Arc::clone(&url), metrics, Arc::clone(handshakes));
    Site::new([
        face::node::routes(of_nodes),
        face::relay::routes(RelayFace { service: service.clone(), relay, questions: Arc::clone(&questions) }),
        face::sign_in::routes(SignInFace { service: service.clone(), questions: Arc::clone(&questions) }),
        face::health::routes(HealthFace { service: service.clone(), url, questions }),
    ])
}

/// The state directory, which nobody else works on while the lock is held.
fn own_directory(settings: &Settings) -> Result<(StateDir, DirectoryLock), String> {
    make_directory(&settings.state_dir).map_err(|error| format!("{}: {error}", settings.state_dir.display()))?;
    let lock = DirectoryLock::take(&settings.state_dir).map_err(|error| error.to_string())?;
    let dir = StateDir::new(&settings.state_dir);
    dir.check_before_start()?;
    Ok((dir, lock))
}

/// What people and the service manager say.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Result<Self, String> {
        let open = |kind, name| signal(kind).map_err(|error| format!("{name}: {error}"));
        Ok(Self {
            terminate: open(SignalKind::terminate(), "SIGTERM")?,
            interrupt: open(SignalKind::interrupt(), "SIGINT")?,
            hangup: open(SignalKind::hangup(), "SIGHUP")?,
        })
    }
}

/// What keeps the certificate: one of the two at most.
type Keepers = (Option<Arc<CertificateFiles>>, Option<Arc<Acme>>);

fn keepers(settings: &Settings, dir: &StateDir) -> Result<Keepers, String> {
    Ok(match &settings.certificate {
        Certificate::None => (None, None),
        Certificate::Files { cert, key } => (Some(CertificateFiles::open(cert, key)?), None),
        Certificate::Acme(acme) => (None, Some(Acme::open(acme.clone(), dir.path()))),
    })
}

/// The ports to serve on, and what protects each.
fn ports(
    listener: TcpListener,
    dir: &StateDir,
    files: Option<TlsAcceptor>,
    relay: Option<&mut relay::Opened>,
    acme: Option<&Arc<Acme>>,
) -> Result<Vec<(TcpListener, Cover)>, String> {
    let vouched = files.or_else(|| acme.map(Acme::acceptor));
    let (own_port, certificate) = match relay {
        Some(relay) => (relay.listener.take(), relay.certificate.clone()),
        // Nodes that know our key take it for what it is.
        None => (None, Some(SelfSigned::open(&dir.path().join(relay::TLS_KEY_FILE))?)),
    };
    let self_signed = certificate.map(|certificate| certificate.acceptor()).transpose();
    let self_signed = self_signed.map_err(|error| format!("our own certificate: {error}"))?;
    Ok(match (own_port, vouched, self_signed) {
        (None, Some(vouched), _) => vec![(listener, Cover::Tls(vouched))],
        (None, None, Some(ours)) => vec![(listener, Cover::Either(ours))],
        (Some(port), Some(vouched), _) => vec![(listener, Cover::Tls(vouched.clone())), (port, Cover::Tls(vouched))],
        (Some(port), None, Some(ours)) => vec![(listener, Cover::Either(ours.clone())), (port, Cover::Tls(ours))],
        (_, None, None) => vec![(listener, Cover::Plain)],
    })
}

/// Says where the server is.
fn report(settings: &Settings, ports: &[(TcpListener, Cover)], keys: &ServerKeys) -> Result<(), String> {
    let Some((listener, _)) = ports.first() else { return Ok(()) };
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let scheme = if settings.certificate.is_some() { "https" } else { "http" };
    let relay = settings.relay.as_ref().map_or("none".to_owned(), |relay| format!("region {}", relay.region));
    info!(%address, scheme, socket = %settings.socket.display(), key = %keys.fingerprint(), relay, "serving");
    Ok(())
}

async fn ledger(settings: &Settings, dir: &StateDir, derp_map: Option<DerpMap>) -> Result<Ledger<SqliteStore>, String> {
    let file = dir.database();
    let store = SqliteStore::open(&file).await.map_err(|error| format!("{}: {error}", file.display()))?;
    let config = registry::Config {
        // Without an address of our own, pages are addressed as each node addresses us.
        server_url: settings.server_url.as_ref().map(ToString::to_string).unwrap_or_default(),
        base_domain: settings.dns.domain.to_string(),
        names: settings.names.clone(),
        derp_map,
        key_lifetime: settings.nodes.key_lifetime.0,
        ephemeral_timeout: settings.nodes.ephemeral_grace.0,
        offline_grace: settings.nodes.offline_grace.0,
    };
    let ledger = Ledger::open(store, config, clock::now()).await;
    let ledger = ledger.map_err(|error| format!("{}: {error}", file.display()))?;
    if let Some(fault) = ledger.state().policy_fault() {
        error!("{fault}");
    }
    Ok(ledger)
}

/// What goes on until the program ends.
async fn until(work: impl Future<Output = ()>, mut ending: Ending) {
    tokio::select! {
        () = work => {}
        () = ending.wait() => {}
    }
}
