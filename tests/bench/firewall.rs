//! What the firewall costs a packet, and a change of it an operator: natively, as root, in network namespaces.
//!
//! One end of a cable that has the name of our link stands for it. Sending through a cable does the receiver's work up
//! to the socket, so what a sender gets through in a second is what the whole path takes. Two set-ups are measured by
//! turns and compared within each turn; the median of all turns counts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use table::{Limit, row};
use warren::linux::LinuxKernel;
use warren::plan::{Admit, Class, ClassId, Firewall, Kernel, PortRange, Protocol, RuleId, Step};

/// One measurement.
const SPELL: Duration = Duration::from_millis(400);
const ROUNDS: usize = 15;
const NEIGHBOUR: &str = "warren-bench-peer";
const US: &str = "100.64.0.1";
const PORT: u16 = 4_000;
/// Addresses that packets come from, by turns.
const SENDERS: u32 = 64;

fn main() {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() || !sh("nft list ruleset") {
        println!("firewall: needs root and nftables");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
    sh(&format!("ip netns del {NEIGHBOUR}"));
}

async fn measure() {
    build();
    let mut kernel = LinuxKernel::new().unwrap();
    new_flows(&mut kernel).await;
    established_flows(&mut kernel).await;
    changes(&mut kernel).await;
}

async fn new_flows(kernel: &mut LinuxKernel) {
    // What is dropped late was never a flow, so every packet opens one.
    let sink = "nft add table inet sink && nft add chain inet sink i '{ type filter hook input priority 20; }' && nft add rule \
                inet sink i udp dport 4000 drop";
    let (mut few, mut many, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    assert!(sh(sink));
    let tables = [10, 100_000].map(|sources| Arc::new(firewall(sources)));
    for _ in 0..ROUNDS {
        let mut rates = [0.0; 2];
        for (firewall, rate) in tables.iter().zip(&mut rates) {
            kernel.apply(&Step::ReplaceFirewall(firewall.clone())).await.unwrap();
            *rate = packets_a_second(10);
        }
        few.push(rates[0]);
        many.push(rates[1]);
        ratios.push(rates[1] / rates[0]);
    }
    assert!(sh("nft delete table inet sink"));
    row("new flows a second, 10 allowed sources", median(few), "packets", Limit::None);
    row("new flows a second, 100,000 allowed sources", median(many), "packets", Limit::None);
    row("ratio of the two", median(ratios), "", Limit::AtLeast(0.95));
}

async fn established_flows(kernel: &mut LinuxKernel) {
    let alone = "nft delete table inet warren; nft add table inet alone && nft add chain inet alone p '{ type filter hook \
                 prerouting priority -110; }' && nft add rule inet alone p ct state established,related accept";
    let firewall = Arc::new(firewall(10));
    let server = UdpSocket::bind((US, PORT)).unwrap();
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        assert!(sh(alone));
        let without = established(&server);
        assert!(sh("nft delete table inet alone"));
        kernel.apply(&Step::ReplaceFirewall(firewall.clone())).await.unwrap();
        let with = established(&server);
        ours.push(with);
        theirs.push(without);
        ratios.push(with / without);
    }
    row("packets a second of an established flow", median(ours), "packets", Limit::None);
    row("the same with connection tracking alone", median(theirs), "packets", Limit::None);
    row("ratio of the two", median(ratios), "", Limit::AtLeast(0.97));
}

/// Packets a second of one flow that was answered.
fn established(server: &UdpSocket) -> f64 {
    let client = in_neighbour(|| {
        let client = UdpSocket::bind((Ipv4Addr::new(100, 64, 0, 2), 0)).unwrap();
        client.connect((US, PORT)).unwrap();
        client
    });
    client.send(&[0; 64]).unwrap();
    let mut buffer = [0; 64];
    // What an earlier flood left behind comes first.
    let own = client.local_addr().unwrap();
    while server.recv_from(&mut buffer).unwrap().1 != own {}
    server.send_to(&buffer, own).unwrap();
    client.recv(&mut buffer).unwrap();
    in_neighbour(move || rate(|| drop(client.send(&[0; 36]))))
}

async fn changes(kernel: &mut LinuxKernel) {
    let from = Arc::new(firewall(10_000));
    let one_more = Arc::new(firewall(10_001));
    let mut others = firewall(10_000);
    others.classes = BTreeMap::from([(ClassId(2), class())]);
    others.hosts.values_mut().for_each(|class| *class = ClassId(2));
    let others = Arc::new(others);
    let (mut one, mut all) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        kernel.apply(&Step::ReplaceFirewall(from.clone())).await.unwrap();
        one.push(milliseconds(kernel, Step::UpdateFirewall { from: from.clone(), to: one_more.clone() }).await);
        kernel.apply(&Step::ReplaceFirewall(from.clone())).await.unwrap();
        all.push(milliseconds(kernel, Step::UpdateFirewall { from: from.clone(), to: others.clone() }).await);
    }
    row("one source added to 10,000", median(one), "ms", Limit::AtMost(50.0));
    row("the class of 10,000 sources replaced at once", median(all), "ms", Limit::AtMost(500.0));
}

async fn milliseconds(kernel: &mut LinuxKernel, step: Step) -> f64 {
    let begun = Instant::now();
    kernel.apply(&step).await.unwrap();
    begun.elapsed().as_secs_f64() * 1e3
}

/// Packets a second from addresses by turns.
fn packets_a_second(senders: u32) -> f64 {
    in_neighbour(move || {
        let socket = |number| {
            let socket = UdpSocket::bind((source(number), 0)).unwrap();
            socket.connect((US, PORT)).unwrap();
            socket
        };
        let sockets: Vec<UdpSocket> = (0..senders.min(SENDERS)).map(socket).collect();
        let mut next = 0;
        rate(|| {
            next = (next + 1) % sockets.len();
            let _ = sockets[next].send(&[0; 36]);
        })
    })
}

/// How often something can be done in a second.
fn rate(mut act: impl FnMut()) -> f64 {
    let begun = Instant::now();
    let mut done = 0u32;
    while begun.elapsed() < SPELL {
        (0..256).for_each(|_| act());
        done += 256;
    }
    f64::from(done) / begun.elapsed().as_secs_f64()
}

fn build() {
    sh(&format!("ip netns del {NEIGHBOUR} 2>/dev/null"));
    assert!(sh(&format!(
        "ip link set lo up && ip netns add {NEIGHBOUR} && ip link add warren0 type veth peer name warren0 netns {NEIGHBOUR} && \
         ip link set warren0 up && ip addr add {US}/10 dev warren0 && ip -n {NEIGHBOUR} link set warren0 up"
    )));
    let addresses: String =
        (0..SENDERS).map(|number| format!("addr add {}/10 dev warren0\n", source(number))).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), addresses).unwrap();
    assert!(sh(&format!("ip -n {NEIGHBOUR} -b {}", file.path().display())));
}

fn source(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 2).to_bits() + number)
}

fn class() -> Class {
    let admit = Admit {
        destination: "0.0.0.0/0".parse().unwrap(),
        protocol: Protocol::UDP,
        ports: PortRange { first: PORT, last: PORT },
    };
    Class { rules: BTreeMap::from([(RuleId(1), BTreeSet::from([admit]))]) }
}

/// So many sources may send to one port.
fn firewall(sources: u32) -> Firewall {
    Firewall {
        served: BTreeSet::from(["100.64.0.1/32".parse().unwrap()]),
        classes: BTreeMap::from([(ClassId(1), class())]),
        hosts: (0..sources).map(|number| (IpAddr::V4(source(number)), ClassId(1))).collect(),
        ..Firewall::default()
    }
}

fn in_neighbour<T: Send + 'static>(code: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(format!("/run/netns/{NEIGHBOUR}")).unwrap();
    let thread = std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        code()
    });
    thread.join().unwrap()
}

fn sh(command: &str) -> bool {
    Command::new("sh").args(["-c", command]).status().unwrap().success()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
