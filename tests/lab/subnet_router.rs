//! A subnet router with real programs: what it carries, as whom, and that the host is its owner's again afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use warren_core::wire::local::BackendState;

use crate::lab::{Host, Lab, Namespace, PATIENCE, eventually};
use crate::program::program_path;
use crate::programs::{Agent, Coordinator};
use crate::train::PathWatch;

/// How long a connection that is refused in silence is tried.
const SILENCE: Duration = Duration::from_secs(2);
/// The server on the network behind the gateway, and the gateway's own addresses there.
const SERVER: [&str; 2] = ["192.168.50.9", "fd50::9"];
const GATEWAY: [&str; 2] = ["192.168.50.1", "fd50::1"];
const SUBNETS: &str = "192.168.50.0/24,fd50::/64";
/// As much as many full segments hold.
const MUCH: usize = 1 << 20;

#[test]
fn a_subnet_router_carries_by_itself_and_gives_every_switch_back() {
    let Some(mut lab) = Lab::new() else { return };
    let coordinator = Coordinator::start(&mut lab);
    let alice = Agent::start(&mut lab, "alice");
    let mut gate = Agent::not_started(&mut lab, "gate");
    let lan = Lan::behind(lab.namespace("server"), &gate.host);
    let before = switches(&gate.host);
    assert_eq!(before["ipv6/conf/eth0/accept_ra"], "1");
    gate.start_again();
    alice.join(&coordinator, &coordinator.key(""));
    gate.join(&coordinator, &coordinator.key(""));
    alice.warren("set --accept-routes");
    let itself = [alice.ip(4), alice.ip(6)];
    let itself = itself.each_ref().map(String::as_str);
    assert_eq!(switches(&gate.host), before, "nothing is carried yet");

    let advertise = format!("set --advertise-routes={SUBNETS}");
    gate.warren(&advertise);
    eventually("the offer to be there", || coordinator.run("route list").contains("192.168.50.0/24").then_some(()));
    for subnet in SUBNETS.split(',') {
        coordinator.run(&format!("route approve gate {subnet}"));
    }
    lan.is_reached(&alice, GATEWAY);
    let on = switches(&gate.host);
    assert_eq!([&*on["ipv4/conf/lan/forwarding"], &*on["ipv4/conf/all/forwarding"]], ["1", "0"]);
    assert_eq!(on["ipv4/conf/eth0/forwarding"], "0", "a link that leads to nothing that is carried");
    match on.get("ipv6/conf/all/force_forwarding") {
        Some(_) => assert_eq!(on["ipv6/conf/all/forwarding"], "0", "newer kernels have a narrower switch"),
        None => assert_eq!(on["ipv6/conf/eth0/accept_ra"], "2", "routers are heard as before"),
    }

    // Sources are kept where the network has a route back; a killed agent carries on.
    gate.warren("set --snat-subnet-routes=false");
    lan.has_way_back();
    lan.is_reached(&alice, itself);
    PathWatch::start(&alice.host, &gate.ip(4)).wait_until_direct(PATIENCE);
    gate.kill();
    lan.is_reached(&alice, itself);

    // Every way out gives every switch back: the offer withdrawn, down, and a clean-up after a kill.
    gate.start_again();
    gate.wait_for(BackendState::Running);
    gate.warren("set --advertise-routes=");
    is_given_back(&gate, &before);
    gate.warren(&advertise);
    lan.is_reached(&alice, itself);
    gate.warren("down");
    is_given_back(&gate, &before);
    assert!(!gate.state_dir().join("forwarding").exists());
    gate.warren("up");
    lan.is_reached(&alice, itself);
    // What somebody else sets meanwhile is theirs.
    gate.host.run("sysctl -q -w net.ipv4.conf.lan.forwarding=0");
    gate.kill();
    clean_up_as_root(&gate);
    assert_eq!(switches(&gate.host), before);
    assert!(!gate.state_dir().join("forwarding").exists());
}

fn is_given_back(gate: &Agent, before: &BTreeMap<String, String>) {
    eventually("the switches to be as they were", || (switches(&gate.host) == *before).then_some(()));
}

fn clean_up_as_root(agent: &Agent) {
    let state = agent.state_dir();
    let words = [program_path("warrend"), "--cleanup", "--state-dir", state.to_str().unwrap()];
    let output = agent.host.command(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every switch of the host that we might change, but for those of our own link.
fn switches(host: &Host) -> BTreeMap<String, String> {
    host.namespace.inside(|| {
        let mut found = BTreeMap::new();
        for (family, names) in
            [("ipv4", &["forwarding"][..]), ("ipv6", &["forwarding", "force_forwarding", "accept_ra"][..])]
        {
            for link in fs::read_dir(format!("/proc/sys/net/{family}/conf")).unwrap() {
                let link = link.unwrap().file_name().into_string().unwrap();
                for name in names.iter().filter(|_| link != "warren0") {
                    let place = format!("{family}/conf/{link}/{name}");
                    if let Ok(value) = fs::read_to_string(format!("/proc/sys/net/{place}")) {
                        found.insert(place, value.trim().to_owned());
                    }
                }
            }
        }
        found
    })
}

/// A network behind the gateway with a server in it, which no error about too large packets reaches.
struct Lan {
    server: Namespace,
}

impl Lan {
    fn behind(server: Namespace, gate: &Host) -> Self {
        gate.run(&format!("ip link add lan type veth peer name eth0 netns {}", server.name));
        gate.run("ip link set lan up");
        server.run("ip link set eth0 up");
        for [gateway, server_address, length] in [[GATEWAY[0], SERVER[0], "24"], [GATEWAY[1], SERVER[1], "64"]] {
            gate.run(&format!("ip address add {gateway}/{length} dev lan nodad"));
            server.run(&format!("ip address add {server_address}/{length} dev eth0 nodad"));
        }
        server.nft(
            "table inet deaf { chain in { type filter hook input priority 0; icmp type destination-unreachable drop; \
             icmpv6 type packet-too-big drop; }; }",
        );
        // Whoever connects is told as whom it is seen, and is sent much.
        server.spawn_inside(|| {
            let listener = TcpListener::bind("[::]:80").unwrap();
            for stream in listener.incoming() {
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let seen = stream.peer_addr().unwrap().ip().to_canonical();
                    let _ = stream.write_all(format!("{seen}\n").as_bytes());
                    let _ = stream.write_all(&vec![b'.'; MUCH]);
                    let mut taken = Vec::new();
                    let _ = stream.read_to_end(&mut taken);
                    let _ = stream.write_all(&[u8::from(taken.len() == MUCH)]);
                });
            }
        });
        Self { server }
    }

    fn has_way_back(&self) {
        self.server.run(&format!("ip route add 100.64.0.0/10 via {}", GATEWAY[0]));
        self.server.run(&format!("ip -6 route add fd7a:115c:a1e0::/48 via {}", GATEWAY[1]));
    }

    /// Both families, much in both directions, and seen as this.
    fn is_reached(&self, from: &Agent, seen_as: [&str; 2]) {
        for (to, seen_as) in SERVER.iter().zip(seen_as) {
            let seen_as: IpAddr = seen_as.parse().unwrap();
            eventually(&format!("a way to {to}, seen as {seen_as}"), || {
                (exchange(&from.host, to)? == seen_as).then_some(())
            });
        }
    }
}

/// As whom the server sees a connection from this host, where all of it passes.
fn exchange(host: &Host, to: &'static str) -> Option<IpAddr> {
    host.namespace.inside(move || {
        let to: SocketAddr = (to.parse::<IpAddr>().unwrap(), 80).into();
        let mut stream = TcpStream::connect_timeout(&to, SILENCE).ok()?;
        stream.set_read_timeout(Some(SILENCE * 5)).unwrap();
        let mut got = vec![0; MUCH];
        let mut first = Vec::new();
        while first.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            first.push(byte[0]);
        }
        stream.read_exact(&mut got).ok()?;
        stream.write_all(&got).ok()?;
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut whole = [0];
        stream.read_exact(&mut whole).ok()?;
        assert_eq!(whole, [1]);
        String::from_utf8(first).ok()?.trim().parse().ok()
    })
}
