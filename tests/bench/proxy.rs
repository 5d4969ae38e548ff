//! The agent's part of the data path: a tunnel by a relay through the loopback, and what the diversion of probes costs
//! everybody else. Needs root, to make namespaces and raw sockets; any kernel will do.
//!
//! Machines are shared, so what is told is the work a core does: packets for the processor time that a thread took.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![allow(clippy::cast_precision_loss, reason = "figures for reading")]

#[path = "../common/program.rs"]
mod program;
#[allow(dead_code, reason = "the relay's own tests use the rest")]
#[path = "../relay/server.rs"]
mod server;
mod table;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use quinn_udp::{Transmit, UdpSocketState};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use server::Server;
use table::{Limit, row};
use tokio::sync::oneshot;
use warren_agent::relay_pump::{self, Pump, PumpConfig, ToPump};
use warren_core::node::{PumpCommand, PumpCounters, PumpNews, PumpPeer, RegionState};
use warren_core::plan::{Firewall, FirewallStep, Kernel, Probes, Step, own};
use warren_core::types::{NodePrivate, RegionId};
use warren_core::wire::control::{DerpMap, DerpNode, DerpRegion};
use warren_linux::LinuxKernel;
use warren_shell::CertificatePin;

const REGION: RegionId = RegionId(900);
/// A full packet of a tunnel with the usual MTU, as WireGuard sends it.
const PACKET: usize = 1312;
/// How long a tunnel is measured.
const SPELL: Duration = Duration::from_secs(5);
/// Rounds of packets past the firewall, with the diversion and without, and how long each is.
const ROUNDS: usize = 15;
const ROUND: Duration = Duration::from_millis(300);
const WIREGUARD_PORT: u16 = 41741;

/// Counts what is asked of the allocator while it is told to.
struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[allow(unsafe_code, reason = "an allocator is unsafe by nature; this one passes everything on")]
// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.load(Ordering::Relaxed) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as the caller promises us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises us.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
        println!("the loopback proxy and the diversion: skipped, they need root");
        return;
    }
    run("ip link set lo up");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        relayed_tunnel(true).await;
        relayed_tunnel(false).await;
        diversion().await;
    });
}

/// Packets from one node's WireGuard, which is a socket, to another's, by a relay. With TLS it is what users have;
/// without, allocations are the pumps' own, as TLS makes one for each of its records.
async fn relayed_tunnel(with_tls: bool) {
    let directory = tempfile::tempdir().unwrap();
    let (relay, map) = if with_tls { relay(directory.path()) } else { plain_relay() };
    let (mut alice, mut bob) = (Node::start(1, &map).await, Node::start(2, &map).await);
    alice.join(2).await;
    bob.join(1).await;

    let (stop, arrived) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let receiver = count_arrivals(bob.wireguard.try_clone().unwrap(), &stop, &arrived);
    let sender = {
        let (wireguard, port) = (alice.wireguard.try_clone().unwrap(), alice.pump.relay_port);
        let (stop, arrived) = (stop.clone(), arrived.clone());
        thread::spawn(move || flood(&wireguard, (loopback(2), port).into(), &stop, &arrived))
    };
    // Until everybody has the buffers that are used from then on.
    tokio::time::sleep(Duration::from_secs(1)).await;

    let (before, cpu) = (alice.counters().await, [alice.cpu(), bob.cpu()]);
    let had = arrived.load(Ordering::Relaxed);
    COUNTS.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    tokio::time::sleep(SPELL).await;
    COUNTS.store(false, Ordering::Relaxed);
    let took = begun.elapsed().as_secs_f64();
    let came = (arrived.load(Ordering::Relaxed) - had) as f64;
    let (after, used) = (alice.counters().await, [alice.cpu() - cpu[0], bob.cpu() - cpu[1]]);
    stop.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    receiver.join().unwrap();
    drop(relay);

    let lost = |counters: &PumpCounters| counters.dropped_queue_full + counters.dropped_no_relay;
    let went = (after.sent - before.sent - (lost(&after) - lost(&before))) as f64;
    let gigabits = |packets: f64, seconds: f64| packets * (PACKET * 8) as f64 / 1e9 / seconds;
    let allocations = ALLOCATIONS.swap(0, Ordering::Relaxed) as f64 / (went + came);
    if with_tls {
        let all = gigabits(came, took) * 1000.0;
        row("a tunnel by a relay with TLS, everything on this machine", all, "Mbit/s", Limit::None);
        row("WireGuard to relay: a core of the pump", gigabits(went, used[0]), "Gbit/s", Limit::AtLeast(1.0));
        row("relay to WireGuard: a core of the pump", gigabits(came, used[1]), "Gbit/s", Limit::AtLeast(1.0));
        row("allocations for a relayed packet, TLS's among them", allocations, "", Limit::None);
    } else {
        row("allocations for a relayed packet, the pumps' own", allocations, "", Limit::AtMost(0.01));
    }
}

fn plain_relay() -> (Server, Arc<DerpMap>) {
    let relay = Server::start(&["--open"]);
    let node = DerpNode { insecure_for_tests: true, ..node(&relay) };
    (relay, map(node))
}

/// A relay with a certificate of its own, and the map that vouches for it.
fn relay(directory: &std::path::Path) -> (Server, Arc<DerpMap>) {
    let made = rcgen::generate_simple_self_signed(["relay.test".to_owned()]).unwrap();
    let (cert, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let relay = Server::start(&["--open", "--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()]);
    let cert_name = CertificatePin::of(&CertificateDer::from_pem_file(&cert).unwrap()).to_string();
    let node = DerpNode { cert_name, ..node(&relay) };
    (relay, map(node))
}

fn node(relay: &Server) -> DerpNode {
    DerpNode {
        host_name: "relay.test".to_owned(),
        ipv4: relay.address.ip().to_string(),
        ipv6: "none".to_owned(),
        derp_port: relay.address.port().into(),
        ..DerpNode::default()
    }
}

fn map(node: DerpNode) -> Arc<DerpMap> {
    let region = DerpRegion { nodes: vec![node], ..DerpRegion::default() };
    Arc::new(DerpMap { regions: [(REGION, Some(region))].into(), ..DerpMap::default() })
}

struct Node {
    pump: Pump,
    /// The thread of the pump.
    thread: String,
    wireguard: UdpSocket,
}

impl Node {
    async fn start(n: u8, map: &Arc<DerpMap>) -> Self {
        let wireguard = UdpSocket::bind("127.0.0.1:0").unwrap();
        let wireguard_port = wireguard.local_addr().unwrap().port();
        let threads = pump_threads();
        let pump = relay_pump::spawn(&PumpConfig {
            dialler: warren_shell::Dialler::new(None),
            wireguard_port,
            relay_port: own::RELAY_PORT,
        })
        .unwrap();
        // A thread has its name a moment after it begins.
        let thread = loop {
            if let Some(new) = pump_threads().into_iter().find(|thread| !threads.contains(thread)) {
                break new;
            }
            thread::yield_now();
        };
        let node = Self { pump, thread, wireguard };
        node.tell(PumpCommand::Key(Some(NodePrivate::from_random([n; 32])))).await;
        node.tell(PumpCommand::Regions(Arc::clone(map))).await;
        node.tell(PumpCommand::Home(Some(REGION))).await;
        node
    }

    async fn tell(&self, command: PumpCommand) {
        self.pump.commands.send(ToPump::Command(command)).await.unwrap();
    }

    /// Connects, and knows the other.
    async fn join(&mut self, other: u8) {
        while !matches!(self.pump.news.recv().await, Some(PumpNews::Region { state: RegionState::Connected, .. })) {}
        let entry = PumpPeer { loopback: loopback(other), region: Some(REGION), direct: None };
        let key = NodePrivate::from_random([other; 32]).public();
        self.tell(PumpCommand::Peer { key, entry: Some(entry) }).await;
    }

    async fn counters(&self) -> PumpCounters {
        let (answer, counters) = oneshot::channel();
        self.pump.commands.send(ToPump::Counters(answer)).await.unwrap();
        counters.await.unwrap()
    }

    /// Seconds of processor time that the pump took.
    fn cpu(&self) -> f64 {
        cpu_of(&format!("/proc/self/task/{}/schedstat", self.thread))
    }
}

fn loopback(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 128, 0, n)
}

fn pump_threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().file_name().into_string().unwrap());
    let is_pump = |task: &String| {
        fs::read_to_string(format!("/proc/self/task/{task}/comm")).is_ok_and(|name| name.trim() == "relay-pump")
    };
    tasks.filter(is_pump).collect()
}

/// The first figure of `schedstat`: nanoseconds on a processor.
fn cpu_of(file: &str) -> f64 {
    let figures = fs::read_to_string(file).unwrap();
    figures.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// Sends full packets, sixteen in one piece, with so many on their way that nobody has to wait and nobody to drop:
/// work for a packet that is lost later would count for nothing.
fn flood(socket: &UdpSocket, to: SocketAddr, stop: &AtomicBool, arrived: &AtomicU64) {
    const PIECE: u64 = 16;
    const UNDER_WAY: u64 = 96;
    const LOST: Duration = Duration::from_millis(20);
    let state = UdpSocketState::new(socket.into()).unwrap();
    let mut bytes = [4; PACKET * PIECE as usize];
    bytes.chunks_mut(PACKET).for_each(|packet| packet[1..4].fill(0));
    let pieces = Transmit { destination: to, ecn: None, contents: &bytes, segment_size: Some(PACKET), src_ip: None };
    let (mut sent, mut seen, mut progress) = (arrived.load(Ordering::Relaxed), 0, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let came = arrived.load(Ordering::Relaxed);
        if came != seen {
            (seen, progress) = (came, Instant::now());
        }
        if progress.elapsed() > LOST {
            (sent, progress) = (came, Instant::now());
        }
        if sent.saturating_sub(came) + PIECE > UNDER_WAY {
            thread::yield_now();
        } else if state.try_send(socket.into(), &pieces).is_ok() {
            sent += PIECE;
        }
    }
}

fn count_arrivals(socket: UdpSocket, stop: &Arc<AtomicBool>, arrived: &Arc<AtomicU64>) -> thread::JoinHandle<()> {
    let (stop, arrived) = (Arc::clone(stop), Arc::clone(arrived));
    // What tells it to stop.
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(8 << 20);
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if socket.recv(&mut buffer).is_ok() {
                arrived.fetch_add(1, Ordering::Relaxed);
            }
        }
    })
}

/// Small packets to WireGuard's port from another host, past our table with the diversion and without.
async fn diversion() {
    let (told, sender_thread) = std::sync::mpsc::channel();
    let (go, orders) = std::sync::mpsc::channel::<()>();
    let (done, rounds) = std::sync::mpsc::channel::<f64>();
    let sender = thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        told.send(nix::unistd::gettid()).unwrap();
        orders.recv().unwrap();
        run("ip addr add 192.0.2.2/24 dev wire && ip link set wire up");
        let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
        socket.connect(("192.0.2.1", WIREGUARD_PORT)).unwrap();
        done.send(0.0).unwrap();
        while orders.recv().is_ok() {
            done.send(spray(&socket)).unwrap();
        }
    });
    let thread = sender_thread.recv().unwrap();
    run(&format!("ip link add wire type veth peer name wire netns {thread}"));
    run("ip addr add 192.0.2.1/24 dev wire && ip link set wire up");
    let _wireguard = UdpSocket::bind(("0.0.0.0", WIREGUARD_PORT)).unwrap();
    go.send(()).unwrap();
    rounds.recv().unwrap();

    let mut kernel = LinuxKernel::new().unwrap();
    let ports = Probes { wireguard_port: WIREGUARD_PORT, probe_port: own::PROBE_PORT, relay_port: own::RELAY_PORT };
    let mut figures = [Vec::new(), Vec::new()];
    for round in 0..2 * ROUNDS + 2 {
        let probes = [Some(ports), None][round % 2];
        let firewall = Firewall { probes, ..Firewall::default() };
        kernel.apply(&Step::Firewall(FirewallStep::Replace(Arc::new(firewall)))).await.unwrap();
        go.send(()).unwrap();
        let figure = rounds.recv().unwrap();
        // The first of each only warms up.
        if round > 1 {
            figures[round % 2].push(figure);
        }
    }
    drop(go);
    sender.join().unwrap();
    let ratios = figures[0].iter().zip(&figures[1]).map(|(with, without)| with / without).collect();
    let [with, without] = figures.map(median);
    row("packets to WireGuard's port past our table, a core", without / 1000.0, "k/s", Limit::None);
    row("the same with probes diverted", with / 1000.0, "k/s", Limit::None);
    row("ratio of the two", median(ratios), "", Limit::AtLeast(0.97));
}

/// Sends packets of 64 bytes for a while. The kernel takes each all the way to the other's socket before it comes back,
/// so the processor time of this thread is that of the whole way. Packets a second of it.
fn spray(socket: &UdpSocket) -> f64 {
    let packet = [4; 64];
    let (begun, cpu, mut count) = (Instant::now(), cpu_of("/proc/thread-self/schedstat"), 0.0);
    while begun.elapsed() < ROUND {
        for _ in 0..64 {
            let _ = socket.send(&packet);
        }
        count += 64.0;
    }
    count / (cpu_of("/proc/thread-self/schedstat") - cpu)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn run(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
}
