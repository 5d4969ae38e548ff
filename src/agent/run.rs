//! The loop: one task that owns the engine, and the pipes around it.
//!
//! Each pipe is a task of its own on bounded channels and decides nothing: the kernel (so that a slow dump delays
//! nothing else), the coordinator, the disk, the local socket, the network. The loop takes one thing at a time, lets the engine settle,
//! and does what the engine says.

use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::clock::{self, Now};
use super::host;
use super::local_api::{self, Operators};
use super::network::{Network, Transports};
use super::outward::Outward;
use super::pipes::{self, FromKernel};
use super::readiness::Readiness;
use super::state::{StateDir, StateError};
use warren_core::node::{Datagram, Engine, Networks, Settings};
use warren_core::plan::Kernel;
use warren_linux::packet;
use warren_shell::{Dialler, lasting};

/// Questions of the local socket that wait for the loop.
const CALLS: usize = 64;
/// Things of one kind that are taken in before the engine settles.
const BATCH: usize = 64;

/// What the loop is given.
pub struct Parts<K> {
    pub engine: Engine,
    /// Where it is kept.
    pub dir: StateDir,
    pub kernel: K,
    /// The host's own addresses, whenever they change.
    pub networks: mpsc::Receiver<Networks>,
    /// The transports beside the connection to the coordinator.
    pub network: Network,
    /// The local socket, bound.
    pub socket: UnixListener,
    /// Who may change things.
    pub operators: Operators,
    /// The way to the coordinator.
    pub dialler: Dialler,
    pub stop: oneshot::Receiver<()>,
}

/// An engine that begins, on this host, with what a directory holds.
pub fn load(settings: Settings, dir: &StateDir) -> Result<Engine, StateError> {
    let stored = dir.load_all(&settings.machine)?;
    Ok(Engine::new(settings, stored, host::facts(), clock::key_bytes(), clock::now()))
}

/// Runs until `stop`. The kernel is left as it is: the data path outlives the agent.
pub async fn run<K: Kernel + Send + 'static>(parts: Parts<K>) {
    let Parts { mut engine, dir, kernel, mut networks, network, socket, operators, dialler, mut stop } = parts;
    let (calls_in, mut calls) = mpsc::channel(CALLS);
    let mut socket_task = JoinSet::new();
    socket_task.spawn(lasting("local socket", local_api::serve(socket, operators, calls_in)));
    let (to_kernel, mut from_kernel) = pipes::kernel(kernel);
    let mut host = pipes::host(host::facts, pipes::HOST_PACE);
    let (saves, mut saved) = pipes::disk(Arc::new(dir));
    let mut pipes = Outward::new(to_kernel, saves, dialler, Transports::new(network));
    let mut resolvers = super::resolvers::watch();
    let mut readiness = Readiness::new(clock::now().tick);
    loop {
        let now = clock::now();
        engine.proceed(now);
        pipes.carry_out(&mut engine);
        readiness.proceed(engine.stands(), now.tick);
        let timeout = engine.poll_timeout(now).into_iter().chain(readiness.poll_timeout()).min();
        tokio::select! {
            _ = &mut stop => break,
            Some(call) = calls.recv() => take(call, &mut calls, |call, now| pipes.calls.ask(&mut engine, call, now)),
            Some(news) = from_kernel.recv() => handle_kernel(&mut engine, news),
            Some(facts) = host.recv() => engine.handle_host(facts),
            Some(networks) = networks.recv() => engine.handle_networks(networks, clock::now()),
            Some(found) = resolvers.recv() => engine.handle_resolvers(found),
            Some((file, result)) = saved.recv() => {
                engine.handle_saved(file, result.map_err(|error| error.to_string()), clock::now());
            }
            Some(received) = pipes.received.recv() => {
                take(received, &mut pipes.received, |received, now| engine.handle_received(received, now));
            }
            Some(datagram) = pipes.transports.datagrams.recv() => {
                let datagrams = &mut pipes.transports.datagrams;
                take(datagram, datagrams, |datagram, now| handle_datagram(&mut engine, datagram, now));
            }
            Some(news) = pipes.transports.pump_news.recv() => {
                take(news, &mut pipes.transports.pump_news, |news, now| engine.handle_pump(news, now));
            }
            Some(news) = pipes.transports.netcheck_news.recv() => {
                take(news, &mut pipes.transports.netcheck_news, |news, now| engine.handle_netcheck(news, now));
            }
            Some((id, answer)) = pipes.transports.answers.recv() => pipes.calls.answer(id, answer),
            Some(heard) = pipes.transports.host_news.recv() => engine.handle_host_report(heard),
            Some(counters) = pipes.transports.counters.recv() => engine.handle_counters(&counters),
            Some((id, result)) = pipes.transports.echoes.recv() => engine.handle_echo(id, result),
            () = pipes.transports.commands.room(), if pipes.transports.commands.is_waiting() => {
                pipes.transports.commands.advance();
            }
            () = until(timeout) => {}
        }
        engine.handle_timeout(clock::now());
    }
    socket_task.shutdown().await;
    engine.handle_stop(clock::now());
    pipes.carry_out(&mut engine);
    drop(pipes);
    // The disk's pipe ends once everything is written.
    while saved.recv().await.is_some() {}
}

/// Takes one thing and those that wait behind it, up to a bound.
fn take<T>(first: T, queue: &mut mpsc::Receiver<T>, mut handle: impl FnMut(T, Now)) {
    let now = clock::now();
    handle(first, now);
    for _ in 1..BATCH {
        let Ok(thing) = queue.try_recv() else { return };
        handle(thing, now);
    }
}

fn handle_kernel(engine: &mut Engine, news: FromKernel) {
    let now = clock::now();
    match news {
        FromKernel::Observed(observed) => engine.handle_observed(observed.map(|observed| *observed), now),
        FromKernel::Applied(results) => engine.handle_steps(results, now),
        FromKernel::Lookup(to, lookup) => engine.handle_lookup(to, lookup.map(|lookup| *lookup), now),
        FromKernel::Figures(figures) => engine.handle_figures(&figures.map(|figures| *figures), now),
        FromKernel::Changed(change) => engine.handle_kernel_changed(change, now),
    }
}

fn handle_datagram(engine: &mut Engine, datagram: packet::Datagram, now: Now) {
    let packet::Datagram { from, local, payload } = datagram;
    engine.handle_datagram(Datagram { from, local, payload }, now);
}

async fn until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
