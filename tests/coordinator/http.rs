//! What is asked outside of Noise.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use warren_core::types::NodePrivate;

use crate::node::{Machine, get, plain, upgrade_with};
use crate::place::place;
use crate::server::Server;

#[tokio::test]
async fn the_key_is_told_to_a_client_that_says_its_version() {
    let server = Server::start(&[]);
    let (status, body) = get(server.address, "/key?v=145").await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("\"publicKey\":\"mkey:") && !body.contains("privkey"), "{body}");
    assert_eq!(get(server.address, "/key").await.0, StatusCode::BAD_REQUEST);
    let (status, body) = get(server.address, "/key?v=90").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.contains("too old") && body.contains("113"), "{body}");
}

#[tokio::test]
async fn small_questions_are_answered() {
    let server = Server::start(&[]);
    for (path, status, body) in [
        ("/health", StatusCode::OK, "{\"status\":\"pass\"}"),
        ("/bootstrap-dns", StatusCode::OK, "{}"),
        ("/machine/ping-response?id=1", StatusCode::NOT_FOUND, "no such ping"),
        ("/robots.txt", StatusCode::OK, "User-agent: *\nDisallow: /\n"),
        ("/nowhere", StatusCode::NOT_FOUND, ""),
    ] {
        assert_eq!(get(server.address, path).await, (status, body.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn a_relay_learns_who_may_use_it() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    machine.connect(server.address).await.join(&server.key(&[])).await;
    let stranger = NodePrivate::from_random(rand::random());
    for (key, allow) in [(machine.node.public(), true), (stranger.public(), false)] {
        let body = format!("{{\"NodePublic\":\"{key}\",\"Source\":\"192.0.2.1\"}}");
        let request = Request::post("/verify").body(Full::new(Bytes::from(body))).unwrap();
        let (status, _, answer) = plain(server.address, request).await;
        assert_eq!((status, answer), (StatusCode::OK, format!("{{\"Allow\":{allow}}}")));
    }
    for body in [String::new(), "{}".to_owned(), "[".to_owned()] {
        let request = Request::post("/verify").body(Full::new(Bytes::from(body))).unwrap();
        assert_eq!(plain(server.address, request).await.0, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn metrics_are_told_on_loopback_to_who_asks_by_address() {
    let metrics = place();
    let server = Server::start(&["--metrics", &metrics.to_string()]);
    let machine = Machine::new("web");
    machine.connect(server.address).await.join(&server.key(&[])).await;
    let (status, body) = get(metrics, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("warren_coordinator_nodes 1\n"), "{body}");
    let request = Request::get("/metrics").header("host", "evil.example").body(Full::default()).unwrap();
    assert_eq!(plain(metrics, request).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn https_is_served_from_given_files() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/coordinator/data");
    let (cert, key) = (format!("{data}/localhost.crt"), format!("{data}/localhost.key"));
    let server = Server::start(&["--tls-cert", &cert, "--tls-key", &key]);
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls::pki_types::pem::PemObject::pem_file_iter(&cert).unwrap() {
        let certificate: rustls::pki_types::CertificateDer<'_> = certificate.unwrap();
        roots.add(certificate).unwrap();
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let io = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    let (mut requests, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/key?v=145").body(Full::<Bytes>::default()).unwrap();
    assert_eq!(requests.send_request(request).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_tls_proxy_in_front_is_believed_for_who_comes_by_it_and_told_to_the_operator() {
    let server = Server::start(&[]);
    let machine = Machine::new("laptop");
    let asks = async |headers: &[(&str, &str)]| {
        let (handshake, initiation) = machine.handshake(server.address).await;
        let io = upgrade_with(server.address, &initiation, headers).await;
        machine.inside(io, handshake, 65_535).await.register(&machine.register_request(None)).await.auth_url
    };
    assert!(asks(&[]).await.starts_with("http://"));
    assert_eq!(get(server.address, "/health").await.1, "{\"status\":\"pass\"}");
    assert!(asks(&[("x-forwarded-proto", "https, http")]).await.starts_with("https://"));
    let (status, health) = get(server.address, "/health").await;
    assert_eq!(status, StatusCode::OK, "it is no fault");
    assert!(health.contains("server_url is not set"), "{health}");
    assert!(server.has_logged("server_url is not set"));
    assert!(asks(&[]).await.starts_with("http://"), "others are not concerned");

    let server = Server::start(&["--server-url", "https://coordinator.example.org"]);
    let (handshake, initiation) = machine.handshake(server.address).await;
    let io = upgrade_with(server.address, &initiation, &[("x-forwarded-proto", "https")]).await;
    let url = machine.inside(io, handshake, 65_535).await.register(&machine.register_request(None)).await.auth_url;
    assert!(url.starts_with("https://coordinator.example.org/"), "{url}");
    assert_eq!(get(server.address, "/health").await.1, "{\"status\":\"pass\"}");
}
