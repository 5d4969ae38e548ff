//! Our relay, started to be measured.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use http::Uri;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use warren_shell::CertificatePin;

use crate::program::program_path;
use crate::usage::Usage;

const PROGRAM: &str = "warren-relay";

/// The relay on loopback; gone with the value.
pub(crate) struct OwnRelay {
    child: Child,
    pub(crate) url: Uri,
    pub(crate) pin: String,
    _state: TempDir,
}

impl OwnRelay {
    pub(crate) fn start(has_tls: bool) -> Self {
        let state = tempfile::tempdir().expect("make a state directory");
        let data = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/coordinator/data");
        let (cert, key) = (format!("{data}/localhost.crt"), format!("{data}/localhost.key"));
        let tls = ["--tls-cert", &cert, "--tls-key", &key];
        let mut child = Command::new(program_path(PROGRAM))
            .args(["--open", "--listen", "127.0.0.1:0", "--stun-listen", "none", "--state-dir"])
            .arg(state.path())
            .args(if has_tls { &tls[..] } else { &["--plain-http"] })
            .stderr(Stdio::piped())
            .spawn()
            .expect("start warren-relay");
        let mut log = BufReader::new(child.stderr.take().expect("its log")).lines();
        let address = log
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("address=")?.1.split(' ').next()?.to_owned()))
            .expect("warren-relay says where it serves");
        // Or its log would fill the pipe and stop it.
        std::thread::spawn(move || log.for_each(drop));
        let scheme = if has_tls { "https" } else { "http" };
        let url = format!("{scheme}://{address}").parse().expect("an address makes a URL");
        let pin = CertificatePin::of(&CertificateDer::from_pem_file(&cert).expect("a certificate")).to_string();
        Self { child, url, pin, _state: state }
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage(self.child.id())
    }
}

impl Drop for OwnRelay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
