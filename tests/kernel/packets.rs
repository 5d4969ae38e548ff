//! What the table means for packets: three namespaces, real WireGuard on both sides.
//!
//! ```text
//! peer ──veth── us ──veth── lan
//!    └─WireGuard─┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use warren_core::plan::{
    Admit, Class, ClassId, Desired, DesiredEndpoint, Egress, Firewall, Kernel, PeerConfig, PortRange, Protocol,
    RouteLookup, RuleId, own,
};
use warren_core::types::{IpNet, NodePublic};
use warren_linux::LinuxKernel;

use crate::common::*;
use crate::neighbour::Neighbour;

/// How long a packet that is dropped is waited for.
const SILENCE: Duration = Duration::from_millis(1_500);
pub(crate) const PEER: &str = "100.64.0.2";
const STRANGER: &str = "100.64.0.66";
pub(crate) const US: &str = "100.64.0.1";
const US_V6: &str = "fd7a:115c:a1e0::1";
const PEER_V6: &str = "fd7a:115c:a1e0::2";
const LAN_HOST: &str = "10.7.0.2";

#[test]
fn what_the_policy_admits_passes_and_the_rest_is_dropped_and_counted() {
    in_namespace(Needs::WireGuard, || async {
        let net = Network::build();
        let mut kernel = LinuxKernel::new().unwrap();
        converge(&mut kernel, &net.wish(policy())).await;

        // Admitted: port 80 of ours and of the network we carry, from the peer's address, both families.
        assert!(net.peer.connects(PEER, US, 80));
        assert!(net.peer.connects(PEER_V6, US_V6, 80));
        assert!(net.peer.connects(PEER, LAN_HOST, 80));
        assert!(counted("rule_0000000000000001") >= 3);
        // Any right to a destination admits a ping.
        assert!(net.peer.pings(PEER, US));
        assert!(net.peer.pings(PEER_V6, US_V6));

        let before = counted("denied_by_policy");
        assert!(!net.peer.connects(PEER, US, 81));
        assert!(!net.peer.connects(PEER_V6, US_V6, 81));
        assert!(!net.peer.connects(PEER, LAN_HOST, 81));
        assert!(counted("denied_by_policy") >= before + 3);

        assert!(!net.peer.connects(STRANGER, US, 80));
        assert!(!net.peer.pings(STRANGER, US));
        assert!(counted("denied_unknown_source") >= 2);

        // An address of this host that is not served.
        assert!(!net.peer.connects(PEER, "10.7.0.1", 80));
        assert!(counted("denied_foreign_destination") >= 1);
    });
}

#[test]
fn what_we_open_ourselves_is_answered_whatever_the_policy_says() {
    in_namespace(Needs::WireGuard, || async {
        let net = Network::build();
        let mut kernel = LinuxKernel::new().unwrap();
        let shields_up = Firewall { served: policy().served, tunnelled: overlay(), ..Firewall::default() };
        converge(&mut kernel, &net.wish(shields_up)).await;

        assert!(connects(US, PEER, 80));
        assert!(connects(US_V6, PEER_V6, 80));
        assert!(!net.peer.connects(PEER, US, 80));
        assert!(!net.peer.pings(PEER, US));
        // Errors pass, so that a closed port says so at once and paths learn their packet size.
        let refused = TcpStream::connect_timeout(&socket(PEER, 82), PATIENCE).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn the_network_we_carry_opens_nothing_into_the_overlay() {
    in_namespace(Needs::WireGuard, || async {
        let net = Network::build();
        let mut kernel = LinuxKernel::new().unwrap();
        converge(&mut kernel, &net.wish(policy())).await;

        assert!(!net.lan.connects(LAN_HOST, PEER, 80));
        assert!(counted("denied_unasked_into_overlay") >= 1);
        assert!(net.peer.connects(PEER, LAN_HOST, 80), "answers go through");
    });
}

/// Every object of ours is in its place, and somebody's rule before ours has a default route for everything.
#[test]
fn what_is_led_astray_is_seen_and_does_not_leave_in_clear() {
    in_namespace(Needs::WireGuard, || async {
        let net = Network::build();
        let mut kernel = LinuxKernel::new().unwrap();
        let wish = net.wish(policy());
        converge(&mut kernel, &wish).await;
        let told = |lookups: &[RouteLookup]| {
            lookups.iter().filter_map(|lookup| lookup.misroute(&wish)).map(|m| m.to_string()).collect::<Vec<_>>()
        };
        let seen = observe(&mut kernel).await;
        assert_eq!(told(&seen.lookups), [""; 0]);
        assert!(
            seen.lookups.iter().any(|lookup| lookup.egress == Egress::Tunnel && !lookup.marked),
            "{:?}",
            seen.lookups
        );
        assert!(
            seen.lookups.iter().any(|lookup| lookup.egress != Egress::Tunnel && lookup.marked),
            "{:?}",
            seen.lookups
        );

        sh("ip route add default via 192.0.2.2 table 100 && ip rule add pref 1000 lookup 100");
        sh("ip -6 rule add pref 1001 unreachable");
        let seen = observe(&mut kernel).await;
        let told = told(&seen.lookups).join("\n");
        assert!(told.contains(&format!("packets to {PEER} are sent to wan and not into the tunnel")), "{told}");
        assert!(
            told.contains("rule 1000 of another program is asked before ours and sends them to table 100"),
            "{told}"
        );
        assert!(told.contains(&format!("packets to {PEER_V6} do not get into the tunnel")), "{told}");
        assert!(told.contains("rule 1001 of another program is asked before ours. Let"), "{told}");

        // It would arrive at the peer's other side, whose address this is as well.
        let clear = UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"secret", socket(PEER, 9));
        assert_eq!(clear.unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(counted("denied_astray"), 1);
        // What somebody else marked is not our own: Cilium's mark of identity 0x0500, as far as bits of ours go.
        sh("ip rule del pref 1000");
        let way = sh(&format!("ip route get {PEER} mark 0x05000f00"));
        assert!(way.contains("dev warren0"), "{way}");
        let way = sh(&format!("ip route get {PEER} mark {:#x} || true", own::MARK_BYPASS));
        assert!(!way.contains("dev warren0"), "{way}");

        sh("ip rule add pref 1000 lookup 100");
        let lookups = kernel.observe().await.unwrap().lookups;
        let told = lookups.iter().filter_map(|lookup| lookup.misroute(&wish)).map(|misroute| misroute.to_string());
        let commands: BTreeSet<String> = told.map(|text| text.split('`').nth(1).unwrap().to_owned()).collect();
        commands.iter().for_each(|command| _ = sh(command));
        let left = observe(&mut kernel).await.lookups;
        assert!(
            left.iter().all(|lookup| lookup.misroute(&wish).is_none()),
            "the command that is told mends it: {left:?}"
        );
    });
}

#[test]
fn an_overlay_source_from_the_wrong_side_is_dropped_and_other_uses_of_the_range_are_not() {
    in_namespace(Needs::WireGuard, || async {
        let net = Network::build();
        let mut kernel = LinuxKernel::new().unwrap();
        converge(&mut kernel, &net.wish(policy())).await;
        let socket = UdpSocket::bind("192.0.2.1:9").unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();

        // The peer's own overlay address, but outside the tunnel.
        net.peer.send_from(PEER, "192.0.2.1", 9);
        assert!(socket.recv(&mut [0; 16]).is_err());
        assert!(counted("denied_spoofed_source") >= 1);

        // The provider's network lies in the same range, and its route leads there.
        sh("ip addr add 100.99.0.1/24 dev wan && ip rule add pref 5200 to 100.99.0.0/24 table main");
        net.peer.sh("ip addr add 100.99.0.2/24 dev wan");
        net.peer.send_from("100.99.0.2", "192.0.2.1", 9);
        assert!(socket.recv(&mut [0; 16]).is_ok());

        // What we send to ourselves is not judged.
        let own = UdpSocket::bind((US, 9)).unwrap();
        own.set_read_timeout(Some(PATIENCE)).unwrap();
        UdpSocket::bind((US, 0)).unwrap().send_to(b"own", (US, 9)).unwrap();
        assert!(own.recv(&mut [0; 16]).is_ok());
    });
}

#[test]
fn a_session_outlives_changes_to_its_peer() {
    in_namespace(Needs::WireGuard, || async {
        let net = Network::build();
        let mut kernel = LinuxKernel::new().unwrap();
        let mut wish = net.wish(policy());
        converge(&mut kernel, &wish).await;
        assert!(net.peer.connects(PEER, US, 80));
        let handshake = || sh("wg show warren0 latest-handshakes");
        let before = handshake();

        let device = wish.device.as_mut().unwrap();
        let peer = Arc::make_mut(device.peers.get_mut(&net.peer_key).unwrap());
        peer.allowed_ips = nets(&["100.64.0.2/32", "fd7a:115c:a1e0::2/128", "10.20.0.0/16"]);
        peer.keepalive = 25;
        converge(&mut kernel, &wish).await;

        assert!(net.peer.connects(PEER, US, 80));
        assert_eq!(handshake(), before, "no new handshake was needed");
        let seen = observe(&mut kernel).await.device.unwrap();
        let peer = &seen.peers[&net.peer_key];
        assert!(peer.last_handshake.is_some() && peer.rx_bytes > 0 && peer.tx_bytes > 0);
    });
}

fn overlay() -> BTreeSet<IpNet> {
    nets(&["100.64.0.0/10", "fd7a:115c:a1e0::/48"])
}

/// The peer may open port 80 of ours and of the network we carry.
pub(crate) fn policy() -> Firewall {
    let port_80 = |destination: &str| Admit {
        destination: net(destination),
        protocol: Protocol::TCP,
        ports: PortRange { first: 80, last: 80 },
    };
    let admits = BTreeSet::from(["100.64.0.1/32", "fd7a:115c:a1e0::1/128", "10.7.0.0/24"].map(port_80));
    let class = Class { rules: BTreeMap::from([(RuleId(1), admits)]) };
    Firewall {
        served: nets(&["100.64.0.1/32", "fd7a:115c:a1e0::1/128", "10.7.0.2/32"]),
        tunnelled: overlay(),
        classes: BTreeMap::from([(ClassId(1), class)]),
        hosts: [PEER, PEER_V6].map(|address| (address.parse().unwrap(), ClassId(1))).into(),
        subnets: BTreeMap::new(),
        ..Firewall::default()
    }
}

/// The test's own namespace with its two neighbours, in which something listens on ports 80 and 81.
pub(crate) struct Network {
    pub(crate) peer: Neighbour,
    lan: Neighbour,
    pub(crate) peer_key: NodePublic,
    /// Ours first.
    pub(crate) listeners: Vec<TcpListener>,
}

impl Network {
    pub(crate) fn build() -> Self {
        let (peer, lan) = (Neighbour::beside("warren-test-peer", "wan"), Neighbour::beside("warren-test-lan", "lan"));
        sh("ip addr add 192.0.2.1/24 dev wan && ip addr add 10.7.0.1/24 dev lan");
        sh("sysctl -q -w net.ipv4.ip_forward=1 || echo 1 > /proc/sys/net/ipv4/ip_forward");
        peer.sh("ip addr add 192.0.2.2/24 dev wan");
        lan.sh("ip addr add 10.7.0.2/24 dev lan && ip route add default via 10.7.0.1");

        // The other side is set up by hand, so that nothing of ours tests itself.
        let (key, us) = (private(2), private(1).public());
        let secret = data_encoding::BASE64.encode(key.expose_bytes());
        peer.sh(&format!(
            "ip link add wg0 type wireguard && echo {secret} | wg set wg0 private-key /dev/stdin listen-port 41741 \
             peer {} endpoint 192.0.2.1:41741 allowed-ips 0.0.0.0/0,::/0 && ip link set wg0 up",
            us.base64(),
        ));
        for address in [PEER, STRANGER] {
            peer.sh(&format!("ip addr add {address}/32 dev wg0"));
        }
        peer.sh(&format!("ip addr add {PEER_V6}/128 dev wg0 nodad"));
        peer.sh("ip route add 100.64.0.1/32 dev wg0 && ip -6 route add fd7a:115c:a1e0::1/128 dev wg0");
        peer.sh("ip route add 10.7.0.0/24 dev wg0");

        let listen = || [80, 81].map(|port| TcpListener::bind((IpAddr::from([0u16; 8]), port)).unwrap());
        let mut listeners: Vec<TcpListener> = listen().into();
        listeners.extend(peer.within(listen));
        listeners.extend(lan.within(listen));
        Self { peer, lan, peer_key: key.public(), listeners }
    }

    pub(crate) fn wish(&self, firewall: Firewall) -> Desired {
        let mut wish = wish();
        let device = wish.device.as_mut().unwrap();
        let peer = PeerConfig {
            allowed_ips: nets(&["100.64.0.2/32", "100.64.0.66/32", "fd7a:115c:a1e0::2/128"]),
            endpoint: DesiredEndpoint::Initial("192.0.2.2:41741".parse().unwrap()),
            keepalive: 0,
        };
        device.peers = BTreeMap::from([(self.peer_key, Arc::new(peer))]);
        wish.firewall = Some(Arc::new(firewall));
        wish
    }
}

/// What is tried from a neighbour.
impl Neighbour {
    fn connects(&self, from: &'static str, to: &'static str, port: u16) -> bool {
        self.within(move || connects(from, to, port))
    }

    /// Sends one datagram from an address that the wire to us should not carry.
    fn send_from(&self, from: &'static str, to: &'static str, port: u16) {
        self.within(move || {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.send_to(b"probe", (to, port)).unwrap();
        });
    }
}

/// Whether a TCP connection from this address comes about.
fn connects(from: &str, to: &str, port: u16) -> bool {
    let domain = socket2::Domain::for_address(socket(to, port));
    let client = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
    client.bind(&socket(from, 0).into()).unwrap();
    client.connect_timeout(&socket(to, port).into(), SILENCE).is_ok()
}

fn socket(address: &str, port: u16) -> SocketAddr {
    (address.parse::<IpAddr>().unwrap(), port).into()
}

/// What a counter of our table says.
pub(crate) fn counted(name: &str) -> u64 {
    let listing = json(&format!("nft -j list counter inet warren {name}"));
    listing["nftables"][1]["counter"]["packets"].as_u64().unwrap()
}
