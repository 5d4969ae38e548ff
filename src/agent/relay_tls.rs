//! TLS towards the relays of a map: as the map says who they are.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;

use super::control_io::connect::system_roots;
use crate::io::CertificatePin;

/// Makes TLS for relays. The system's trust is read once, when it is needed first; clones share it.
#[derive(Clone, Default)]
pub struct RelayTls {
    roots: Arc<OnceLock<Arc<RootCertStore>>>,
}

impl RelayTls {
    /// TLS with a relay. `cert_name` is the map's `CertName`: empty, the name that its certificate carries in place of the
    /// host name, or the hash of its certificate. `insecure` is the map's `InsecureForTests`: any certificate will do.
    pub fn connector(&self, cert_name: &str, insecure: bool) -> Result<TlsConnector, String> {
        let text = |error: rustls::Error| format!("TLS: {error}");
        if let Some(pin) = CertificatePin::read(cert_name) {
            return Ok(TlsConnector::from(Arc::new(pin?.client_config().map_err(text)?)));
        }
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(text)?;
        if cert_name.is_empty() && !insecure {
            return Ok(Arc::new(builder.with_root_certificates(self.roots()).with_no_client_auth()).into());
        }
        let named = if insecure { None } else { Some(self.named(cert_name, &provider)?) };
        let verifier = Arc::new(Verifier { provider, named });
        let config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }

    fn named(&self, name: &str, provider: &Arc<CryptoProvider>) -> Result<Named, String> {
        let name = ServerName::try_from(name.to_owned()).map_err(|error| format!("{name:?}: {error}"))?;
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots(), provider.clone()).build();
        Ok(Named { name, verifier: verifier.map_err(|error| format!("TLS: {error}"))? })
    }

    fn roots(&self) -> Arc<RootCertStore> {
        self.roots.get_or_init(|| Arc::new(system_roots())).clone()
    }
}

/// Verifies a certificate under another name than the one that is connected, or not at all.
struct Verifier {
    provider: Arc<CryptoProvider>,
    named: Option<Named>,
}

struct Named {
    name: ServerName<'static>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("name", &self.named.as_ref().map(|named| &named.name)).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.named {
            Some(Named { name, verifier }) => {
                verifier.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
            }
            None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
