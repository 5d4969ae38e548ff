//! An internet with a coordinator, and agents on sites of any kind.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::lab::{Host, Lab, Namespace, side_by_side};
use crate::nat::{Internet, Kind, Site};
use crate::program::program_path;
use crate::programs::{Agent, Coordinator, Process};

/// The code of the second relay's region, as `warren status` shows it.
pub(crate) const SECOND: &str = "second";

/// A coordinator with its relay in the middle of an internet, for agents on sites around it.
pub(crate) struct World {
    pub(crate) coordinator: Coordinator,
    pub(crate) internet: Internet,
    pub(crate) lab: Lab,
    /// Lets any number of nodes in.
    pub(crate) key: String,
    second_relay: Option<(Host, Option<Process>)>,
}

/// An agent that has joined, and what stands around it.
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) agent: Agent,
    /// Its overlay address.
    pub(crate) ip: String,
    /// From the host outwards.
    pub(crate) routers: Vec<Namespace>,
}

impl World {
    /// One without agents. The coordinator goes by the address that each node asks it by: the lab has no names.
    pub(crate) fn new() -> Option<Self> {
        Lab::new().map(Self::in_lab)
    }

    /// The same for programs that need no tunnel of the kernel's.
    pub(crate) fn without_tunnels() -> Option<Self> {
        Lab::without_tunnels().map(Self::in_lab)
    }

    /// One whose coordinator is started with these arguments, told its host and a folder for files.
    pub(crate) fn with_arguments(arguments: impl FnOnce(&Host, &Path) -> Vec<String>) -> Option<Self> {
        Lab::new().map(|lab| Self::in_lab_with(lab, arguments))
    }

    fn in_lab(lab: Lab) -> Self {
        Self::in_lab_with(lab, |_, _| Vec::new())
    }

    fn in_lab_with(lab: Lab, arguments: impl FnOnce(&Host, &Path) -> Vec<String>) -> Self {
        let mut internet = Internet::new(&lab);
        let host = internet.server(&lab, "coordinator");
        let arguments = arguments(&host, lab.dir.path());
        let coordinator = Coordinator::start_on(host, lab.dir.path().join("coordinator"), arguments);
        Self::around(lab, internet, coordinator, None)
    }

    /// The same with a relay of its own elsewhere, nearer to everybody than the coordinator's.
    pub(crate) fn with_second_relay() -> Option<Self> {
        let lab = Lab::new()?;
        let mut internet = Internet::new(&lab);
        let (host, relay) = (internet.server(&lab, "coordinator"), internet.server(&lab, "relay"));
        internet.slow_down(&host, "40ms");
        let dir = lab.dir.path().join("relay");
        let (process, map) = second_relay(&relay, &dir);
        let arguments = vec!["--derp-map".to_owned(), map.display().to_string()];
        let coordinator = Coordinator::start_on(host, lab.dir.path().join("coordinator"), arguments);
        Some(Self::around(lab, internet, coordinator, Some((relay, Some(process)))))
    }

    fn around(
        lab: Lab,
        internet: Internet,
        coordinator: Coordinator,
        second_relay: Option<(Host, Option<Process>)>,
    ) -> Self {
        let key = coordinator.key("--reusable");
        Self { coordinator, internet, lab, key, second_relay }
    }

    /// Ends the second relay at once, as a crash would.
    pub(crate) fn kill_second_relay(&mut self) {
        self.second_relay.as_mut().unwrap().1 = None;
    }

    /// A new site, and nobody there.
    pub(crate) fn site(&mut self, name: &str, kind: Kind) -> Site {
        self.internet.site(&self.lab, name, kind)
    }

    /// An agent at a new site of this kind, joined.
    pub(crate) fn node(&mut self, name: &str, kind: Kind) -> Node {
        let site = self.site(name, kind);
        self.settle(name, site)
    }

    /// Several of them, which join at the same time.
    pub(crate) fn nodes(&mut self, wanted: &[(String, Kind)]) -> Vec<Node> {
        let sites: Vec<_> = wanted.iter().map(|(name, kind)| (name, self.site(name, *kind))).collect();
        side_by_side(sites, |(name, site)| self.settle(name, site))
    }

    /// Starts an agent at a site, and joins.
    fn settle(&self, name: &str, site: Site) -> Node {
        let Site { kind, host, routers } = site;
        let url = self.url_for(&host);
        let mut agent = Agent::not_started_on(host, name, self.lab.dir.path().join(name));
        agent.start_again();
        agent.join_at(&url, &self.key);
        Node { kind, ip: agent.ip(4), agent, routers }
    }

    /// The coordinator's address in a family that this host has.
    pub(crate) fn url_for(&self, host: &Host) -> String {
        let coordinator = &self.coordinator.host;
        if host.v4.is_empty() { format!("http://[{}]:8080", coordinator.v6) } else { self.coordinator.url.clone() }
    }
}

impl Node {
    pub(crate) fn host(&self) -> &Host {
        &self.agent.host
    }

    /// What a person would look at first where something is wrong.
    pub(crate) fn account(&self) -> String {
        let mut text = format!("---- {} ({})\n", self.agent.name, self.kind.name());
        for line in ["wg show warren0", "ip -br address", "ss -tunp"] {
            let output = self.host().try_run(line);
            let _ = write!(text, "# {line}\n{}", String::from_utf8_lossy(&output.stdout));
        }
        let status = self.agent.try_warren("status");
        let _ = write!(text, "# warren status\n{}", String::from_utf8_lossy(&status.stdout));
        let _ = write!(text, "# end of its log\n{}\n", self.agent.end_of_log(120));
        text
    }
}

/// Starts `warren-relay` with a certificate that the map pins; the file of the map.
fn second_relay(host: &Host, dir: &Path) -> (Process, PathBuf) {
    fs::create_dir(dir).unwrap();
    let certificate = rcgen::generate_simple_self_signed(["relay.lab".to_owned()]).unwrap();
    let (cert, key, map) = (dir.join("cert.pem"), dir.join("key.pem"), dir.join("map.json"));
    fs::write(&cert, certificate.cert.pem()).unwrap();
    fs::write(&key, certificate.signing_key.serialize_pem()).unwrap();
    let pin = data_encoding::HEXLOWER.encode(&Sha256::digest(certificate.cert.der()));
    let node = serde_json::json!({ "Name": "901a", "RegionID": 901, "HostName": "relay.lab",
        "CertName": format!("sha256-raw:{pin}"), "IPv4": host.v4, "IPv6": host.v6 });
    let region = serde_json::json!({ "RegionID": 901, "RegionCode": SECOND, "RegionName": "Second", "Nodes": [node] });
    fs::write(&map, serde_json::json!({ "Regions": { "901": region } }).to_string()).unwrap();
    let mut command = host.command([program_path("warren-relay"), "--open", "--state-dir"]);
    command.arg(dir).arg("--tls-cert").arg(cert).arg("--tls-key").arg(key);
    (Process::start(command, &dir.join("log")), map)
}
