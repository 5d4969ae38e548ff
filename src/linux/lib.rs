//! The only door to the kernel: WireGuard, links, routes, rules, nftables, known flows, and the change monitor.
//!
//! [`LinuxKernel`] reads back everything that carries our tag, carries out one step of a plan at a time, and
//! says when to look again. It decides nothing, and trusts its memory only where the kernel vouches for it:
//! the number of our link from the last look, and our nftables table while its generation stands. Sockets
//! belong to the network namespace of the thread that opens them. An ordinary user needs `CAP_NET_ADMIN`,
//! ambient, so that the `nft` program, which lists other programs' chains, inherits it.

#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

mod attributes;
mod conntrack;
#[doc(hidden)]
pub mod decoders;
mod echo;
mod forwarding;
mod gateway;
mod link;
mod local;
mod lookup;
mod memory;
mod monitor;
mod netfilter;
mod netlink;
mod nftables;
mod only_one;
pub mod packet;
mod port;
mod route;
mod rule;
mod subscription;
mod wireguard;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;

use warren_core::plan::{
    Ability, Change, DeviceStep, Figures, Firewall, FirewallStep, FlowJudge, Kernel, KernelError, LinkStep, Observed,
    ObservedFirewall, PeerStep, RouteLookup, RouteStep, RuleStep, Step, own,
};
use warren_core::types::{NodePublic, in_overlay};

use self::conntrack::Conntrack;
use self::forwarding::Switches;
use self::monitor::Monitor;
use self::netlink::{RouteSocket, is_errno};
use self::nftables::{Ended, Nftables};
use self::port::{PortGuard, who_has};
use self::wireguard::WireguardSocket;

pub use self::echo::{EchoToken, echo};
pub use self::gateway::{DefaultRoute, Gateway};
pub use self::local::{HostRoutes, LocalAddress, LocalNetwork};
pub use self::memory::give_back_memory;
#[doc(hidden)]
pub use self::nftables::trial::gateway_table_and_what_the_kernel_has;
pub use self::only_one::OnlyOne;

/// How often all known flows are looked through for those to end. Each round ends thousands, and new ones cannot come.
const CUT_ROUNDS: usize = 256;

/// Ended flows that are remembered in one transaction: where there is no room for all, none of them is.
const ENDED_AT_ONCE: usize = 8_192;
/// What the kernel means by "operation not supported" of a link kind.
const NO_WIREGUARD: &str = "the running kernel has no WireGuard; load its module (`modprobe wireguard`), or boot a kernel \
    that has it";

/// The kernel of this host, in the network namespace of the thread that opened it.
pub struct LinuxKernel {
    route: RouteSocket,
    wireguard: Arc<WireguardSocket>,
    nftables: Nftables,
    conntrack: Conntrack,
    switches: Switches,
    monitor: Monitor,
    /// The number of our link at the last look.
    link: Option<u32>,
    /// The tunnel's port, and what keeps it while WireGuard does not.
    port: Option<u16>,
    guard: Option<PortGuard>,
    /// What was asked of the kernel in vain, and will not be again.
    lacking: BTreeSet<Ability>,
}

impl LinuxKernel {
    /// Opens the door. Call it within a Tokio runtime; changes are noticed from here on.
    pub fn new() -> Result<Self, KernelError> {
        let wireguard = Arc::new(WireguardSocket::open().during("open a generic netlink socket")?);
        let monitor = Monitor::open(wireguard.clone()).during("subscribe to changes in the kernel")?;
        let route = RouteSocket::open().during("open an rtnetlink socket")?;
        let nftables = Nftables::open().during("open an nftables socket")?;
        let conntrack = Conntrack::open().during("open a connection tracking socket")?;
        Ok(Self {
            route,
            wireguard,
            nftables,
            conntrack,
            switches: Switches::default(),
            monitor,
            link: None,
            port: None,
            guard: None,
            lacking: BTreeSet::new(),
        })
    }

    /// Keeps the tunnel's port for WireGuard, or another where somebody has that: the one that is kept, and in words
    /// who has the other.
    pub async fn keep_port(&mut self, wanted: u16) -> (u16, Option<String>) {
        let device = self.wireguard.observe().await.ok().flatten();
        let current = device.map(|device| device.listen_port).filter(|port| *port != 0);
        if current == Some(wanted) {
            self.port = current;
            return (wanted, None);
        }
        let (port, guard) = match (PortGuard::hold(wanted), current) {
            (Ok(guard), _) => (wanted, Some(guard)),
            // What the link has is better than a third.
            (Err(_), Some(current)) => (current, None),
            (Err(_), None) => match PortGuard::hold_near(wanted) {
                Ok((port, guard)) => (port, Some(guard)),
                Err(_) => (wanted, None),
            },
        };
        (self.port, self.guard) = (Some(port), guard);
        let text = || format!("UDP port {wanted} is taken by {}", who_has(wanted));
        (port, (port != wanted || self.guard.is_none()).then(text))
    }

    /// Keeps in this file what the kernel's switches were that are changed; without it, none is.
    pub fn keep_record(mut self, file: PathBuf) -> Self {
        self.switches.keep_record(file);
        self
    }

    /// Leaves our nftables table open to other programs also where the kernel would keep them off.
    pub fn share_table(mut self) -> Self {
        self.nftables.share();
        self
    }
}

impl Kernel for LinuxKernel {
    async fn observe(&mut self) -> Result<Observed, KernelError> {
        let link = attempt(&format!("read link {}", own::LINK), link::observe(&self.route)).await?;
        self.set_link(link.as_ref().filter(|link| link.is_wireguard).map(|link| link.index));
        let device = match self.link {
            Some(_) => attempt(&format!("read WireGuard device {}", own::LINK), self.wireguard.observe()).await?,
            None => None,
        };
        let rules = attempt("read policy rules", rule::observe(&self.route)).await?;
        let routes = self.observe_routes(!rules.no_ipv6).await?;
        let mut lacking = self.lacking.clone();
        if rules.no_ipv6 {
            lacking.insert(Ability::Ipv6);
        } else if link::is_ipv6_off() {
            lacking.insert(Ability::LinkIpv6);
        }
        let (firewall, flows_judged) = self.nftables.observe().await?;
        let obstacles = self.nftables.obstacles(&firewall).await;
        if obstacles.is_none() {
            lacking.insert(Ability::OtherFirewalls);
        }
        let renamed = match &link {
            None => self.renamed_links().await?,
            Some(_) => Vec::new(),
        };
        let renamed = renamed.into_iter().map(|(text, _)| text);
        let strange_rules = rules.strange.into_iter().map(|(text, _)| text);
        let mut observed = Observed {
            link,
            device,
            routes: routes.routes,
            rules: rules.rules,
            firewall,
            forwarding: self.switches.observe().during("read the switches of forwarding")?,
            flows_judged,
            obstacles: obstacles.unwrap_or_default(),
            strange: routes.strange.into_iter().map(|(text, _)| text).chain(strange_rules).chain(renamed).collect(),
            lacking,
            lookups: Vec::new(),
        };
        let named = rules.earlier.iter().filter_map(|rule| rule.destination).map(|net| net.network());
        let packets = observed.questions(named);
        let lookups = lookup::ask_all(&self.route, packets, self.link, &rules.earlier);
        observed.lookups = attempt("ask where packets go", lookups).await?;
        Ok(observed)
    }

    async fn apply(&mut self, step: &Step) -> Result<(), KernelError> {
        match step {
            Step::Link(step) => self.apply_link(step).await,
            Step::Device(step) => self.apply_device(step).await,
            Step::Peer(key, step) => self.apply_peer(key, step).await,
            Step::Route(step) => self.apply_route(step).await,
            Step::Rule(RuleStep::Add(rule)) => {
                attempt(&format!("add rule {}", rule.priority), rule::add(&self.route, rule)).await
            }
            Step::Rule(RuleStep::Remove(rule)) => {
                attempt(&format!("remove rule {}", rule.priority), rule::remove(&self.route, rule)).await
            }
            Step::Firewall(FirewallStep::Replace(firewall)) => self.replace_firewall(firewall).await,
            Step::Firewall(FirewallStep::Update { from, to }) => self.update_firewall(from, to).await,
            Step::Firewall(FirewallStep::CutFlows(judge)) => self.cut_flows(judge).await,
            Step::Firewall(FirewallStep::Delete) => self.nftables.delete().await,
            Step::Forwarding(step) => attempt(&step.to_string(), self.switches.apply(step, &self.route)).await,
            Step::RemoveStrange(text) => self.remove_strange(text).await,
        }
    }

    /// Peers go in few messages, routes one after the other: those are few. Where a message is refused, each of its
    /// steps is tried by itself, which does no harm to those that were carried out.
    async fn apply_run(&mut self, steps: &[Step]) -> Vec<Result<(), KernelError>> {
        let peers = steps.iter().map(|step| if let Step::Peer(key, step) = step { Some((key, step)) } else { None });
        let peers: Option<Vec<(&NodePublic, &PeerStep)>> = peers.collect();
        if let Some(peers) = peers.filter(|peers| peers.len() > 1)
            && self.wireguard.apply_all(&peers).await.is_ok()
        {
            return steps.iter().map(|_| Ok(())).collect();
        }
        let mut results = Vec::with_capacity(steps.len());
        for step in steps {
            results.push(self.apply(step).await);
        }
        results
    }

    async fn figures(&mut self) -> Result<Figures, KernelError> {
        self.nftables.figures().await
    }

    async fn look_up(&mut self, to: IpAddr, marked: bool) -> Result<RouteLookup, KernelError> {
        let rules = attempt("read policy rules", rule::observe(&self.route)).await?;
        let lookup = lookup::ask(&self.route, to, marked, self.link, &rules.earlier);
        attempt(&format!("ask where packets to {to} go"), lookup).await
    }

    /// May be dropped at any time.
    async fn changed(&mut self) -> Result<Change, KernelError> {
        Ok(self.monitor.changed().await)
    }
}

impl LinuxKernel {
    fn set_link(&mut self, link: Option<u32>) {
        self.link = link;
        self.monitor.set_link(link);
    }

    async fn observe_routes(&self, has_ipv6: bool) -> Result<route::Found, KernelError> {
        let everywhere = self.monitor.strays();
        let found = attempt("read routes", route::observe(&self.route, self.link, everywhere, has_ipv6)).await;
        // Strays are looked for until there are none, and again where the look failed.
        if everywhere && found.as_ref().map_or(true, route::Found::strays) {
            self.monitor.expect_strays();
        }
        found
    }

    /// Ends what is forbidden, until a look at all known flows finds none. What was ended is remembered first, so
    /// that no flow comes back by a packet that was under way.
    async fn cut_flows(&mut self, judge: &FlowJudge) -> Result<(), KernelError> {
        const OPERATION: &str = "end connections that the firewall does not admit";
        let mut is_full = false;
        for _ in 0..CUT_ROUNDS {
            let flows = match self.conntrack.forbidden(judge).await {
                // Nobody in the kernel answers for flows.
                Err(error) if is_errno(&error, Errno::EINVAL) || is_errno(&error, Errno::EOPNOTSUPP) => {
                    self.lacking.insert(Ability::EndFlows);
                    return Err(error).during(OPERATION);
                }
                flows => flows.during(OPERATION)?,
            };
            if flows.is_empty() {
                return self.nftables.note_judged().await;
            }
            for flows in flows.chunks(ENDED_AT_ONCE) {
                if !is_full {
                    let ended = flows.iter().map(|flow| Ended { opening: flow.opening, source_port: flow.source_port });
                    is_full = !self.nftables.remember_ended(ended.collect()).await?;
                }
            }
            attempt(OPERATION, self.conntrack.delete(&flows)).await?;
            if is_full {
                tracing::warn!("more connections were ended than can be remembered: a server may open some again");
            }
            tracing::info!(count = flows.len(), "ended connections that the firewall does not admit");
        }
        Err(failure(OPERATION, format!("there are still some after {CUT_ROUNDS} rounds")))
    }

    /// Where something comes to the table that this kernel may lack, the whole table finds out what that is.
    async fn update_firewall(&mut self, from: &Arc<Firewall>, to: &Arc<Firewall>) -> Result<(), KernelError> {
        let done = self.nftables.update(from, to).await;
        if done.is_ok() || from.carries.is_some() || to.carries.is_none() {
            return done;
        }
        match self.nftables.observe().await? {
            (ObservedFirewall::Table(found), _) if found == *from => self.replace_firewall(to).await,
            _ => done,
        }
    }

    /// A kernel that lacks what some rules need refuses the whole table. Then it is made without.
    async fn replace_firewall(&mut self, firewall: &Arc<Firewall>) -> Result<(), KernelError> {
        let refused = match self.nftables.replace(firewall).await {
            Err(error) => error,
            done => return done,
        };
        // Each of them, then two, then all: nothing is given up that is there.
        let mut attempts: Vec<BTreeSet<Ability>> = (1_u8..1 << Ability::OF_TABLE.len())
            .map(|bits| {
                (0..).zip(Ability::OF_TABLE).filter(|(place, _)| bits >> place & 1 == 1).map(|(_, a)| a).collect()
            })
            .collect();
        attempts.sort_by_key(BTreeSet::len);
        for lacking in attempts {
            let without = firewall.without(&lacking);
            if without != **firewall && self.nftables.replace(&Arc::new(without)).await.is_ok() {
                tracing::warn!(?lacking, %refused, "the firewall is made without what this kernel lacks");
                self.lacking.extend(lacking);
                return Ok(());
            }
        }
        Err(refused)
    }

    /// Our link under another name: WireGuard's, with our mark and an address of the overlay. Nothing filters what comes
    /// out of it.
    async fn renamed_links(&self) -> Result<Vec<(String, u32)>, KernelError> {
        let mut renamed = Vec::new();
        for (name, index, addresses) in attempt("list WireGuard links", link::other_wireguard(&self.route)).await? {
            let is_overlay = addresses.iter().any(|net| in_overlay(net.addr()));
            let mark = self.wireguard.mark_of(&name);
            if is_overlay && attempt(&format!("read WireGuard device {name}"), mark).await? == Some(own::MARK_BYPASS) {
                renamed.push((format!("link {name}, which is {} under another name", own::LINK), index));
            }
        }
        Ok(renamed)
    }

    async fn remove_strange(&self, text: &str) -> Result<(), KernelError> {
        let operation = format!("remove {text}");
        for (_, index) in self.renamed_links().await?.into_iter().filter(|(found, _)| found == text) {
            attempt(&operation, link::delete(&self.route, index)).await?;
        }
        let rules = attempt(&operation, rule::observe(&self.route)).await?;
        let routes = attempt(&operation, route::observe(&self.route, self.link, true, !rules.no_ipv6)).await?;
        for (_, message) in routes.strange.iter().filter(|(found, _)| found == text) {
            attempt(&operation, route::remove_strange(&self.route, message)).await?;
        }
        for (_, message) in rules.strange.iter().filter(|(found, _)| found == text) {
            attempt(&operation, rule::remove_strange(&self.route, message)).await?;
        }
        Ok(())
    }

    async fn apply_link(&mut self, step: &LinkStep) -> Result<(), KernelError> {
        let socket = &self.route;
        let operation = match step {
            LinkStep::Create => format!("create WireGuard link {}", own::LINK),
            LinkStep::Delete
            | LinkStep::SetMtu(_)
            | LinkStep::SetUp
            | LinkStep::AddAddress(_)
            | LinkStep::RemoveAddress(_) => step.to_string(),
        };
        match step {
            LinkStep::Create => {
                match link::create(socket).await {
                    Err(error) if is_errno(&error, Errno::EOPNOTSUPP) => return Err(failure(&operation, NO_WIREGUARD)),
                    created => created.during(&operation)?,
                }
                let index = attempt(&operation, link::own_index(socket)).await?;
                self.set_link(Some(index));
                Ok(())
            }
            LinkStep::Delete => {
                let index = attempt(&operation, link::own_index(socket)).await?;
                attempt(&operation, link::delete(socket, index)).await?;
                self.guard = self.port.and_then(|port| PortGuard::hold(port).ok());
                self.set_link(None);
                Ok(())
            }
            LinkStep::SetMtu(mtu) => attempt(&operation, link::set_mtu(socket, self.our_link(&operation)?, *mtu)).await,
            LinkStep::SetUp => {
                self.guard = None;
                let set_up = link::set_up(socket, self.our_link(&operation)?).await;
                set_up.map_err(|error| with_holder(error, self.port)).during(&operation)
            }
            LinkStep::AddAddress(address) => {
                attempt(&operation, link::add_address(socket, self.our_link(&operation)?, *address)).await
            }
            LinkStep::RemoveAddress(address) => {
                attempt(&operation, link::remove_address(socket, self.our_link(&operation)?, *address)).await
            }
        }
    }

    async fn apply_device(&mut self, step: &DeviceStep) -> Result<(), KernelError> {
        let operation = match step {
            DeviceStep::SetPrivateKey(_) => format!("set the key of {}", own::LINK),
            DeviceStep::SetListenPort(port) => format!("set the port of {} to {port}", own::LINK),
            DeviceStep::SetFwmark(mark) => format!("set the mark of {} to {mark:#x}", own::LINK),
        };
        attempt(&operation, link::own_index(&self.route)).await?;
        match step {
            DeviceStep::SetListenPort(port) => {
                (self.guard, self.port) = (None, Some(*port));
                let set = self.wireguard.configure(step).await;
                // A link that is down has told WireGuard its port, and taken none.
                self.guard = PortGuard::hold(*port).ok();
                set.map_err(|error| with_holder(error, self.port)).during(&operation)
            }
            DeviceStep::SetPrivateKey(_) | DeviceStep::SetFwmark(_) => {
                attempt(&operation, self.wireguard.configure(step)).await
            }
        }
    }

    async fn apply_peer(&mut self, key: &NodePublic, step: &PeerStep) -> Result<(), KernelError> {
        let name = key.short();
        let operation = match step {
            PeerStep::Add(_) => format!("add peer {name}"),
            PeerStep::AddAllowedIps(allowed_ips) => format!("give peer {name} {} allowed IPs", allowed_ips.len()),
            PeerStep::RemoveAllowedIps { allowed_ips, .. } => {
                format!("take {} allowed IPs from peer {name}", allowed_ips.len())
            }
            PeerStep::SetEndpoint(endpoint) => format!("move peer {name} to {endpoint}"),
            PeerStep::SetKeepalive(seconds) => format!("set the keep-alive of peer {name} to {seconds} s"),
            PeerStep::Remove => format!("remove peer {name}"),
        };
        attempt(&operation, self.wireguard.apply(key, step)).await
    }

    async fn apply_route(&mut self, step: &RouteStep) -> Result<(), KernelError> {
        match step {
            RouteStep::Add(route) => {
                let added = route::add(&self.route, route, self.link);
                attempt(&format!("add route {} to table {}", route.destination, own::ROUTE_TABLE), added).await
            }
            RouteStep::Remove(route) => {
                let removed = route::remove(&self.route, route, self.link);
                attempt(&format!("remove route {} from table {}", route.destination, own::ROUTE_TABLE), removed).await
            }
        }
    }

    fn our_link(&self, operation: &str) -> Result<u32, KernelError> {
        self.link.ok_or_else(|| failure(operation, format!("there is no WireGuard link {}", own::LINK)))
    }
}

/// Names the operation where an error came from below.
trait Attempt<T> {
    fn during(self, operation: &str) -> Result<T, KernelError>;
}

impl<T> Attempt<T> for io::Result<T> {
    fn during(self, operation: &str) -> Result<T, KernelError> {
        self.map_err(|error| failure(operation, error))
    }
}

async fn attempt<T>(operation: &str, work: impl Future<Output = io::Result<T>>) -> Result<T, KernelError> {
    work.await.during(operation)
}

/// Says who has the port, where the kernel says that somebody has.
fn with_holder(error: io::Error, port: Option<u16>) -> io::Error {
    match port.filter(|_| is_errno(&error, Errno::EADDRINUSE)) {
        Some(port) => io::Error::other(format!(
            "UDP port {port} is taken by {}; end that, or start warrend with another --port",
            who_has(port)
        )),
        None => error,
    }
}

fn failure(operation: &str, reason: impl Display) -> KernelError {
    KernelError { operation: operation.to_owned(), reason: reason.to_string() }
}
