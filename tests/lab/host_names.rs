//! What a host's own resolver is told, as its programs see it.

use std::fs;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::lab::{Host, eventually};
use crate::program::program_path;
use crate::programs::{Agent, Joined, Process};
use crate::train::now;

/// What the name server of the lab answers to everything.
const ELSEWHERE: [u8; 4] = [192, 0, 2, 77];

/// A name server that knows every name, and keeps what it was asked.
#[derive(Clone, Default)]
pub(crate) struct NameServer(Arc<Mutex<Vec<String>>>);

impl NameServer {
    /// One at an address of a host, which says that everything is here.
    pub(crate) fn start(host: &Host, address: &str, here: [u8; 4]) -> Self {
        let server = Self::default();
        let asked = Arc::clone(&server.0);
        let address = address.to_owned();
        host.namespace.spawn_inside(move || {
            let socket = UdpSocket::bind((address.as_str(), 53)).unwrap();
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let question = &buffer[..length];
                let (mut at, mut labels) = (12, Vec::new());
                while question[at] != 0 {
                    let end = at + 1 + usize::from(question[at]);
                    labels.push(String::from_utf8_lossy(&question[at + 1..end]).into_owned());
                    at = end;
                }
                asked.lock().unwrap().push(labels.join("."));
                let is_ipv4 = question[at + 1..at + 3] == [0, 1];
                let mut answer = [&question[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]].concat();
                answer.extend(&question[12..at + 5]);
                if is_ipv4 {
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
                    answer.extend(here);
                }
                let _ = socket.send_to(&answer, from);
            }
        });
        server
    }

    pub(crate) fn was_asked_within(&self, domain: &str) -> Vec<String> {
        self.0.lock().unwrap().iter().filter(|name| name.ends_with(domain)).cloned().collect()
    }
}

/// A host with a file of its own in the place of `/etc/resolv.conf`, as a container has.
pub(crate) struct OwnFile(PathBuf);

impl OwnFile {
    pub(crate) fn new(host: &Host, text: &str) -> Self {
        let folder = PathBuf::from("/etc/netns").join(&host.namespace.name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("resolv.conf"), text).unwrap();
        Self(folder)
    }

    pub(crate) fn write(&self, text: &str) {
        fs::write(self.0.join("resolv.conf"), text).unwrap();
    }

    fn text(&self) -> String {
        fs::read_to_string(self.0.join("resolv.conf")).unwrap()
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The helper of an agent, on a socket as its service manager gives it.
fn helper(agent: &mut Agent) -> Process {
    let socket = agent.dir.join("dns.sock");
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    let owner = fs::metadata(&agent.dir).unwrap();
    chown(&socket, Some(std::os::unix::fs::MetadataExt::uid(&owner)), None).unwrap();
    let mut command = agent.host.command([program_path("warrend")]);
    command.arg("--dns-helper").env("STATE_DIRECTORY", agent.dir.join("dns-state"));
    fs::create_dir_all(agent.dir.join("dns-state")).unwrap();
    command.stdin(Stdio::from(OwnedFd::from(listener)));
    agent.dns_socket = Some(socket);
    Process::start_with_input(command, &agent.dir.join("dns.log"))
}

/// What a program of this host finds.
fn look_up(host: &Host, name: &str) -> Option<String> {
    let output = host.try_run(&format!("getent ahostsv4 {name}"));
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().map(str::to_owned)
}

#[test]
fn programs_find_nodes_by_name_and_a_host_whose_agent_is_killed_is_as_it_was_within_six_seconds() {
    let Some(Joined { mut alice, bob, coordinator: _coordinator, mut lab }) = Joined::new() else { return };
    let server_host = lab.host("nameserver");
    let server = NameServer::start(&server_host, &server_host.v4, ELSEWHERE);
    let original = format!("# mine\nnameserver {}\noptions timeout:2 attempts:1\n", server_host.v4);
    let file = OwnFile::new(&alice.host, &original);
    assert_eq!(look_up(&alice.host, "www.example.org").as_deref(), Some("192.0.2.77"));

    alice.kill();
    let _helper = helper(&mut alice);
    alice.start_again();
    let base = "warren.internal";
    let found = |name: &str| eventually(&format!("{name} to be found"), || look_up(&alice.host, name));
    eventually("the host to be told", || file.text().contains("100.100.100.100").then_some(()));
    for name in ["bob", &format!("bob.{base}")] {
        assert_eq!(found(name), bob.ip(4));
    }
    assert_eq!(found("www.example.org"), "192.0.2.77");
    assert_eq!(look_up(&alice.host, &format!("nobody.{base}")), None);
    let status = alice.warren("dns status");
    assert!(status.contains("told by /etc/resolv.conf") && status.contains(&server_host.v4), "{status}");
    let query = alice.warren("dns query www.example.org");
    assert!(query.contains("192.0.2.77") && query.contains(&server_host.v4), "{query}");

    // Whoever is gone for a moment changes nothing, and names of the network leave it in no moment.
    alice.kill();
    let killed = now();
    alice.host.try_run(&format!("getent ahostsv4 bob.{base}"));
    eventually("the host to be as it was", || (file.text() == original).then_some(()));
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!(look_up(&alice.host, "www.example.org").as_deref(), Some("192.0.2.77"));
    assert_eq!(server.was_asked_within(base), Vec::<String>::new());

    alice.start_again();
    eventually("the host to be told again", || file.text().contains("100.100.100.100").then_some(()));
    alice.warren("set --accept-dns=false");
    eventually("the host to be as it was", || (file.text() == original).then_some(()));
    alice.warren("set --accept-dns=true");
    eventually("the host to be told again", || file.text().contains("100.100.100.100").then_some(()));
    alice.warren("down");
    eventually("the host to be as it was", || (file.text() == original).then_some(()));
}
