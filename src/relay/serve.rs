//! From settings to a running relay, and down again.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use super::cli::{Clients, Settings};
use super::verify::Verifier;
use super::{Admission, Relay, RelayConfig, listen, serve_stun};
use crate::derp::Limits;
use crate::io::{bind, bind_udp, make_directory, tls, write_secret};
use crate::types::NodePrivate;

const KEY_FILE: &str = "relay.key";
/// How long the word of the restart may take to reach the clients.
const FAREWELL: Duration = Duration::from_millis(500);
/// Clients are asked to come back after this: a restarted service is up again by then.
const RECONNECT_IN: Duration = Duration::from_secs(2);
/// And to keep trying for this long before they look for another relay.
const TRY_FOR: Duration = Duration::from_secs(30);

/// Serves until SIGTERM or SIGINT. The error is a sentence.
pub(super) async fn run(settings: Settings) -> Result<(), String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| format!("SIGTERM: {error}"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| format!("SIGINT: {error}"))?;
    make_directory(&settings.state_dir).map_err(|error| format!("{}: {error}", settings.state_dir.display()))?;
    let key = key(&settings.state_dir.join(KEY_FILE))?;
    let public = key.public();
    let tls = settings.tls.as_ref().map(|files| tls(&files.cert, &files.key)).transpose()?;
    let relay = Arc::new(Relay::new(RelayConfig {
        key,
        mesh: None,
        limits: Limits { bytes_per_second: settings.client_rate, ..Limits::default() },
        admission: admission(settings.clients)?,
    }));

    let listener = bind(settings.listen).map_err(|error| format!("{}: {error}", settings.listen))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let mut tasks = JoinSet::new();
    let stun = settings.stun.map(|address| answer_stun(address, &mut tasks)).transpose()?;
    let stun = stun.map_or("none".to_owned(), |address| address.to_string());
    let scheme = if tls.is_some() { "https" } else { "http" };
    let keeping = Arc::clone(&relay);
    tasks.spawn(async move { keeping.keep_alive().await });
    let connections = Arc::new(Semaphore::new(settings.max_connections));
    let accepting = tasks.spawn(listen::serve(listener, tls, Arc::clone(&relay), Arc::clone(&connections)));
    info!(%address, scheme, %stun, key = %public, "serving");
    notify(NotifyState::Ready);

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    notify(NotifyState::Stopping);
    accepting.abort();
    relay.announce_restart(RECONNECT_IN, TRY_FOR);
    // Clients leave when we do: whoever still has to read the word has until then.
    let all = u32::try_from(settings.max_connections).unwrap_or(u32::MAX);
    let _ = timeout(FAREWELL, connections.acquire_many(all)).await;
    let counters = relay.counters();
    info!(packets_in = counters.packets_in, packets_out = counters.packets_out, "ended");
    Ok(())
}

fn answer_stun(address: SocketAddr, tasks: &mut JoinSet<()>) -> Result<SocketAddr, String> {
    let failed = |error| format!("STUN on {address}: {error}");
    let socket = bind_udp(address).map_err(failed)?;
    let chosen = socket.local_addr().map_err(failed)?;
    // It logs why it ends; the relay is of use without it.
    tasks.spawn(async move { drop(serve_stun(socket).await) });
    Ok(chosen)
}

fn admission(clients: Clients) -> Result<Admission, String> {
    let Clients::Verified(url) = clients else { return Ok(Admission::Everyone) };
    let verifier = Arc::new(Verifier::new(url)?);
    Ok(Admission::ask(move |applicant| {
        let verifier = Arc::clone(&verifier);
        async move { verifier.admits(applicant).await }
    }))
}

/// Reads the key; the first start makes it.
fn key(file: &Path) -> Result<NodePrivate, String> {
    let failed = |error: io::Error| format!("{}: {error}", file.display());
    match fs::read_to_string(file) {
        Ok(text) => text.trim().parse().map_err(|error| format!("{}: {error}", file.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = NodePrivate::from_random(rand::random());
            write_secret(file, key.expose_text().as_bytes()).map_err(failed)?;
            Ok(key)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Where there is no service manager there is nobody to tell.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "telling the service manager");
    }
}
