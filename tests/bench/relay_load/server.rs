//! Our relay, started to be measured, and what a process takes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use http::Uri;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use warren_shell::CertificatePin;

use crate::program::program_path;

const PROGRAM: &str = "warren-relay";
/// The kernel counts processor time in hundredths of a second (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

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

/// What the process of this number takes.
#[derive(Clone, Copy)]
pub(crate) struct Usage(pub(crate) u32);

impl Usage {
    pub(crate) fn memory_kib(self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel says its size");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Processor time so far, in user space and in the kernel.
    pub(crate) fn busy(self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).expect("it runs");
        // The name, in brackets, may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
        let ticks: u32 = fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap();
        TICK * ticks
    }
}
