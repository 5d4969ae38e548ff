//! SIGHUP: certificates, configuration and log are read again, and what is broken changes nothing.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use warren_shell::CertificatePin;

use crate::server::Server;

/// Writes a certificate; what it is known by comes back.
fn write_certificate(directory: &Path) -> CertificatePin {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    fs::write(directory.join("cert.pem"), certificate.pem()).unwrap();
    fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
    CertificatePin::of(&CertificateDer::from(certificate))
}

async fn serves(server: &Server, pin: CertificatePin) -> bool {
    let connector = TlsConnector::from(Arc::new(pin.client_config().unwrap()));
    let stream = TcpStream::connect(server.address).await.unwrap();
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.is_ok()
}

#[tokio::test]
async fn hup_takes_what_is_good_and_leaves_what_was_where_it_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (config, cert, key) = (file("c.toml"), file("cert.pem"), file("key.pem"));
    let configure = |text: &str| fs::write(&config, format!("tls_cert = {cert:?}\ntls_key = {key:?}\n{text}")).unwrap();
    configure("");
    let first = write_certificate(directory.path());
    let server = Server::start(&["--config", &config]);
    assert!(serves(&server, first).await);

    let second = write_certificate(directory.path());
    configure("log = \"debug\"\nhandshake_rate = 7\nephemeral_grace = 60\ndomain = \"other.internal\"\n");
    server.signal(Signal::SIGHUP);
    let said = server.wait_for_log("reloaded");
    assert!(said.contains("certificate") && said.contains("log") && said.contains("handshake_rate"), "{said}");
    assert!(said.contains("graces") && said.contains("domain is another in the configuration"), "{said}");
    assert!(serves(&server, second).await && !serves(&server, first).await);
    server.wait_for_log("DEBUG");

    fs::write(&cert, "nonsense").unwrap();
    configure("listen = 5\n");
    server.signal(Signal::SIGHUP);
    let said = server.wait_for_log("reloaded");
    assert!(said.contains("c.toml: listen: "), "{said}");
    assert!(said.contains("the certificate before stays in use") && said.contains("nothing"), "{said}");
    assert!(serves(&server, second).await);
    server.json(&["user", "list"]);
}
