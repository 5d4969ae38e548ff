//! Why a packet passes or does not: asked of the map's packet filter, and of what the kernel holds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use super::calls::{Awaited, TableQuestion};
use super::{Answer, CallId, Effect, Engine, Now, Refusal, Timestamp};
use crate::netmap::{PacketFilter, Peer};
use crate::plan::{
    Admit, Count, Denied, Figures, Firewall, KernelError, Misroute, ObservedFirewall, Packet, Protocol, RouteLookup,
    RuleId, rights_of, rules_naming,
};
use crate::types::{IpNet, is_default_route};
use crate::wire::control::RuleOrigin;
use crate::wire::local::{AclReply, AclRule, DeniedCount, WhyQuestion, WhyReply};

/// Packet filters that are remembered, so that a packet which is dropped can be told which rule it once had.
const REMEMBERED: usize = 4;
/// Rules that are listed as near in an answer. More of them help nobody.
const NEAR: usize = 16;

/// Packet filters of the past, the latest first, each with when it went.
#[derive(Debug, Default)]
pub(super) struct Past {
    present: Option<Arc<PacketFilter>>,
    filters: VecDeque<(Arc<PacketFilter>, Timestamp)>,
}

impl Past {
    /// Takes note of the filter in force.
    pub(super) fn note(&mut self, filter: &Arc<PacketFilter>, now: Timestamp) {
        if self.present.as_ref().is_some_and(|present| Arc::ptr_eq(present, filter)) {
            return;
        }
        if let Some(gone) = self.present.replace(Arc::clone(filter)).filter(|gone| !gone.rules.is_empty()) {
            self.filters.push_front((gone, now));
            self.filters.truncate(REMEMBERED);
        }
    }
}

/// One end of a packet.
struct End {
    address: IpAddr,
    name: String,
    /// Whose it is, where it is a peer's.
    peer: Option<Arc<Peer>>,
    is_ours: bool,
}

impl Engine {
    /// Has the kernel asked; the answer comes with [`Engine::handle_figures`].
    pub(super) fn ask_table(&mut self, id: CallId, asked: TableQuestion) {
        self.calls.wait(id, Awaited::Table(asked), None);
        self.effects.push_back(Effect::Figures);
    }

    /// What we send is asked of the kernel's routing, everything else of our table.
    pub(super) fn ask_why(&mut self, id: CallId, question: WhyQuestion) {
        match self.ends(&question) {
            Ok((source, destination)) if source.is_ours && destination.peer.is_some() => {
                self.calls.wait(id, Awaited::WayTo(destination.address, question), None);
                self.effects.push_back(Effect::LookUpRoute(destination.address));
            }
            _ => self.ask_table(id, TableQuestion::Why(question)),
        }
    }

    /// The kernel told where packets to an address go.
    pub fn handle_lookup(&mut self, to: IpAddr, lookup: Result<RouteLookup, KernelError>, now: Now) {
        let fault = lookup.as_ref().ok().and_then(|lookup| self.misroute(lookup));
        self.note_lookup(to, fault.as_ref());
        let of_address = |awaited: &Awaited| {
            let Awaited::WayTo(address, question) = awaited else { return None };
            (*address == to).then(|| question.clone())
        };
        for (id, question) in self.calls.take(of_address) {
            let answer = self.why(&question, &Figures::default(), now).map(|mut answer| {
                (answer.kernel, answer.kernel_agrees) = match (&lookup, &fault) {
                    (Err(error), _) => (error.to_string(), false),
                    (Ok(_), Some(fault)) => (fault.to_string(), false),
                    (Ok(lookup), None) => (format!("sends it {}, unfiltered", lookup.egress), true),
                };
                Answer::json(&answer)
            });
            self.reply(id, answer);
        }
    }

    /// Whether a way is another than is wished for.
    fn misroute(&self, lookup: &RouteLookup) -> Option<Misroute> {
        self.reconciler.desired().and_then(|desired| lookup.misroute(desired))
    }

    /// The kernel told what our table holds.
    pub fn handle_figures(&mut self, figures: &Result<Figures, KernelError>, now: Now) {
        let of_table = |awaited: &Awaited| if let Awaited::Table(asked) = awaited { Some(asked.clone()) } else { None };
        for (id, asked) in self.calls.take(of_table) {
            let answer = match (figures, asked) {
                (Err(error), _) => Err(Refusal::new(500, error.to_string())),
                (Ok(figures), TableQuestion::Why(question)) => {
                    self.why(&question, figures, now).map(|reply| Answer::json(&reply))
                }
                (Ok(figures), TableQuestion::Acl) => Ok(Answer::json(&self.acl(figures))),
            };
            self.reply(id, answer);
        }
    }

    fn wished(&self) -> Option<&Arc<Firewall>> {
        self.reconciler.desired().and_then(|desired| desired.firewall.as_ref())
    }

    fn acl(&self, figures: &Figures) -> AclReply {
        let nothing = Arc::new(Firewall::default());
        let firewall = self.wished().unwrap_or(&nothing);
        let mut rules: BTreeMap<RuleId, AclRule> = BTreeMap::new();
        for rule in &self.netmap.filter().rules {
            let Some((id, admits)) = rights_of(rule, &firewall.served) else { continue };
            let entry = rules.entry(id).or_insert_with(|| described(id, &admits, figures));
            entry.origins.extend(rule.origin.clone());
        }
        let classes = firewall.hosts.values().chain(firewall.subnets.values());
        for id in classes.filter_map(|class| firewall.classes.get(class)).flat_map(|class| class.rules.keys()) {
            if let Some(rule) = rules.get_mut(id) {
                rule.sources += 1;
            }
        }
        let mut rules: Vec<AclRule> = rules.into_values().collect();
        rules.iter_mut().for_each(|rule| tidy(&mut rule.origins));
        rules.sort_by_key(|rule| rule.origins.first().map_or(u32::MAX, |origin| origin.line));
        let denied = figures.denied.iter();
        AclReply {
            served: firewall.served.routes().into_iter().collect(),
            rules,
            denied: denied
                .map(|(reason, Count { packets, bytes })| DeniedCount {
                    reason: reason.clone(),
                    packets: *packets,
                    bytes: *bytes,
                })
                .collect(),
            kernel: difference(self.wished(), &figures.firewall),
        }
    }

    fn why(&self, question: &WhyQuestion, figures: &Figures, now: Now) -> Result<WhyReply, Refusal> {
        let (source, destination) = self.ends(question)?;
        let protocol = protocol(&question.proto, question.port, destination.address)?;
        let port = if protocol.has_ports() { question.port } else { 0 };
        let packet = Packet { source: source.address, destination: destination.address, protocol, port };
        let to_port = if protocol.has_ports() { format!(" to port {port}") } else { String::new() };
        let mut reply = WhyReply {
            packet: format!("{protocol}{to_port} from {} to {}", source.describe(), destination.describe()),
            ..WhyReply::default()
        };
        match (&source.peer, self.serves(destination.address)) {
            (Some(peer), true) => self.explain_in(&mut reply, peer, &packet, figures, now),
            _ if source.is_ours && destination.peer.is_some() => {
                reply.allowed = true;
                reply.because = format!(
                    "this machine lets out whatever it sends; whether {} takes it is for its own filter to say: ask \
                     `warren why` there, or `warren-coordinator why`",
                    destination.name
                );
            }
            (None, _) if self.serves(source.address) && destination.peer.is_some() => {
                let may_open = self.wished().is_some_and(|firewall| firewall.options.lan_may_open);
                reply.allowed = may_open;
                reply.because = if may_open {
                    "--allow-lan-to-overlay lets carried networks open connections".to_owned()
                } else {
                    "the networks that this machine carries may answer peers and open nothing; `warrend \
                     --allow-lan-to-overlay` would let them"
                        .to_owned()
                };
                reply.kernel = difference(self.wished(), &figures.firewall);
                reply.kernel_agrees = reply.kernel.is_empty();
            }
            (None, _) if !source.is_ours => {
                reply.because = format!("{} is no peer's address, so the tunnel takes nothing from it", source.address);
                reply.kernel_agrees = true;
            }
            _ => {
                reply.because = format!("{} is neither here nor behind this machine", destination.address);
                reply.kernel_agrees = true;
            }
        }
        Ok(reply)
    }

    /// A packet from a peer to something that is served here.
    fn explain_in(&self, reply: &mut WhyReply, peer: &Arc<Peer>, packet: &Packet, figures: &Figures, now: Now) {
        let nothing = Arc::new(Firewall::default());
        let firewall = self.wished().unwrap_or(&nothing);
        let decided = firewall.decide(packet);
        let named = rules_naming(self.netmap.filter(), &firewall.served, peer, packet);
        let covers = |admits: &BTreeSet<Admit>| admits.iter().any(|admit| admit.admits(packet));
        reply.allowed = decided.is_ok();
        match decided {
            Ok(id) => {
                let mut rule = AclRule { id: id.to_string(), ..AclRule::default() };
                for (told, id, admits) in named.iter().filter(|(_, _, admits)| covers(admits)) {
                    if rule.rights.is_empty() {
                        rule = described(*id, admits, figures);
                    }
                    rule.origins.extend(told.origin.clone());
                }
                tidy(&mut rule.origins);
                reply.because = format!("{} lets it in", place(&rule.origins));
                reply.rule = Some(rule);
            }
            Err(denied) => {
                reply.because = self.denial(denied, peer, packet);
                let once = self.once_admitted(firewall, peer, packet, now);
                if let Some((rule, ago)) = once {
                    reply.because.push_str(&format!("; {} let it in until {ago} ago", place(&rule.origins)));
                    reply.rule = Some(rule);
                }
                let near = named.iter().take(NEAR);
                reply.near = near
                    .map(|(told, id, admits)| AclRule {
                        origins: told.origin.clone().into_iter().collect(),
                        ..described(*id, admits, figures)
                    })
                    .collect();
            }
        }
        (reply.kernel, reply.kernel_agrees) = kernel_says(packet, decided, figures);
    }

    fn denial(&self, denied: Denied, peer: &Peer, packet: &Packet) -> String {
        if let Some(reason) = self.unserved(packet.destination).filter(|_| denied == Denied::NotServed) {
            return reason;
        }
        if self.prefs.shields_up {
            return "the shields are up (`warren set --shields-up=false` lowers them), so nobody may open anything"
                .to_owned();
        }
        if !peer.may_open() {
            return "the coordinator lets this peer answer and open nothing".to_owned();
        }
        denied.to_string()
    }

    /// Why an address is not served that lies in what we offer.
    fn unserved(&self, address: IpAddr) -> Option<String> {
        let approved = self.netmap.approved_routes();
        let offered = self.prefs.advertise_routes.iter().map(IpNet::trunc).filter(|route| route.contains(&address));
        let offered: Vec<IpNet> = offered.collect();
        match offered.iter().find(|route| !approved.contains(*route)) {
            Some(route) if !is_default_route(route) => {
                Some(format!("this machine offers {route}, but the coordinator does not let it carry that"))
            }
            _ if offered.iter().any(is_default_route) => Some(
                "an exit node carries traffic to the internet alone: neither to its host nor to the networks around \
                 it; a network is carried where it is offered by name and approved"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// The rule that let the packet in, in a filter of the past, and how long ago that ended.
    fn once_admitted(&self, firewall: &Firewall, peer: &Peer, packet: &Packet, now: Now) -> Option<(AclRule, String)> {
        self.past.filters.iter().find_map(|(filter, until)| {
            let named = rules_naming(filter, &firewall.served, peer, packet);
            let (told, id, admits) =
                named.into_iter().find(|(_, _, admits)| admits.iter().any(|a| a.admits(packet)))?;
            let origins = told.origin.clone().into_iter().collect();
            let rule = AclRule { origins, ..described(id, &admits, &Figures::default()) };
            let seconds = now.wall.duration_since(*until).as_secs().max(0);
            Some((rule, format!("{seconds} s")))
        })
    }

    fn serves(&self, address: IpAddr) -> bool {
        let addresses = self.netmap.addresses().iter().chain(&self.prefs.advertise_routes);
        addresses.into_iter().any(|net| net.contains(&address))
    }

    /// Both ends, of the same family.
    fn ends(&self, question: &WhyQuestion) -> Result<(End, End), Refusal> {
        let (sources, destinations) = (self.end(&question.src)?, self.end(&question.dst)?);
        for source in &sources {
            for destination in &destinations {
                if source.is_ipv4() == destination.is_ipv4() {
                    return Ok((self.made(*source, &question.src), self.made(*destination, &question.dst)));
                }
            }
        }
        let text = format!("`{}` and `{}` have no address of the same family", question.src, question.dst);
        Err(Refusal::new(400, text))
    }

    /// What a name, an address or `self` may stand for.
    fn end(&self, text: &str) -> Result<Vec<IpAddr>, Refusal> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(vec![address]);
        }
        let matches = |node: &crate::wire::control::Node| {
            let name = node.name.trim_end_matches('.');
            let host = node.hostinfo.as_ref().map_or("", |hostinfo| hostinfo.hostname.as_str());
            [name, name.split('.').next().unwrap_or_default(), host].iter().any(|name| name.eq_ignore_ascii_case(text))
        };
        let ours = self.netmap.node().filter(|node| text == "self" || matches(node));
        let peer = self.netmap.peers().find(|peer| matches(&peer.node));
        let addresses: Vec<IpAddr> = match (ours, peer) {
            (Some(_), _) => self.netmap.addresses().iter().map(IpNet::addr).collect(),
            (None, Some(peer)) => peer.addresses.iter().map(IpNet::addr).collect(),
            (None, None) => Vec::new(),
        };
        match addresses.is_empty() {
            true => {
                Err(Refusal::new(404, format!("`{text}` is no address, no peer that is in the map, and not `self`")))
            }
            false => Ok(addresses),
        }
    }

    fn made(&self, address: IpAddr, text: &str) -> End {
        let is_ours = self.netmap.addresses().contains(&IpNet::from(address));
        let holds = |peer: &&Arc<Peer>| peer.addresses.iter().chain(&peer.routes).any(|net| net.contains(&address));
        let exact = self.netmap.owner(&IpNet::from(address));
        let peer = exact.or_else(|| self.netmap.peers().find(holds)).cloned();
        let name = match (&peer, is_ours) {
            (_, true) => "this machine".to_owned(),
            (Some(peer), false) => peer.node.name.split('.').next().unwrap_or_default().to_owned(),
            (None, false) => text.to_owned(),
        };
        End { address, name, peer, is_ours }
    }
}

impl End {
    fn describe(&self) -> String {
        let address = self.address.to_string();
        if self.name == address { address } else { format!("{} ({address})", self.name) }
    }
}

/// TCP where a port is named, else ICMP, which any right to the destination lets in.
fn protocol(text: &str, port: u16, destination: IpAddr) -> Result<Protocol, Refusal> {
    let icmp = Protocol::icmp_of(destination);
    Ok(match text.to_ascii_lowercase().as_str() {
        "" if port == 0 => icmp,
        "" | "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        "sctp" => Protocol::SCTP,
        "icmp" | "icmpv6" | "ping" => icmp,
        number => match number.parse() {
            Ok(number) => Protocol(number),
            Err(_) => {
                return Err(Refusal::new(400, format!("`{text}` is no protocol: tcp, udp, sctp, icmp or a number")));
            }
        },
    })
}

fn described(id: RuleId, admits: &BTreeSet<Admit>, figures: &Figures) -> AclRule {
    let count = figures.rules.get(&id).copied().unwrap_or_default();
    AclRule {
        id: id.to_string(),
        origins: Vec::new(),
        rights: admits.iter().map(ToString::to_string).collect(),
        sources: 0,
        packets: count.packets,
        bytes: count.bytes,
    }
}

fn tidy(origins: &mut Vec<RuleOrigin>) {
    origins.sort_by(|a, b| (a.line, &a.reference).cmp(&(b.line, &b.reference)));
    origins.dedup();
}

/// Where in the policy, in words.
fn place(origins: &[RuleOrigin]) -> String {
    match origins {
        [] => "a rule of the coordinator's filter".to_owned(),
        [one] => format!("line {} of the policy ({})", one.line, one.reference),
        several => {
            let lines: Vec<String> = several.iter().map(|origin| origin.line.to_string()).collect();
            format!("lines {} of the policy", lines.join(", "))
        }
    }
}

const UNFILTERED: &str = "the kernel has no table of ours: nothing is filtered at this moment";

fn altered(how: &str) -> String {
    format!("somebody changed the kernel's table: {how}")
}

/// How the table in the kernel differs from the wish; empty where it does not.
fn difference(wished: Option<&Arc<Firewall>>, found: &ObservedFirewall) -> String {
    match (wished, found) {
        (None, ObservedFirewall::Absent) => String::new(),
        (Some(wished), ObservedFirewall::Table(found)) if wished == found => String::new(),
        (_, ObservedFirewall::Absent) => UNFILTERED.to_owned(),
        (_, ObservedFirewall::Table(_)) => "the kernel's table is about to be changed".to_owned(),
        (_, ObservedFirewall::Altered(how)) => altered(how),
    }
}

/// What the kernel does with a packet that opens something, and whether it should.
fn kernel_says(packet: &Packet, wished: Result<RuleId, Denied>, figures: &Figures) -> (String, bool) {
    match &figures.firewall {
        ObservedFirewall::Table(firewall) => match firewall.decide(packet) {
            Ok(id) => (format!("lets it in by counter rule_{id}"), wished.is_ok()),
            Err(denied) => (format!("drops it: {denied} ({})", counter(denied)), wished.is_err()),
        },
        ObservedFirewall::Absent => (UNFILTERED.to_owned(), false),
        ObservedFirewall::Altered(how) => (altered(how), false),
    }
}

/// The counter that a denial is counted by.
fn counter(denied: Denied) -> &'static str {
    match denied {
        Denied::NotServed => "denied_foreign_destination",
        Denied::NoRights => "denied_unknown_source",
        Denied::NotAdmitted => "denied_by_policy",
    }
}
