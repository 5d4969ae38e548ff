//! How a host is told: a function of what is known of it.

use std::fmt;
use std::net::IpAddr;

use super::HostNames;
use super::facts::{Facts, FileKind, Gatherer, Obstacle, ResolvConfMode, Resolvconf};
use super::resolv_conf::ResolvConf;
use crate::dns::domain::Domain;
use crate::types::RESOLVER_ADDRESSES;

/// How a host is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// systemd-resolved asks us for what is ours.
    Resolved(Option<Note>),
    /// The file names us, and we ask those that it named.
    File {
        /// Nothing can be renamed over it.
        in_place: bool,
        upstreams: Vec<IpAddr>,
        note: Option<Note>,
    },
    /// resolvconf makes the file with us first, and we ask those that others told it of.
    Resolvconf { gatherer: Gatherer, upstreams: Vec<IpAddr> },
    /// Not at all.
    Leave(Leave),
}

/// What works, and could work better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// Programs ask past systemd-resolved.
    PastResolved,
    /// These versions of NetworkManager take settings of others out of systemd-resolved.
    OldNetworkManager,
}

/// Why a host is left as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It asks a name server of its own.
    LocalServer(IpAddr),
    /// The file cannot be written.
    File(Obstacle),
    /// Nobody is known whom we could ask for the rest.
    NoUpstream,
    /// Containers behind this link are given the file, and could not ask us.
    Containers(String),
    /// Port 53 does not lead to us: this kernel does not translate.
    NoPort,
    /// The file is ours, and what it was before is nowhere.
    NoOriginal,
    /// Another program writes the file again and again.
    Contested,
    /// systemd-resolved reads the file, and would ask us what we ask it.
    Loop,
}

/// How this host is told these names.
pub fn detect(facts: &Facts, names: &HostNames) -> Method {
    let file = ResolvConf::read(&facts.file.text);
    let stub =
        |server: &IpAddr| matches!(server, IpAddr::V4(address) if matches!(address.octets(), [127, 0, 0, 53 | 54]));
    let is_stub = !file.servers.is_empty() && file.servers.iter().all(stub);
    let mut note = None;
    if let Some(mode) = facts.resolved {
        let place = |source: &str| facts.hosts.iter().position(|of_host| of_host == source);
        let by_nss = place("resolve").is_some_and(|resolve| place("dns").is_none_or(|dns| resolve < dns));
        let by_resolvconf = facts.resolvconf == Resolvconf::Resolvectl && file.is_by("resolvconf");
        if is_stub || by_nss || by_resolvconf {
            let is_old = facts.network_manager.is_some_and(|version| ((1, 26, 0)..=(1, 26, 5)).contains(&version));
            return Method::Resolved(is_old.then_some(Note::OldNetworkManager));
        }
        if file.servers.iter().any(stub) && mode == ResolvConfMode::Foreign {
            return Method::Leave(Leave::Loop);
        }
        note = Some(Note::PastResolved);
    }
    by_file(facts, &file, names, note).unwrap_or_else(Method::Leave)
}

/// How the file comes to name us, if it may.
fn by_file(facts: &Facts, file: &ResolvConf, names: &HostNames, note: Option<Note>) -> Result<Method, Leave> {
    let is_mount = facts.file.is_mount;
    // A container's host answers there, and nobody else can be asked.
    let is_own = |server: &&IpAddr| server.is_loopback() && !(is_mount && is_docker(server));
    if let Some(server) = file.servers.iter().chain(&facts.gathered).find(is_own) {
        return Err(Leave::LocalServer(*server));
    }
    let gatherer = match facts.resolvconf {
        Resolvconf::Gathers(gatherer) if file.is_by("resolvconf") => Some(gatherer),
        Resolvconf::Gathers(_) | Resolvconf::Resolvectl | Resolvconf::Absent => None,
    };
    if let (Some(obstacle), None) = (&facts.file.obstacle, gatherer) {
        return Err(Leave::File(obstacle.clone()));
    }
    if let Some(link) = &facts.containers {
        return Err(Leave::Containers(link.clone()));
    }
    if !names.has_port_53 {
        return Err(Leave::NoPort);
    }
    // Once resolvconf was told, its file may name us alone.
    let named = if gatherer.is_some() && !facts.gathered.is_empty() { &facts.gathered } else { &file.servers };
    let upstreams: Vec<IpAddr> = named.iter().filter(|server| !RESOLVER_ADDRESSES.contains(server)).copied().collect();
    if upstreams.is_empty() && !names.everything {
        return Err(Leave::NoUpstream);
    }
    if let Some(gatherer) = gatherer {
        return Ok(Method::Resolvconf { gatherer, upstreams });
    }
    let is_missing = facts.file.kind == FileKind::Missing;
    Ok(Method::File { in_place: is_mount && !is_missing, upstreams, note })
}

/// Where Docker answers in a container with a network of its own.
fn is_docker(server: &IpAddr) -> bool {
    *server == IpAddr::from([127, 0, 0, 11])
}

impl Leave {
    /// What it means, and what a person can do.
    pub fn text(&self, base: Option<&Domain>) -> String {
        let [server, _] = RESOLVER_ADDRESSES;
        let base = base.map_or("DOMAIN", Domain::as_str);
        let reason = match self {
            Self::LocalServer(own) => format!(
                "this host asks a name server of its own at {own}, which is left alone; tell it to forward the \
                 network's names. dnsmasq, Pi-hole: server=/{base}/{server}; unbound: forward-zone: name: \"{base}\" \
                 forward-addr: {server}; BIND: zone \"{base}\" {{ type forward; forwarders {{ {server}; }}; }};"
            ),
            Self::File(Obstacle::ReadOnly) => "/etc/resolv.conf lies on a read-only file system".to_owned(),
            Self::File(Obstacle::Immutable) => {
                "/etc/resolv.conf is immutable; `chattr -i /etc/resolv.conf` lets it be written".to_owned()
            }
            Self::File(Obstacle::Other(error)) => format!("/etc/resolv.conf cannot be written: {error}"),
            Self::NoUpstream => {
                "/etc/resolv.conf names no name server that could be asked for all other names; name one there, or \
                 `nameservers.global` in the coordinator's configuration"
                    .to_owned()
            }
            Self::Containers(link) => format!(
                "containers behind {link} are given /etc/resolv.conf, and we answer this host alone; with \
                 systemd-resolved this host is told and they keep theirs, or put lines like `100.64.0.2 web` into \
                 /etc/hosts"
            ),
            Self::NoPort => "this kernel cannot lead port 53 to us (nft_chain_nat)".to_owned(),
            Self::NoOriginal => {
                "/etc/resolv.conf is ours, and what it was before is nowhere to be found; write a new one, or let your \
                 DHCP client do so"
                    .to_owned()
            }
            Self::Contested => {
                "another program writes /etc/resolv.conf again and again, and has its way for some minutes; tell it to \
                 leave the file alone, or use systemd-resolved"
                    .to_owned()
            }
            Self::Loop => "/etc/resolv.conf names systemd-resolved beside others; \
                 `ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf` lets it alone answer"
                .to_owned(),
        };
        format!("this host's resolver is not told of the network's names: {reason}")
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PastResolved => {
                "systemd-resolved runs, but programs do not ask it; \
                 `ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf` lets them, and then only names of \
                 the network are asked of us"
            }
            Self::OldNetworkManager => {
                "NetworkManager 1.26.0 to 1.26.5 may take our settings out of systemd-resolved again; update it"
            }
        })
    }
}
