//! A relay in a process of its own, with a state directory of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::program::program_path;

const PROGRAM: &str = "warren-relay";
/// Far more than anything here takes, also on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    directory: TempDir,
    options: Vec<String>,
    roots: Option<String>,
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) stun: Option<SocketAddr>,
}

impl Server {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_trusting(None, options)
    }

    /// With a file of certificates in place of those that this host trusts.
    pub(crate) fn start_trusting(roots: Option<&str>, options: &[&str]) -> Self {
        let roots = roots.map(str::to_owned);
        let directory = tempfile::tempdir().unwrap();
        let mut options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        if !options.iter().any(|option| option == "--stun-listen") {
            options.extend(["--stun-listen", "127.0.0.1:0"].map(str::to_owned));
        }
        if !options.iter().any(|option| option == "--tls-cert" || option == "--acme-domain") {
            options.push("--plain-http".to_owned());
        }
        let (child, address, stun) = spawn(directory.path(), &options, roots.as_deref());
        Self { directory, options, roots, child, address, stun }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Starts another process, after the first has ended, on the same state.
    pub(crate) fn restart(&mut self) {
        (self.child, self.address, self.stun) = spawn(self.directory.path(), &self.options, self.roots.as_deref());
    }

    /// Kilobytes of memory that the process holds.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// How many files the process has open, connections among them.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    pub(crate) fn state_dir(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the program to its end.
pub(crate) fn program(arguments: &[&str]) -> Output {
    Command::new(program_path(PROGRAM)).args(arguments).env_clear().output().unwrap()
}

fn spawn(directory: &Path, options: &[String], roots: Option<&str>) -> (Child, SocketAddr, Option<SocketAddr>) {
    let listen: &[&str] =
        if options.iter().any(|option| option == "--listen") { &[] } else { &["--listen", "127.0.0.1:0"] };
    let mut child = Command::new(program_path(PROGRAM))
        .args(listen)
        .arg("--state-dir")
        .arg(directory)
        .args(options)
        .env_clear()
        .envs(roots.map(|file| ("SSL_CERT_FILE", file)))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.by_ref().map_while(Result::ok).find(|line| line.contains("serving")).expect("the relay serves");
    // Somebody has to read on, or the relay would wait with its log.
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    let field = |name: &str| {
        line.split_whitespace().find_map(|word| word.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {line}"))
    };
    (child, field("address=").parse().unwrap(), field("stun=").parse().ok())
}
