//! The look at the own network with its hands: real sockets on loopback, against a relay and a gateway of a few lines.
//!
//! The gateway is 192.168.1.1 to the deciding half; between it and the sockets addresses are rewritten to loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use hyper_util::client::proxy::matcher::Matcher;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use warren_agent::{clock, netcheck_io};
use warren_core::netcheck::portmap;
use warren_core::netcheck::{Action, Config, Gateway, HttpsTarget, Input, Netcheck, NetcheckEvent};
use warren_core::types::RegionId;
use warren_core::wire::control::EndpointType;
use warren_shell::CertificatePin;
use warren_shell::Dialler;

use crate::place::place;
use crate::scene::PATIENCE;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const OURS: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 5);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const PORT: u16 = 41_741;

/// What a gateway speaks.
#[derive(Clone, Copy, PartialEq)]
enum Speaks {
    Pcp,
    NatPmp,
    Upnp,
}

/// A gateway's sockets on loopback.
struct Router {
    pcp: UdpSocket,
    ssdp: UdpSocket,
    http: TcpListener,
}

impl Router {
    async fn new() -> Self {
        Self {
            pcp: UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            ssdp: UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            http: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        }
    }

    /// From the addresses of the deciding half to those of the sockets.
    fn real(&self, to: SocketAddrV4) -> SocketAddrV4 {
        let real = match to.port() {
            5_351 => self.pcp.local_addr(),
            1_900 => self.ssdp.local_addr(),
            5_000 => self.http.local_addr(),
            other => panic!("{other}: no such port"),
        };
        v4(real.unwrap())
    }

    fn seen(&self, from: SocketAddrV4) -> SocketAddrV4 {
        let port = if SocketAddr::V4(from) == self.pcp.local_addr().unwrap() { 5_351 } else { 1_900 };
        SocketAddrV4::new(GATEWAY, port)
    }

    fn rewrite(&self, action: portmap::Action) -> portmap::Action {
        match action {
            portmap::Action::Send { to, payload, .. } => {
                portmap::Action::Send { from: Ipv4Addr::LOCALHOST, to: self.real(to), payload }
            }
            portmap::Action::Http { id, to, path, call } => portmap::Action::Http { id, to: self.real(to), path, call },
        }
    }

    /// Serves until dropped.
    async fn serve(&self, speaks: Speaks) {
        let mut pcp = [0; 1_100];
        let mut ssdp = [0; 1_100];
        loop {
            tokio::select! {
                received = self.pcp.recv_from(&mut pcp) => {
                    let (length, from) = received.unwrap();
                    let answer = answer_datagram(speaks, &pcp[..length]);
                    self.pcp.send_to(&answer, from).await.unwrap();
                }
                received = self.ssdp.recv_from(&mut ssdp) => {
                    let (length, from) = received.unwrap();
                    let question = String::from_utf8(ssdp[..length].to_vec()).unwrap();
                    assert!(question.starts_with("M-SEARCH * HTTP/1.1\r\n"), "{question}");
                    let answer = "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                                  LOCATION: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n";
                    self.ssdp.send_to(answer.as_bytes(), from).await.unwrap();
                }
                accepted = self.http.accept() => {
                    let (mut stream, _) = accepted.unwrap();
                    let request = read_request(&mut stream).await;
                    stream.write_all(answer_http(&request).as_bytes()).await.unwrap();
                }
            }
        }
    }
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(address) => panic!("{address}"),
    }
}

/// By the letter of RFC 6887 and RFC 6886.
fn answer_datagram(speaks: Speaks, question: &[u8]) -> Vec<u8> {
    match (speaks, question[0], question[1]) {
        (Speaks::Pcp, 2, 1) => {
            assert_eq!(question.len(), 60);
            assert_eq!(question[8..24], OURS.to_ipv6_mapped().octets());
            assert_eq!(question[36], 17, "UDP");
            let mut answer = question.to_vec();
            answer[1] = 0x81;
            answer[8..24].copy_from_slice(&[0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            answer[42..44].copy_from_slice(&40_001_u16.to_be_bytes());
            answer[44..60].copy_from_slice(&EXTERNAL.to_ipv6_mapped().octets());
            answer
        }
        (Speaks::NatPmp, 0, 0) => [&[0, 0x80, 0, 0, 0, 0, 1, 0][..], &EXTERNAL.octets()].concat(),
        (Speaks::NatPmp, 0, 1) => {
            let port = 40_002_u16.to_be_bytes();
            [&[0, 0x81, 0, 0, 0, 0, 1, 0][..], &question[4..6], &port, &question[8..12]].concat()
        }
        // Another version, and "not authorised".
        (_, 2, _) => vec![0, 0x81, 0, 1, 0, 0, 1, 0],
        _ => vec![0, 0x81, 0, 2, 0, 0, 1, 0],
    }
}

async fn read_request(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut request = Vec::new();
    loop {
        let mut piece = [0; 2_048];
        let length = stream.read(&mut piece).await.unwrap();
        request.extend(&piece[..length]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let wanted = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= wanted.unwrap_or(0) {
            return text;
        }
    }
}

fn answer_http(request: &str) -> String {
    let first = request.lines().next().unwrap();
    let (status, body) = if first == "GET /rootDesc.xml HTTP/1.1" {
        let service =
            "<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>/ctl</controlURL>";
        ("200 OK", format!("<root><device><serviceList><service>{service}</service></serviceList></device></root>"))
    } else {
        assert_eq!(first, "POST /ctl HTTP/1.1");
        let soap = |inside: &str| {
            format!(
                "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>{inside}</s:Body></s:Envelope>"
            )
        };
        if request.contains("#GetExternalIPAddress\"") {
            ("200 OK", soap(&format!("<r><NewExternalIPAddress>{EXTERNAL}</NewExternalIPAddress></r>")))
        } else if request.contains(&format!("<NewExternalPort>{PORT}</NewExternalPort>")) {
            let fault = "<s:Fault><detail><UPnPError><errorCode>718</errorCode></UPnPError></detail></s:Fault>";
            ("500 Internal Server Error", soap(fault))
        } else {
            assert!(request.contains("#AddPortMapping\""), "{request}");
            assert!(request.contains(&format!("<NewInternalClient>{OURS}</NewInternalClient>")), "{request}");
            ("200 OK", soap("<r/>"))
        }
    };
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Runs the deciding half on its hands until the gateway has opened a port.
async fn mapped_by(speaks: Speaks) -> (SocketAddr, Netcheck) {
    let router = Router::new().await;
    let (gateway, gateways) = mpsc::channel(1);
    let (actions, mut news) = netcheck_io::spawn(Dialler::new(None).with_proxies(no_proxy()), gateways);
    gateway.send(Some(Gateway { address: GATEWAY, local: OURS })).await.unwrap();
    let config = Config { seed: [1; 32], port: PORT, explicit: Vec::new(), nonce: [2; 12] };
    let mut netcheck = Netcheck::new(config);
    // Time passes where nothing comes for several times as long, so that a machine that is slow answers in time.
    let mut now = clock::now().tick;
    netcheck.handle_switched(true, now);
    let running = async {
        loop {
            while let Some(action) = netcheck.poll_action() {
                let Action::Map(action) = action else { panic!("{action:?}") };
                actions.send(Action::Map(router.rewrite(action))).await.unwrap();
            }
            while let Some(event) = netcheck.poll_event() {
                let NetcheckEvent::Endpoints(endpoints) = event else { continue };
                if let Some((address, _)) = endpoints.iter().find(|(_, kind)| *kind == EndpointType::PORT_MAPPED) {
                    return *address;
                }
            }
            let until = netcheck.poll_timeout().unwrap_or(now + PATIENCE);
            tokio::select! {
                biased;
                told = news.recv() => {
                    let told = match told.unwrap() {
                        Input::Map(portmap::Input::Datagram { from, payload }) => {
                            Input::Map(portmap::Input::Datagram { from: router.seen(from), payload })
                        }
                        other => other,
                    };
                    netcheck.handle_input(told, now);
                }
                () = tokio::time::sleep(5 * until.saturating_duration_since(now)) => {
                    now = now.max(until);
                    netcheck.handle_timeout(now);
                }
            }
        }
    };
    let mapped = async {
        tokio::select! {
            mapped = running => mapped,
            () = router.serve(speaks) => unreachable!("it serves for ever"),
        }
    };
    let mapped = tokio::time::timeout(PATIENCE, mapped).await.expect("a port is opened");
    (mapped, netcheck)
}

#[tokio::test]
async fn a_port_is_opened_by_pcp() {
    let (mapped, netcheck) = mapped_by(Speaks::Pcp).await;
    assert_eq!(mapped, "203.0.113.9:40001".parse().unwrap());
    assert_eq!(netcheck.report().mapping.pcp, Some(true));
}

#[tokio::test]
async fn a_port_is_opened_by_nat_pmp() {
    let (mapped, netcheck) = mapped_by(Speaks::NatPmp).await;
    assert_eq!(mapped, "203.0.113.9:40002".parse().unwrap());
    assert_eq!((netcheck.report().mapping.pcp, netcheck.report().mapping.pmp), (Some(false), Some(true)));
}

#[tokio::test]
async fn a_port_is_opened_by_upnp_past_a_conflict() {
    let (mapped, netcheck) = mapped_by(Speaks::Upnp).await;
    assert_eq!(mapped.ip(), IpAddr::V4(EXTERNAL));
    assert_ne!(mapped.port(), PORT);
    assert_eq!(netcheck.report().mapping.upnp, Some(true));
}

// ---- relays ----

fn no_proxy() -> Matcher {
    Matcher::builder().build()
}

async fn ask(action: Action) -> Input {
    ask_through(no_proxy(), action).await
}

async fn ask_through(proxies: Matcher, action: Action) -> Input {
    let (_gateway, gateways) = mpsc::channel(1);
    let (actions, mut news) = netcheck_io::spawn(Dialler::new(None).with_proxies(proxies), gateways);
    actions.send(action).await.unwrap();
    let told = async {
        loop {
            match news.recv().await.unwrap() {
                Input::OsHasIpv6(_) => {}
                other => return other,
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap()
}

/// The same, again where the machine was too slow for the bounds of a measurement.
async fn ask_in_time(action: impl Fn() -> Action) -> Input {
    in_time(async || ask(action()).await).await
}

async fn in_time(ask: impl AsyncFn() -> Input) -> Input {
    loop {
        match ask().await {
            Input::Https { outcome: Err(error), .. }
                if error.contains("no answer in") || error.contains("deadline") => {}
            Input::Captive(None) => {}
            told => return told,
        }
    }
}

/// Answers one request on each connection.
async fn answer_each(listener: TcpListener, tls: Option<TlsAcceptor>, answer: &'static str) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        match &tls {
            None => {
                let request = read_request(&mut stream).await;
                assert!(request.starts_with("GET /generate_204 HTTP/1.1\r\n"), "{request}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            Some(tls) => {
                // A client that does not trust us ends here.
                let Ok(mut stream) = tls.accept(stream).await else { continue };
                let request = read_request(&mut stream).await;
                assert!(request.starts_with("GET /derp/latency-check HTTP/1.1\r\n"), "{request}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    }
}

/// A relay that answers one request over TLS; its certificate's name in the map, and its port.
async fn relay_with_tls() -> (String, u16, JoinHandle<()>) {
    let made = rcgen::generate_simple_self_signed(vec!["relay.test".to_owned()]).unwrap();
    let pin = CertificatePin::of(made.cert.der()).to_string();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    (pin, port, tokio::spawn(answer_each(listener, Some(TlsAcceptor::from(Arc::new(config))), answer)))
}

fn measure(cert_name: &str, port: u16, insecure: bool) -> Action {
    Action::MeasureHttps(HttpsTarget {
        region: RegionId(900),
        host: "relay.test".to_owned(),
        cert_name: cert_name.to_owned(),
        addresses: vec![Ipv4Addr::LOCALHOST.into()],
        port,
        insecure,
    })
}

#[tokio::test]
async fn the_https_latency_of_a_relay_is_measured_where_its_certificate_is_the_maps() {
    let (pin, port, serving) = relay_with_tls().await;
    let other = pin.replace(&pin[20..24], "0000");
    for (cert_name, insecure, works) in [
        (pin.as_str(), false, true),
        ("", true, true),
        ("", false, false),
        ("relay.test", false, false),
        (&other, false, false),
    ] {
        let told = ask_in_time(|| measure(cert_name, port, insecure)).await;
        let Input::Https { region, outcome } = told else { panic!("other news") };
        assert_eq!(region, RegionId(900));
        match outcome {
            Ok((latency, address)) => {
                assert!(works, "{cert_name:?} is not the certificate's");
                assert!(!latency.is_zero());
                assert_eq!(address, IpAddr::V4(Ipv4Addr::LOCALHOST));
            }
            Err(error) => assert!(!works, "{cert_name:?}: {error}"),
        }
    }
    serving.abort();
}

#[tokio::test]
async fn the_https_latency_is_measured_through_a_proxy_where_the_environment_names_one() {
    let (pin, port, serving) = relay_with_tls().await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = format!("http://{}", proxy.local_addr().unwrap());
    let (heads, mut asked) = mpsc::unbounded_channel();
    let proxying = tokio::spawn(async move {
        loop {
            let (mut client, _) = proxy.accept().await.unwrap();
            heads.send(read_request(&mut client).await).unwrap();
            let mut relay = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            // Ends when either hangs up, well or not.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut relay).await;
        }
    });

    let through = async || {
        let proxies = Matcher::builder().https(place.as_str()).build();
        ask_through(proxies, measure(&pin, port, false)).await
    };
    let told = in_time(through).await;

    let Input::Https { outcome, .. } = told else { panic!("{told:?}") };
    assert_eq!(outcome.unwrap().1, IpAddr::V4(Ipv4Addr::LOCALHOST));
    let head = asked.recv().await.unwrap();
    assert!(head.starts_with(&format!("CONNECT relay.test:{port} HTTP/1.1\r\n")), "{head}");
    proxying.abort();
    serving.abort();
}

#[tokio::test]
async fn who_answers_in_a_relays_name_without_knowing_the_challenge_is_a_captive_portal() {
    let own = "HTTP/1.1 204 No Content\r\nX-Tailscale-Response: response abc\r\n\r\n";
    let portal = "HTTP/1.1 302 Found\r\nLocation: http://portal/\r\nContent-Length: 0\r\n\r\n";
    let yes_man = "HTTP/1.1 204 No Content\r\n\r\n";
    for (answer, captive) in [(own, false), (portal, true), (yes_man, true)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(answer_each(listener, None, answer));
        let check = || Action::CheckCaptive {
            host: "relay.test".to_owned(),
            addresses: vec![Ipv4Addr::LOCALHOST.into()],
            port,
            challenge: "abc".to_owned(),
        };
        assert_eq!(ask_in_time(check).await, Input::Captive(Some(captive)), "{answer}");
        serving.abort();
    }
    let closed = place();
    let check = Action::CheckCaptive {
        host: "relay.test".to_owned(),
        addresses: vec![closed.ip()],
        port: closed.port(),
        challenge: "abc".to_owned(),
    };
    assert_eq!(ask(check).await, Input::Captive(None));
}

#[tokio::test]
async fn a_name_is_looked_up_and_one_that_leads_nowhere_has_no_address() {
    let resolve = |host: &str| Action::Resolve { host: host.to_owned() };
    let Input::Resolved { host, addresses } = ask(resolve("localhost")).await else { panic!("other news") };
    assert_eq!(host, "localhost");
    assert!(addresses.iter().all(IpAddr::is_loopback) && !addresses.is_empty());
    // Longer than a label may be (RFC 1035 §2.3.4): no resolver asks the network for it.
    let host = "a".repeat(64) + ".test";
    assert_eq!(ask(resolve(&host)).await, Input::Resolved { host, addresses: Vec::new() });
}
