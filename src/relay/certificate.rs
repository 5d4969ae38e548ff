//! Certificates of a relay that nobody vouches for: clients know them by the hash that their map names.
//!
//! Model: one key on disk; a certificate follows from the key, a host name and the year, byte for byte, since
//! Ed25519 signs without chance. So the hash can be told for any name by which a client reaches us, and nothing but
//! the key is kept. A year's certificate is valid far beyond that year on both sides: clocks may be wrong, and a map
//! may be some days old.

use std::path::Path;
use std::sync::atomic::{AtomicI16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ED25519, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use tokio_rustls::TlsAcceptor;

use super::clock;
use warren_shell::{CertificatePin, kept_key};

/// The name that stands in where clients know us by an address only.
pub const NAMELESS: &str = "relay.invalid";
/// Years that a certificate is valid before and after its own.
const MARGIN: i32 = 1;

/// Makes the certificates.
#[derive(Debug)]
pub struct SelfSigned {
    key: KeyPair,
    signer: Arc<dyn SigningKey>,
    /// Whose certificates are served. It turns when told to, not by itself: nodes must hear of it in the same moment.
    year: AtomicI16,
    /// The certificate asked for last: there is one name, as a rule.
    last: Mutex<Option<Arc<Made>>>,
}

#[derive(Debug)]
struct Made {
    name: String,
    year: i16,
    key: Arc<CertifiedKey>,
}

impl SelfSigned {
    /// With the key of this file; the first start makes it. The error is a sentence.
    pub fn open(file: &Path) -> Result<Arc<Self>, String> {
        let generated = || KeyPair::generate_for(&PKCS_ED25519).map(|key| key.serialize_pem());
        let key = kept_key(file, KeyPair::from_pem, generated)?;
        Self::new(key).map_err(|error| format!("{}: {error}", file.display()))
    }

    fn new(key: KeyPair) -> Result<Arc<Self>, rustls::Error> {
        let secret = PrivatePkcs8KeyDer::from(key.serialized_der()).clone_key();
        let signer = rustls::crypto::ring::sign::any_eddsa_type(&secret)?;
        Ok(Arc::new(Self { key, signer, year: AtomicI16::new(clock::year()), last: Mutex::new(None) }))
    }

    /// The hash by which clients that reach us as `host` know the certificate; `None` where that cannot be a name.
    pub fn pin(&self, host: &str) -> Option<CertificatePin> {
        let made = self.certificate(host, self.year())?;
        made.cert.first().map(CertificatePin::of)
    }

    /// Serves this year's certificates from here on. Whether that makes a difference, and pins have to be told anew.
    pub fn renew(&self) -> bool {
        let year = clock::year();
        self.year.swap(year, Ordering::Relaxed) != year
    }

    fn year(&self) -> i16 {
        self.year.load(Ordering::Relaxed)
    }

    /// The server's side of TLS.
    pub fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    fn certificate(&self, name: &str, year: i16) -> Option<Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(made) = last.filter(|made| made.name == name && made.year == year) {
            return Some(Arc::clone(&made.key));
        }
        let key = Arc::new(CertifiedKey::new(vec![self.make(&name, year).ok()?], Arc::clone(&self.signer)));
        let made = Arc::new(Made { name, year, key: Arc::clone(&key) });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        Some(key)
    }

    fn make(&self, name: &str, year: i16) -> Result<CertificateDer<'static>, rcgen::Error> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, "Warren relay");
        params.not_before = date_time_ymd(i32::from(year) - MARGIN, 1, 1);
        params.not_after = date_time_ymd(i32::from(year) + 1 + MARGIN, 1, 1);
        Ok(params.self_signed(&self.key)?.into())
    }
}

impl ResolvesServerCert for SelfSigned {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificate(hello.server_name().unwrap_or(NAMELESS), self.year())
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;
    use tokio_rustls::TlsConnector;

    use super::*;

    #[test]
    fn a_certificate_follows_from_key_name_and_year() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("relay-tls.key");
        let (first, again) = (SelfSigned::open(&file).unwrap(), SelfSigned::open(&file).unwrap());
        assert_eq!(first.make("a.example", 2026), again.make("a.example", 2026));
        assert_ne!(first.make("a.example", 2026), first.make("b.example", 2026));
        assert_ne!(first.make("a.example", 2026), first.make("a.example", 2027));
        assert_eq!(first.pin("A.example"), again.pin("a.example"));
        assert_eq!(first.pin("ä"), None);
        std::fs::write(&file, "nonsense").unwrap();
        assert!(SelfSigned::open(&file).unwrap_err().starts_with(&file.display().to_string()));
    }

    #[tokio::test]
    async fn the_pin_that_nodes_were_told_is_served_until_they_are_told_another() {
        let directory = tempfile::tempdir().unwrap();
        let relay = SelfSigned::open(&directory.path().join("key")).unwrap();
        assert!(!relay.renew());
        // As on the morning of a new year.
        relay.year.fetch_sub(1, Ordering::Relaxed);
        let last_year = relay.pin(NAMELESS).unwrap();
        assert!(is_taken(&relay, last_year, "192.0.2.1").await);
        assert!(relay.renew());
        let this_year = relay.pin(NAMELESS).unwrap();
        assert_ne!(last_year, this_year);
        assert!(is_taken(&relay, this_year, "192.0.2.1").await);
        assert!(!is_taken(&relay, last_year, "192.0.2.1").await);
    }

    /// Whether a client with this pin takes the certificate that it is shown.
    async fn is_taken(relay: &Arc<SelfSigned>, pin: CertificatePin, host: &'static str) -> bool {
        let (near, far) = tokio::io::duplex(1 << 14);
        let acceptor = relay.acceptor().unwrap();
        let accepting = tokio::spawn(async move { acceptor.accept(far).await.map(drop) });
        let connector = TlsConnector::from(Arc::new(pin.client_config().unwrap()));
        let connected = connector.connect(ServerName::try_from(host).unwrap(), near).await;
        let is_taken = connected.is_ok();
        drop(connected);
        let _ = accepting.await.unwrap();
        is_taken
    }

    #[tokio::test]
    async fn a_client_takes_the_pinned_certificate_and_no_other_by_name_and_by_address() {
        let directory = tempfile::tempdir().unwrap();
        let ours = SelfSigned::open(&directory.path().join("ours")).unwrap();
        let theirs = SelfSigned::open(&directory.path().join("theirs")).unwrap();
        for (host, known_as) in [("relay.example", "relay.example"), ("192.0.2.1", NAMELESS)] {
            for (pin, taken) in [(ours.pin(known_as), true), (theirs.pin(known_as), false)] {
                assert_eq!(is_taken(&ours, pin.unwrap(), host).await, taken, "{host}");
            }
        }
    }
}
