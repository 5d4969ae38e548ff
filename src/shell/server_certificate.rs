//! TLS towards servers that are known by something else than their host name and this host's authorities.
//!
//! Who the server is, is the caller's to judge. That it holds its certificate's key is checked here.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

/// What a server shows of itself.
#[derive(Clone, Copy, Debug)]
pub struct ServerCertificate<'a> {
    /// Its own certificate.
    pub own: &'a CertificateDer<'a>,
    /// What it sent behind it.
    pub others: &'a [CertificateDer<'a>],
    /// Its authority's word that it is not revoked, or nothing.
    pub ocsp: &'a [u8],
    pub now: UnixTime,
}

/// A client's side of TLS that talks to whom `judge` takes.
pub fn client_config<J>(judge: J) -> Result<ClientConfig, Error>
where
    J: Fn(ServerCertificate<'_>) -> Result<(), Error> + Send + Sync + 'static,
{
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Judged { judge, provider: Arc::clone(&provider) });
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(versions.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

struct Judged<J> {
    judge: J,
    provider: Arc<CryptoProvider>,
}

impl<J> fmt::Debug for Judged<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judged").finish_non_exhaustive()
    }
}

impl<J> ServerCertVerifier for Judged<J>
where
    J: Fn(ServerCertificate<'_>) -> Result<(), Error> + Send + Sync,
{
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        (self.judge)(ServerCertificate { own, others, ocsp, now }).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
