//! What an engine is told once, and what it wants done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Answer, CallId, FileContent, Machine, PumpCommand, StateFile};
use crate::control::{Pin, ServerUrl, Transmit};
use crate::dns::Explained;
use crate::dns::host::HostNames;
use crate::netcheck::{self, LinkKind};
use crate::plan::{FirewallOptions, KernelAction, Probes, own};
use crate::types::{IpNet, MachinePrivate};

/// What an engine is told once.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The UDP port of the tunnel.
    pub port: u16,
    /// Past this age of the map, the network is closed.
    pub max_map_age: Option<Duration>,
    /// How the firewall is to be.
    pub firewall: FirewallOptions,
    /// Networks that the operator says are the host's own, though no address and no route of it tells.
    pub keep_local: BTreeSet<IpNet>,
    /// Where the operator says that the tunnel can be reached.
    pub explicit_endpoints: Vec<SocketAddr>,
    /// The port of the loopback socket for relayed packets; without it, no relay is used.
    pub relay_port: Option<u16>,
    /// Whether peers may carry packets to the host's name servers.
    pub route_resolvers: bool,
    /// The port where probes arrive that the firewall diverts; without it, no direct path is looked for.
    pub probe_port: Option<u16>,
    /// The port at which names are answered; without it, they are not.
    pub resolver_port: Option<u16>,
    /// Which machine this is.
    pub machine: Machine,
}

impl Settings {
    /// The ports that the firewall has to know. One that is not there leads to nobody, which does no harm.
    pub(super) fn probes(&self) -> Option<Probes> {
        (self.probe_port.is_some() || self.relay_port.is_some()).then(|| Probes {
            wireguard_port: self.port,
            probe_port: self.probe_port.unwrap_or(own::PROBE_PORT),
            relay_port: self.relay_port.unwrap_or(own::RELAY_PORT),
        })
    }
}

/// What is to be done outside. Where nothing else is said, nothing comes back, or comes by itself.
#[derive(Debug)]
pub enum Effect {
    /// Answer a request.
    Answer(CallId, Answer),
    /// Answer a request with this notice, and with every later [`Effect::Notice`].
    Watch(CallId, Vec<u8>),
    /// Tell everybody who watches. Of whoever cannot be told any more, [`Engine::handle_watcher_gone`] is to hear.
    ///
    /// [`Engine::handle_watcher_gone`]: super::Engine::handle_watcher_gone
    Notice(Vec<u8>),
    /// Talk to this coordinator from here on, and to no other.
    Connect {
        server: Box<ServerUrl>,
        /// Who we are to it.
        machine_key: MachinePrivate,
        /// Who it must be.
        pin: Pin,
    },
    /// Ask the coordinator.
    Transmit(Transmit),
    /// Look at the kernel or change it.
    Kernel(KernelAction),
    /// Names or name servers changed: bring the resolver up to date by [`Engine::update_resolver`].
    ///
    /// [`Engine::update_resolver`]: super::Engine::update_resolver
    Names,
    /// Have this host's own resolver told this. [`Engine::handle_host_report`] hears what became of it.
    ///
    /// [`Engine::handle_host_report`]: super::Engine::handle_host_report
    HostNames(HostNames),
    /// Ask our resolver, which asks others, and answer the request by [`dns_answer`].
    ///
    /// [`dns_answer`]: super::dns_answer
    Question { id: CallId, message: Vec<u8>, explained: Explained },
    /// Ask the kernel what our table holds and has counted.
    Figures,
    /// Ask the kernel where packets to this address go.
    LookUpRoute(IpAddr),
    /// Write a file, or remove it where there is no content. Files are written in the order of these.
    Save(StateFile, Option<FileContent>),
    /// Send a datagram from WireGuard's port.
    Datagram {
        to: SocketAddr,
        /// From which address of ours, where that matters.
        from: Option<IpAddr>,
        payload: Vec<u8>,
    },
    /// Tell the relay pump.
    Pump(PumpCommand),
    /// Ask the pump what it has done and lost.
    Counters,
    /// Forget what was found out of the host's addresses and routes.
    Rebind,
    /// Find something out about the network.
    Netcheck(netcheck::Action),
    /// Give back the memory that what is done has left behind.
    GiveBackMemory,
    /// Send an ICMP echo through the tunnel, and hand its outcome in under this number.
    Echo(CallId, IpAddr),
}

/// The host's own addresses outside the overlay, each with the length of its on-link prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// All of them: what the overlay must never swallow.
    pub all: BTreeSet<IpNet>,
    /// Those whose interface has a carrier: where packets come and go at this moment.
    pub live: BTreeSet<IpNet>,
    /// What is known of their interfaces.
    pub link_kinds: BTreeMap<IpNet, LinkKind>,
    /// Where routes of the host's own lead, beyond those.
    pub routes: BTreeSet<IpNet>,
    /// By which links it reaches all of these, and what its default routes lead to.
    pub links: BTreeMap<IpNet, BTreeSet<String>>,
}

/// A datagram that the firewall diverted from WireGuard's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub from: SocketAddr,
    /// The address of ours that it came to, where that is known.
    pub local: Option<IpAddr>,
    pub payload: Vec<u8>,
}
