//! Our coordinator, started to be measured.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;
use warren_core::control::{AuthKey, ServerUrl};

use crate::program::program_path;
use crate::usage::Usage;

const PROGRAM: &str = "warren-coordinator";

/// The coordinator on loopback with a state directory of its own; gone with the value.
pub(crate) struct OwnCoordinator {
    child: Child,
    pub(crate) server: ServerUrl,
    pub(crate) key: AuthKey,
    _state: TempDir,
}

impl OwnCoordinator {
    pub(crate) fn start() -> Self {
        let state = tempfile::tempdir().expect("make a state directory");
        let socket = state.path().join("socket");
        let mut child = Command::new(program_path(PROGRAM))
            .args(["serve", "--listen", "127.0.0.1:0", "--state-dir"])
            .arg(state.path())
            .arg("--socket")
            .arg(&socket)
            .stderr(Stdio::piped())
            .spawn()
            .expect("start warren-coordinator");
        let mut log = BufReader::new(child.stderr.take().expect("its log")).lines();
        let address = log
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("address=")?.1.split(' ').next()?.to_owned()))
            .expect("warren-coordinator says where it serves");
        // Or its log would fill the pipe and stop it.
        thread::spawn(move || log.for_each(drop));

        let made = Command::new(program_path(PROGRAM))
            .arg("--socket")
            .arg(&socket)
            .args(["key", "create", "--user", "load", "--reusable", "--ephemeral"])
            .output()
            .expect("ask for a key");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let key = AuthKey::new(String::from_utf8_lossy(&made.stdout).trim());
        let server = format!("http://{address}").parse().expect("an address makes a URL");
        Self { child, server, key, _state: state }
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage(self.child.id())
    }
}

impl Drop for OwnCoordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
