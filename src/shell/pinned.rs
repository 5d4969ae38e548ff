//! TLS towards a relay whose certificate the map names by its hash: no authority has to vouch for it.

use std::fmt;

use data_encoding::HEXLOWER_PERMISSIVE;
use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, ClientConfig};
use sha2::{Digest, Sha256};

/// How a relay's certificate name says that it is a hash and no name (`CertName` of a `DERPNode`).
const PREFIX: &str = "sha256-raw:";

/// The SHA-256 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CertificatePin([u8; 32]);

impl CertificatePin {
    /// Of this certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// Reads the certificate name of a map; `None` where it is an ordinary name, an error where it is neither.
    pub fn read(cert_name: &str) -> Option<Result<Self, String>> {
        let text = cert_name.strip_prefix(PREFIX)?;
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        Some(bytes.map(Self).ok_or_else(|| format!("{cert_name:?}: {PREFIX} is followed by 64 hexadecimal digits")))
    }

    /// A client's side of TLS that takes the pinned certificate and no other.
    ///
    /// Neither name nor dates are looked at: the map that brought the hash is newer than both, and authenticated.
    pub fn client_config(self) -> Result<ClientConfig, rustls::Error> {
        // Only the server's own certificate counts. Relays may send another behind it that carries their key.
        super::client_config(move |server| {
            let is_it = Self::of(server.own) == self;
            is_it.then_some(()).ok_or(CertificateError::ApplicationVerificationFailure.into())
        })
    }
}

/// As it stands in a map.
impl fmt::Display for CertificatePin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for CertificatePin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_name_is_a_pin_an_ordinary_name_or_a_mistake() {
        let pin = CertificatePin::of(&CertificateDer::from_slice(b"certificate"));
        assert_eq!(CertificatePin::read(&pin.to_string()), Some(Ok(pin)));
        assert_eq!(
            CertificatePin::read(&pin.to_string().to_uppercase().replace("SHA256-RAW", "sha256-raw")),
            Some(Ok(pin))
        );
        for name in ["", "relay.example", "SHA256-RAW:00"] {
            assert_eq!(CertificatePin::read(name), None, "{name}");
        }
        for mistake in ["sha256-raw:", "sha256-raw:00", "sha256-raw:zz"] {
            assert!(CertificatePin::read(mistake).unwrap().unwrap_err().contains(mistake), "{mistake}");
        }
    }
}
