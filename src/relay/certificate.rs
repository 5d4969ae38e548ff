//! Certificates of a relay that nobody vouches for: clients know them by the hash that their map names.
//!
//! Model: one key on disk; a certificate follows from the key, a host name and the year, byte for byte, since
//! Ed25519 signs without chance. So the hash can be told for any name by which a client reaches us, and nothing but
//! the key is kept. A year's certificate is valid far beyond that year on both sides: clocks may be wrong, and a map
//! may be some days old.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ED25519, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use tokio_rustls::TlsAcceptor;

use super::clock;
use crate::io::{CertificatePin, write_secret};

/// The name that stands in where clients know us by an address only.
pub const NAMELESS: &str = "relay.invalid";
/// Years that a certificate is valid before and after its own.
const MARGIN: i32 = 1;

/// Makes the certificates.
#[derive(Debug)]
pub struct SelfSigned {
    key: KeyPair,
    signer: Arc<dyn SigningKey>,
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
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        match fs::read_to_string(file) {
            Ok(pem) => {
                Self::new(KeyPair::from_pem(&pem).map_err(|error| failed(&error))?).map_err(|error| failed(&error))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate_for(&PKCS_ED25519).map_err(|error| failed(&error))?;
                write_secret(file, key.serialize_pem().as_bytes()).map_err(|error| failed(&error))?;
                Self::new(key).map_err(|error| failed(&error))
            }
            Err(error) => Err(failed(&error)),
        }
    }

    fn new(key: KeyPair) -> Result<Arc<Self>, rustls::Error> {
        let secret = PrivatePkcs8KeyDer::from(key.serialized_der()).clone_key();
        let signer = rustls::crypto::ring::sign::any_eddsa_type(&secret)?;
        Ok(Arc::new(Self { key, signer, last: Mutex::new(None) }))
    }

    /// The hash by which clients that reach us as `host` know this year's certificate; `None` where that cannot be a name.
    pub fn pin(&self, host: &str) -> Option<CertificatePin> {
        let made = self.certificate(host, self.year())?;
        made.cert.first().map(CertificatePin::of)
    }

    /// The year whose certificates are served.
    pub fn year(&self) -> i16 {
        clock::year()
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
        fs::write(&file, "nonsense").unwrap();
        assert!(SelfSigned::open(&file).unwrap_err().starts_with(&file.display().to_string()));
    }

    #[tokio::test]
    async fn a_client_takes_the_pinned_certificate_and_no_other_by_name_and_by_address() {
        let directory = tempfile::tempdir().unwrap();
        let ours = SelfSigned::open(&directory.path().join("ours")).unwrap();
        let theirs = SelfSigned::open(&directory.path().join("theirs")).unwrap();
        for (host, known_as) in [("relay.example", "relay.example"), ("192.0.2.1", NAMELESS)] {
            for (pin, taken) in [(ours.pin(known_as), true), (theirs.pin(known_as), false)] {
                let (near, far) = tokio::io::duplex(1 << 14);
                let acceptor = ours.acceptor().unwrap();
                let accepting = tokio::spawn(async move { acceptor.accept(far).await.map(drop) });
                let connector = TlsConnector::from(Arc::new(pin.unwrap().client_config().unwrap()));
                let connected = connector.connect(ServerName::try_from(host).unwrap(), near).await;
                assert_eq!(connected.is_ok(), taken, "{host}");
                drop(connected);
                let _ = accepting.await.unwrap();
            }
        }
    }
}
