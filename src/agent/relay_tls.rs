//! TLS towards the relays of a map: as the map says who they are.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::clock;
use super::control_io::connect::system_roots;
use warren_shell::{CertificatePin, ServerCertificate, client_config};

/// How long what was read of the system's trust serves: reading it takes some milliseconds, and many relays may be asked
/// at once. An authority that is added or removed counts after this.
const ROOTS_AGE: Duration = Duration::from_secs(60);

/// Makes TLS for relays. Clones share what was read of the system's trust.
#[derive(Clone, Default)]
pub struct RelayTls {
    /// Locked while it is read, never across an `await`.
    roots: Arc<Mutex<Option<Roots>>>,
}

/// The authorities that the system trusts, and when they were read.
type Roots = (Instant, Arc<RootCertStore>);

impl RelayTls {
    /// TLS with a relay. `cert_name` is the map's `CertName`: empty, the name that its certificate carries in place of the
    /// host name, or the hash of its certificate. `insecure` is the map's `InsecureForTests`: any certificate will do.
    pub fn connector(&self, cert_name: &str, insecure: bool) -> Result<TlsConnector, String> {
        let text = |error: rustls::Error| format!("TLS: {error}");
        if let Some(pin) = CertificatePin::read(cert_name) {
            return Ok(TlsConnector::from(Arc::new(pin?.client_config().map_err(text)?)));
        }
        if insecure {
            return Ok(Arc::new(client_config(|_| Ok(())).map_err(text)?).into());
        }
        let provider = Arc::new(ring::default_provider());
        if cert_name.is_empty() {
            let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let config = builder.map_err(text)?.with_root_certificates(self.roots()).with_no_client_auth();
            return Ok(Arc::new(config).into());
        }
        let name = ServerName::try_from(cert_name.to_owned()).map_err(|error| format!("{cert_name:?}: {error}"))?;
        let authorities = WebPkiServerVerifier::builder_with_provider(self.roots(), provider).build();
        let authorities = authorities.map_err(|error| format!("TLS: {error}"))?;
        let config = client_config(move |server| {
            let ServerCertificate { own, others, ocsp, now } = server;
            authorities.verify_server_cert(own, others, &name, ocsp, now).map(|_| ())
        });
        Ok(Arc::new(config.map_err(text)?).into())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::now().tick;
        match &*roots {
            Some((read, roots)) if now.saturating_duration_since(*read) < ROOTS_AGE => Arc::clone(roots),
            _ => Arc::clone(&roots.insert((now, Arc::new(system_roots()))).1),
        }
    }
}
