//! A coordinator in a process of its own, with a state directory of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::place::place;

const PROGRAM: &str = env!("CARGO_BIN_EXE_warren-coordinator");
/// Far more than anything here takes, also on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    directory: TempDir,
    options: Vec<String>,
    child: Child,
    pub(crate) address: SocketAddr,
    log: mpsc::Receiver<String>,
}

impl Server {
    pub(crate) fn start(options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let address = place();
        let (child, log) = spawn(&directory, address, &options);
        assert_eq!(listening(&log), address);
        Self { directory, options, child, address, log }
    }

    /// Ends the process with a signal and starts another on the same state and port.
    pub(crate) fn restart(&mut self, signal: nix::sys::signal::Signal) {
        self.end(signal);
        self.restart_ended();
    }

    /// Starts another process after [`Server::end`].
    pub(crate) fn restart_ended(&mut self) {
        let (child, log) = spawn(&self.directory, self.address, &self.options);
        assert_eq!(listening(&log), self.address);
        (self.child, self.log) = (child, log);
    }

    /// Ends the process with a signal; `true` where it ended with status 0.
    pub(crate) fn end(&mut self, signal: nix::sys::signal::Signal) -> bool {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        self.child.wait().unwrap().success()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn state_dir(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// An administration command.
    pub(crate) fn admin(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM)
            .arg("--state-dir")
            .arg(self.directory.path())
            .args(arguments)
            .env_clear()
            .output()
            .unwrap()
    }

    /// What an administration command prints; it must succeed.
    pub(crate) fn text(&self, arguments: &[&str]) -> String {
        let output = self.admin(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[&["--json"], arguments].concat())).unwrap()
    }

    /// A key for nodes of the user `ada`.
    pub(crate) fn key(&self, options: &[&str]) -> String {
        self.text(&[&["key", "create", "--user", "ada"], options].concat()).trim().to_owned()
    }

    /// Whether the log has, so far, a line that contains this; takes what it reads.
    pub(crate) fn has_logged(&self, wanted: &str) -> bool {
        self.log.try_iter().any(|line| line.contains(wanted))
    }

    /// Kilobytes of memory that the process holds.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the program to its end, without a server.
pub(crate) fn program(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(PROGRAM).args(arguments).env_clear().envs(environment.iter().copied()).output().unwrap()
}

fn spawn(directory: &TempDir, listen: SocketAddr, options: &[String]) -> (Child, mpsc::Receiver<String>) {
    let mut child = Command::new(PROGRAM)
        .args(["serve", "--listen", &listen.to_string(), "--state-dir"])
        .arg(directory.path())
        .args(options)
        .env_clear()
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (sender, log) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    (child, log)
}

fn listening(log: &mpsc::Receiver<String>) -> SocketAddr {
    let mut seen = Vec::new();
    while let Ok(line) = log.recv_timeout(PATIENCE) {
        if let Some(address) = line.split("address=").nth(1).and_then(|rest| rest.split(' ').next()) {
            return address.parse().unwrap();
        }
        seen.push(line);
    }
    panic!("the coordinator did not start: {seen:?}");
}
