//! The agent's half of the control protocol on a coordination server that we did not write. No tunnel is made, so
//! this needs no kernel with WireGuard.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Instant;

use tempfile::TempDir;
use tokio::sync::mpsc;
use warren_agent::control_io::{self, IoConfig};
use warren_core::control::{AuthKey, Login, Received, ServerUrl, Session, SessionEvent, Setup, Transmit};
use warren_core::types::{DiscoPrivate, MachinePrivate, NodeId, NodePrivate};
use warren_core::wire::control::{EndpointType, Hostinfo, MapResponse};

use crate::elsewhere::configuration;
use crate::foreign;
use crate::lab::{PATIENCE, eventually};
use crate::programs::Process;

#[tokio::test]
#[ignore = "needs headscale, on PATH or in WARREN_INTEROP_BIN"]
async fn our_session_joins_headscale_by_key_and_by_a_person_and_leaves() {
    let Some(headscale) = Headscale::start() else { return };

    let mut alice = Node::new(&headscale, "alice", 1);
    alice.session.handle_start(Login::default(), now());
    let page = alice.until(|event| if let SessionEvent::AuthUrl(page) = event { Some(page) } else { None }).await;
    let id = page.rsplit('/').next().unwrap();
    headscale.run(&["auth", "register", "--user", "lab", "--auth-id", id]);
    alice.until(|event| matches!(event, SessionEvent::LoggedIn { .. }).then_some(())).await;
    alice.until(|event| matches!(event, SessionEvent::Online).then_some(())).await;

    let mut bob = Node::new(&headscale, "bob", 2);
    bob.session.handle_start(Login { auth_key: Some(headscale.key()), renew: false }, now());
    let map = bob.until(|event| if let SessionEvent::FullMap(map) = event { Some(map) } else { None }).await;
    assert_eq!(map.peers.len(), 1, "{map:?}");
    bob.until(|event| matches!(event, SessionEvent::Online).then_some(())).await;
    let bob_id = map.node.unwrap().id;
    alice.until_delta(|map| map.peers_changed.iter().any(|peer| peer.id == bob_id)).await;

    bob.session.handle_endpoints(vec![endpoint(4242)], now());
    bob.pass_on().await;
    alice.until_delta(|map| ports(map, bob_id).contains(&4242)).await;

    alice.session.handle_stop();
    alice.session.handle_start(Login::default(), now());
    let map = alice.until(|event| if let SessionEvent::FullMap(map) = event { Some(map) } else { None }).await;
    assert_eq!(map.peers.len(), 1, "no person is needed again");

    bob.session.handle_logout(now());
    assert!(
        bob.until(|event| if let SessionEvent::LoggedOut { unheard } = event { Some(unheard.is_none()) } else { None })
            .await
    );
    alice
        .until_delta(|map| {
            map.peers_changed_patch.iter().any(|patch| patch.node_id == bob_id) || !map.peers_changed.is_empty()
        })
        .await;

    bob.session.handle_start(Login { auth_key: Some(AuthKey::new("hskey-auth-none-none")), renew: false }, now());
    let failure = bob.until(|event| if let SessionEvent::Failed(failure) = event { Some(failure) } else { None }).await;
    assert!(failure.to_string().starts_with("the coordinator does not let this node in"), "{failure}");
}

fn ports(map: &MapResponse, node: NodeId) -> Vec<u16> {
    let patched = map.peers_changed_patch.iter().filter(|patch| patch.node_id == node);
    let whole = map.peers_changed.iter().filter(|peer| peer.id == node);
    let endpoints = patched.flat_map(|patch| patch.endpoints.iter().flatten());
    endpoints.chain(whole.flat_map(|peer| &peer.endpoints)).map(|endpoint| endpoint.port()).collect()
}

/// The core and the connection of one agent.
struct Node {
    session: Session,
    transmits: mpsc::Sender<Transmit>,
    received: mpsc::Receiver<Received>,
    key: u8,
}

impl Node {
    fn new(headscale: &Headscale, name: &str, key: u8) -> Self {
        let machine_key = MachinePrivate::from_random([key; 32]);
        let server = headscale.url.clone();
        let (transmits, received) = control_io::spawn(IoConfig::new(server.clone(), machine_key));
        let hostinfo = Hostinfo { hostname: name.to_owned(), os: "linux".to_owned(), ..Hostinfo::default() };
        let setup = Setup {
            server,
            node_key: NodePrivate::from_random([key + 100; 32]).public(),
            hostinfo,
            disco_key: DiscoPrivate::from_random([key; 32]).public(),
            endpoints: vec![endpoint(41741)],
            ephemeral: false,
        };
        Self { session: Session::new(setup, key.into()), transmits, received, key }
    }

    /// Runs until an event is the wanted one.
    async fn until<T>(&mut self, mut wanted: impl FnMut(SessionEvent) -> Option<T>) -> T {
        let patience = now() + PATIENCE;
        loop {
            self.pass_on().await;
            while let Some(event) = self.session.poll_event() {
                println!("node {}: {:.200}", self.key, format!("{event:?}"));
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
            let timeout = self.session.poll_timeout().unwrap_or(patience).min(patience);
            tokio::select! {
                Some(received) = self.received.recv() => self.session.handle_received(received, now()),
                () = tokio::time::sleep_until(timeout.into()) => self.session.handle_timeout(now()),
            }
            assert!(now() < patience, "node {}: nothing came of it", self.key);
        }
    }

    async fn until_delta(&mut self, mut wanted: impl FnMut(&MapResponse) -> bool) {
        self.until(|event| matches!(event, SessionEvent::Delta(map) if wanted(&map)).then_some(())).await;
    }

    async fn pass_on(&mut self) {
        while let Some(transmit) = self.session.poll_transmit() {
            self.transmits.send(transmit).await.unwrap();
        }
    }
}

/// A Headscale on loopback.
struct Headscale {
    program: PathBuf,
    url: ServerUrl,
    dir: TempDir,
    _process: Process,
}

impl Headscale {
    fn start() -> Option<Self> {
        let program = foreign::program("headscale")?;
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let text = configuration("127.0.0.1", &dir.path().display().to_string())
            .replace("0.0.0.0:8080", &format!("127.0.0.1:{port}"))
            .replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"))
            .replace("127.0.0.1:50443", &format!("127.0.0.1:{}", free_port()))
            .replace("0.0.0.0:3478", "127.0.0.1:0");
        fs::write(dir.path().join("config.yaml"), text).unwrap();
        let mut serve = Command::new(&program);
        serve.arg("--config").arg(dir.path().join("config.yaml")).arg("serve");
        let process = Process::start(serve, &dir.path().join("log"));
        let url = format!("http://127.0.0.1:{port}").parse().unwrap();
        let headscale = Self { program, url, dir, _process: process };
        eventually("headscale to answer", || headscale.ask(&["users", "create", "lab"]).status.success().then_some(()));
        Some(headscale)
    }

    fn key(&self) -> AuthKey {
        AuthKey::new(self.run(&["preauthkeys", "create", "--user", "1"]).trim())
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        let config = self.dir.path().join("config.yaml");
        Command::new(&self.program).arg("--config").arg(config).args(arguments).output().unwrap()
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn endpoint(port: u16) -> (std::net::SocketAddr, EndpointType) {
    (([192, 0, 2, 1], port).into(), EndpointType::LOCAL)
}

#[allow(clippy::disallowed_methods, reason = "the test is the shell of this session")]
fn now() -> Instant {
    Instant::now()
}
