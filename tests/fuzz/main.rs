//! Any bytes at all into every decoder: an answer or an error, never a panic, never without end.
//!
//! `corpus/DECODER/` holds messages: `ok-…` must be taken, `bad-…` must be refused; `.hex` files are hexadecimal, with
//! comments after `#`. Each is replayed as it is, cut off after every byte, and changed in [`CHANGES`] ways drawn from
//! a fixed seed, so a failure repeats. A new decoder is one line in [`DECODERS`] and at least one `ok-` file; an input
//! that once broke something is a file too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::de::DeserializeOwned;
use warren::derp::{Client, ConnectionId, Greeting, Limits, Server};
use warren::netmap::Netmap;
use warren::path::netcheck::Gateway;
use warren::path::portmap;
use warren::path::{Book, Ground, PeerInfo, Via};
use warren::plan::{Host, Paths, Prefs, desired};
use warren::policy::{Compiled, Policy, Topology};
use warren::types::{CapabilityVersion, DiscoPrivate, MachinePrivate, NodePrivate, NodePublic, Timestamp};
use warren::wire::control::{DerpMap, MapRequest, MapResponse, RegisterRequest, RegisterResponse};
use warren::wire::local::{MaskedPrefs, StartOptions, Status};
use warren::wire::map_stream::{MapStreamDecoder, Packing};
use warren::wire::noise::{ClientHandshake, EarlyDecoder, Ephemeral, ServerHandshake};
use warren::wire::portmap::{Place, igd, nat_pmp, pcp, ssdp};
use warren::wire::{derp, disco, stun};

/// Changed copies of each message in the corpus.
const CHANGES: usize = 2_000;

/// Who sends the ping in the corpus of `path_book`.
const PINGER: &str = "nodekey:50a61409b1ddd0325e9b16b700e719e9772c07000b1bd7786e907c653d20495d";

/// Reads bytes of strangers; says whether it takes them.
type Decode = fn(&[u8]) -> bool;

const DECODERS: &[(&str, Decode)] = &[
    ("derp_client", derp_client),
    ("derp_frame", derp_frame),
    ("derp_map", json::<DerpMap>),
    ("derp_server", derp_server),
    ("disco", |bytes| disco::sender(bytes).is_ok_and(|theirs| opens(&theirs, bytes))),
    ("local_prefs", json::<MaskedPrefs>),
    ("local_start", json::<StartOptions>),
    ("local_status", json::<Status>),
    ("map_request", json::<MapRequest>),
    ("map_response", map_response),
    ("map_stream_plain", |bytes| map_stream(Packing::Plain, bytes)),
    ("map_stream_zstd", |bytes| map_stream(Packing::Zstd, bytes)),
    ("noise_answer", noise_answer),
    ("noise_early", |bytes| EarlyDecoder::default().read(bytes).is_ok_and(|early| early.is_some())),
    ("noise_initiation", |bytes| ServerHandshake::read(&machine(1), bytes, ephemeral(2)).is_ok()),
    ("path_book", path_book),
    ("policy", policy),
    ("portmap_igd_answer", |bytes| igd::read(bytes).is_ok()),
    ("portmap_igd_description", |bytes| igd::Service::find(bytes, &router()).is_ok()),
    ("portmap_nat_pmp", |bytes| nat_pmp::read(bytes).is_ok()),
    ("portmap_pcp", |bytes| pcp::read(bytes).is_ok()),
    ("portmap_ssdp", |bytes| ssdp::read(bytes).is_ok()),
    ("register_request", json::<RegisterRequest>),
    ("register_response", json::<RegisterResponse>),
    ("stun_request", |bytes| stun::read_request(bytes).is_ok()),
    ("stun_response", |bytes| stun::read_response(bytes).is_ok()),
];

#[test]
fn every_decoder_takes_the_good_and_refuses_the_bad_messages_of_its_corpus() {
    for (decoder, decode) in DECODERS {
        let corpus = corpus(decoder);
        assert!(corpus.keys().any(|name| name.starts_with("ok-")), "{decoder} has no message that it takes");
        for (name, bytes) in corpus {
            assert_eq!(decode(&bytes), name.starts_with("ok-"), "{decoder}/{name}");
        }
    }
}

#[test]
fn no_decoder_falls_over_a_message_that_is_cut_off_anywhere() {
    for (decoder, decode) in DECODERS {
        for bytes in corpus(decoder).values() {
            for length in 0..bytes.len() {
                decode(&bytes[..length]);
            }
        }
    }
}

#[test]
fn no_decoder_falls_over_changed_messages() {
    let mut chance = Chance(0x5741_5252_454e_0001);
    for (decoder, decode) in DECODERS {
        for bytes in corpus(decoder).values() {
            for _ in 0..CHANGES {
                decode(&chance.change(bytes));
            }
        }
    }
}

#[test]
fn every_corpus_belongs_to_a_decoder() {
    for entry in fs::read_dir(Path::new("tests/fuzz/corpus")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(DECODERS.iter().any(|(decoder, _)| name.to_str() == Some(decoder)), "{name:?} has no decoder");
    }
}

/// A day with a gateway that says whatever comes to mind, in its own name and in reply to everything: a few questions a
/// minute at most, and no end to them.
#[test]
fn a_gateway_that_says_anything_at_all_is_asked_a_bounded_number_of_times() {
    let mut chance = Chance(0x5741_5252_454e_0002);
    let datagrams: Vec<_> =
        ["portmap_pcp", "portmap_nat_pmp", "portmap_ssdp"].iter().flat_map(|d| corpus(d).into_values()).collect();
    let bodies: Vec<_> =
        ["portmap_igd_description", "portmap_igd_answer"].iter().flat_map(|d| corpus(d).into_values()).collect();
    let gateway = Gateway { address: "192.168.1.1".parse().unwrap(), local: "192.168.1.5".parse().unwrap() };
    for _ in 0..20 {
        let begun = now();
        let mut mapper = portmap::PortMapper::new(41_741, *b"abcdefghijkl");
        mapper.handle_gateway(Some(gateway));
        let mut asked = 0;
        for minute in 0..24 * 60 {
            let now = begun + Duration::from_secs(60 * minute);
            mapper.handle_wanted(now);
            mapper.handle_timeout(now);
            for _ in 0..4 {
                let from = SocketAddrV4::new(gateway.address, [5_351, 1_900][chance.below(2)]);
                let bytes = &datagrams[chance.below(datagrams.len())];
                let payload = if chance.below(2) == 0 { bytes.clone() } else { chance.change(bytes) };
                mapper.handle_news(portmap::News::Datagram { from, payload }, now);
                while let Some(action) = mapper.poll_action() {
                    asked += 1;
                    let portmap::Action::Http { id, to, .. } = action else { continue };
                    assert_eq!(*to.ip(), gateway.address);
                    let body = &bodies[chance.below(bodies.len())];
                    let body = chance.change(body);
                    mapper.handle_news(portmap::News::Http { id, outcome: Ok(body) }, now);
                }
            }
        }
        assert!(asked <= 24 * 60 * 4, "{asked} questions in a day");
    }
}

// ---- decoders ----

fn json<T: DeserializeOwned>(bytes: &[u8]) -> bool {
    serde_json::from_slice::<T>(bytes).is_ok()
}

/// What is taken can also be compiled.
fn policy(bytes: &[u8]) -> bool {
    Policy::parse(bytes).is_ok_and(|policy| {
        let topology = Topology::imagined(&policy);
        let compiled = Compiled::new(Arc::new(policy), topology.clone());
        let _ = compiled.check();
        for id in topology.nodes.keys().take(4) {
            let filter = compiled.filter(*id);
            compiled.parts(&filter).for_each(|part| drop((part.digest(), part.rules())));
            let _ = (compiled.view(*id), compiled.ssh_policy(*id, ""), compiled.attributes(*id));
        }
        true
    })
}

fn derp_frame(bytes: &[u8]) -> bool {
    match derp::header(bytes, derp::CLIENT_FRAME) {
        Ok(Some((kind, length))) => {
            bytes.get(5..5 + length).is_some_and(|body| derp::Frame::decode(kind, body).is_ok())
        }
        _ => false,
    }
}

/// What a relay says to a client, from the first byte on.
fn derp_client(bytes: &[u8]) -> bool {
    let mut client = Client::new(NodePrivate::from_random([1; 32]), [2; 24], true, now());
    let mut taken = 0;
    while let Ok(Some((length, _))) = client.handle_bytes(&bytes[taken..], now()) {
        taken += length;
    }
    client.poll_transmit(&mut Vec::new());
    taken > 0 && taken == bytes.len()
}

/// What a client that was let in says to a relay that has another.
fn derp_server(bytes: &[u8]) -> bool {
    let mut server = Server::new(Limits::default());
    let mut wake = BTreeSet::new();
    for number in [1, 2] {
        let client = NodePrivate::from_random([number; 32]).public();
        let greeting = Greeting { client, is_mesh: false, is_prober: false, answers_pings: true };
        let id = ConnectionId(number.into());
        server.handle_connected(id, &greeting, now(), Duration::ZERO, &mut wake).unwrap();
    }
    let taken = server.handle_bytes(ConnectionId(1), bytes, now(), &mut wake);
    for id in wake {
        server.poll_transmit(id, &mut Vec::new());
    }
    taken.is_ok_and(|(taken, _)| taken > 0 && taken == bytes.len())
}

/// A map is taken where it can be read; it is then judged, filter and all, and planned, as a first map and as a change of
/// itself.
fn map_response(bytes: &[u8]) -> bool {
    let Ok(message) = serde_json::from_slice::<MapResponse>(bytes) else { return false };
    let mut netmap = Netmap::default();
    let prefs = Prefs { want_running: true, accept_routes: true, ..Prefs::default() };
    let host =
        Host { key: NodePrivate::from_random([1; 32]), networks: BTreeSet::new(), kept: BTreeSet::new(), probes: None };
    for _ in 0..2 {
        netmap.apply(message.clone(), Timestamp::UNIX_EPOCH);
        drop(desired(&netmap, &prefs, &Paths::default(), &host));
    }
    true
}

#[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

fn router() -> Place {
    Place::read("http://192.168.1.1:5000/rootDesc.xml").unwrap()
}

fn opens(theirs: &warren::types::DiscoPublic, bytes: &[u8]) -> bool {
    disco::Shared::new(&DiscoPrivate::from_random([1; 32]), theirs).open(bytes).is_ok()
}

/// A datagram from the network, to a node that knows one peer: it is taken where it is answered.
fn path_book(bytes: &[u8]) -> bool {
    let now = now();
    let key: NodePublic = PINGER.parse().unwrap();
    let disco = Some(DiscoPrivate::from_random([2; 32]).public());
    let mut book = Book::new(DiscoPrivate::from_random([1; 32]), NodePublic::from_bytes([9; 32]), [3; 32]);
    let info = PeerInfo { key, disco, endpoints: &[], home: None, relay: None };
    let ground = Ground::new(vec!["192.0.2.1/24".parse().unwrap()], []);
    book.handle_peers([info].into_iter(), ground, now);
    let from = "203.0.113.5:41741".parse().unwrap();
    book.handle_datagram(Via::Udp { from, local: None }, bytes, now);
    book.poll_transmit().is_some()
}

fn map_stream(packing: Packing, mut bytes: &[u8]) -> bool {
    let mut decoder = MapStreamDecoder::new(packing);
    let mut messages = 0;
    loop {
        match decoder.next(&mut bytes) {
            Ok(Some(_)) => messages += 1,
            Ok(None) => return messages > 0,
            Err(_) => return false,
        }
    }
}

fn noise_answer(mut bytes: &[u8]) -> bool {
    let server = machine(1).public();
    let (mut client, _) = ClientHandshake::start(&machine(3), &server, CapabilityVersion(113), ephemeral(4)).unwrap();
    client.read(&mut bytes).is_ok_and(|transport| transport.is_some())
}

fn machine(seed: u8) -> MachinePrivate {
    MachinePrivate::from_random([seed; 32])
}

fn ephemeral(seed: u8) -> Ephemeral {
    Ephemeral::from_random([seed; 32])
}

// ---- inputs ----

/// A decoder's messages by file name.
fn corpus(decoder: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new("tests/fuzz/corpus").join(decoder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        if path.extension().is_some_and(|extension| extension == "hex") { from_hex(&bytes) } else { bytes }
    };
    entries.map(|entry| entry.unwrap()).map(|e| (e.file_name().into_string().unwrap(), read(&e.path()))).collect()
}

fn from_hex(text: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(text).unwrap();
    let digits = text.lines().map(|line| line.split('#').next().unwrap().replace(' ', "")).collect::<String>();
    HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).unwrap()
}

/// xorshift64: the same draws on every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// A copy with one to four changes, each of a kind that decoders have been known to fall over.
    fn change(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let end = at + self.below(bytes.len() - at);
            match self.below(6) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = [0, 0x7f, 0x80, 0xff][self.below(4)],
                2 => drop(bytes.drain(at..end)),
                3 => bytes.extend_from_within(at..end),
                4 => drop(bytes.splice(at..at, b"99999999999999999999".iter().copied())),
                _ => drop(bytes.splice(at..end, (0..end - at).map(|_| b'['))),
            }
        }
        bytes
    }
}
