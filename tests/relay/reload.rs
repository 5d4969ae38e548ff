//! SIGHUP: the certificate is read again, and nobody is disconnected.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use nix::sys::signal::Signal;
use rustls::pki_types::{CertificateDer, ServerName};
use warren_core::wire::derp::Frame;
use warren_shell::CertificatePin;

use crate::client::Client;
use crate::server::Server;

/// Writes a certificate; what it is known by comes back.
fn write_certificate(directory: &Path) -> CertificatePin {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
    fs::write(directory.join("cert.pem"), certificate.pem()).unwrap();
    CertificatePin::of(&CertificateDer::from(certificate))
}

fn serves(server: &Server, pin: CertificatePin) -> bool {
    let config = Arc::new(pin.client_config().unwrap());
    let name = ServerName::try_from("localhost").unwrap();
    let mut session = rustls::ClientConnection::new(config, name).unwrap();
    let mut stream = TcpStream::connect(server.address).unwrap();
    while session.is_handshaking() {
        if session.complete_io(&mut stream).is_err() {
            return false;
        }
    }
    true
}

#[test]
fn a_renewed_certificate_is_served_after_hup_and_a_broken_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (cert, key) = (file("cert.pem"), file("key.pem"));
    let first = write_certificate(directory.path());
    let server = Server::start(&["--open", "--tls-cert", &cert, "--tls-key", &key]);
    assert!(serves(&server, first));

    let second = write_certificate(directory.path());
    server.signal(Signal::SIGHUP);
    assert!((0..10_000).any(|_| serves(&server, second)), "the new certificate is not served");
    assert!(!serves(&server, first));

    fs::write(&cert, "nonsense").unwrap();
    server.signal(Signal::SIGHUP);
    assert!(serves(&server, second));
}

#[test]
fn clients_stay_through_a_hup() {
    let server = Server::start(&["--open"]);
    let (mut one, mut two) = (Client::joined(server.address, 2), Client::joined(server.address, 3));
    server.signal(Signal::SIGHUP);
    one.say(Frame::SendPacket { to: two.key.public(), packet: b"there" });
    let (kind, body) = two.frame().unwrap();
    assert_eq!(Frame::decode(kind, &body), Ok(Frame::RecvPacket { from: one.key.public(), packet: b"there" }));
}
