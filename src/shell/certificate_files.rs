//! A certificate that its owner renews by writing its files anew, while connections go on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info, warn};

/// How often the files are looked at, for those who renew them without a word.
const LOOK: Duration = Duration::from_secs(60);

/// Certificate chain and private key in PEM, as they were when they were last good.
#[derive(Debug)]
pub struct CertificateFiles {
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    cert: PathBuf,
    key: PathBuf,
    certified: Arc<CertifiedKey>,
    /// The files as they were when they were last read, whether that went well or not.
    looked: [FileStamp; 2],
}

/// What of a file changes when somebody writes it: its number, its length and when.
pub type FileStamp = Option<(u64, u64, i64, i64)>;

impl CertificateFiles {
    /// Reads certificate and key; the error is a sentence that names the file.
    pub fn open(cert: &Path, key: &Path) -> Result<Arc<Self>, String> {
        let looked = [file_stamp(cert), file_stamp(key)];
        let held = Held { certified: read(cert, key)?, cert: cert.to_owned(), key: key.to_owned(), looked };
        Ok(Arc::new(Self { held: Mutex::new(held) }))
    }

    /// The server's side of TLS.
    pub fn acceptor(self: &Arc<Self>) -> TlsAcceptor {
        let resolver = Arc::clone(self) as Arc<dyn ResolvesServerCert>;
        let mut config = rustls::ServerConfig::builder().with_no_client_auth().with_cert_resolver(resolver);
        // The upgrades to our protocols exist in HTTP/1.1 only.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// Reads these files from here on; whether what they hold is another certificate. After an error, which is a sentence,
    /// the certificate is the one before.
    pub fn replace(&self, cert: &Path, key: &Path) -> Result<bool, String> {
        let looked = [file_stamp(cert), file_stamp(key)];
        let certified = read(cert, key);
        let mut held = self.held();
        held.looked = looked;
        let certified = certified.map_err(|error| format!("{error}; the certificate before stays in use"))?;
        let is_other = certified.cert != held.certified.cert;
        (held.cert, held.key, held.certified) = (cert.to_owned(), key.to_owned(), certified);
        Ok(is_other)
    }

    /// Reads the files again; see [`CertificateFiles::replace`].
    pub fn reload(&self) -> Result<bool, String> {
        let (cert, key) = self.files();
        self.replace(&cert, &key)
    }

    /// Reads the files again where they were written since.
    pub fn look(&self) {
        let (cert, key) = self.files();
        if self.held().looked == [file_stamp(&cert), file_stamp(&key)] {
            return;
        }
        match self.reload() {
            Ok(true) => info!(cert = %cert.display(), "the certificate was renewed and is in use"),
            Ok(false) => {}
            Err(error) => error!("{error}"),
        }
    }

    /// Looks at the files for as long as the program runs.
    pub async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look();
        }
    }

    fn files(&self) -> (PathBuf, PathBuf) {
        let held = self.held();
        (held.cert.clone(), held.key.clone())
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for CertificateFiles {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.held().certified))
    }
}

fn read(cert: &Path, key: &Path) -> Result<Arc<CertifiedKey>, String> {
    if let Some(warning) = open_to_all(key) {
        warn!("{warning}");
    }
    let of = |file: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(cert).and_then(|certificates| certificates.collect());
    let chain = chain.map_err(|error| of(cert, &error))?;
    if chain.is_empty() {
        return Err(of(cert, &"there is no certificate in it"));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| of(key, &error))?;
    let signer = rustls::crypto::ring::sign::any_supported_type(&secret).map_err(|error| of(key, &error))?;
    let certified = CertifiedKey::new(chain, signer);
    certified.keys_match().map_err(|error| of(cert, &error))?;
    Ok(Arc::new(certified))
}

/// What to say of a key that everybody on this machine can read. Whoever renews it decides who may, so it is not changed
/// and a server is not ended for it.
pub fn open_to_all(key: &Path) -> Option<String> {
    let (name, mode) = (key.display(), fs::metadata(key).ok()?.mode() & 0o777);
    (mode & 0o007 != 0).then(|| format!("{name}: mode {mode:o} lets everybody on this machine in; `chmod o= {name}`"))
}

/// What of this file changes when somebody writes it; nothing where it is not there.
pub fn file_stamp(file: &Path) -> FileStamp {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn write(directory: &Path) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        let (cert, secret) = (directory.join("cert.pem"), directory.join("key.pem"));
        fs::write(&cert, certificate.pem()).unwrap();
        fs::write(&secret, key.serialize_pem()).unwrap();
        (cert, secret)
    }

    fn served(files: &CertificateFiles) -> CertificateDer<'static> {
        files.held().certified.cert[0].clone().into_owned()
    }

    #[test]
    fn a_renewed_certificate_is_taken_and_a_broken_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (cert, key) = write(directory.path());
        let files = CertificateFiles::open(&cert, &key).unwrap();
        let first = served(&files);
        assert_eq!(files.reload(), Ok(false));
        write(directory.path());
        assert_eq!(files.reload(), Ok(true));
        let second = served(&files);
        assert_ne!(first, second);

        let good = fs::read(&cert).unwrap();
        let other = tempfile::tempdir().unwrap();
        let (foreign, _) = write(other.path());
        for broken in [Vec::new(), b"nonsense".to_vec(), fs::read(foreign).unwrap()] {
            fs::write(&cert, broken).unwrap();
            let error = files.reload().unwrap_err();
            assert!(error.contains("cert.pem: ") && error.ends_with("the certificate before stays in use"), "{error}");
            assert_eq!(served(&files), second);
        }
        fs::write(&cert, good).unwrap();
        assert_eq!(files.reload(), Ok(false));
    }

    #[test]
    fn files_that_were_written_are_noticed_also_one_after_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let (cert, key) = write(directory.path());
        let files = CertificateFiles::open(&cert, &key).unwrap();
        let first = served(&files);
        let other = tempfile::tempdir().unwrap();
        let (new_cert, new_key) = write(other.path());
        fs::rename(new_cert, &cert).unwrap();
        files.look();
        assert_eq!(served(&files), first, "its key is not there yet");
        fs::rename(new_key, &key).unwrap();
        files.look();
        assert_ne!(served(&files), first);
    }
}
