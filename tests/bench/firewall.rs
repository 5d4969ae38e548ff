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
use warren_core::plan::{
    Admit, Class, ClassId, Desired, DesiredEndpoint, Device, Firewall, FirewallStep, Kernel, ModelKernel, Observed,
    ObservedFirewall, PeerConfig, PortRange, Protocol, RuleId, Step, diff, own,
};
use warren_core::types::{NodePrivate, NodePublic};
use warren_linux::LinuxKernel;

/// One measurement.
const SPELL: Duration = Duration::from_millis(300);
const ROUNDS: usize = 14;
/// The same of what takes seconds to set up.
const FEW_ROUNDS: usize = 3;
/// How long a packet may take that is awaited.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Connections that are ended at once: from so many ports of one peer to so many of ours.
const FLOWS: [u16; 2] = [10, 10_000];
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
    let begun = Instant::now();
    runtime.block_on(measure());
    println!("(all of it in {:.0} s)", begun.elapsed().as_secs_f64());
    sh(&format!("ip netns del {NEIGHBOUR}"));
}

async fn measure() {
    build();
    let mut kernel = LinuxKernel::new().unwrap();
    new_flows(&mut kernel).await;
    established_flows(&mut kernel).await;
    changes(&mut kernel).await;
    repair(&mut kernel).await;
    cutting(&mut kernel).await;
}

async fn new_flows(kernel: &mut LinuxKernel) {
    // What is dropped late was never a flow, so every packet opens one.
    let sink = "nft add table inet sink && nft add chain inet sink i '{ type filter hook input priority 20; }' && nft add rule \
                inet sink i udp dport 4000 drop";
    let (mut few, mut many, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    assert!(sh(sink));
    let tables = [10, 100_000].map(|sources| Arc::new(firewall(sources)));
    for round in 0..ROUNDS {
        let mut rates = [0.0; 2];
        for which in order(round) {
            kernel.apply(&Step::Firewall(FirewallStep::Replace(tables[which].clone()))).await.unwrap();
            rates[which] = packets_a_second(10);
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
    let alone = "nft add table inet alone && nft add chain inet alone p '{ type filter hook \
                 prerouting priority -110; }' && nft add rule inet alone p ct state established,related accept";
    let firewall = Arc::new(firewall(10));
    let server = UdpSocket::bind((US, PORT)).unwrap();
    server.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut rates = [0.0; 2];
        for which in order(round) {
            if which == 0 {
                kernel.apply(&Step::Firewall(FirewallStep::Replace(firewall.clone()))).await.unwrap();
                rates[0] = established(&server);
                kernel.apply(&Step::Firewall(FirewallStep::Delete)).await.unwrap();
            } else {
                assert!(sh(alone));
                rates[1] = established(&server);
                assert!(sh("nft delete table inet alone"));
            }
        }
        ours.push(rates[0]);
        theirs.push(rates[1]);
        ratios.push(rates[0] / rates[1]);
    }
    row("packets a second of an established flow", median(ours), "packets", Limit::None);
    row("the same with connection tracking alone", median(theirs), "packets", Limit::None);
    row("ratio of the two", median(ratios), "", Limit::AtLeast(0.97));
}

/// Who is first changes each round: what comes later finds the machine in another state.
fn order(round: usize) -> [usize; 2] {
    [round % 2, (round + 1) % 2]
}

/// Packets a second of one flow that was answered.
fn established(server: &UdpSocket) -> f64 {
    let client = in_neighbour(|| {
        let client = UdpSocket::bind((Ipv4Addr::new(100, 64, 0, 2), 0)).unwrap();
        client.connect((US, PORT)).unwrap();
        client.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
        client
    });
    let mut buffer = [0; 64];
    // What an earlier flood left behind fills the buffer.
    server.set_nonblocking(true).unwrap();
    while server.recv_from(&mut buffer).is_ok() {}
    server.set_nonblocking(false).unwrap();
    client.send(&[0; 64]).unwrap();
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
    let (mut one, mut all, mut whole, mut look) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        whole.push(milliseconds(kernel, Step::Firewall(FirewallStep::Replace(from.clone()))).await);
        one.push(
            milliseconds(kernel, Step::Firewall(FirewallStep::Update { from: from.clone(), to: one_more.clone() }))
                .await,
        );
        let begun = Instant::now();
        let seen = kernel.observe().await.unwrap().firewall;
        look.push(begun.elapsed().as_secs_f64() * 1e3);
        assert_eq!(seen, ObservedFirewall::Table(one_more.clone()));
        kernel.apply(&Step::Firewall(FirewallStep::Replace(from.clone()))).await.unwrap();
        all.push(
            milliseconds(kernel, Step::Firewall(FirewallStep::Update { from: from.clone(), to: others.clone() })).await,
        );
    }
    row("one source added to 10,000", median(one), "ms", Limit::AtMost(50.0));
    row("the class of 10,000 sources replaced at once", median(all), "ms", Limit::AtMost(500.0));
    row("a table of 10,000 sources put in place of another", median(whole), "ms", Limit::AtMost(500.0));
    row("the same read back", median(look), "ms", Limit::None);
}

/// From the kernel's word that the table is gone to its return, as the agent does it: look, then act.
async fn repair(kernel: &mut LinuxKernel) {
    let firewall = Arc::new(firewall(5_000));
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        kernel.apply(&Step::Firewall(FirewallStep::Delete)).await.unwrap();
        let begun = Instant::now();
        assert_eq!(kernel.observe().await.unwrap().firewall, ObservedFirewall::Absent);
        kernel.apply(&Step::Firewall(FirewallStep::Replace(firewall.clone()))).await.unwrap();
        took.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    row("a table of 5,000 sources back after it was deleted", median(took), "ms", Limit::AtMost(200.0));
}

/// A right goes that 100,000 connections live by.
async fn cutting(kernel: &mut LinuxKernel) {
    let (open, closed) = (wish(firewall(1)), wish(firewall(0)));
    let (mut took, mut worked) = (Vec::new(), Vec::new());
    for _ in 0..FEW_ROUNDS {
        kernel.apply(&Step::Firewall(FirewallStep::Replace(open.firewall.clone().unwrap()))).await.unwrap();
        in_neighbour(|| {
            for from in 0..FLOWS[0] {
                let socket = UdpSocket::bind((source(0), 20_000 + from)).unwrap();
                for port in 0..FLOWS[1] {
                    let _ = socket.send_to(b"x", (US, 1 + port));
                }
            }
        });
        let known = flows();
        assert!(known > 90_000, "{known}");
        let (begun, before) = (Instant::now(), processor_time());
        for step in steps(kernel, &closed).await {
            kernel.apply(&step).await.unwrap();
        }
        took.push(begun.elapsed().as_secs_f64() * 1e3);
        worked.push(processor_time() - before);
        assert!(flows() < 100, "{}", flows());
    }
    row("100,000 connections ended", median(took), "ms", Limit::AtMost(1_000.0));
    row("the same in processor time", median(worked), "ms", Limit::None);
}

/// Milliseconds that this process has worked.
fn processor_time() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let milliseconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    milliseconds(usage.user_time()) + milliseconds(usage.system_time())
}

/// The firewall's part of the plan. The link is not WireGuard, so the rest is made up.
async fn steps(kernel: &mut LinuxKernel, wish: &Desired) -> Vec<Step> {
    let seen = kernel.observe().await.unwrap();
    let mut model = ModelKernel::default();
    diff(wish, &model.state).steps.iter().for_each(|step| model.carry_out(step).unwrap());
    let observed = Observed { firewall: seen.firewall, flows_judged: seen.flows_judged, ..model.state };
    diff(wish, &observed).steps
}

/// One peer, and this firewall for it: all ports where it is let in.
fn wish(mut firewall: Firewall) -> Desired {
    for admits in firewall.classes.values_mut().flat_map(|class| class.rules.values_mut()) {
        *admits = admits.iter().map(|admit| Admit { ports: PortRange::ALL, ..*admit }).collect();
    }
    let allowed_ips = BTreeSet::from([IpAddr::V4(source(0)).into()]).into();
    let peer = PeerConfig { allowed_ips, endpoint: DesiredEndpoint::Leave, keepalive: 0 };
    let device = Device {
        private_key: NodePrivate::from_random([1; 32]),
        listen_port: own::LISTEN_PORT,
        fwmark: own::MARK_BYPASS,
        mtu: 1280,
        addresses: BTreeSet::from(["100.64.0.1/32".parse().unwrap()]),
        peers: BTreeMap::from([(NodePublic::from_bytes([7; 32]), Arc::new(peer))]),
    };
    Desired { device: Some(device), firewall: Some(Arc::new(firewall)), ..Desired::default() }
}

/// Connections that the kernel knows of.
fn flows() -> u32 {
    std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap().trim().parse().unwrap()
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
        served: ["100.64.0.1/32".parse().unwrap()].into_iter().collect(),
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
