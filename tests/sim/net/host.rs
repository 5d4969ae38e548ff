//! A machine: the agent's engine and its disk, over a kernel that is a model.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use warren_core::netcheck::Report;
use warren_core::node::{
    Answer, Engine, FileContent, FoundFile, Machine, Networks, PumpPeer, Settings, StateFile, Stored,
};
use warren_core::path::{Book, Selected};
use warren_core::plan::{ModelKernel, ObservedFirewall};
use warren_core::types::{IpNet, MachinePrivate, NodePrivate, NodePublic, RegionId};
use warren_core::wire::control::Hostinfo;
use warren_core::wire::local::Prefs;

use super::coordinator::{COORDINATOR, Record};
use super::kernel::Kernel;
use super::pump::{Link, REGIONS};

pub(crate) const PORT: u16 = 41_741;
const PROBE_PORT: u16 = 41_743;
const RELAY_PORT: u16 = 41_742;

pub(crate) struct Host {
    number: usize,
    /// The node key by which the coordinator knows it, and all that it ever knew.
    pub(crate) key: NodePublic,
    pub(crate) keys: Vec<NodePublic>,
    pub(crate) network: usize,
    /// Its addresses, each with the length of its on-link prefix.
    pub(crate) addresses: Vec<IpNet>,
    /// The agent, while it runs; the kernel goes on without it.
    pub(crate) engine: Option<Engine>,
    /// Counts the agents that have run here: what was under way for an earlier one is lost.
    pub(crate) life: u64,
    disk: BTreeMap<StateFile, FileContent>,
    settings: Settings,
    /// What the coordinator knows of it.
    pub(crate) record: Record,
    /// The region that is nearest.
    pub(crate) near: RegionId,
    /// Its home region, as its pump knows it.
    pub(crate) home: Option<RegionId>,
    /// Times that the home changed, the first included.
    pub(crate) homes_had: usize,
    pub(crate) links: BTreeMap<RegionId, Link>,
    /// What the pump was told of peers, the region by which each was heard last, and one where it is not.
    pub(crate) told: BTreeMap<usize, PumpPeer>,
    pub(crate) heard: BTreeMap<usize, RegionId>,
    pub(crate) gone: BTreeMap<usize, RegionId>,
    /// WireGuard's sessions, and everything else that the kernel holds of ours.
    pub(crate) kernel: Kernel,
    pub(crate) objects: ModelKernel,
    /// When the pump last spoke of a peer's traffic.
    pub(crate) spoken: BTreeMap<usize, Duration>,
    pub(crate) timer: Option<Duration>,
    /// What the clock on the wall is off by, in seconds.
    pub(crate) wall_offset: i64,
    /// Pings by UDP, per peer's address or whatever else was probed.
    pub(crate) pings: u64,
    /// Questions to STUN servers.
    pub(crate) questions: u64,
    /// Times that the way to a peer changed.
    pub(crate) changes: BTreeMap<usize, Vec<Duration>>,
    pub(crate) direct: BTreeMap<usize, bool>,
    /// What its agents answered to whoever asked.
    pub(crate) answers: Vec<Answer>,
}

impl Host {
    /// A machine that signed in before, and lost its map since.
    pub(crate) fn new(number: usize, keys: [[u8; 32]; 2], relayless: bool) -> Self {
        let (node_key, machine_key) = (NodePrivate::from_random(keys[0]), MachinePrivate::from_random(keys[1]));
        let prefs = Prefs { control_url: COORDINATOR.to_owned(), want_running: true, ..Prefs::initial() };
        let disk = [
            (StateFile::NodeKey, node_key.expose_text().as_bytes().to_vec()),
            (StateFile::MachineKey, machine_key.expose_text().as_bytes().to_vec()),
            (StateFile::Prefs, serde_json::to_vec(&prefs).unwrap()),
        ];
        let settings = Settings {
            port: PORT,
            probe_port: Some(PROBE_PORT),
            relay_port: (!relayless).then_some(RELAY_PORT),
            ..Settings::default()
        };
        Self {
            number,
            key: node_key.public(),
            keys: vec![node_key.public()],
            network: 0,
            addresses: Vec::new(),
            engine: None,
            life: 0,
            disk: disk.map(|(file, content)| (file, FileContent::new(content))).into(),
            settings,
            record: Record::default(),
            near: REGIONS[0],
            home: None,
            homes_had: 0,
            links: BTreeMap::new(),
            told: BTreeMap::new(),
            heard: BTreeMap::new(),
            gone: BTreeMap::new(),
            kernel: Kernel::default(),
            objects: ModelKernel::default(),
            spoken: BTreeMap::new(),
            timer: None,
            wall_offset: 0,
            pings: 0,
            questions: 0,
            changes: BTreeMap::new(),
            direct: BTreeMap::new(),
            answers: Vec::new(),
        }
    }

    /// An agent that begins with what the disk holds.
    pub(super) fn begin(&mut self, seed: [u8; 32], now: warren_core::node::Now) {
        let found = |(file, content): (&StateFile, &FileContent)| {
            (*file, FoundFile { path: file.name().to_owned(), content: Ok(content.clone()) })
        };
        let mut stored = Stored::read(self.disk.iter().map(found).collect(), &Machine::default());
        assert_eq!(stored.poll_aside(), None, "a file that an agent wrote makes sense to the next one");
        let hostinfo = Hostinfo { hostname: format!("host-{}", self.number), ..Hostinfo::default() };
        let mut engine = Engine::new(self.settings.clone(), stored, hostinfo, seed, now);
        engine.handle_networks(self.networks(), now);
        self.engine = Some(engine);
        self.timer = None;
    }

    /// The agent is gone, as after `kill -9`.
    pub(super) fn end(&mut self) {
        self.engine = None;
        self.life += 1;
        self.home = None;
        self.links.clear();
        self.told.clear();
        self.heard.clear();
        self.gone.clear();
        self.record.disconnect();
    }

    /// The disk says that the node key is in use since so many days from the world's beginning.
    pub(crate) fn remember_key_since(&mut self, days: i64) {
        let since = super::run::wall_at(Duration::ZERO, days * 86_400);
        let home = format!(r#"{{"URL":"{COORDINATOR}","Pin":"FirstUse","KeySince":"{since}","Key":"{}"}}"#, self.key);
        self.disk.insert(StateFile::Coordinator, FileContent::new(home.into_bytes()));
    }

    /// The node keys on its disk, one a line.
    pub(crate) fn keys_on_disk(&self) -> Vec<NodePublic> {
        let text = std::str::from_utf8(self.disk[&StateFile::NodeKey].expose_bytes()).unwrap();
        text.lines().map(|line| line.trim().parse::<NodePrivate>().unwrap().public()).collect()
    }

    pub(super) fn write(&mut self, file: StateFile, content: Option<FileContent>) {
        match content {
            Some(content) => self.disk.insert(file, content),
            None => self.disk.remove(&file),
        };
    }

    pub(super) fn networks(&self) -> Networks {
        let all: std::collections::BTreeSet<IpNet> = self.addresses.iter().copied().collect();
        Networks { live: all.clone(), all, ..Networks::default() }
    }

    pub(crate) fn book(&self) -> &Book {
        self.engine.as_ref().expect("the agent runs").book()
    }

    pub(crate) fn report(&self) -> &Report {
        self.engine.as_ref().expect("the agent runs").network_report()
    }

    pub(crate) fn is_direct(&self, peer: &NodePublic) -> bool {
        self.engine.as_ref().is_some_and(|engine| matches!(engine.book().path(peer).selected, Selected::Direct { .. }))
    }

    /// Whether the firewall diverts probes to the agent.
    pub(super) fn diverts(&self) -> bool {
        matches!(&self.objects.state.firewall, ObservedFirewall::Table(firewall) if firewall.probes.is_some())
    }

    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|address| address.addr() == ip)
    }

    /// The address that it uses towards another.
    pub(crate) fn source_for(&self, to: IpAddr) -> Option<SocketAddr> {
        let of_family = || self.addresses.iter().filter(|address| address.addr().is_ipv4() == to.is_ipv4());
        let on_link = of_family().find(|address| address.contains(&to));
        on_link.or_else(|| of_family().next()).map(|address| SocketAddr::new(address.addr(), PORT))
    }
}

/// The loopback endpoint that stands for the relay towards a host.
pub(crate) fn loopback(host: usize) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(127, 128, 0, host as u8 + 1).into(), RELAY_PORT)
}

/// Whom a loopback endpoint stands for.
pub(crate) fn behind_loopback(endpoint: SocketAddr) -> Option<usize> {
    match endpoint.ip() {
        IpAddr::V4(ip) if ip.octets()[..3] == [127, 128, 0] => Some(usize::from(ip.octets()[3]) - 1),
        _ => None,
    }
}
