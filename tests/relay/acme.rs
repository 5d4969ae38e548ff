//! Certificates by ACME, from an authority that is as strict as the relay has to be right: each request has a fresh
//! nonce, and a certificate is signed only for whoever proved the domain by TLS on the relay's own port (RFC 8737).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use data_encoding::BASE64URL_NOPAD;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData, date_time_ymd};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::client::{Client, get_body, open};
use crate::localhost;
use crate::place::place;
use crate::server::Server;

const DOMAIN: &str = "relay.test";
const TOKEN: &str = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA";
/// The extension that carries the proof: its name, that it is critical, and the beginning of 32 bytes.
const PROOF: [u8; 17] = [6, 8, 0x2b, 6, 1, 5, 5, 7, 1, 31, 1, 1, 0xff, 4, 34, 4, 32];
/// How the public key of a request begins that is one of P-256, in DER.
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7, 3,
    0x42, 0,
];

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_obtained_kept_over_a_restart_and_renewed_with_the_same_account() {
    let authority = Authority::start().await;
    let (root, _) = localhost();
    let options =
        ["--open", "--acme-domain", DOMAIN, "--acme-root", &root, "--acme-directory", &authority.url("directory")];
    let mut server = Server::start(&options);
    authority.proves_by.send_replace(Some(Proof::Tls(server.address)));

    let first = authority.client(&server).await;
    assert_eq!(authority.issued.load(Ordering::Relaxed), 1);
    // The first certificate is old when it is issued, so another start obtains a second, by the account of the first.
    authority.proves_by.send_replace(None);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(server.wait().success());
    server.restart();
    assert_eq!(authority.client(&server).await, first, "it is of use meanwhile");
    authority.proves_by.send_replace(Some(Proof::Tls(server.address)));
    while authority.client(&server).await == first {}
    assert_eq!((authority.issued.load(Ordering::Relaxed), authority.accounts.load(Ordering::Relaxed)), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_answers_plain_http_proves_its_domain_there() {
    let authority = Authority::start().await;
    let (root, _) = localhost();
    let portal = place();
    let (directory, http) = (authority.url("directory"), portal.to_string());
    let options = ["--open", "--acme-domain", DOMAIN, "--acme-root", &root, "--acme-directory", &directory];
    let server = Server::start(&[&options[..], &["--http-listen", &http]].concat());
    authority.proves_by.send_replace(Some(Proof::Http(portal)));
    authority.client(&server).await;
    assert_eq!(authority.issued.load(Ordering::Relaxed), 1);
    let head = crate::client::get(portal, "GET", &format!("/.well-known/acme-challenge/{TOKEN}"), "");
    assert!(head.starts_with("http/1.1 404"), "a proof is for once: {head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_obtains_a_certificate_for_its_domain_as_well() {
    use std::io::{Read, Write};
    let authority = Authority::start().await;
    let (root, _) = localhost();
    let directory = authority.url("directory");
    let options = ["--acme-domain", DOMAIN, "--acme-root", &root, "--acme-directory", &directory];
    let server = crate::coordinator::Server::start(&[&options[..], &["--stun-listen", "none"]].concat());
    authority.proves_by.send_replace(Some(Proof::Tls(server.address)));

    let asks = |mut stream: rustls::StreamOwned<_, std::net::TcpStream>| {
        let request = format!("GET /key?v=145 HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("mkey:"), "{answer}");
    };
    authority.connected(server.address, asks).await;

    assert_eq!(authority.issued.load(Ordering::Relaxed), 1);
    assert!(server.state_dir().join("acme-certificate.pem").exists());
}

/// How the domain is proved, and where it leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    Tls(SocketAddr),
    Http(SocketAddr),
}

/// A certificate authority that knows one account and one domain.
struct Authority {
    address: SocketAddr,
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    /// Once the domain leads somewhere.
    proves_by: watch::Sender<Option<Proof>>,
    nonces: Mutex<(u64, BTreeSet<String>)>,
    thumbprint: Mutex<String>,
    order: Mutex<Order>,
    accounts: AtomicU32,
    issued: AtomicU32,
}

#[derive(Default)]
struct Order {
    is_proved: bool,
    certificate: Option<String>,
}

impl Authority {
    async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        let authority = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            issuer: Issuer::new(params, key),
            root,
            proves_by: watch::Sender::new(None),
            nonces: Mutex::default(),
            thumbprint: Mutex::default(),
            order: Mutex::default(),
            accounts: AtomicU32::new(0),
            issued: AtomicU32::new(0),
        });
        tokio::spawn(serve(listener, Arc::clone(&authority)));
        authority
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}/{path}", self.address.port())
    }

    /// A client of the relay by its domain and this authority; the certificate that it was shown.
    async fn client(&self, server: &Server) -> CertificateDer<'static> {
        self.connected(server.address, |stream| {
            let mut client = Client::over(Box::new(stream), 2).admitted();
            // The one before it may not have been seen to leave: what the relay says of that is passed over.
            client.settle();
        })
        .await
    }

    /// Connects by the domain and this authority, and does something there; the certificate that was shown.
    async fn connected(
        &self,
        address: SocketAddr,
        talk: impl FnOnce(rustls::StreamOwned<rustls::ClientConnection, std::net::TcpStream>) + Send + 'static,
    ) -> CertificateDer<'static> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = Arc::new(config.unwrap().with_root_certificates(roots).with_no_client_auth());
        let connected = move || loop {
            let mut io = open(address);
            let mut tls = rustls::ClientConnection::new(Arc::clone(&config), DOMAIN.try_into().unwrap()).unwrap();
            if let Err(error) = tls.complete_io(&mut io) {
                // Until it has a certificate, the server has nothing to show. What it shows has to be right.
                assert!(!error.to_string().contains("invalid peer certificate"), "{error}");
                continue;
            }
            let shown = tls.peer_certificates().unwrap()[0].clone().into_owned();
            talk(rustls::StreamOwned::new(tls, io));
            return shown;
        };
        tokio::task::spawn_blocking(connected).await.unwrap()
    }

    fn nonce(&self) -> String {
        let (count, fresh) = &mut *self.nonces.lock().unwrap();
        *count += 1;
        let nonce = format!("nonce{count}");
        fresh.insert(nonce.clone());
        nonce
    }

    async fn is_proved(&self) -> bool {
        let mut proves_by = self.proves_by.subscribe();
        let proof = proves_by.wait_for(Option::is_some).await.unwrap().unwrap();
        let answer = format!("{TOKEN}.{}", self.thumbprint.lock().unwrap());
        match proof {
            Proof::Tls(address) => is_proved_by_tls(address, &answer).await,
            Proof::Http(address) => {
                let path = format!("/.well-known/acme-challenge/{TOKEN}");
                tokio::task::spawn_blocking(move || get_body(address, &path)).await.unwrap() == answer
            }
        }
    }

    fn sign(&self, request: &[u8]) -> String {
        let at = request.windows(P256.len()).position(|bytes| bytes == P256).unwrap() + P256.len();
        let key = RequestKey(request[at..at + 65].to_vec());
        let mut params = CertificateParams::new(vec![DOMAIN.to_owned()]).unwrap();
        // Of the first one's time less than a third is left, of the others' nearly all.
        let is_first = self.issued.fetch_add(1, Ordering::Relaxed) == 0;
        (params.not_before, params.not_after) = if is_first {
            (date_time_ymd(1971, 1, 1), date_time_ymd(2049, 1, 1))
        } else {
            (date_time_ymd(2000, 1, 1), date_time_ymd(4000, 1, 1))
        };
        params.signed_by(&key, &self.issuer).unwrap().pem()
    }

    fn order(&self) -> Json<Value> {
        let order = self.order.lock().unwrap();
        let status = match (&order.certificate, order.is_proved) {
            (Some(_), _) => "valid",
            (None, true) => "ready",
            (None, false) => "pending",
        };
        let mut state = json!({ "status": status, "identifiers": [{ "type": "dns", "value": DOMAIN }],
            "authorizations": [self.url("authorization")], "finalize": self.url("finalize") });
        if order.certificate.is_some() {
            state["certificate"] = self.url("certificate").into();
        }
        Json(state)
    }

    fn challenge(&self, kind: &str) -> Value {
        let status = if self.order.lock().unwrap().is_proved { "valid" } else { "pending" };
        json!({ "type": kind, "url": self.url(&format!("challenge/{kind}")), "token": TOKEN, "status": status })
    }

    /// Answers a signed request.
    async fn answer(&self, path: &str, protected: &Value, payload: &[u8]) -> Response {
        let at = |path: &str| [(header::LOCATION, self.url(path))];
        match path {
            "/account" => {
                let key = &protected["jwk"];
                // RFC 7638: these members, in this order, without spaces.
                let canonical =
                    format!(r#"{{"crv":{},"kty":{},"x":{},"y":{}}}"#, key["crv"], key["kty"], key["x"], key["y"]);
                *self.thumbprint.lock().unwrap() = BASE64URL_NOPAD.encode(&Sha256::digest(canonical));
                self.accounts.fetch_add(1, Ordering::Relaxed);
                (StatusCode::CREATED, at("account/1"), Json(json!({ "status": "valid" }))).into_response()
            }
            "/order" => {
                *self.order.lock().unwrap() = Order::default();
                let payload: Value = serde_json::from_slice(payload).unwrap();
                assert_eq!(payload["identifiers"], json!([{ "type": "dns", "value": DOMAIN }]));
                (StatusCode::CREATED, at("order/1"), self.order()).into_response()
            }
            "/order/1" => self.order().into_response(),
            "/authorization" => {
                let challenges = ["tls-alpn-01", "http-01"].map(|kind| self.challenge(kind));
                let body = json!({ "identifier": { "type": "dns", "value": DOMAIN }, "status": challenges[0]["status"],
                    "challenges": challenges });
                Json(body).into_response()
            }
            "/challenge/tls-alpn-01" | "/challenge/http-01" => {
                let is_proved = self.is_proved().await;
                self.order.lock().unwrap().is_proved = is_proved;
                Json(self.challenge(path.rsplit('/').next().unwrap())).into_response()
            }
            "/finalize" if self.order.lock().unwrap().is_proved => {
                let payload: Value = serde_json::from_slice(payload).unwrap();
                let request = BASE64URL_NOPAD.decode(payload["csr"].as_str().unwrap().as_bytes()).unwrap();
                let certificate = self.sign(&request);
                self.order.lock().unwrap().certificate = Some(certificate);
                self.order().into_response()
            }
            "/certificate" => self.order.lock().unwrap().certificate.clone().unwrap().into_response(),
            _ => StatusCode::FORBIDDEN.into_response(),
        }
    }
}

/// Asks for the proof of RFC 8737 §3.
async fn is_proved_by_tls(address: SocketAddr, answer: &str) -> bool {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(Unread));
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let Ok(tls) = TlsConnector::from(Arc::new(config)).connect(DOMAIN.try_into().unwrap(), stream).await else {
        return false;
    };
    let (_, tls) = tls.get_ref();
    let proof = [PROOF.as_slice(), &Sha256::digest(answer)].concat();
    let shown = tls.peer_certificates().unwrap()[0].as_ref();
    tls.alpn_protocol() == Some(b"acme-tls/1") && shown.windows(proof.len()).any(|bytes| bytes == proof)
}

/// Leaves a certificate unread: an extension that says it must be understood makes rustls refuse it.
#[derive(Debug)]
struct Unread;

impl ServerCertVerifier for Unread {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

async fn serve(listener: TcpListener, authority: Arc<Authority>) {
    let (cert, key) = localhost();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(cert).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let router = Router::new()
        .route("/directory", get(directory))
        .route("/nonce", get(nonce))
        .route("/{*path}", post(signed))
        .with_state(authority);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn directory(State(authority): State<Arc<Authority>>) -> Json<Value> {
    let url = |path| authority.url(path);
    Json(json!({ "newNonce": url("nonce"), "newAccount": url("account"), "newOrder": url("order") }))
}

async fn nonce(State(authority): State<Arc<Authority>>) -> impl IntoResponse {
    [("replay-nonce", authority.nonce())]
}

/// A request in the envelope of RFC 8555 §6.2. That its signature is right is for others to check.
async fn signed(
    State(authority): State<Arc<Authority>>,
    uri: axum::http::Uri,
    headers: HeaderMap,
    Json(envelope): Json<Value>,
) -> Response {
    assert_eq!(headers[header::CONTENT_TYPE], "application/jose+json");
    let part = |name: &str| BASE64URL_NOPAD.decode(envelope[name].as_str().unwrap().as_bytes()).unwrap();
    let protected: Value = serde_json::from_slice(&part("protected")).unwrap();
    assert_eq!(protected["url"], authority.url(&uri.path()[1..]));
    assert!(!part("signature").is_empty());
    let is_fresh = authority.nonces.lock().unwrap().1.remove(protected["nonce"].as_str().unwrap());
    let mut answer = if is_fresh {
        authority.answer(uri.path(), &protected, &part("payload")).await
    } else {
        let problem = json!({ "type": "urn:ietf:params:acme:error:badNonce" });
        (StatusCode::BAD_REQUEST, Json(problem)).into_response()
    };
    answer.headers_mut().insert("replay-nonce", authority.nonce().parse().unwrap());
    answer
}

/// The public key of a request, without anything else of it: it is the authority's to say what is in a certificate.
struct RequestKey(Vec<u8>);

impl PublicKeyData for RequestKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}
