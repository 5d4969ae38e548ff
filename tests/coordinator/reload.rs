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

use crate::node::Machine;
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

#[tokio::test]
async fn names_reach_connected_nodes_on_hup_and_when_the_file_of_records_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (config, records) = (file("c.toml"), file("records.json"));
    let write = |value: &str| {
        // As whoever renews a file does: whole, or not at all.
        fs::write(file("new"), format!(r#"[{{"name":"wiki.corp","value":"{value}"}}]"#)).unwrap();
        fs::rename(file("new"), &records).unwrap();
    };
    write("100.64.0.9");
    fs::write(&config, format!("[dns]\nextra_records_path = {records:?}\n")).unwrap();
    let server = Server::start(&["--config", &config]);
    let machine = Machine::new("web");
    let node = machine.connect(server.address).await;
    node.join(&server.key(&[])).await;
    let mut map = node.map(&[]).await;
    let told = map.next().await.unwrap().dns_config.unwrap();
    assert_eq!(told.extra_records[0].value, "100.64.0.9");

    write("100.64.0.10");
    let told = map.until(|message| message.dns_config.is_some()).await.dns_config.unwrap();
    assert_eq!(told.extra_records[0].value, "100.64.0.10");

    let text =
        "nameservers = { global = [\"9.9.9.9\"], split = { \"corp\" = [\"10.0.0.1\"] } }\nsearch_domains = [\"corp\"]";
    fs::write(&config, format!("[dns]\nextra_records_path = {records:?}\n{text}\n")).unwrap();
    server.signal(Signal::SIGHUP);
    let told = map.until(|message| message.dns_config.is_some()).await.dns_config.unwrap();
    assert_eq!((told.resolvers[0].addr.as_str(), told.extra_records.len()), ("9.9.9.9", 1));
    assert_eq!(told.routes["corp"].as_ref().unwrap()[0].addr, "10.0.0.1");
    assert_eq!(told.domains, ["warren.internal", "corp"]);
    let said = server.wait_for_log("reloaded");
    assert!(said.contains("dns") && !said.contains("needs a restart"), "{said}");

    write("nowhere");
    let said = server.wait_for_log("extra records stay as they were");
    assert!(said.contains("records.json: dns.extra_records_path: "), "{said}");
}
