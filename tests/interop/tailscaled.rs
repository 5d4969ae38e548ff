//! The official agent, with a TUN device of its own, on a site.

use std::path::{Path, PathBuf};

use crate::foreign;
use crate::lab::{Host, Namespace, eventually};
use crate::nat::{Kind, Site};
use crate::programs::Process;
use crate::world::World;

/// The official agent and command line.
pub(crate) struct Programs {
    agent: PathBuf,
    client: PathBuf,
}

/// One that has joined.
pub(crate) struct Tailscaled {
    _process: Process,
    pub(crate) host: Host,
    pub(crate) ip: String,
    pub(crate) routers: Vec<Namespace>,
}

impl Programs {
    /// Both, or `None` with a word.
    pub(crate) fn find() -> Option<Self> {
        foreign::program("tailscaled").zip(foreign::program("tailscale")).map(|(agent, client)| Self { agent, client })
    }

    /// Starts one at a new site of this kind, and joins.
    pub(crate) fn start(&self, world: &mut World, name: &str, kind: Kind) -> Tailscaled {
        let Site { host, routers, .. } = world.site(name, kind);
        let dir = world.lab.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        let socket = dir.join("sock");
        let mut command = host.command([&self.agent]);
        command.arg("--statedir").arg(&dir).arg("--socket").arg(&socket).arg("--no-logs-no-support");
        command.env("TS_DEBUG_FIREWALL_MODE", "nftables").env("HOME", &dir);
        let process = Process::start(command, &dir.join("log"));
        let up = format!(
            "up --login-server {} --auth-key {} --hostname {name} --accept-dns=false --timeout 20s",
            world.url_for(&host),
            world.key
        );
        eventually("the official agent to join", || self.ask(&host, &socket, &up));
        let ip = self.ask(&host, &socket, "ip -4").unwrap().trim().to_owned();
        Tailscaled { _process: process, host, ip, routers }
    }

    fn ask(&self, host: &Host, socket: &Path, line: &str) -> Option<String> {
        let output = host.command([&self.client]).arg("--socket").arg(socket).args(line.split(' ')).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }
}
