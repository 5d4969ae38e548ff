//! Ports, the certificate, and the way of a node to this server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::Finding;
use crate::clock;
use crate::config::{Certificate, Settings, StunListen};
use crate::state_dir::StateDir;
use warren_core::types::{CapabilityVersion, MachinePrivate};
use warren_core::wire::control::OverTlsPublicKeys;
use warren_core::wire::stun;
use warren_relay::{Target, certificate_validity};
use warren_shell::{CertificateFiles, bind, bind_udp};

/// How long anything that is asked may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read.
const ANSWER: usize = 64 * 1024;
/// A certificate that ends sooner should have been renewed.
const SOON: i64 = 14 * 24 * 3600;
const STUN_PORT: u16 = 3478;

pub(super) async fn look(settings: &Settings, is_running: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut ports = vec![("port", settings.listen)];
    ports.extend(settings.relay.as_ref().and_then(|relay| relay.listen).map(|listen| ("relay's port", listen)));
    ports.extend(settings.metrics.map(|metrics| ("metrics' port", metrics.0)));
    for (name, address) in ports {
        findings.push(tcp(name, address, is_running).await);
    }
    if let Some(address) = stun_address(settings) {
        findings.push(udp(address, is_running).await);
    }
    findings.extend(certificate(settings));
    if is_running {
        findings.push(health(settings).await);
        findings.push(as_a_node(settings).await);
    }
    findings
}

fn stun_address(settings: &Settings) -> Option<SocketAddr> {
    match settings.relay.as_ref()?.stun {
        StunListen::Off => None,
        StunListen::Usual => Some((Ipv6Addr::UNSPECIFIED, STUN_PORT).into()),
        StunListen::At(address) => Some(address),
    }
}

/// Where this host itself reaches what listens there.
fn near(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        // It serves both families, and a host may lack IPv6.
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    (ip, address.port()).into()
}

async fn tcp(name: &str, address: SocketAddr, is_running: bool) -> Finding {
    if !is_running {
        return match bind(address) {
            Ok(_) => Finding::ok(name, format!("{address} can be opened")),
            Err(error) => Finding::failed(name, format!("{address}: {error}{}", whose(&error))),
        };
    }
    match timeout(PATIENCE, TcpStream::connect(near(address))).await {
        Ok(Ok(_)) => Finding::ok(name, format!("{address} answers")),
        Ok(Err(error)) => Finding::failed(name, format!("{address}: {error}; does the server have another --listen?")),
        Err(_) => Finding::failed(name, format!("{address}: no answer within {} s", PATIENCE.as_secs())),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "of the system's many errors two have a remedy")]
fn whose(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "; `ss -lntup` says who has it",
        std::io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE, as the unit has it",
        _ => "",
    }
}

async fn udp(address: SocketAddr, is_running: bool) -> Finding {
    let name = "STUN";
    if !is_running {
        return match bind_udp(address) {
            Ok(_) => Finding::ok(name, format!("{address} can be opened")),
            Err(error) => Finding::warning(name, format!("{address}: {error}{}", whose(&error))),
        };
    }
    match timeout(PATIENCE, ask_stun(near(address))).await {
        Ok(Ok(())) => Finding::ok(name, format!("{address} answers")),
        Ok(Err(error)) => Finding::failed(name, format!("{address}: {error}: nodes find no direct path")),
        Err(_) => Finding::failed(name, format!("{address}: no answer: nodes find no direct path")),
    }
}

async fn ask_stun(server: SocketAddr) -> std::io::Result<()> {
    let local: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local).await?;
    let transaction = stun::TransactionId(rand::random());
    socket.send_to(&stun::request(transaction), server).await?;
    let mut answer = [0; stun::MAX_LEN];
    loop {
        let (length, _) = socket.recv_from(&mut answer).await?;
        if stun::read_response(&answer[..length]).is_ok_and(|(of, _)| of == transaction) {
            return Ok(());
        }
    }
}

/// The certificate of the configuration: whole, its key's, of this time and of the server's name.
fn certificate(settings: &Settings) -> Option<Finding> {
    let name = "certificate";
    let Certificate::Files { cert, key } = &settings.certificate else { return None };
    if let Err(error) = CertificateFiles::open(cert, key) {
        return Some(Finding::failed(name, error));
    }
    let own = CertificateDer::from_pem_file(cert).ok()?;
    let file = cert.display();
    let Some((begins, ends)) = certificate_validity(&own) else {
        return Some(Finding::failed(name, format!("{file}: its dates cannot be read")));
    };
    let now = clock::now();
    if now < begins || ends <= now {
        return Some(Finding::failed(name, format!("{file}: it is valid from {begins} to {ends}, and it is {now}")));
    }
    let host = settings.server_url.as_ref().and_then(|url| url.as_str().parse::<Uri>().ok()?.host().map(str::to_owned));
    if let Some(host) = host {
        let server = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).ok()?;
        let is_for_it = ParsedCertificate::try_from(&own)
            .and_then(|parsed| rustls::client::verify_server_name(&parsed, &server))
            .is_ok();
        if !is_for_it {
            return Some(Finding::failed(name, format!("{file}: it is not for {host}, which --server-url names")));
        }
    }
    Some(match ends.as_second() - now.as_second() < SOON {
        true => Finding::warning(
            name,
            format!("{file}: it ends at {ends}; renew it, the server takes the new one by itself"),
        ),
        false => Finding::ok(name, format!("{file}: valid until {ends}")),
    })
}

/// What the server says of itself.
async fn health(settings: &Settings) -> Finding {
    let name = "health";
    let target = match local(settings) {
        Ok(target) => target,
        Err(error) => return Finding::warning(name, error),
    };
    match get(&target, "/health").await {
        Ok((StatusCode::OK, _)) => Finding::ok(name, "the server says that all is well"),
        Ok((_, body)) => Finding::failed(name, String::from_utf8_lossy(&body).into_owned()),
        Err(error) => Finding::failed(name, format!("{}: {error}", target.url())),
    }
}

/// The server on this host, where no certificate stands in the way.
fn local(settings: &Settings) -> Result<Target, String> {
    match (settings.certificate.is_some(), &settings.server_url) {
        (false, _) => Target::new(url(&format!("http://{}", near(settings.listen)))?),
        (true, Some(named)) => Target::new(url(named.as_str())?),
        (true, None) => Err("not asked: the certificate's name is not known here (--server-url)".to_owned()),
    }
}

/// The way a node comes: by the URL that it was given, to the key that this server has.
async fn as_a_node(settings: &Settings) -> Finding {
    let name = "as a node";
    let Some(named) = &settings.server_url else {
        return Finding::warning(
            name,
            "not tried: without --server-url nobody knows here by which address nodes come; try \
             `curl http://ADDRESS:PORT/key?v=145` on one",
        );
    };
    let target = match url(named.as_str()).and_then(Target::new) {
        Ok(target) => target,
        Err(error) => return Finding::failed(name, error),
    };
    let own = std::fs::read_to_string(StateDir::new(&settings.state_dir).key())
        .map_err(|error| error.to_string())
        .and_then(|text| text.trim().parse::<MachinePrivate>().map_err(|error| error.to_string()));
    let asked = get(&target, &format!("/key?v={}", CapabilityVersion::CURRENT)).await;
    match (asked, own) {
        (Err(error), _) => Finding::failed(name, format!("{named}: {error}")),
        (_, Err(error)) => Finding::failed(name, format!("the server's key: {error}")),
        (Ok((status, body)), Ok(own)) => match serde_json::from_slice::<OverTlsPublicKeys>(&body) {
            Ok(keys) if keys.public_key == own.public() => Finding::ok(name, format!("{named} leads here")),
            Ok(_) => Finding::failed(name, format!("{named} leads to another coordinator: its key is another")),
            Err(_) => Finding::failed(name, format!("{named} leads to something else: it answers {status}")),
        },
    }
}

fn url(text: &str) -> Result<Uri, String> {
    text.parse().map_err(|error| format!("{text}: {error}"))
}

async fn get(target: &Target, path: &str) -> Result<(StatusCode, Bytes), String> {
    let asking = async {
        let stream = target.connect().await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let request = Request::get(path)
            .header(header::HOST, target.authority())
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let asking = async move {
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER).collect().await.map_err(|error| error.to_string())?;
            Ok((status, body.to_bytes()))
        };
        // The answer is whole also where the connection ends first.
        let (answer, _) = tokio::join!(asking, connection);
        answer
    };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
}
