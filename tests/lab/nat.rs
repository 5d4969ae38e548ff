//! An internet made of network namespaces: servers in the middle, and sites behind routers of every kind.
//!
//! Each site has a line of its own to the core, which routes between them. Behind the routers all sites use the
//! same private addresses, as in real life. Unsolicited packets to a router itself are dropped before conntrack
//! keeps them, as real routers do; a router that kept them would lose the port that the site is about to use.

use std::fs;

use crate::lab::{Host, Lab, Namespace};

/// How a site is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A public IPv4 address and nothing in between.
    Open,
    /// IPv4 behind a NAT that keeps the port.
    EasyNat,
    /// IPv4 behind a NAT that takes a new random port for each destination.
    HardNat,
    /// IPv4 behind a NAT that lets nothing but TCP out.
    UdpBlocked,
    /// IPv4 behind two NATs that keep the port, as behind a carrier's.
    DoubleNat,
    /// A public IPv4 address behind a firewall that admits answers only.
    Firewall,
    /// A public IPv6 address, and no IPv4.
    V6Only,
    /// IPv4 behind a NAT that keeps the port, and public IPv6 behind a firewall that admits answers only.
    DualStack,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Open,
        Self::EasyNat,
        Self::HardNat,
        Self::UdpBlocked,
        Self::DoubleNat,
        Self::Firewall,
        Self::V6Only,
        Self::DualStack,
    ];

    /// Its name in tables and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::EasyNat => "easy-nat",
            Self::HardNat => "hard-nat",
            Self::UdpBlocked => "udp-blocked",
            Self::DoubleNat => "double-nat",
            Self::Firewall => "firewall",
            Self::V6Only => "ipv6-only",
            Self::DualStack => "dual-stack",
        }
    }
}

/// The core, to which lines lead.
pub(crate) struct Internet {
    pub(crate) core: Namespace,
    lines: u8,
}

/// A public connection: the interface `wan` of a namespace, with these addresses.
pub(crate) struct Line {
    number: u8,
    pub(crate) v4: String,
    pub(crate) v6: String,
    /// The core's end of it.
    pub(crate) gateway: String,
}

/// The address families of a line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Families {
    V4,
    V6,
    Both,
}

/// A host and what stands between it and the core.
pub(crate) struct Site {
    pub(crate) kind: Kind,
    pub(crate) host: Host,
    /// From the host outwards.
    pub(crate) routers: Vec<Namespace>,
}

/// Nobody from outside opens a connection through here.
const ANSWERS_ONLY: &str = "table inet filter {
    chain input { type filter hook input priority filter; iifname \"wan\" ct state new,invalid drop; }
    chain forward { type filter hook forward priority filter; iifname \"wan\" ct state new,invalid drop; }
}";
const TCP_ONLY: &str = "table inet outwards {
    chain forward { type filter hook forward priority filter; oifname \"wan\" meta l4proto != tcp drop; }
}";

impl Internet {
    /// Lines that an internet can have: as many /30 as there are in a /24.
    const LINES: u8 = 64;

    /// One without any line.
    pub(crate) fn new(lab: &Lab) -> Self {
        let core = lab.namespace("core");
        forward(&core);
        Self { core, lines: 0 }
    }

    /// A dual-stack machine with nothing in between.
    pub(crate) fn server(&mut self, lab: &Lab, name: &str) -> Host {
        let namespace = lab.namespace(name);
        let line = self.line(&namespace, "wan", Families::Both);
        Host { namespace, v4: line.v4, v6: line.v6 }
    }

    /// Makes every packet to a server take this much longer.
    pub(crate) fn slow_down(&self, server: &Host, by: &str) {
        self.core.run(&format!("tc qdisc add dev {} root netem delay {by}", self.outlet(server)));
    }

    /// Pulls a host's cable at our end: its interface keeps its addresses and has no carrier.
    pub(crate) fn unplug(&self, host: &Host) {
        self.core.run(&format!("ip link set {} down", self.outlet(host)));
    }

    fn outlet(&self, host: &Host) -> String {
        let line = self.core.run(&format!("ip -o route get {}", host.v4));
        line.split_whitespace().skip_while(|word| *word != "dev").nth(1).unwrap().to_owned()
    }

    /// A new site of this kind.
    pub(crate) fn site(&mut self, lab: &Lab, name: &str, kind: Kind) -> Site {
        match kind {
            Kind::Open => self.open(lab, name, kind, Families::V4),
            Kind::V6Only => self.open(lab, name, kind, Families::V6),
            Kind::EasyNat => self.routed(lab, name, kind, &[&masquerade(""), ANSWERS_ONLY]),
            Kind::HardNat => self.routed(lab, name, kind, &[&masquerade("random,fully-random"), ANSWERS_ONLY]),
            Kind::UdpBlocked => self.routed(lab, name, kind, &[&masquerade(""), ANSWERS_ONLY, TCP_ONLY]),
            Kind::DualStack => self.routed(lab, name, kind, &[&masquerade(""), ANSWERS_ONLY]),
            Kind::Firewall => self.routed(lab, name, kind, &[ANSWERS_ONLY]),
            Kind::DoubleNat => self.double(lab, name),
        }
    }

    fn open(&mut self, lab: &Lab, name: &str, kind: Kind, families: Families) -> Site {
        let namespace = lab.namespace(name);
        let line = self.line(&namespace, "wan", families);
        let host = Host { namespace, v4: line.v4, v6: line.v6 };
        Site { kind, host, routers: Vec::new() }
    }

    fn routed(&mut self, lab: &Lab, name: &str, kind: Kind, rules: &[&str]) -> Site {
        let router = router(lab, &format!("{name}-router"), rules);
        let families = if kind == Kind::DualStack { Families::Both } else { Families::V4 };
        let line = self.line(&router, "wan", families);
        let host = self.behind(lab, name, kind, &router, &line);
        Site { kind, host, routers: vec![router] }
    }

    fn double(&mut self, lab: &Lab, name: &str) -> Site {
        let rules: [&str; 2] = [&masquerade(""), ANSWERS_ONLY];
        let (home, carrier) =
            (router(lab, &format!("{name}-router"), &rules), router(lab, &format!("{name}-carrier"), &rules));
        let line = self.line(&carrier, "wan", Families::V4);
        wire(&carrier, "lan", &home, "wan");
        carrier.run("ip address add 10.9.0.1/24 dev lan");
        home.run("ip address add 10.9.0.2/24 dev wan");
        home.run("ip route add default via 10.9.0.1");
        let host = self.behind(lab, name, Kind::DoubleNat, &home, &line);
        Site { kind: Kind::DoubleNat, host, routers: vec![home, carrier] }
    }

    /// A host on the inner side of a router.
    fn behind(&self, lab: &Lab, name: &str, kind: Kind, router: &Namespace, line: &Line) -> Host {
        let namespace = lab.namespace(name);
        wire(router, "lan", &namespace, "eth0");
        let (network, length) = match kind {
            Kind::Firewall => (line.routed_v4(&self.core), 30),
            _ => (Lan::PRIVATE, 24),
        };
        let mut host = Host { namespace, v4: network.host(2), v6: String::new() };
        router.run(&format!("ip address add {}/{length} dev lan", network.host(1)));
        host.run(&format!("ip address add {}/{length} dev eth0", host.v4));
        host.run(&format!("ip route add default via {}", network.host(1)));
        if !line.v6.is_empty() {
            let prefix = line.delegated_v6(&self.core);
            router.run(&format!("ip address add {prefix}1/64 dev lan nodad"));
            link_local(router, "lan");
            host.v6 = format!("{prefix}2");
            host.run(&format!("ip address add {}/64 dev eth0 nodad", host.v6));
            host.run(&format!("ip -6 route add default via {prefix}1"));
        }
        host
    }

    /// Connects a namespace, which gets an interface of this name.
    pub(crate) fn line(&mut self, to: &Namespace, interface: &str, families: Families) -> Line {
        let number = self.lines;
        assert!(number < Self::LINES, "an internet has {} lines", Self::LINES);
        self.lines += 1;
        let mut line = Line { number, v4: String::new(), v6: String::new(), gateway: String::new() };
        let outlet = format!("line{number}");
        wire(&self.core, &outlet, to, interface);
        if families != Families::V6 {
            let network = Lan { prefix: "198.51.100", first: 4 * number };
            line.v4 = network.host(2);
            line.gateway = network.host(1);
            self.core.run(&format!("ip address add {}/30 dev {outlet}", network.host(1)));
            to.run(&format!("ip address add {}/30 dev {interface}", line.v4));
            to.run(&format!("ip route add default via {} metric {}", network.host(1), 100 + u32::from(number)));
        }
        if families != Families::V4 {
            let prefix = format!("2001:db8:{number:x}::");
            line.v6 = format!("{prefix}2");
            self.core.run(&format!("ip address add {prefix}1/64 dev {outlet} nodad"));
            link_local(&self.core, &outlet);
            link_local(to, interface);
            to.run(&format!("ip address add {}/64 dev {interface} nodad", line.v6));
            to.run(&format!("ip -6 route add default via {prefix}1 metric {}", 100 + u32::from(number)));
        }
        line
    }
}

impl Line {
    /// A public IPv4 network that the core sends down this line.
    fn routed_v4(&self, core: &Namespace) -> Lan {
        let network = Lan { prefix: "203.0.113", first: 4 * self.number };
        core.run(&format!("ip route add {}/30 via {}", network.host(0), self.v4));
        network
    }

    /// A public IPv6 prefix, to which a host number is appended, that the core sends down this line.
    fn delegated_v6(&self, core: &Namespace) -> String {
        let prefix = format!("2001:db8:{:x}:1::", self.number);
        core.run(&format!("ip -6 route add {prefix}/64 via {}", self.v6));
        prefix
    }
}

/// An IPv4 network within a /24.
#[derive(Clone, Copy)]
struct Lan {
    prefix: &'static str,
    first: u8,
}

impl Lan {
    const PRIVATE: Self = Self { prefix: "192.168.1", first: 0 };

    fn host(self, number: u8) -> String {
        format!("{}.{}", self.prefix, self.first + number)
    }
}

/// A namespace that forwards, by these rules.
fn router(lab: &Lab, name: &str, rules: &[&str]) -> Namespace {
    let router = lab.namespace(name);
    forward(&router);
    router.nft(&rules.join("\n"));
    router
}

fn masquerade(how: &str) -> String {
    format!(
        "table ip nat {{
            chain postrouting {{ type nat hook postrouting priority srcnat; oifname \"wan\" masquerade {how}; }}
        }}"
    )
}

/// Whoever forwards IPv6 asks for its neighbours from such an address.
fn link_local(namespace: &Namespace, interface: &str) {
    let end = if interface.starts_with("wan") { 2 } else { 1 };
    namespace.run(&format!("ip address add fe80::{end}/64 dev {interface} nodad"));
}

/// A cable between two namespaces. No link-local addresses: a site has the families that its kind names.
fn wire(left: &Namespace, left_name: &str, right: &Namespace, right_name: &str) {
    left.run(&format!("ip link add {left_name} type veth peer name {right_name} netns {}", right.name));
    for (end, name) in [(left, left_name), (right, right_name)] {
        end.run(&format!("ip link set {name} addrgenmode none"));
        end.run(&format!("ip link set {name} up"));
    }
}

fn forward(namespace: &Namespace) {
    namespace.inside(|| {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    });
}
