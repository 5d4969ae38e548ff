//! A coordinator in a process of its own, with a state directory of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::place::place;
use crate::program::program_path;

const PROGRAM: &str = "warren-coordinator";
/// Far more than anything here takes, also on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    directory: TempDir,
    state_dir: PathBuf,
    options: Vec<String>,
    child: Child,
    pub(crate) address: SocketAddr,
    log: mpsc::Receiver<String>,
}

impl Server {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_at(place(), options)
    }

    /// One whose address is known before.
    pub(crate) fn start_at(address: SocketAddr, options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let (child, log) = spawn(&directory, address, &options);
        assert_eq!(listening(&log), address);
        let state_dir = directory.path().to_owned();
        Self { directory, state_dir, options, child, address, log }
    }

    /// One whose state directory is a file system of one mebibyte, which only it sees: [`Server::state_dir`] is the way
    /// there while it runs. Nothing where this host lets nobody mount.
    pub(crate) fn start_on_a_small_disk() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let script = "mount -t tmpfs -o size=1m none \"$0\" && exec \"$@\"";
        let mut shell = Command::new("unshare");
        if !nix::unistd::geteuid().is_root() {
            shell.args(["--user", "--map-root-user"]);
        }
        shell.args(["--mount", "--", "sh", "-c", script]).arg(directory.path()).arg(program_path(PROGRAM));
        let address = place();
        let options = vec!["--stun-listen".to_owned(), "none".to_owned()];
        let (child, log) = spawn_by(shell, directory.path(), address, &options);
        let mut seen = Vec::new();
        while let Ok(line) = log.recv_timeout(PATIENCE) {
            if line.contains("address=") {
                let state_dir = format!("/proc/{}/root{}", child.id(), directory.path().display()).into();
                return Some(Self { directory, state_dir, options, child, address, log });
            }
            seen.push(line);
        }
        eprintln!("SKIPPED: this host lets nobody mount: {seen:?}");
        None
    }

    /// Kills the process and starts another on the same file system of [`Server::start_on_a_small_disk`].
    pub(crate) fn crash_and_restart_on_the_small_disk(&mut self) {
        let its = |kind: &str| std::fs::File::open(format!("/proc/{}/ns/{kind}", self.child.id())).unwrap();
        // Held open, they outlive the process.
        let (user, mounts) = (its("user"), its("mnt"));
        self.end(nix::sys::signal::Signal::SIGKILL);
        let path = |file: &std::fs::File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let mut enter = Command::new("nsenter");
        if !nix::unistd::geteuid().is_root() {
            enter.args(["--preserve-credentials", &format!("--user={}", path(&user))]);
        }
        enter.arg(format!("--mount={}", path(&mounts))).arg("--").arg(program_path(PROGRAM));
        let (child, log) = spawn_by(enter, self.directory.path(), self.address, &self.options);
        assert_eq!(listening(&log), self.address);
        self.state_dir = format!("/proc/{}/root{}", child.id(), self.directory.path().display()).into();
        (self.child, self.log) = (child, log);
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
        &self.state_dir
    }

    /// An administration command.
    pub(crate) fn admin(&self, arguments: &[&str]) -> Output {
        Command::new(program_path(PROGRAM))
            .arg("--state-dir")
            .arg(&self.state_dir)
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

    /// What the log has said since somebody looked.
    pub(crate) fn logged(&self) -> String {
        self.log.try_iter().collect::<Vec<_>>().join("\n")
    }

    /// Sends the process a signal that does not end it.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// What the log says up to a line that contains this.
    pub(crate) fn wait_for_log(&self, wanted: &str) -> String {
        let mut said = String::new();
        while let Ok(line) = self.log.recv_timeout(PATIENCE) {
            said.push_str(&line);
            said.push('\n');
            if line.contains(wanted) {
                return said;
            }
        }
        panic!("{wanted:?} is not logged: {said}");
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
    Command::new(program_path(PROGRAM)).args(arguments).env_clear().envs(environment.iter().copied()).output().unwrap()
}

fn spawn(directory: &TempDir, listen: SocketAddr, options: &[String]) -> (Child, mpsc::Receiver<String>) {
    spawn_by(Command::new(program_path(PROGRAM)), directory.path(), listen, options)
}

fn spawn_by(
    mut program: Command,
    directory: &Path,
    listen: SocketAddr,
    options: &[String],
) -> (Child, mpsc::Receiver<String>) {
    let mut child = program
        .args(["serve", "--listen", &listen.to_string(), "--state-dir"])
        .arg(directory)
        .args(options)
        .env_clear()
        // Where `mount` and `sh` are.
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
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
