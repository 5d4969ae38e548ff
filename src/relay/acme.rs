//! Certificates from an ACME server (RFC 8555).
//!
//! That a domain leads here is proved by TLS on the relay's own port (tls-alpn-01, RFC 8737), or, where the relay
//! answers plain HTTP as well, by a word there (http-01): a relay need not have port 443 then.
//!
//! Account, certificate and key lie in the state directory. A certificate is renewed when a third of its time is left;
//! what fails is tried again, and the old certificate serves meanwhile.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use jiff::Timestamp;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info, warn};

use super::{clock, validity};
use warren_shell::{keep_private, write_secret};

/// The protocol in which an ACME server asks for its proof.
const ALPN: &[u8] = b"acme-tls/1";
const ACCOUNT: &str = "acme-account.json";
const CERTIFICATE: &str = "acme-certificate.pem";
/// The first wait after a failure: ACME servers limit how often one may fail.
const RETRY_FIRST: Duration = Duration::from_secs(60);
/// The longest.
const RETRY_MOST: Duration = Duration::from_secs(6 * 3600);
/// How often a certificate's end is looked at: clocks are set, machines sleep.
const LOOK: Duration = Duration::from_secs(60);
/// The least time between two certificates.
const REST: Duration = Duration::from_secs(3600);
/// How long an order may take to be checked and signed.
const PATIENCE: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(120));

type Fault = Box<dyn Error + Send + Sync>;

/// The directory of the server that is asked unless another is named.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// What the operator decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeSettings {
    /// Whom the certificate is for.
    pub domains: Vec<String>,
    /// URL of the server's directory.
    pub directory: String,
    /// A certificate to trust the server by, in place of this host's.
    pub root: Option<PathBuf>,
    /// Whether the proof is a word over plain HTTP.
    pub by_http: bool,
}

/// Keeps a certificate.
#[derive(Debug)]
pub struct Acme {
    settings: AcmeSettings,
    state_dir: PathBuf,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    current: Option<Arc<CertifiedKey>>,
    /// What proves to the ACME server that a domain leads here.
    proofs: BTreeMap<String, Arc<CertifiedKey>>,
    /// The same for HTTP: what is answered for a token.
    words: BTreeMap<String, String>,
}

impl Acme {
    /// With the certificate of an earlier start, if there is one.
    pub fn open(settings: AcmeSettings, state_dir: &Path) -> Arc<Self> {
        let acme = Self { settings, state_dir: state_dir.to_owned(), held: Mutex::default() };
        for file in [CERTIFICATE, ACCOUNT] {
            if let Err(error) = keep_private(&acme.file(file)) {
                error!("{error}");
            }
        }
        match fs::read(acme.file(CERTIFICATE)).map_err(Fault::from).and_then(|pem| certified(&pem)) {
            Ok(key) => acme.held().current = Some(key),
            Err(error) => info!(%error, "no certificate of an earlier start"),
        }
        Arc::new(acme)
    }

    /// The server's side of TLS.
    pub fn acceptor(self: &Arc<Self>) -> TlsAcceptor {
        let resolver = Arc::clone(self) as Arc<dyn ResolvesServerCert>;
        let mut config = rustls::ServerConfig::builder().with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec(), ALPN.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// Obtains and renews for as long as the server runs, which accepts already: it is asked for proofs.
    pub async fn keep(self: Arc<Self>) {
        let mut wait = RETRY_FIRST;
        loop {
            if !self.is_due(clock::wall()) {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            match self.obtain().await {
                Ok(()) => {
                    info!(domains = self.settings.domains.join(","), "a certificate was obtained");
                    wait = RETRY_FIRST;
                    // Also where the clock is wrong and it seems old: the server limits how many it issues.
                    tokio::time::sleep(REST).await;
                }
                Err(error) => {
                    self.forget_proofs();
                    warn!(domains = self.settings.domains.join(","), %error, ?wait, "obtaining a certificate");
                    tokio::time::sleep(wait).await;
                    wait = (2 * wait).min(RETRY_MOST);
                }
            }
        }
    }

    fn is_due(&self, now: Timestamp) -> bool {
        let current = self.held().current.clone();
        let Some((begins, ends)) = current.as_ref().and_then(|key| validity::of(key.cert.first()?)) else {
            return true;
        };
        let left = ends.as_second() - now.as_second();
        left < (ends.as_second() - begins.as_second()) / 3
    }

    async fn obtain(&self) -> Result<(), Fault> {
        let account = self.account().await?;
        let names: Vec<_> = self.settings.domains.iter().cloned().map(Identifier::Dns).collect();
        let mut order = account.new_order(&NewOrder::new(&names)).await?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let by_http = self.settings.by_http;
            let (kind, name) =
                if by_http { (ChallengeType::Http01, "http-01") } else { (ChallengeType::TlsAlpn01, "tls-alpn-01") };
            let challenge = authorization.challenge(kind);
            let mut challenge = challenge.ok_or_else(|| format!("the server does not offer the proof {name}"))?;
            let answer = challenge.key_authorization();
            if by_http {
                self.held().words.insert(challenge.token.clone(), answer.as_str().to_owned());
            } else {
                let domain = challenge.identifier().to_string();
                let proof = proof(&domain, answer.digest().as_ref())?;
                self.held().proofs.insert(domain, proof);
            }
            challenge.set_ready().await?;
        }
        match order.poll_ready(&PATIENCE).await? {
            OrderStatus::Ready | OrderStatus::Valid => {}
            status @ (OrderStatus::Pending | OrderStatus::Processing | OrderStatus::Invalid) => {
                let port = if self.settings.by_http { 80 } else { 443 };
                return Err(format!("the order is {status:?}: does port {port} of each domain lead here?").into());
            }
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(self.settings.domains.clone())?;
        params.distinguished_name = DistinguishedName::new();
        order.finalize_csr(params.serialize_request(&key)?.der()).await?;
        let chain = order.poll_certificate(&PATIENCE).await?;
        let pem = key.serialize_pem() + &chain;
        let certified = certified(pem.as_bytes())?;
        write_secret(&self.file(CERTIFICATE), pem.as_bytes())?;
        // The proofs have served.
        *self.held() = Held { current: Some(certified), ..Held::default() };
        Ok(())
    }

    /// What proves over plain HTTP that a domain leads here, where this token is one that the server gave.
    pub(super) fn word(&self, token: &str) -> Option<String> {
        self.held().words.get(token).cloned()
    }

    fn forget_proofs(&self) {
        let mut held = self.held();
        held.proofs.clear();
        held.words.clear();
    }

    async fn account(&self) -> Result<Account, Fault> {
        let builder = match &self.settings.root {
            Some(root) => Account::builder_with_root(root)?,
            None => Account::builder()?,
        };
        let file = self.file(ACCOUNT);
        if let Ok(text) = fs::read(&file) {
            return Ok(builder.from_credentials(serde_json::from_slice(&text)?).await?);
        }
        let new = NewAccount { contact: &[], terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = builder.create(&new, self.settings.directory.clone(), None).await?;
        write_secret(&file, &serde_json::to_vec(&credentials)?)?;
        Ok(account)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.state_dir.join(name)
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for Acme {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let held = self.held();
        if hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == ALPN)) {
            return held.proofs.get(&hello.server_name()?.to_ascii_lowercase()).cloned();
        }
        held.current.clone()
    }
}

/// The certificate that carries the proof.
fn proof(domain: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, Fault> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![domain.to_owned()])?;
    if digest.len() != 32 {
        return Err("the digest of a key authorization has 32 bytes".into());
    }
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    let secret = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| error.to_owned())?;
    let signer = rustls::crypto::ring::sign::any_supported_type(&secret)?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signer)))
}

/// Key and chain from one text.
fn certified(pem: &[u8]) -> Result<Arc<CertifiedKey>, Fault> {
    let secret = PrivateKeyDer::from_pem_slice(pem)?;
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    let key = CertifiedKey::new(chain, rustls::crypto::ring::sign::any_supported_type(&secret)?);
    key.keys_match()?;
    Ok(Arc::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_due_when_a_third_of_its_time_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let settings =
            AcmeSettings { domains: vec!["a.example".into()], directory: String::new(), root: None, by_http: false };
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(Acme::open(settings.clone(), directory.path()).is_due(at("2026-01-01T00:00:00Z")));

        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(settings.domains.clone()).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 3, 31);
        let pem = key.serialize_pem() + &params.self_signed(&key).unwrap().pem();
        fs::write(directory.path().join(CERTIFICATE), pem).unwrap();
        let acme = Acme::open(settings, directory.path());
        assert!(!acme.is_due(at("2026-02-25T00:00:00Z")));
        assert!(acme.is_due(at("2026-03-05T00:00:00Z")));
    }
}
