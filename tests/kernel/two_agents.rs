//! What an agent finds taken when it starts: the host by another agent, its port by another program.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::*;
use crate::program::program_path;

fn warrend(dir: &Path, name: &str) -> Command {
    let mut command = Command::new(program_path("warrend"));
    command.arg("--state-dir").arg(dir.join(name)).arg("--socket").arg(dir.join(format!("{name}.sock")));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// An agent that is ended with the test.
struct Running(Child);

impl Running {
    async fn start(dir: &Path, name: &str) -> Self {
        let running = Self(warrend(dir, name).stderr(Stdio::null()).spawn().unwrap());
        let socket = dir.join(format!("{name}.sock"));
        let listens = async {
            while !socket.exists() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, listens).await.unwrap();
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What it says before it ends.
fn refused(command: &mut Command) -> String {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_second_agent_and_a_clean_up_beside_one_end_and_say_which_process_is_in_the_way() {
    in_namespace(Needs::Namespace, || async {
        let dir = tempfile::tempdir().unwrap();
        let first = Running::start(dir.path(), "one").await;
        let process = format!("(process {})", first.0.id());

        for mut other in [warrend(dir.path(), "two"), {
            let mut cleanup = warrend(dir.path(), "two");
            cleanup.arg("--cleanup");
            cleanup
        }] {
            let text = refused(&mut other);
            assert!(text.contains(&format!("another warrend {process} has them; end that one first")), "{text}");
        }
        let shared =
            format!("unshare --net {} --state-dir {}", program_path("warrend"), dir.path().join("one").display());
        let elsewhere = run(&format!("{shared} --socket {}", dir.path().join("three.sock").display()));
        let text = String::from_utf8(elsewhere.stderr).unwrap();
        assert!(!elsewhere.status.success() && text.contains(&format!("is in use by warrend {process}")), "{text}");

        drop(first);
        sh(&format!("{} --cleanup --state-dir {}", program_path("warrend"), dir.path().join("one").display()));
    });
}

#[test]
fn a_port_that_is_taken_is_told_with_its_holder_and_another_one_serves() {
    in_namespace(Needs::Namespace, || async {
        let dir = tempfile::tempdir().unwrap();
        let taken = std::net::UdpSocket::bind("0.0.0.0:41741").unwrap();
        let _agent = Running::start(dir.path(), "one").await;

        let socket = dir.path().join("one.sock");
        let status = sh(&format!("{} --socket {} status --json || true", program_path("warren"), socket.display()));

        // The agent may not look at what programs of root have open.
        let holder = "UDP port 41741 is taken by a program of user 0 (as root, `ss -ulpn 'sport = :41741'` says which)";
        assert!(status.contains(holder) && status.contains("so the tunnel has port 41744 instead"), "{status}");
        drop(taken);
    });
}
