//! An agent on a model kernel, and what tests need to look at it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use warren_agent::cli::Client;
use warren_agent::local_api::{self, Operators};
use warren_agent::{Network, Parts, StateDir, load, run};
use warren_core::node::{Networks, Settings, StateFile};
use warren_core::plan::{Change, Figures, Kernel, KernelError, ModelKernel, Observed, RouteLookup, Step};
use warren_core::types::{IpNet, MachinePrivate, NodePrivate, NodePublic};
use warren_core::wire::control::{MapResponse, Node, UserProfile, match_all};
use warren_core::wire::local::{BackendState, Prefs, Status};

/// How long a test waits for something that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A model kernel that the agent and the test share.
#[derive(Clone, Default)]
pub struct SharedKernel {
    model: Arc<Mutex<ModelKernel>>,
    changed: Arc<Notify>,
    applied: Arc<Mutex<Vec<String>>>,
    steps: tokio::sync::watch::Sender<usize>,
}

impl SharedKernel {
    pub fn state(&self) -> Observed {
        self.model.lock().unwrap().state.clone()
    }

    /// The steps applied since the last call.
    pub fn take_applied(&self) -> Vec<String> {
        std::mem::take(&mut self.applied.lock().unwrap())
    }

    /// Waits until the state is as wanted: it is looked at after each step.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Observed) -> bool) {
        let mut steps = self.steps.subscribe();
        let waited = tokio::time::timeout(PATIENCE, steps.wait_for(|_| is_so(&self.state()))).await;
        assert!(waited.is_ok(), "not {what}: {:#?}", self.state());
    }

    /// Does something behind the agent's back, as another program would.
    pub fn meddle(&self, change: impl FnOnce(&mut Observed)) {
        self.change_silently(change);
        self.changed.notify_one();
    }

    /// A rule of another program sends packets to these destinations elsewhere, or none does.
    pub fn lead_astray(&self, destinations: &[&str]) {
        self.model.lock().unwrap().misrouted = destinations.iter().map(|net| net.parse().unwrap()).collect();
        self.changed.notify_one();
    }

    /// The same, and the notice is lost.
    pub fn change_silently(&self, change: impl FnOnce(&mut Observed)) {
        change(&mut self.model.lock().unwrap().state);
    }
}

impl Kernel for SharedKernel {
    async fn observe(&mut self) -> Result<Observed, KernelError> {
        Ok(self.model.lock().unwrap().seen())
    }

    async fn look_up(&mut self, to: IpAddr, marked: bool) -> Result<RouteLookup, KernelError> {
        Ok(self.model.lock().unwrap().lookup_of(to, marked))
    }

    async fn apply(&mut self, step: &Step) -> Result<(), KernelError> {
        self.applied.lock().unwrap().push(step.to_string());
        let result = self.model.lock().unwrap().carry_out(step);
        self.steps.send_modify(|steps| *steps += 1);
        result
    }

    async fn figures(&mut self) -> Result<Figures, KernelError> {
        Ok(Figures { firewall: self.state().firewall, ..Figures::default() })
    }

    async fn changed(&mut self) -> Result<Change, KernelError> {
        self.changed.notified().await;
        Ok(Change::Something)
    }
}

fn reachable_at(addresses: &[&str]) -> Networks {
    let all: BTreeSet<IpNet> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Networks { live: all.clone(), all, ..Networks::default() }
}

/// A running agent.
pub struct Agent {
    pub dir: PathBuf,
    pub socket: PathBuf,
    pub kernel: SharedKernel,
    pub client: Client,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    networks: mpsc::Sender<Networks>,
}

impl Agent {
    /// Starts an agent on what a directory and a kernel hold.
    pub async fn start(root: &Path, kernel: SharedKernel) -> Self {
        Self::start_with(root, kernel, None).await
    }

    pub async fn start_with(root: &Path, kernel: SharedKernel, max_map_age: Option<Duration>) -> Self {
        let settings = Settings { port: 41_741, max_map_age, ..Settings::default() };
        Self::start_in(root, kernel, settings, "10.0.0.1/24", Network::default()).await
    }

    /// Starts an agent with an address in a network.
    pub async fn start_in(
        root: &Path,
        kernel: SharedKernel,
        settings: Settings,
        address: &str,
        network: Network,
    ) -> Self {
        let (dir, socket) = (root.join("state"), root.join("warrend.sock"));
        let state = StateDir::open(&dir).unwrap();
        let engine = load(settings, &state).unwrap();
        let (networks_in, networks) = mpsc::channel(1);
        networks_in.send(reachable_at(&[address])).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let parts = Parts {
            engine,
            dir: state,
            kernel: kernel.clone(),
            networks,
            network,
            socket: local_api::bind(&socket).unwrap(),
            operators: Operators::new("no-such-group"),
            dialler: warren_shell::Dialler::new(None),
            stop: stopped,
        };
        let client = Client::new(&socket);
        let task = tokio::spawn(run(parts));
        Self { dir, socket, kernel, client, stop: Some(stop), task, networks: networks_in }
    }

    /// The host has these addresses from here on.
    pub async fn readdress(&self, addresses: &[&str]) {
        self.networks.send(reachable_at(addresses)).await.unwrap();
    }

    /// The host keeps these addresses, and only the interface of the last one has a carrier.
    pub async fn pull_the_cable(&self, addresses: &[&str]) {
        let live = reachable_at(&addresses[addresses.len() - 1..]).live;
        self.networks.send(Networks { live, ..reachable_at(addresses) }).await.unwrap();
    }

    /// Ends the agent as SIGTERM does.
    pub async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(PATIENCE, &mut self.task).await.unwrap().unwrap();
        self.gone().await;
    }

    /// Ends the agent as `kill -9` does: nothing of it runs on.
    pub async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.gone().await;
    }

    /// Waits until nobody listens on the socket. Tasks that the agent had begun are dropped when the runtime next comes to
    /// them, and a child that another test starts has all descriptors until it runs its program.
    async fn gone(&self) {
        let gone = async {
            while UnixStream::connect(&self.socket).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
    }

    /// The client that we did not write.
    pub fn tslocal(&self) -> tslocal::Client {
        let socket_path = Some(self.socket.display().to_string());
        tslocal::Client::with_config(tslocal::TransportConfig { socket_path, use_socket_only: true })
    }

    /// Waits until the status is as wanted: it is asked again at each notice of a change.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Status) -> bool) -> Status {
        let waiting = async {
            let mut notices = self.client.watch(Default::default()).await.unwrap();
            loop {
                let status = self.client.status(true).await.unwrap();
                if is_so(&status) {
                    return status;
                }
                notices.next().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        if let Ok(status) = waited {
            return status;
        }
        panic!("not {what}: {:#?}", self.client.status(true).await.unwrap());
    }

    pub async fn until_running(&self) -> Status {
        self.until("running", |status| status.backend_state == BackendState::Running).await
    }

    /// Runs a command line of `warren`; its exit status and output.
    pub async fn warren(&self, arguments: &[&str]) -> (u8, String) {
        use clap::Parser;
        let socket = self.socket.display().to_string();
        let all = ["warren", "--socket", &socket].into_iter().chain(arguments.iter().copied());
        let args = warren_agent::cli::Args::try_parse_from(all).unwrap();
        let mut out = Vec::new();
        match tokio::time::timeout(PATIENCE, warren_agent::cli::run(args, &mut out)).await.unwrap() {
            Ok(exit) => (exit as u8, String::from_utf8(out).unwrap()),
            Err(error) => (error.exit() as u8, error.to_string()),
        }
    }
}

pub fn node_key() -> NodePrivate {
    NodePrivate::from_random([7; 32])
}

pub fn key(n: u8) -> NodePublic {
    NodePublic::from_bytes([n; 32])
}

/// Ourselves (number 1) or a peer.
pub fn node(n: u8) -> Node {
    Node {
        id: warren_core::types::NodeId(n.into()),
        stable_id: warren_core::types::StableNodeId(format!("n{n}")),
        name: format!("node-{n}.example.net."),
        user: warren_core::types::UserId(1),
        key: if n == 1 { node_key().public() } else { key(n) },
        addresses: vec![
            format!("100.64.0.{n}/32").parse().unwrap(),
            format!("fd7a:115c:a1e0::{n}/128").parse().unwrap(),
        ],
        endpoints: vec![format!("10.0.0.{n}:41741").parse().unwrap()],
        online: Some(true),
        machine_authorized: true,
        ..Node::default()
    }
}

/// The map of node 1 with these peers; everybody may reach everybody.
pub fn map(peers: Vec<Node>) -> MapResponse {
    MapResponse {
        node: Some(node(1)),
        peers: peers.into(),
        domain: "example.net".to_owned(),
        packet_filters: [("base".to_owned(), Some(match_all()))].into(),
        user_profiles: vec![UserProfile {
            id: warren_core::types::UserId(1),
            login_name: "ada".to_owned(),
            display_name: "Ada".to_owned(),
            ..UserProfile::default()
        }],
        ..MapResponse::default()
    }
}

/// A state directory as an agent leaves it behind that was in. The coordinator's address leads nowhere.
pub fn store(root: &Path, map: &MapResponse, confirmed: &str) {
    let state = StateDir::open(&root.join("state")).unwrap();
    let header = serde_json::json!({ "Confirmed": confirmed, "NodeKey": node_key().public() });
    let prefs = Prefs { control_url: "http://127.0.0.1:9".to_owned(), want_running: true, ..Prefs::initial() };
    let machine_key = MachinePrivate::from_random([8; 32]);
    for (file, content) in [
        (StateFile::MachineKey, machine_key.expose_text().as_bytes().to_vec()),
        (StateFile::NodeKey, node_key().expose_text().as_bytes().to_vec()),
        (StateFile::Prefs, serde_json::to_vec(&prefs).unwrap()),
        (StateFile::Map, format!("{header}\n{}", serde_json::to_string(map).unwrap()).into_bytes()),
    ] {
        state.save(file, &content).unwrap();
    }
}
