//! `warren-coordinator serve`: from settings to a running server, and down again.

use std::fs;
use std::future::Future;
use std::sync::Arc;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{error, info};

use super::config::Settings;
use super::ending::Ending;
use super::http::{Doors, Shared, Site};
use super::hub::Task;
use super::listen::{self, Cover};
use super::machines::Machines;
use super::metrics::{self, Metrics};
use super::reload::{Reload, notify};
use super::state_dir::StateDir;
use super::store::{Ledger, SqliteStore};
use super::{admin, clock, ending, limits, relay};
use crate::io::{CertificateFiles, Places, bind, kept_key, make_directory, possible_connections, vital};
use crate::registry;
use crate::types::MachinePrivate;
use crate::wire::control::DerpMap;

/// Serves until SIGTERM or SIGINT. The error is a sentence.
pub(crate) async fn run(mut settings: Settings, reload: Reload) -> Result<(), String> {
    let (end, ending) = ending::channel();
    let mut signals = Signals::listen()?;

    make_directory(&settings.state_dir).map_err(|error| format!("{}: {error}", settings.state_dir.display()))?;
    let dir = StateDir::new(&settings.state_dir);
    dir.check_before_start()?;
    dir.backup_draft().map_err(|error| format!("{}: {error}", dir.path().display()))?;
    let listener = bind(settings.listen).map_err(|error| format!("{}: {error}", settings.listen))?;
    let socket = admin::bind(&settings.socket).map_err(|error| format!("{}: {error}", settings.socket.display()))?;
    let (mut relay, relays) = relay::open(&settings)?;
    let files = settings.tls.as_ref().map(|files| CertificateFiles::open(&files.cert, &files.key)).transpose()?;
    let ports = ports(listener, files.as_ref(), relay.as_mut())?;
    let metrics = Arc::new(Metrics::default());
    let places = Places::new(possible_connections(settings.max_connections));
    let relays = Arc::new(relays);
    let ledger = ledger(&settings, &dir, relays.shared()).await?;
    dir.check_key(!ledger.state().is_empty())?;
    let key = noise_key(&dir)?;
    let (hub, mut registry) = Task::new(ledger, Arc::clone(&metrics));

    let mut tasks = JoinSet::new();
    if let Some(files) = files.clone() {
        tasks.spawn(vital("watch on the certificate", until(files.watch(), ending.clone())));
    }
    let relay = relay.map(|relay| relay.start(&hub, &relays, &mut tasks, &ending));
    relay.iter().for_each(|relay| registry.set_relay(Arc::clone(relay)));
    let mut registry = tokio::spawn(vital("registry", registry.run(ending.clone())));
    tasks.spawn(vital("administration", admin::serve(socket, hub.clone(), dir, ending.clone())));
    if let Some(address) = settings.metrics {
        let listener = TcpListener::bind(address).await.map_err(|error| format!("{address}: {error}"))?;
        let figures = (relay.clone(), Arc::clone(&places));
        let serving = metrics::serve(listener, hub.clone(), Arc::clone(&metrics), figures, ending.clone());
        tasks.spawn(vital("port of metrics", serving));
    }
    report(&settings, &ports, &key)?;
    let shared = Arc::new(Shared {
        hub,
        key,
        server_url: settings.server_url.clone(),
        relays,
        relay,
        metrics,
        large_bodies: Semaphore::new(limits::LARGE_BODIES),
        doors: Doors::new(settings.handshake_rate),
        machines: Machines::new(),
    });
    let site = Arc::new(Site::new(Arc::clone(&shared)));
    for (listener, cover) in ports {
        let serving = listen::serve(listener, cover, Arc::clone(&site), Arc::clone(&places), ending.clone());
        tasks.spawn(vital("port", serving));
    }
    notify(&[Some(NotifyState::Ready)]);

    loop {
        tokio::select! {
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            _ = signals.hangup.recv() => reload.run(&mut settings, files.as_ref(), &shared).await,
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
    store.close().await;
    let _ = tokio::time::timeout(limits::FAREWELL_TIME, places.all_free()).await;
    let _ = fs::remove_file(&settings.socket);
    saved.map_err(|error| format!("when nodes were last seen is not saved: {error}"))
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

/// Who we are to the nodes; the first start makes it.
fn noise_key(dir: &StateDir) -> Result<MachinePrivate, String> {
    kept_key(&dir.key(), str::parse, || Ok(MachinePrivate::from_random(rand::random()).expose_text()))
}

/// The ports to serve on, and what protects each.
fn ports(
    listener: TcpListener,
    files: Option<&Arc<CertificateFiles>>,
    relay: Option<&mut relay::Opened>,
) -> Result<Vec<(TcpListener, Cover)>, String> {
    let files = files.map(|files| files.acceptor());
    let (own_port, certificate) =
        relay.map_or((None, None), |relay| (relay.listener.take(), relay.certificate.as_ref()));
    let self_signed = certificate.map(|certificate| certificate.acceptor()).transpose();
    let self_signed = self_signed.map_err(|error| format!("the relay's certificate: {error}"))?;
    Ok(match (own_port, files, self_signed) {
        (None, Some(files), _) => vec![(listener, Cover::Tls(files))],
        (None, None, Some(ours)) => vec![(listener, Cover::Either(ours))],
        (Some(port), Some(files), _) => vec![(listener, Cover::Tls(files.clone())), (port, Cover::Tls(files))],
        (Some(port), None, Some(ours)) => vec![(listener, Cover::Plain), (port, Cover::Tls(ours))],
        (_, None, None) => vec![(listener, Cover::Plain)],
    })
}

/// Says where the server is.
fn report(settings: &Settings, ports: &[(TcpListener, Cover)], key: &MachinePrivate) -> Result<(), String> {
    let Some((listener, _)) = ports.first() else { return Ok(()) };
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let relay = settings.relay.as_ref().map_or("none".to_owned(), |relay| format!("region {}", relay.region));
    info!(%address, scheme, socket = %settings.socket.display(), key = %key.public(), relay, "serving");
    Ok(())
}

async fn ledger(settings: &Settings, dir: &StateDir, derp_map: Option<DerpMap>) -> Result<Ledger<SqliteStore>, String> {
    let file = dir.database();
    let store = SqliteStore::open(&file).await.map_err(|error| format!("{}: {error}", file.display()))?;
    let config = registry::Config {
        // Without an address of our own, pages are addressed as each node addresses us.
        server_url: settings.server_url.clone().unwrap_or_default(),
        base_domain: settings.domain.clone(),
        derp_map,
        key_lifetime: settings.node_key_lifetime,
        ephemeral_timeout: settings.ephemeral_grace,
        offline_grace: settings.offline_grace,
        ..registry::Config::default()
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
