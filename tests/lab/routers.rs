//! The sites behave as they are named: what the matrix takes for granted, tried with plain sockets.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::lab::{Host, Lab};
use crate::nat::{Internet, Kind, Site};
use crate::theory::{Way, expected};

/// How long a packet may take, and how long the absence of one is waited for.
const SOON: Duration = Duration::from_millis(400);
/// What sites use as their local port.
const PORT: u16 = 41741;

#[test]
fn each_router_maps_and_filters_as_its_kind_says() {
    let Some(lab) = Lab::without_tunnels() else { return };
    let mut internet = Internet::new(&lab);
    let (one, two) = (internet.server(&lab, "one"), internet.server(&lab, "two"));

    for kind in Kind::ALL {
        let site = internet.site(&lab, kind.name(), kind);
        let shape = Shape::of(&site, &one, &two);
        let wanted = match kind {
            Kind::Open | Kind::V6Only => Shape { passes: true, keeps_port: true, stable: true, open: true },
            Kind::EasyNat | Kind::DoubleNat | Kind::Firewall | Kind::DualStack => {
                Shape { passes: true, keeps_port: true, stable: true, open: false }
            }
            Kind::HardNat => Shape { passes: true, keeps_port: false, stable: false, open: false },
            Kind::UdpBlocked => Shape { passes: false, keeps_port: false, stable: false, open: false },
        };
        assert_eq!(shape, wanted, "{}", kind.name());
    }
}

#[test]
fn every_site_reaches_a_server_by_tcp_over_the_families_it_has() {
    let Some(lab) = Lab::without_tunnels() else { return };
    let mut internet = Internet::new(&lab);
    let server = internet.server(&lab, "server");
    let _listener = server.namespace.inside(|| TcpListener::bind("[::]:80").unwrap());

    for kind in Kind::ALL {
        let site = internet.site(&lab, kind.name(), kind);
        let reaches = |address: &str| {
            let address = SocketAddr::new(address.parse().unwrap(), 80);
            site.host.namespace.inside(move || TcpStream::connect_timeout(&address, SOON).is_ok())
        };
        assert_eq!(reaches(&server.v4), kind != Kind::V6Only, "{} over IPv4", kind.name());
        assert_eq!(reaches(&server.v6), matches!(kind, Kind::V6Only | Kind::DualStack), "{} over IPv6", kind.name());
    }
}

#[test]
fn punching_by_hand_gets_through_exactly_where_theory_says_direct() {
    let Some(lab) = Lab::without_tunnels() else { return };
    let mut internet = Internet::new(&lab);
    let server = internet.server(&lab, "server");
    let mut wrong = Vec::new();
    let lefts = Kind::ALL.map(|kind| internet.site(&lab, &format!("left-{}", kind.name()), kind));
    let rights = Kind::ALL.map(|kind| internet.site(&lab, &format!("right-{}", kind.name()), kind));

    // A port of its own for each pair: no pair finds a way that another has opened.
    let mut port = PORT;
    for left in &lefts {
        for right in &rights {
            port += 1;
            let found = if punch(&server, left, right, port) { Way::Direct } else { Way::Relay };
            if found != expected(left.kind, right.kind) {
                wrong.push(format!("{} to {}: {found:?}", left.kind.name(), right.kind.name()));
            }
        }
    }

    assert!(wrong.is_empty(), "{wrong:?}");
}

/// What a router does to UDP (RFC 4787's terms: mapping and filtering).
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    passes: bool,
    keeps_port: bool,
    /// The same outer port for every destination.
    stable: bool,
    /// Admits packets from those to whom nothing was sent.
    open: bool,
}

impl Shape {
    fn of(site: &Site, one: &Host, two: &Host) -> Self {
        let family = if site.host.v4.is_empty() { 6 } else { 4 };
        let inner = socket(&site.host, family, PORT);
        let servers = [socket(one, family, 7001), socket(one, family, 7002), socket(two, family, 7001)];
        let stranger = socket(two, family, 7002);

        let seen: Vec<_> = servers.iter().map(|server| pass(&inner, server)).collect();
        let Some(outer) = seen[0] else {
            assert!(seen.iter().all(Option::is_none), "{seen:?}");
            return Self { passes: false, keeps_port: false, stable: false, open: false };
        };
        // Each of them may answer; one to whom nothing was sent may not, except where there is no filter.
        for (server, source) in servers.iter().zip(&seen) {
            assert!(receives(&inner, server, source.unwrap()), "{} gets no answer", site.kind.name());
        }
        Self {
            passes: true,
            keeps_port: outer.port() == PORT,
            stable: seen.iter().all(|source| source.map(|s| s.port()) == Some(outer.port())),
            open: receives(&inner, &stranger, outer),
        }
    }
}

/// Sends a packet; where it seems to come from.
fn pass(from: &UdpSocket, to: &UdpSocket) -> Option<SocketAddr> {
    from.send_to(b"hello", to.local_addr().unwrap()).ok()?;
    to.recv_from(&mut [0; 16]).ok().map(|(_, source)| source)
}

fn receives(inner: &UdpSocket, server: &UdpSocket, outer: SocketAddr) -> bool {
    server.send_to(b"hello", outer).unwrap();
    inner.recv_from(&mut [0; 16]).is_ok()
}

/// Whether two sites that know what a server saw of each other get a packet through and answered.
fn punch(server: &Host, left: &Site, right: &Site, port: u16) -> bool {
    [4, 6].into_iter().any(|family| {
        let has = |host: &Host| !address(host, family).is_empty();
        if !has(&left.host) || !has(&right.host) {
            return false;
        }
        let observer = socket(server, family, port);
        let ends = [socket(&left.host, family, port), socket(&right.host, family, port)];
        let Some(outer) = pass(&ends[0], &observer).zip(pass(&ends[1], &observer)) else { return false };
        meet(&ends, [outer.0, outer.1])
    })
}

/// Each sends to where the other was seen, and answers whoever reaches it, three times over.
fn meet(ends: &[UdpSocket; 2], outer: [SocketAddr; 2]) -> bool {
    for _ in 0..3 {
        let _ = ends[0].send_to(b"ping", outer[1]);
        let _ = ends[1].send_to(b"ping", outer[0]);
        for end in ends {
            end.set_read_timeout(Some(Duration::from_millis(120))).unwrap();
            let mut buffer = [0; 16];
            while let Ok((length, source)) = end.recv_from(&mut buffer) {
                if &buffer[..length] == b"pong" {
                    return true;
                }
                let _ = end.send_to(b"pong", source);
            }
        }
    }
    false
}

fn address(host: &Host, family: u8) -> &str {
    if family == 4 { &host.v4 } else { &host.v6 }
}

fn socket(host: &Host, family: u8, port: u16) -> UdpSocket {
    let address: IpAddr = address(host, family).parse().unwrap();
    let socket = host.namespace.inside(move || UdpSocket::bind((address, port)).unwrap());
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}
