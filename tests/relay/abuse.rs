//! What bad clients cost, and that it is they who pay.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use warren_core::wire::derp::{Frame, HEADER_LEN};

use crate::client::{Client, get_body};
use crate::place::place;
use crate::server::Server;

/// What the relay may hold beside the connections that are counted: its code, its own buffers, the allocator's slack.
const BASE_KIB: u64 = 48 * 1024;
const CONNECTIONS: usize = 10_000;
/// What a connection may cost that said nothing yet.
const HALF_OPEN_KIB: u64 = 16;

/// Two clients who mind their own business.
fn still_served(address: SocketAddr, n: u8) {
    let (mut one, mut two) = (Client::joined(address, n), Client::joined(address, n + 1));
    for round in 0..100_u8 {
        one.say(Frame::SendPacket { to: two.key.public(), packet: &[round; 1400] });
        assert_eq!(two.packet(), [round; 1400]);
    }
}

#[test]
fn ten_thousand_half_open_connections_leave_room_for_others() {
    let number = possible_connections();
    let server = Server::start(&["--open"]);
    let half_open: Vec<TcpStream> = (0..number)
        .map(|index| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            // Nothing, a beginning, or an upgrade without an introduction.
            let said: &[u8] = [&b""[..], b"GET /derp HT", UPGRADE][index % 3];
            stream.write_all(said).unwrap();
            stream
        })
        .collect();
    still_served(server.address, 2);
    let held = server.resident_kib();
    let most = BASE_KIB + number as u64 * HALF_OPEN_KIB;
    assert!(held < most, "{held} KiB are held for {number} connections, at most {most} are expected");
    println!("{number} half-open connections, {} open at the end: {held} KiB held", server.open_files());
    drop(half_open);
}

/// 10,000, or as many as the limits permit of this process and of the relay, its child.
fn possible_connections() -> usize {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let number = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(500).min(CONNECTIONS);
    if number < CONNECTIONS {
        eprintln!("{number} connections instead of {CONNECTIONS}: this host limits open files to {most}");
    }
    number
}

const UPGRADE: &[u8] = b"GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: derp\r\n\r\n";

#[test]
fn readers_that_do_not_read_lose_their_packets_and_then_their_connection() {
    let metrics = place();
    let server = Server::start(&["--open", "--metrics", &metrics.to_string()]);
    let mut sender = Client::joined(server.address, 2);
    let lazy: Vec<Client> = (10..14).map(|n| Client::joined(server.address, n)).collect();
    // More than sockets and queues hold. The sender never waits for those who do not read.
    for _ in 0..10_000 {
        for client in &lazy {
            sender.say(Frame::SendPacket { to: client.key.public(), packet: &[7; 1400] });
        }
    }
    still_served(server.address, 100);
    let most = BASE_KIB + lazy.len() as u64 * 1024;
    assert!(server.resident_kib() < most, "{} KiB are held", server.resident_kib());
    let closed = |text: &str| text.contains(&format!("warren_relay_clients_slow_total {}\n", lazy.len()));
    while !closed(&get_body(metrics, "/metrics")) {}
    still_served(server.address, 200);
}

#[test]
fn a_giant_frame_is_refused_by_its_header() {
    let server = Server::start(&["--open"]);
    let before = server.resident_kib();
    let mut giants: Vec<Client> = (2..52).map(|n| Client::joined(server.address, n)).collect();
    for giant in &mut giants {
        giant.io.write_all(b"\x04\x7f\xff\xff\xff").unwrap();
        assert_eq!(giant.frame_or_end(), None);
    }
    still_served(server.address, 100);
    assert!(server.resident_kib() < before + BASE_KIB);
    // The largest that is allowed is still relayed.
    let (mut one, mut two) = (Client::joined(server.address, 102), Client::joined(server.address, 103));
    let largest = vec![9; warren_core::wire::derp::MAX_PACKET];
    one.say(Frame::SendPacket { to: two.key.public(), packet: &largest });
    assert_eq!(two.packet(), largest);
}

#[test]
fn a_flood_of_one_key_costs_only_that_key() {
    let server = Server::start(&["--open"]);
    let mut flood: Vec<Client> = (0..100).map(|_| Client::connect(server.address, 2)).collect();
    // Those that are let in answer pings; all others are closed.
    let let_in = flood.iter_mut().filter_map(Client::answers).count();
    assert!((1..=16).contains(&let_in), "{let_in}");
    still_served(server.address, 100);
}

#[test]
fn a_flood_of_packets_to_one_key_keeps_others_served() {
    let server = Server::start(&["--open"]);
    let victim = Client::joined(server.address, 2);
    let address = server.address;
    let to = victim.key.public();
    std::thread::scope(|scope| {
        for n in 10..14 {
            scope.spawn(move || {
                let mut client = Client::joined(address, n);
                let mut frame = Vec::new();
                Frame::SendPacket { to, packet: &[1; 1400] }.encode(&mut frame);
                let burst = frame.repeat(64);
                assert!(burst.len() > HEADER_LEN);
                for _ in 0..200 {
                    client.io.write_all(&burst).unwrap();
                }
            });
        }
        still_served(address, 100);
    });
}

#[test]
fn introductions_that_are_never_finished_cost_little() {
    let server = Server::start(&["--open"]);
    let before = server.resident_kib();
    let head = [2_u8, 0, 3, 0xff, 0xff];
    let mut refused = 0;
    let half: Vec<TcpStream> = (0..400)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.write_all(UPGRADE).unwrap();
            // A frame of 256 KiB is announced, and all but its last byte sent.
            let sent = stream.write_all(&head).and_then(|()| stream.write_all(&vec![7; 262_142]));
            refused += usize::from(sent.is_err());
            stream
        })
        .collect();
    still_served(server.address, 2);
    let grown = server.resident_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB for {} introductions, {refused} refused early", half.len());
}
