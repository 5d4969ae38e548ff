//! The pump: packets between WireGuard and the relays. They never pass through the loop.
//!
//! ```text
//! WireGuard <──127.128.0.0/9──> Loopback ──> Hub ──> Link ──> region 1
//! WireGuard <──forged source─── Injector <──  │  <── Link <── region 2
//!                                             v
//!                                     probes, initiations ──> the loop
//! ```
//!
//! A thread of its own, so that a tunnel at full speed delays no decision and a slow decision no packet; its tasks
//! share their state without locks. The home region's relay is kept connected, others while packets pass. Which way
//! a peer's packets go is the loop's to decide; the pump is told before the kernel is, because packets that are handed
//! in pull the kernel's endpoint along: to the loopback while a peer is relayed, and nowhere new while it is direct.
//!
//! Invariants: no allocation for a packet of the tunnel; every queue is bounded, and every packet that is lost is
//! counted; only packets of known peers are handed in, and only if they can be WireGuard's.

mod hub;
mod link;
mod outbox;
mod packet;
mod peers;

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use self::hub::Hub;
use super::clock;
use super::derp_io::Dialler;
use warren_core::node::{PumpCommand, PumpCounters, PumpNews};
use warren_linux::packet::{Batch, Injector, LoopbackSocket};
use warren_shell::Watch;

/// Commands that wait for the pump: a map's worth of peers comes in a few breaths.
const COMMANDS: usize = 1024;
/// News that wait for the loop.
const NEWS: usize = 256;
/// How long to wait after the kernel failed to give packets.
const PAUSE: Duration = Duration::from_millis(100);

/// What the pump is told once.
#[derive(Clone)]
pub struct PumpConfig {
    /// Connects to relays; its mark is on all that is sent, so that nothing enters the overlay.
    pub dialler: warren_shell::Dialler,
    /// Where WireGuard listens.
    pub wireguard_port: u16,
    /// Where to listen for WireGuard; another port is taken where somebody has this one.
    pub relay_port: u16,
}

/// What comes in at a pump.
#[derive(Debug)]
pub enum ToPump {
    /// From the engine.
    Command(PumpCommand),
    /// Asks what was done and lost so far.
    Counters(oneshot::Sender<PumpCounters>),
}

/// A pump at work.
pub struct Pump {
    /// What it is told. It ends when this is dropped.
    pub commands: mpsc::Sender<ToPump>,
    pub news: mpsc::Receiver<PumpNews>,
    /// The port that peers' loopback addresses have.
    pub relay_port: u16,
}

/// Starts a pump, in the network namespace of this thread.
pub fn spawn(config: &PumpConfig) -> io::Result<Pump> {
    let PumpConfig { dialler, wireguard_port, relay_port } = config.clone();
    let named = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
    };
    let socket = LoopbackSocket::open(relay_port).map_err(named("bind the relay socket on the loopback"))?;
    let injector = Injector::open(wireguard_port, dialler.mark()).map_err(named("open raw sockets"))?;
    let relay_port = socket.port();
    // A few threads for names.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
    let (commands, from_loop) = mpsc::channel(COMMANDS);
    let (to_loop, news) = mpsc::channel(NEWS);
    let (to_us, listens) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("relay-pump".to_owned()).spawn(move || {
        let watch = Watch::thread("relay pump");
        let tasks = LocalSet::new();
        tasks.block_on(&runtime, async {
            let (loopback, outcome) = match socket.listen(wireguard_port) {
                Ok(loopback) => (Some(loopback), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // Whoever started us waits for this.
            let _ = to_us.send(outcome);
            if let Some(loopback) = loopback {
                pump(Hub::new(Dialler::new(&dialler), loopback, injector, to_loop), from_loop).await;
            }
        });
        drop(tasks);
        watch.release();
        // A name that is being looked up is nothing to wait for.
        runtime.shutdown_background();
    })?;
    let listens = listens.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended")));
    listens.map_err(named("listen for WireGuard on the loopback"))?;
    Ok(Pump { commands, news, relay_port })
}

/// Takes commands, and packets of WireGuard, until nobody commands.
async fn pump(hub: Rc<Hub>, mut commands: mpsc::Receiver<ToPump>) {
    let mut batch = Batch::new();
    // An agent that starts finds WireGuard sending: what it cannot place yet waits in the socket.
    let mut is_told = false;
    loop {
        tokio::select! {
            // All that was told goes before what follows from it.
            biased;
            command = commands.recv() => match command {
                Some(asked) => {
                    hub.handle(asked);
                    is_told |= hub.is_told();
                }
                None => return,
            },
            received = hub.loopback.recv(&mut batch), if is_told => match received {
                Ok(()) => {
                    let now = clock::now().tick;
                    for (to, packet) in hub.loopback.packets(&batch) {
                        hub.forward(to, packet, now);
                    }
                    hub.wake_links();
                }
                Err(error) => {
                    tracing::warn!(%error, "take packets of WireGuard from the loopback");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
