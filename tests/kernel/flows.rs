//! Flows that are open when their right goes.
//!
//! What is proven here needs no WireGuard: one end of a cable that has the name of our link stands for it.
//!
//! ```text
//! peers (100.64.0.2, .3) ──cable── us (100.64.0.1, warren0) ──cable── lan (10.7.0.2)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_core::plan::{
    Admit, Class, ClassId, Desired, Firewall, Kernel, Observed, PeerConfig, PortRange, Protocol, RuleId, Step,
};
use warren_core::plan::{ObservedFirewall, diff};
use warren_core::types::NodePublic;
use warren_linux::LinuxKernel;

use crate::common::*;
use crate::neighbour::Neighbour;

const US: &str = "100.64.0.1";
const US_V6: &str = "fd7a:115c:a1e0::1";
const REVOKED: &str = "100.64.0.2";
const REVOKED_V6: &str = "fd7a:115c:a1e0::2";
const ALLOWED: &str = "100.64.0.3";
const LAN_HOST: &str = "10.7.0.2";
/// Another use of the range on this host, as its routes tell it to the agent.
const OTHER_USE: &str = "100.99.0.0/24";
const PORT: u16 = 80;

/// Within this time of a change nothing of a forbidden flow may pass any more, on a real processor.
const DEAD: Duration = Duration::from_secs(1);
/// What is not answered within this time is not answered at all.
const SILENCE: Duration = Duration::from_millis(500);

#[test]
fn a_revoked_flow_ends_within_a_second_and_an_allowed_one_beside_it_loses_nothing() {
    in_namespace(Needs::Namespace, || async {
        let net = Network::build();
        let mut kernel = LinuxKernel::new().unwrap();
        net.set(&mut kernel, &[REVOKED, REVOKED_V6, ALLOWED]).await;
        let echo = Echo::start(net.us());
        let mut revoked = [net.tcp(REVOKED, US), net.tcp(REVOKED_V6, US_V6)];
        let revoked_udp = [net.udp(REVOKED, US), net.udp(REVOKED_V6, US_V6)];
        let (mut allowed, allowed_udp) = (net.tcp(ALLOWED, US), net.udp(ALLOWED, US));
        assert!(revoked.iter_mut().chain([&mut allowed]).all(tcp_echoes));
        assert!(revoked_udp.iter().chain([&allowed_udp]).all(udp_echoes));
        let stream = Stream::start(allowed_udp);

        let changed = Instant::now();
        net.set(&mut kernel, &[ALLOWED]).await;
        let took = changed.elapsed();

        assert!(took < DEAD * slowness(), "{took:?}");
        println!("from the change to the last flow cut: {took:?}");
        assert!(!revoked.iter_mut().any(tcp_echoes));
        assert!(!revoked_udp.iter().any(udp_echoes));
        assert!(tcp_echoes(&mut allowed));
        let (sent, answered) = stream.stop();
        assert!(sent > 10, "{sent}");
        assert_eq!(answered, sent, "the allowed flow lost packets");
        // The server does not bring a flow back by what it still has to say.
        echo.speak_up();
        assert!(!revoked.iter_mut().any(tcp_echoes));
        assert!(!revoked_udp.iter().any(udp_echoes));
        let known = sh("conntrack -L 2>/dev/null");
        assert!(!known.contains(REVOKED) && known.contains(ALLOWED), "{known}");
    });
}

#[test]
fn a_transfer_from_us_ends_on_both_sides() {
    in_namespace(Needs::Namespace, || async {
        let net = Network::build();
        let mut kernel = LinuxKernel::new().unwrap();
        net.set(&mut kernel, &[REVOKED]).await;
        let listener = net.us().listen();
        let mut reader = net.tcp(REVOKED, US);
        let (mut server, _) = listener.accept().unwrap();
        server.set_write_timeout(Some(PATIENCE)).unwrap();
        let sender = std::thread::spawn(move || {
            let data = [7; 16 << 10];
            loop {
                if let Err(error) = server.write_all(&data) {
                    return error.kind();
                }
            }
        });
        reader.read_exact(&mut vec![0; 256 << 10]).unwrap();

        net.set(&mut kernel, &[ALLOWED]).await;

        // Our side is told by a reset, and does not wait for acknowledgements until it gives up.
        let end = tokio::task::spawn_blocking(move || sender.join().unwrap()).await.unwrap();
        assert!(matches!(end, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{end:?}");
        reader.set_read_timeout(Some(PATIENCE)).unwrap();
        // What was under way may still arrive; then the reader is told as soon as it says something, once.
        let told = reader.write(b"more").is_err() || reader.read_to_end(&mut Vec::new()).is_err();
        assert!(told || reader.write(b"more").is_err());
    });
}

#[test]
fn flows_that_we_opened_and_flows_of_others_stay() {
    in_namespace(Needs::Namespace, || async {
        let net = Network::build();
        let mut kernel = LinuxKernel::new().unwrap();
        net.set(&mut kernel, &[REVOKED]).await;
        let _echo = Echo::start(net.peers.socket_factory());
        let mut ours = connect(US, REVOKED);
        assert!(tcp_echoes(&mut ours));
        // A flow within `OTHER_USE`.
        sh("ip addr add 100.99.0.1/24 dev lan");
        net.lan.sh("ip addr add 100.99.0.2/24 dev lan");
        let _other_echo = Echo::start(net.us());
        let mut other = net.lan.within(|| connect("100.99.0.2", "100.99.0.1"));
        assert!(tcp_echoes(&mut other));

        net.set(&mut kernel, &[]).await;

        assert!(tcp_echoes(&mut ours) && tcp_echoes(&mut other));
    });
}

#[test]
fn a_flow_into_the_network_we_carry_is_cut_as_well() {
    in_namespace(Needs::Namespace, || async {
        let net = Network::build();
        let mut kernel = LinuxKernel::new().unwrap();
        net.set(&mut kernel, &[REVOKED]).await;
        let echo = Echo::start(net.lan.socket_factory());
        let (mut tcp, udp) = (net.tcp(REVOKED, LAN_HOST), net.udp(REVOKED, LAN_HOST));
        assert!(tcp_echoes(&mut tcp) && udp_echoes(&udp));

        net.set(&mut kernel, &[ALLOWED]).await;

        assert!(!tcp_echoes(&mut tcp) && !udp_echoes(&udp));
        echo.speak_up();
        assert!(!tcp_echoes(&mut tcp) && !udp_echoes(&udp));
    });
}

#[test]
fn a_flow_that_began_while_the_table_was_gone_is_cut_when_it_is_back() {
    in_namespace(Needs::Namespace, || async {
        let net = Network::build();
        let mut kernel = sharing();
        net.set(&mut kernel, &[ALLOWED]).await;
        let _echo = Echo::start(net.us());
        // Something else keeps connection tracking at work.
        sh(
            "nft flush ruleset && nft add table inet other && nft add chain inet other c '{ type filter hook input priority 0; }'",
        );
        sh("nft add rule inet other c ct state established accept");
        let mut sneaked = net.tcp(REVOKED, US);
        assert!(tcp_echoes(&mut sneaked));

        net.set(&mut kernel, &[ALLOWED]).await;

        assert!(!tcp_echoes(&mut sneaked));
    });
}

#[test]
fn an_agent_that_ends_at_any_step_leaves_nothing_open_that_the_next_does_not_close() {
    in_namespace(Needs::Namespace, || async {
        let net = Network::build();
        let echo = Echo::start(net.us());
        for stop in 0..3 {
            let mut kernel = LinuxKernel::new().unwrap();
            net.set(&mut kernel, &[REVOKED]).await;
            let mut flow = net.tcp(REVOKED, US);
            assert!(tcp_echoes(&mut flow));
            let steps = net.steps(&mut kernel, &[ALLOWED]).await;
            for step in steps.into_iter().take(stop) {
                kernel.apply(&step).await.unwrap();
            }
            drop(kernel);

            let mut next = LinuxKernel::new().unwrap();
            net.set(&mut next, &[ALLOWED]).await;

            assert!(!tcp_echoes(&mut flow), "ended after {stop} steps");
        }
        echo.speak_up();
    });
}

#[test]
fn a_hundred_thousand_flows_are_looked_through_in_no_time() {
    in_namespace(Needs::Namespace, || async {
        let net = Network::build();
        let mut kernel = LinuxKernel::new().unwrap();
        net.set(&mut kernel, &[REVOKED, ALLOWED]).await;
        sh("sysctl -q -w net.netfilter.nf_conntrack_max=300000 || true");
        // Every pair of ports is a flow, and nobody needs to listen.
        net.peers.within(|| {
            for source in 0..10u16 {
                let socket = UdpSocket::bind((ALLOWED, 20_000 + source)).unwrap();
                for port in 1..10_001u16 {
                    let _ = socket.send_to(b"x", (US, port));
                }
            }
        });
        let known: u32 = sh("conntrack -C").trim().parse().unwrap();
        net.set(&mut kernel, &[ALLOWED]).await;

        let begun = Instant::now();
        net.set(&mut kernel, &[]).await;

        let left: u32 = sh("conntrack -C").trim().parse().unwrap();
        println!("{known} flows known, {left} left, in {:?}", begun.elapsed());
        // A namespace cannot raise what its host allows.
        let most: u32 = sh("sysctl -n net.netfilter.nf_conntrack_max").trim().parse().unwrap();
        assert!(known > 50_000.min(most / 2) && left < 100, "{known} of {most}, {left}");
    });
}

struct Network {
    peers: Neighbour,
    lan: Neighbour,
    keys: BTreeMap<&'static str, NodePublic>,
}

impl Network {
    fn build() -> Self {
        let peers = Neighbour::beside("warren-flows-peer", "warren0");
        let lan = Neighbour::beside("warren-flows-lan", "lan");
        sh("sysctl -q -w net.ipv4.ip_forward=1 || echo 1 > /proc/sys/net/ipv4/ip_forward");
        sh(&format!("ip addr add {US}/24 dev warren0 && ip addr add {US_V6}/64 dev warren0 nodad"));
        sh("ip addr add 10.7.0.1/24 dev lan");
        peers.sh(&format!("ip addr add {REVOKED}/24 dev warren0 && ip addr add {ALLOWED}/24 dev warren0"));
        peers.sh(&format!("ip addr add {REVOKED_V6}/64 dev warren0 nodad"));
        peers.sh(&format!("ip route add 10.7.0.0/24 via {US}"));
        // No neighbour discovery in a tunnel.
        let (ours, theirs) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
        sh(&format!("ip link set warren0 address {ours} && ip neigh add {REVOKED_V6} lladdr {theirs} dev warren0"));
        peers.sh(&format!("ip link set warren0 address {theirs} && ip neigh add {US_V6} lladdr {ours} dev warren0"));
        lan.sh("ip addr add 10.7.0.2/24 dev lan && ip route add default via 10.7.0.1");
        let keys = BTreeMap::from([(REVOKED, public(1)), (REVOKED_V6, public(1)), (ALLOWED, public(2))]);
        Self { peers, lan, keys }
    }

    fn us(&self) -> crate::neighbour::Sockets {
        crate::neighbour::Sockets::here()
    }

    /// Lets these sources, and no others, open everything.
    async fn set(&self, kernel: &mut LinuxKernel, sources: &[&'static str]) {
        for step in self.steps(kernel, sources).await {
            kernel.apply(&step).await.unwrap();
        }
        assert!(self.steps(kernel, sources).await.is_empty());
    }

    /// The firewall's part of the plan for that. The link is not WireGuard, so the rest is made up.
    async fn steps(&self, kernel: &mut LinuxKernel, sources: &[&'static str]) -> Vec<Step> {
        let seen = kernel.observe().await.unwrap();
        let wish = self.wish(sources);
        let observed = Observed { firewall: seen.firewall, flows_judged: seen.flows_judged, ..self.made_up(&wish) };
        diff(&wish, &observed).steps
    }

    fn made_up(&self, wish: &Desired) -> Observed {
        let mut model = warren_core::plan::ModelKernel::default();
        for step in diff(wish, &model.state).steps {
            model.carry_out(&step).unwrap();
        }
        assert!(matches!(model.state.firewall, ObservedFirewall::Table(_)));
        model.state
    }

    fn wish(&self, sources: &[&'static str]) -> Desired {
        let all =
            |destination: &str, protocol| Admit { destination: net(destination), protocol, ports: PortRange::ALL };
        let admits = BTreeSet::from([
            all("0.0.0.0/0", Protocol::TCP),
            all("0.0.0.0/0", Protocol::UDP),
            all("::/0", Protocol::TCP),
            all("::/0", Protocol::UDP),
        ]);
        let class = Class { rules: BTreeMap::from([(RuleId(1), admits)]) };
        let firewall = Firewall {
            served: nets(&["100.64.0.1/32", "fd7a:115c:a1e0::1/128", "10.7.0.0/24"]),
            tunnelled: nets(&["100.64.0.0/10", "fd7a:115c:a1e0::/48"]),
            elsewhere: nets(&[OTHER_USE]),
            classes: BTreeMap::from([(ClassId(1), class)]),
            hosts: sources.iter().map(|source| (source.parse().unwrap(), ClassId(1))).collect(),
            ..Firewall::default()
        };
        let mut wish = wish();
        let device = wish.device.as_mut().unwrap();
        device.peers.clear();
        for (address, key) in &self.keys {
            let peer = device.peers.entry(*key).or_insert_with(|| Arc::new(PeerConfig::default()));
            Arc::make_mut(peer).allowed_ips.insert(address.parse::<IpAddr>().unwrap().into());
        }
        wish.firewall = Some(Arc::new(firewall));
        wish
    }

    fn tcp(&self, from: &'static str, to: &'static str) -> TcpStream {
        self.peers.within(move || connect(from, to))
    }

    fn udp(&self, from: &'static str, to: &'static str) -> UdpSocket {
        self.peers.within(move || {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.connect((to, PORT)).unwrap();
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            socket
        })
    }
}

fn connect(from: &str, to: &str) -> TcpStream {
    let to: SocketAddr = (to.parse::<IpAddr>().unwrap(), PORT).into();
    let client = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
    client.bind(&SocketAddr::from((from.parse::<IpAddr>().unwrap(), 0)).into()).unwrap();
    client.connect_timeout(&to.into(), PATIENCE).unwrap();
    let stream = TcpStream::from(client);
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    stream
}

/// Whether what is sent comes back.
fn tcp_echoes(stream: &mut TcpStream) -> bool {
    stream.write_all(b"word").is_ok() && stream.read_exact(&mut [0; 4]).is_ok()
}

fn udp_echoes(socket: &UdpSocket) -> bool {
    let _ = socket.send(b"word");
    socket.recv(&mut [0; 16]).is_ok()
}

/// Sends a datagram a millisecond, and counts the answers.
struct Stream {
    stop: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<(u32, u32)>,
}

impl Stream {
    fn start(socket: UdpSocket) -> Self {
        // What is late is not lost.
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let (stop, stopped) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let (mut sent, mut answered) = (0, 0);
            loop {
                sent += 1;
                answered += u32::from(udp_echoes(&socket));
                match stopped.recv_timeout(Duration::from_millis(1)) {
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                    _ => return (sent, answered),
                }
            }
        });
        Self { stop, thread }
    }

    fn stop(self) -> (u32, u32) {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

/// A server that sends back what it gets, over TCP and UDP of both families, and can speak by itself.
struct Echo {
    udp: UdpSocket,
    seen: Arc<std::sync::Mutex<(Vec<TcpStream>, BTreeSet<SocketAddr>)>>,
}

impl Echo {
    fn start(sockets: crate::neighbour::Sockets) -> Self {
        let (listener, udp) = (sockets.listen(), sockets.udp());
        let seen = Arc::new(std::sync::Mutex::new((Vec::new(), BTreeSet::new())));
        let all = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                all.lock().unwrap().0.push(stream.try_clone().unwrap());
                std::thread::spawn(move || {
                    let mut word = [0; 4];
                    while stream.read_exact(&mut word).is_ok() && stream.write_all(&word).is_ok() {}
                });
            }
        });
        let (all, socket) = (Arc::clone(&seen), udp.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut word = [0; 16];
            while let Ok((length, from)) = socket.recv_from(&mut word) {
                all.lock().unwrap().1.insert(from);
                let _ = socket.send_to(&word[..length], from);
            }
        });
        Self { udp, seen }
    }

    /// Says something to everybody it ever heard of.
    fn speak_up(&self) {
        let (streams, sources) = &mut *self.seen.lock().unwrap();
        for source in sources.iter() {
            let _ = self.udp.send_to(b"more", source);
        }
        for stream in streams {
            let _ = stream.write_all(b"more");
        }
    }
}

/// Keeps the listener's type in one place.
impl crate::neighbour::Sockets {
    fn listen(&self) -> TcpListener {
        self.within(|| TcpListener::bind((IpAddr::from([0u16; 8]), PORT)).unwrap())
    }

    fn udp(&self) -> UdpSocket {
        self.within(|| UdpSocket::bind((IpAddr::from([0u16; 8]), PORT)).unwrap())
    }
}
