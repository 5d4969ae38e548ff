//! The loop: one task that owns the core, and the pipes around it.
//!
//! Each pipe is a task of its own on bounded channels and decides nothing: the kernel (so that a slow dump delays
//! nothing else), the coordinator, the disk, the local socket, the network. The loop takes one thing at a time, lets the core settle,
//! and does what the core says.

use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::clock::{self, Now};
use super::control_io::{self, IoConfig};
use super::core::{Core, Effect, Networks};
use super::host;
use super::local_api::{self, Operators};
use super::network::{Network, Ways};
use super::pipes::{self, FromKernel, ToKernel};
use super::readiness::Readiness;
use super::state::{StateDir, StateError, StateFile};
use warren_core::control::{Pin, Received, ServerUrl, Transmit};
use warren_core::plan::Kernel;
use warren_core::types::MachinePrivate;
use warren_shell::lasting;

/// Questions of the local socket that wait for the loop.
const CALLS: usize = 64;
/// Things of one kind that are taken in before the core settles.
const BATCH: usize = 64;

/// What the loop is given.
pub struct Parts<K> {
    /// The state, loaded.
    pub core: Core,
    /// Where it is kept.
    pub dir: StateDir,
    /// The kernel.
    pub kernel: K,
    /// The host's own addresses, whenever they change.
    pub networks: mpsc::Receiver<Networks>,
    /// The ways to the network beside the coordinator.
    pub network: Network,
    /// The local socket, bound.
    pub socket: UnixListener,
    /// Who may change things.
    pub operators: Operators,
    /// The mark on packets to the coordinator.
    pub mark: Option<u32>,
    /// Ends the loop.
    pub stop: oneshot::Receiver<()>,
}

/// Runs until `stop`. The kernel is left as it is: the data path outlives the agent.
pub async fn run<K: Kernel + Send + 'static>(parts: Parts<K>) {
    let Parts { mut core, dir, kernel, mut networks, network, socket, operators, mark, mut stop } = parts;
    let (calls_in, mut calls) = mpsc::channel(CALLS);
    let mut socket_task = JoinSet::new();
    socket_task.spawn(lasting("local socket", local_api::serve(socket, operators, calls_in)));
    let (to_kernel, mut from_kernel) = pipes::kernel(kernel);
    let mut host = pipes::host(host::facts, pipes::HOST_PACE);
    let (saves, mut saved) = pipes::disk(Arc::new(dir));
    let mut pipes = Outward::new(to_kernel, saves, mark, Ways::new(network));
    let mut resolvers = super::resolvers::watch();
    let mut readiness = Readiness::new(clock::now().tick);
    loop {
        let now = clock::now();
        core.proceed(now);
        pipes.carry_out(&mut core);
        readiness.proceed(core.stands(), now.tick);
        let timeout = core.poll_timeout(now).into_iter().chain(readiness.poll_timeout()).min();
        tokio::select! {
            _ = &mut stop => break,
            Some(call) = calls.recv() => take(&mut core, call, &mut calls, Core::handle_call),
            Some(news) = from_kernel.recv() => handle_kernel(&mut core, news),
            Some(facts) = host.recv() => core.handle_host(facts),
            Some(networks) = networks.recv() => core.handle_networks(networks, clock::now()),
            Some(found) = resolvers.recv() => core.handle_resolvers(found),
            Some((file, result)) = saved.recv() => core.handle_saved(file, result, clock::now()),
            Some(received) = pipes.received.recv() => take(&mut core, received, &mut pipes.received, Core::handle_received),
            Some(datagram) = pipes.ways.datagrams.recv() => {
                take(&mut core, datagram, &mut pipes.ways.datagrams, Core::handle_datagram);
            }
            Some(news) = pipes.ways.pump_news.recv() => {
                take(&mut core, news, &mut pipes.ways.pump_news, Core::handle_pump);
            }
            Some(news) = pipes.ways.netcheck_news.recv() => {
                take(&mut core, news, &mut pipes.ways.netcheck_news, Core::handle_netcheck);
            }
            Some((id, result)) = pipes.ways.echoes.recv() => core.handle_echo(id, result),
            () = pipes.ways.commands.room(), if pipes.ways.commands.is_waiting() => pipes.ways.commands.advance(),
            () = until(timeout) => {}
        }
        core.handle_timeout(clock::now());
    }
    socket_task.shutdown().await;
    core.handle_stop(clock::now());
    pipes.carry_out(&mut core);
    drop(pipes);
    // The disk's pipe ends once everything is written.
    while saved.recv().await.is_some() {}
}

/// Ways out of the loop.
struct Outward {
    kernel: ToKernel,
    saves: mpsc::Sender<pipes::Save>,
    mark: Option<u32>,
    ways: Ways,
    transmits: Option<mpsc::Sender<Transmit>>,
    /// The one way in whose other end changes.
    received: mpsc::Receiver<Received>,
    /// Keeps `received` open while there is no coordinator.
    _open: mpsc::Sender<Received>,
}

impl Outward {
    fn new(kernel: ToKernel, saves: mpsc::Sender<pipes::Save>, mark: Option<u32>, ways: Ways) -> Self {
        let (_open, received) = mpsc::channel(1);
        Self { kernel, saves, mark, ways, transmits: None, received, _open }
    }

    fn carry_out(&mut self, core: &mut Core) {
        while let Some(effect) = core.poll_effect() {
            match effect {
                Effect::Connect(server, machine_key, pin) => self.connect(*server, machine_key, pin),
                Effect::Transmit(transmit) => self.transmit(transmit),
                // One action at a time is under way, so there is room.
                Effect::Kernel(action) => report(self.kernel.actions.try_send(action), "kernel"),
                // One that waits already is for all who ask.
                Effect::Figures => drop(self.kernel.figures.try_send(())),
                Effect::Way(to) => report(self.kernel.ways.try_send(to), "kernel"),
                Effect::Save(file, content) => self.save(core, file, content),
                Effect::Datagram { to, from, payload } => self.ways.datagram(to, from, &payload),
                Effect::Pump(command) => self.ways.commands.push(command),
                Effect::Counters(answer, reply) => self.ways.counters(answer, reply),
                Effect::Metrics(metrics, reply) => self.ways.metrics(metrics, reply),
                Effect::Rebind => self.ways.rebind(),
                Effect::GiveBackMemory => warren_linux::give_back_memory(),
                Effect::Netcheck(action) => self.ways.netcheck(action),
                Effect::Echo(id, address) => self.ways.echo(id, address),
            }
        }
    }

    fn connect(&mut self, server: ServerUrl, machine_key: MachinePrivate, pin: Pin) {
        let (transmits, received) = control_io::spawn(IoConfig { server, machine_key, mark: self.mark, pin });
        self.transmits = Some(transmits);
        self.received = received;
    }

    /// A pipe that is full of requests nobody carries out loses the newest; the session's deadlines notice.
    fn transmit(&self, transmit: Transmit) {
        if let Some(transmits) = &self.transmits {
            report(transmits.try_send(transmit), "coordinator");
        }
    }

    fn save(&self, core: &mut Core, file: StateFile, content: Option<Vec<u8>>) {
        if self.saves.try_send((file, content)).is_err() {
            core.handle_saved(file, Err(StateError::busy(file)), clock::now());
        }
    }
}

fn report<T>(sent: Result<(), mpsc::error::TrySendError<T>>, pipe: &str) {
    if sent.is_err() {
        tracing::error!("the pipe to the {pipe} is full or closed");
    }
}

/// Takes one thing and those that wait behind it, up to a bound.
fn take<T>(core: &mut Core, first: T, queue: &mut mpsc::Receiver<T>, handle: fn(&mut Core, T, Now)) {
    let now = clock::now();
    handle(core, first, now);
    for _ in 1..BATCH {
        let Ok(thing) = queue.try_recv() else { return };
        handle(core, thing, now);
    }
}

fn handle_kernel(core: &mut Core, news: FromKernel) {
    let now = clock::now();
    match news {
        FromKernel::Observed(observed) => core.handle_observed(observed.map(|observed| *observed), now),
        FromKernel::Applied(results) => core.handle_steps(results, now),
        FromKernel::Way(to, way) => core.handle_way(to, way.map(|way| *way), now),
        FromKernel::Figures(figures) => core.handle_figures(&figures, now),
        FromKernel::Changed(change) => core.handle_kernel_changed(change, now),
    }
}

async fn until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
