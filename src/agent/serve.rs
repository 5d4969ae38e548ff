//! The program: from its arguments to its end.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::host_pipe::HostPipe;
use super::local_api::{self, Operators};
use super::network::{self, Network};
use super::{Config, Parts, StartError, StateDir, cleanup, clock, host, own_names, pipes, privilege, run};
use warren_core::node::Settings;
use warren_core::plan::own;
use warren_core::types::IpNet;
use warren_linux::{LinuxKernel, LocalNetwork, OnlyOne};
use warren_shell::{DirectoryLock, tell_manager, vital};

/// What the kernel's switches were that were changed. It is the kernel's own business: no version reads what it means.
const FORWARDING: &str = "forwarding";

/// Runs the agent until it is told to end, or cleans up after one.
pub fn serve(config: &Config) -> Result<(), StartError> {
    if config.cleanup {
        // Whose files these are, root without capabilities may not read them.
        privilege::use_files_of_owner(&config.state_dir);
    }
    privilege::keep_only_ours()?;
    // One thread: the loop is one task, and its pipes mostly wait. A few more for the disk and the user database, and for
    // names, of which each dialler looks up four at a time and which may take long.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(16).build()?;
    runtime.block_on(async {
        // Held until the end, as is the directory.
        let _only_one = OnlyOne::take()?;
        if config.cleanup {
            let steps = cleanup(&mut LinuxKernel::new()?.keep_record(config.state_dir.join(FORWARDING))).await?;
            tracing::info!("cleaned up in {steps} steps");
            return Ok(());
        }
        agent(config).await
    })
}

async fn agent(config: &Config) -> Result<(), StartError> {
    let dir = StateDir::open(&config.state_dir)?;
    let _lock = DirectoryLock::take(&config.state_dir)?;
    let dialler = own_names::dialler(own::MARK_BYPASS, &dir);
    let mut settings = Settings {
        port: config.port,
        max_map_age: config.max_map_age,
        firewall: config.firewall.options(),
        route_resolvers: config.route_resolvers,
        keep_local: config.keep_local.iter().map(IpNet::trunc).collect(),
        explicit_endpoints: config.endpoints.clone(),
        machine: host::machine(),
        ..Settings::default()
    };
    let kernel = LinuxKernel::new()?.keep_record(config.state_dir.join(FORWARDING));
    let mut kernel = if config.firewall.share_table { kernel.share_table() } else { kernel };
    let (port, taken) = kernel.keep_port(config.port).await;
    settings.port = port;
    let (mut network, mut missing) = Network::open(&mut settings, &dialler);
    network.host = config.dns_helper_socket().map(HostPipe::spawn);
    missing.extend(taken.map(|taken| ("port", port_text(config.port, port, &taken))));
    let mut engine = run::load(settings, &dir)?;
    network::report(&mut engine, missing, clock::wall());
    let socket = local_api::bind(&config.socket)
        .map_err(|reason| StartError::Socket { path: config.socket.display().to_string(), reason })?;
    let (stopper, stop) = oneshot::channel();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(vital("watch on signals", async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                // What people change is changed through the local socket; the rest a program has from its start.
                _ = hangup.recv() => tracing::info!("SIGHUP: nothing to reload; options and environment need a restart"),
            }
        }
        tell_manager(&[sd_notify::NotifyState::Stopping]);
        // The loop may have ended already.
        let _ = stopper.send(());
    }));
    let parts = Parts {
        engine,
        dir,
        kernel,
        networks: pipes::networks(LocalNetwork::new()?),
        network,
        socket,
        operators: Operators::new(&config.operator_group),
        dialler,
        stop,
    };
    tracing::info!("listening on {}", config.socket.display());
    run::run(parts).await;
    // The next one makes it anew; until then, asking there fails at once.
    let _ = std::fs::remove_file(&config.socket);
    Ok(())
}

/// What a port that is taken means.
fn port_text(wanted: u16, port: u16, taken: &str) -> String {
    let instead = match port == wanted {
        true => "no tunnel comes up before it is free".to_owned(),
        false => format!("the tunnel has port {port} instead, of which peers are told"),
    };
    format!(
        "{taken}, so {instead}. Where a firewall or a router was opened for port {wanted}, end that program and restart \
         warrend, or start warrend with another --port"
    )
}
