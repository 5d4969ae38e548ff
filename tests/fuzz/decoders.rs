//! Every decoder of bytes that others write, as a function from bytes to whether they were taken.
//!
//! The tests replay the corpus through this list, and `make fuzz` searches for more with the same one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER_PERMISSIVE;
use http::{Method, Uri};
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use warren_agent::{decoders as agent, local_api};
use warren_coordinator::decoders as coordinator;
use warren_core::control::{ServerUrl, retry_after};
use warren_core::derp::{Client, ConnectionId, Greeting, Limits, Server};
use warren_core::dns::{self, Outcome, QueryId, Transport, Upstream};
use warren_core::hostfirewall;
use warren_core::netmap::Netmap;
use warren_core::path::{Book, PeerInfo, Ranking, Via};
use warren_core::plan::{Host, Paths, Prefs, desired};
use warren_core::policy::{Compiled, Policy, Topology};
use warren_core::registry::{AttributeName, PendingCode, ProviderName, Scope, Tag, UserName};
use warren_core::types::text::{LINE_BYTES, Screen, clean, is_seen};
use warren_core::types::{
    CapabilityVersion, DiscoPrivate, Fingerprint, HostLabel, MachinePrivate, MachinePublic, NodePrivate, NodePublic,
    Timestamp, parse_duration,
};
use warren_core::wire::control::{
    DerpMap, MapRequest, MapResponse, OverTlsPublicKeys, RegisterRequest, RegisterResponse, ServerKey,
};
use warren_core::wire::local;
use warren_core::wire::map_stream::{MapStreamDecoder, Packing};
use warren_core::wire::noise::{ClientHandshake, EarlyDecoder, Ephemeral, ServerHandshake};
use warren_core::wire::portmap::{Location, igd, nat_pmp, pcp, ssdp};
use warren_core::wire::{derp, disco, stun};
use warren_linux::decoders as linux;
use warren_relay::{certificate_validity, decoders as relay};
use warren_shell::NoiseStream;

/// Who sends the ping in the corpus of `path_book`.
const PINGER: &str = "nodekey:50a61409b1ddd0325e9b16b700e719e9772c07000b1bd7786e907c653d20495d";

/// Reads bytes of strangers; says whether it takes them.
pub(crate) type Decode = fn(&[u8]) -> bool;

pub(crate) const DECODERS: &[(&str, Decode)] = &[
    ("admin_request", coordinator::admin_request),
    ("certificate_validity", |bytes| certificate_validity(&CertificateDer::from(bytes)).is_some()),
    ("coordinator_toml", coordinator::configuration),
    ("derp_client", derp_client),
    ("derp_frame", derp_frame),
    ("derp_map", json::<DerpMap>),
    ("derp_server", derp_server),
    ("disco", |bytes| disco::sender(bytes).is_ok_and(|theirs| opens(&theirs, bytes))),
    ("dns_query", dns_query),
    ("dns_reply", dns_reply),
    ("hostfirewall", |bytes| std::str::from_utf8(bytes).is_ok_and(hostfirewall::decode)),
    ("key_answer", json::<OverTlsPublicKeys>),
    ("linux_echo", linux::echo),
    ("linux_flow", linux::flow),
    ("linux_nft_elements", linux::nft_elements),
    ("linux_nft_object", linux::nft_object),
    ("linux_udp_table", linux::udp_table),
    ("local_dns_query", local_dns_query),
    ("local_notify", json::<local::Notify>),
    ("local_prefs", json::<local::MaskedPrefs>),
    ("local_request", local_request),
    ("local_start", json::<local::StartOptions>),
    ("local_status", json::<local::Status>),
    ("map_request", json::<MapRequest>),
    ("map_response", map_response),
    ("map_stream_plain", |bytes| map_stream(Packing::Plain, bytes)),
    ("map_stream_zstd", |bytes| map_stream(Packing::Zstd, bytes)),
    ("names", names),
    ("netmap_deltas", netmap_deltas),
    ("noise_answer", noise_answer),
    ("noise_early", |bytes| EarlyDecoder::default().read(bytes).is_ok_and(|early| early.is_some())),
    ("noise_initiation", |bytes| ServerHandshake::read(&machine(1), bytes, ephemeral(2)).is_ok()),
    ("noise_record", noise_record),
    ("noise_stream", |bytes| block_on(noise_stream(bytes))),
    ("path_book", path_book),
    ("policy", policy),
    ("portmap_igd_answer", |bytes| igd::read(bytes).is_ok()),
    ("portmap_igd_description", |bytes| igd::Service::find(bytes, &router()).is_ok()),
    ("portmap_nat_pmp", |bytes| nat_pmp::read(bytes).is_ok()),
    ("portmap_pcp", |bytes| pcp::read(bytes).is_ok()),
    ("portmap_ssdp", |bytes| ssdp::read(bytes).is_ok()),
    ("register_request", json::<RegisterRequest>),
    ("register_response", json::<RegisterResponse>),
    ("relay_upgrade", |bytes| block_on(agent::relay_upgrade(bytes))),
    ("resolv_conf", agent::resolv_conf),
    ("retry_after", |bytes| {
        std::str::from_utf8(bytes).is_ok_and(|text| retry_after(text, Timestamp::UNIX_EPOCH).is_some())
    }),
    ("server_key", json::<ServerKey>),
    ("state_map", state_map),
    ("state_prefs", json::<local::Prefs>),
    ("stun_request", |bytes| stun::read_request(bytes).is_ok()),
    ("stun_response", |bytes| stun::read_response(bytes).is_ok()),
    ("text", text),
    ("verify_answer", |bytes| block_on(relay::verify_answer(bytes))),
];

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

/// What a program of this host asks the resolver: taken where it is answered, or passed on.
fn dns_query(bytes: &[u8]) -> bool {
    [Transport::Udp, Transport::Tcp].into_iter().all(|transport| {
        match resolver().handle_query(now(), QueryId(1), transport, bytes) {
            // No error, or no such name.
            Outcome::Answer(answer) => matches!(answer[3] & 15, 0 | 3),
            Outcome::Later => true,
            Outcome::Silence => false,
        }
    })
}

/// What another name server answers to the question `example.com A`, behind the number that it was asked under.
fn dns_reply(bytes: &[u8]) -> bool {
    let mut server = resolver();
    let question = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01";
    assert_eq!(server.handle_query(now(), QueryId(1), Transport::Udp, question), Outcome::Later);
    let Some(dns::Effect::Ask { ask, bytes: asked, .. }) = server.poll_effect() else { panic!("nobody is asked") };
    server.handle_reply(now(), ask, &[&asked[..2], bytes].concat());
    std::iter::from_fn(|| server.poll_effect()).any(|effect| matches!(effect, dns::Effect::Answer { .. }))
}

/// A resolver of a network without nodes.
fn resolver() -> dns::Server {
    let mut server = dns::Server::new([1; 32]);
    server.update(&Netmap::default(), &[Upstream::from(std::net::IpAddr::from([192, 0, 2, 53]))]);
    server
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
    for _ in 0..2 {
        netmap.apply(message.clone(), Timestamp::UNIX_EPOCH);
        drop(desired(&netmap, &prefs, &Paths::default(), &host()));
    }
    true
}

fn host() -> Host {
    Host {
        key: NodePrivate::from_random([1; 32]),
        networks: BTreeSet::new(),
        guests: BTreeSet::new(),
        links: BTreeMap::new(),
        routes: BTreeSet::new(),
        kept: BTreeSet::new(),
        probes: None,
        resolver_port: None,
    }
}

#[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
pub(crate) fn now() -> std::time::Instant {
    std::time::Instant::now()
}

fn router() -> Location {
    Location::read("http://192.168.1.1:5000/rootDesc.xml").unwrap()
}

fn opens(theirs: &warren_core::types::DiscoPublic, bytes: &[u8]) -> bool {
    disco::SharedKey::new(&DiscoPrivate::from_random([1; 32]), theirs).open(bytes).is_ok()
}

/// A datagram from the network, to a node that knows one peer: it is taken where it is answered.
fn path_book(bytes: &[u8]) -> bool {
    let now = now();
    let key: NodePublic = PINGER.parse().unwrap();
    let disco = Some(DiscoPrivate::from_random([2; 32]).public());
    let mut book = Book::new(DiscoPrivate::from_random([1; 32]), NodePublic::from_bytes([9; 32]), [3; 32]);
    let info = PeerInfo { key, disco, endpoints: &[], home: None, relay: None };
    let ranking = Ranking::new(vec!["192.0.2.1/24".parse().unwrap()], []);
    book.handle_peers([info].into_iter(), ranking, now);
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

/// A request to the agent's socket: a line of method and address, then the body.
fn local_request(bytes: &[u8]) -> bool {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (line, body) = bytes.split_at(end);
    let line = std::str::from_utf8(line).ok().and_then(|line| line.split_once(' '));
    let parsed = line.and_then(|(method, uri)| Some((method.parse::<Method>().ok()?, uri.parse::<Uri>().ok()?)));
    let body = body.get(1..).unwrap_or_default();
    parsed.is_some_and(|(method, uri)| local_api::asked(method, uri, body.to_vec()).is_ok())
}

/// Messages of a map stream, one a line, each on top of what those before it made. Taken where all can be read.
fn netmap_deltas(bytes: &[u8]) -> bool {
    let mut netmap = Netmap::default();
    let prefs = Prefs { want_running: true, accept_routes: true, ..Prefs::default() };
    bytes.split(|byte| *byte == b'\n').take(32).all(|line| {
        let Ok(message) = serde_json::from_slice::<MapResponse>(line) else { return false };
        netmap.apply(message, Timestamp::UNIX_EPOCH);
        drop(desired(&netmap, &prefs, &Paths::default(), &host()));
        true
    })
}

/// A map from the disk; what is kept of it is written as it was read.
fn state_map(bytes: &[u8]) -> bool {
    let Ok(message) = serde_json::from_slice::<MapResponse>(bytes) else { return false };
    let mut netmap = Netmap::default();
    netmap.replace(message, Timestamp::UNIX_EPOCH);
    let Ok(kept) = netmap.to_message() else { return true };
    let mut again = Netmap::default();
    again.replace(serde_json::from_slice(&kept).unwrap(), Timestamp::UNIX_EPOCH);
    assert_eq!(again.to_message().unwrap(), kept, "what was kept reads as something else");
    true
}

/// Records within a channel whose handshake is done; only sealed ones are taken, so the first byte says how many to
/// seal before the rest follows.
fn noise_record(bytes: &[u8]) -> bool {
    let server = machine(1);
    let (mut client, initiation) =
        ClientHandshake::start(&machine(3), &server.public(), CapabilityVersion(113), ephemeral(4)).unwrap();
    let (answer, theirs) = ServerHandshake::read(&server, &initiation, ephemeral(2)).unwrap().accept().unwrap();
    let ours = client.read(&mut &answer[..]).unwrap().unwrap();
    let Some((count, rest)) = bytes.split_first() else { return false };
    let (mut sealed, mut out) = (Vec::new(), Vec::new());
    let (mut sealer, mut opener) = (theirs.sealer, ours.opener);
    let good = usize::from(count % 4);
    for _ in 0..good {
        sealer.seal(rest, &mut sealed).unwrap();
    }
    if count & 0x80 != 0 {
        sealed.extend(rest);
    }
    let mut input = &sealed[..];
    loop {
        match opener.open(&mut input, &mut out) {
            Ok(true) => {}
            Ok(false) => break !out.is_empty() && !opener.is_mid_record(),
            Err(_) => break false,
        }
    }
}

/// A stream within the secure channel, from the coordinator's first byte on, in pieces of a size that the first byte
/// says. The second says whether an early payload comes before the rest of the bytes, and whether unsealed ones come
/// after it. Taken where what was sealed is what is read.
async fn noise_stream(bytes: &[u8]) -> bool {
    let [piece, kinds, sealed @ ..] = bytes else { return false };
    let server = machine(1);
    let (client, initiation) =
        ClientHandshake::start(&machine(3), &server.public(), CapabilityVersion(113), ephemeral(4)).unwrap();
    let (answer, theirs) = ServerHandshake::read(&server, &initiation, ephemeral(2)).unwrap().accept().unwrap();
    let (mut sealer, mut sent) = (theirs.sealer, answer.to_vec());
    let mut within = Vec::new();
    if kinds & 1 != 0 {
        within.extend(b"\xff\xff\xffTS\0\0\0\x02{}");
    }
    within.extend(sealed);
    let mut records = Vec::new();
    sealer.seal(&within, &mut records).unwrap();
    sent.extend(records);
    if kinds & 2 != 0 {
        sent.extend(sealed);
    }
    let (ours, mut theirs) = tokio::io::duplex(usize::from(*piece).max(1));
    let write = async {
        let _ = theirs.write_all(&sent).await;
        drop(theirs);
    };
    let read = async {
        let mut read = Vec::new();
        let mut stream = NoiseStream::connect(ours, client).await.ok()?;
        stream.read_to_end(&mut read).await.ok().map(|_| read)
    };
    let ((), read) = tokio::join!(write, read);
    read.is_some_and(|read| read == sealed)
}

/// Two bytes of the kind of record, then a name; what asks for it names it.
fn local_dns_query(bytes: &[u8]) -> bool {
    let Some((kind, name)) = bytes.split_first_chunk() else { return false };
    let (Ok(name), kind) = (std::str::from_utf8(name), u16::from_be_bytes(*kind)) else { return false };
    let Some(message) = dns::question(name, kind, 7) else { return false };
    let (mut at, mut labels) = (12, Vec::new());
    while message[at] != 0 {
        let end = at + 1 + usize::from(message[at]);
        labels.push(std::str::from_utf8(&message[at + 1..end]).unwrap());
        at = end;
    }
    assert_eq!(labels.join("."), name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase());
    let _ = resolver().zones().explain(name, kind);
    assert!(dns::describe(&message).is_some_and(|described| described.records.is_empty()));
    true
}

/// What a person or a server may call something, one a line. What is taken is written as what reads the same.
fn names(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let kinds: [fn(&str) -> bool; 11] = [
        same::<NodePublic>,
        same::<MachinePublic>,
        same::<Fingerprint>,
        same::<HostLabel>,
        same::<UserName>,
        same::<Tag>,
        same::<PendingCode>,
        same::<AttributeName>,
        same::<ProviderName>,
        same::<Scope>,
        same::<ServerUrl>,
    ];
    text.lines().take(16).all(|line| {
        let taken = kinds.iter().filter(|is_one| is_one(line)).count();
        taken > 0 || parse_duration(line).is_ok()
    })
}

fn same<T: FromStr + Display + PartialEq>(text: &str) -> bool {
    let Ok(value) = text.parse::<T>() else { return false };
    let written = value.to_string();
    assert!(written.parse().is_ok_and(|again: T| again == value), "{text:?} is written {written:?}");
    true
}

/// Text of others on its way to a terminal, whole and in two pieces. Taken where it may go as it is.
fn text(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    for most in [3, 16, LINE_BYTES] {
        let cleaned = clean(&text, most);
        assert!(cleaned.len() <= most && cleaned.chars().all(is_seen), "{cleaned:?}");
        assert_eq!(clean(&cleaned, most), cleaned, "clean is clean");
    }
    for json in [false, true] {
        let shown = |pieces: [&[u8]; 2]| {
            let mut shown = Vec::new();
            let mut screen = Screen::new(&mut shown, json);
            pieces.iter().for_each(|piece| screen.write_all(piece).unwrap());
            screen.flush().unwrap();
            drop(screen);
            shown
        };
        let whole = shown([bytes, b""]);
        assert!(String::from_utf8_lossy(&whole).chars().all(|c| is_seen(c) || matches!(c, '\n' | '\t')), "{whole:?}");
        assert_eq!(shown(bytes.split_at(bytes.len() / 2).into()), whole);
    }
    matches!(clean(&text, LINE_BYTES), std::borrow::Cow::Borrowed(_))
}

/// Runs what reads from a stream: a pipe in memory, so nothing waits but for what is there.
fn block_on<T>(task: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(task))
}

// ---- inputs ----

/// A decoder's messages by file name.
pub(crate) fn corpus(decoder: &str) -> BTreeMap<String, Vec<u8>> {
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
