//! An exit node with real programs: what leaves a machine goes by it or not at all, and nobody is locked out.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use warren_core::wire::local::BackendState;

use crate::lab::{Host, Lab, PATIENCE, eventually};
use crate::programs::{Agent, Coordinator};
use crate::train::PathWatch;

/// How long a connection that is refused in silence is tried.
const SILENCE: Duration = Duration::from_secs(2);
/// A server far away: addresses of the internet, which an exit node carries.
const FAR: [&str; 2] = ["11.0.0.9", "2600:9::9"];

#[test]
fn what_leaves_goes_by_the_exit_node_or_not_at_all_and_sessions_go_on() {
    let Some(mut lab) = Lab::new() else { return };
    let coordinator = Coordinator::start(&mut lab);
    let (mut alice, mut gate) = (Agent::start(&mut lab, "alice"), Agent::start(&mut lab, "gate"));
    let far = Far::beyond(lab.host("far"), &alice.host, &gate.host);
    alice.join(&coordinator, &coordinator.key(""));
    gate.join(&coordinator, &coordinator.key(""));
    let refused = alice.try_warren("set --exit-node gate").status;
    assert!(!refused.success(), "it is no exit node yet");

    gate.warren("set --advertise-routes=0.0.0.0/0,::/0");
    eventually("the offer to be there", || coordinator.run("route list").contains("0.0.0.0/0").then_some(()));
    coordinator.run("route approve gate 0.0.0.0/0");
    let is_option = || alice.status().peer.values().any(|peer| peer.exit_node_option);
    eventually("alice to hear of an exit node", || is_option().then_some(()));
    let mut session = far.session(&alice.host);

    alice.warren("set --exit-node gate");
    far.forget();
    let goes_by = |from: &Agent, by: [&str; 2]| {
        for (far, by) in FAR.iter().zip(by) {
            let seen = eventually(&format!("a way to {far} by {by}"), || whom_they_see(&from.host, far));
            assert_eq!(seen, by.parse::<IpAddr>().unwrap(), "{far}");
        }
    };
    goes_by(&alice, [&gate.host.v4, &gate.host.v6]);
    session.goes_on();

    // Killed, and started again with its exit node. What a relay carries ends with the agent, which passes it on.
    for (from, to) in [(&alice, &gate), (&gate, &alice)] {
        PathWatch::start(&from.host, &to.ip(4)).wait_until_direct(PATIENCE);
    }
    alice.kill();
    goes_by(&alice, [&gate.host.v4, &gate.host.v6]);
    alice.start_again();
    alice.wait_for(BackendState::Running);
    goes_by(&alice, [&gate.host.v4, &gate.host.v6]);
    session.goes_on();

    // The exit node goes, also while the machine that uses it starts.
    gate.stop();
    gate.host.run("ip link del warren0");
    alice.wait_for_health(&["exit node", "not online"]);
    alice.kill();
    alice.start_again();
    alice.wait_for_health(&["exit node", "not online"]);
    assert!(FAR.iter().all(|far| whom_they_see(&alice.host, far).is_none()));
    session.goes_on();
    assert_eq!(far.leaked(), "");

    alice.warren("set --exit-node=");
    goes_by(&alice, [&alice.host.v4, &alice.host.v6]);
    session.goes_on();
}

/// The router of all, and the server that is far away; it counts what comes from a machine.
struct Far {
    host: Host,
}

impl Far {
    fn beyond(host: Host, alice: &Host, gate: &Host) -> Self {
        host.run("ip address add 11.0.0.9/32 dev lo");
        host.run("ip address add 2600:9::9/128 dev lo nodad");
        for other in [alice, gate] {
            other.run(&format!("ip route add default via {}", host.v4));
            other.run(&format!("ip -6 route add default via {}", host.v6));
        }
        // Besides, the agent asks its router for a port (PCP, NAT-PMP, UPnP).
        host.namespace.nft(&format!(
            "table inet cap {{ set leaked {{ type ipv4_addr . inet_proto . inet_service; flags dynamic; size 1000; }}; \
             set leaked6 {{ type ipv6_addr . inet_proto . inet_service; flags dynamic; size 1000; }}; \
             chain in {{ type filter hook prerouting priority -400; tcp sport 22 accept; udp dport {{ 1900, 5351 }} accept; \
             icmpv6 type {{ 133, 134, 135, 136, 137, 143 }} accept; \
             ip saddr {} update @leaked {{ ip daddr . meta l4proto . th dport }}; \
             ip6 saddr {} update @leaked6 {{ ip6 daddr . meta l4proto . th dport }}; }}; }}",
            alice.v4, alice.v6
        ));
        // Whoever connects is told as whom it is seen.
        host.namespace.spawn_inside(|| {
            let listener = TcpListener::bind("[::]:80").unwrap();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let seen = stream.peer_addr().unwrap().ip().to_canonical();
                let _ = stream.write_all(seen.to_string().as_bytes());
            }
        });
        Self { host }
    }

    /// Where the machine sent packets by the cable that were neither answers of a session nor its neighbours' talk.
    fn leaked(&self) -> String {
        let sets = ["leaked", "leaked6"].map(|set| self.host.run(&format!("nft list set inet cap {set}")));
        sets.iter().flat_map(|set| set.lines().skip_while(|line| !line.contains("elements"))).collect()
    }

    fn forget(&self) {
        for set in ["leaked", "leaked6"] {
            self.host.run(&format!("nft flush set inet cap {set}"));
        }
    }

    /// A session of somebody far away with a program on this host.
    fn session(&self, host: &Host) -> Session {
        let listener = host.namespace.inside(|| TcpListener::bind("[::]:22").unwrap());
        let to: SocketAddr = format!("{}:22", host.v4).parse().unwrap();
        let them = self.host.namespace.inside(move || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from((FAR[0].parse::<IpAddr>().unwrap(), 0)).into()).unwrap();
            socket.connect(&to.into()).unwrap();
            TcpStream::from(socket)
        });
        let (us, _) = listener.accept().unwrap();
        for stream in [&us, &them] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Session { us, them }
    }
}

struct Session {
    us: TcpStream,
    them: TcpStream,
}

impl Session {
    /// The machine's side speaks first, as a program that prints something.
    fn goes_on(&mut self) {
        self.us.write_all(b"output").unwrap();
        self.them.read_exact(&mut [0; 6]).unwrap();
        self.them.write_all(b"typed").unwrap();
        self.us.read_exact(&mut [0; 5]).unwrap();
    }
}

/// As whom the server sees a connection from this host, if it comes about.
fn whom_they_see(host: &Host, far: &'static str) -> Option<IpAddr> {
    host.namespace.inside(move || {
        let to: SocketAddr = (far.parse::<IpAddr>().unwrap(), 80).into();
        let mut stream = TcpStream::connect_timeout(&to, SILENCE).ok()?;
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        let mut seen = String::new();
        stream.read_to_string(&mut seen).ok()?;
        seen.parse().ok()
    })
}
