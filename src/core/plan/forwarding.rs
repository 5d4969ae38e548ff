//! Which of the kernel's switches let packets pass that this host carries for peers, and how they are given back.
//!
//! Of IPv4 the link counts by which a packet comes in, so two switches are enough for a subnet: that of our link and
//! that of the other. IPv6 has such a switch in newer kernels. In others one switch is for all links: it makes a router
//! of the host, which from then on learns neither routes nor addresses from its routers, unless a link is told to go on
//! with that (`accept_ra` 2) before. It also sets the like-named switch of each link, so those that were on already are
//! noted first.
//!
//! What a switch was is written down before it is changed, by whoever carries out the step. It is given back where it is
//! as we left it; where somebody else changed it since, or the switch that sets all of its kind, it is theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::netmap::overlap;
use crate::types::{IpNet, is_default_route};

use super::own;
use super::prefs::Host;
use super::served::Served;

/// The links by which packets come in that are to go on, by family; of none, nothing is to be switched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    pub v4: BTreeSet<String>,
    pub v6: BTreeSet<String>,
}

/// What the kernel calls the switch that sets those of all links.
const ALL: &str = "all";
/// Links that come from no other machine.
const LOOPBACK: &str = "lo";

/// A switch of the kernel's, of a link by its name; `all` and `default` (what new links get) are two of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Switch {
    /// Packets of IPv4 that come in by this link may go on.
    Ipv4(String),
    /// The same of IPv6, whatever the next one says. Not every kernel has it.
    Ipv6Forced(String),
    /// Whether this host is a router on this link. Packets go on by the switch of `all` alone.
    Ipv6(String),
    /// Whether routers are heard on this link: 1 where this host is none itself there, 2 in any case.
    AcceptRa(String),
}

/// What a switch was before we changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    pub value: u32,
    /// What the one for all links was: whoever changes that changes this one.
    pub all: u32,
}

/// The switches as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedForwarding {
    pub values: BTreeMap<Switch, u32>,
    /// Those that we changed.
    pub before: BTreeMap<Switch, Before>,
    /// Whether those of IPv6 cannot be written.
    pub is_closed: bool,
}

/// A change of a switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardingStep {
    /// Write down what it is, then set it.
    Set(Switch),
    /// Set it to what it was, then forget that.
    GiveBack(Switch, u32),
    /// Forget what it was: it is somebody else's now.
    Forget(Switch),
}

impl Switch {
    /// The link that it is of.
    pub fn link(&self) -> &str {
        let (Self::Ipv4(link) | Self::Ipv6Forced(link) | Self::Ipv6(link) | Self::AcceptRa(link)) = self;
        link
    }

    /// What we set it to.
    pub fn ours(&self) -> u32 {
        match self {
            Self::Ipv4(_) | Self::Ipv6Forced(_) | Self::Ipv6(_) => 1,
            Self::AcceptRa(_) => 2,
        }
    }

    /// The family's part of the kernel's name for it, and its own.
    pub const fn names(&self) -> (&'static str, &'static str) {
        match self {
            Self::Ipv4(_) => ("ipv4", "forwarding"),
            Self::Ipv6Forced(_) => ("ipv6", "force_forwarding"),
            Self::Ipv6(_) => ("ipv6", "forwarding"),
            Self::AcceptRa(_) => ("ipv6", "accept_ra"),
        }
    }

    /// The one that sets this one of all links.
    pub fn of_all(&self) -> Self {
        match self {
            Self::Ipv4(_) => Self::Ipv4(ALL.to_owned()),
            Self::Ipv6Forced(_) => Self::Ipv6Forced(ALL.to_owned()),
            Self::Ipv6(_) => Self::Ipv6(ALL.to_owned()),
            // That of `all` sets nothing, so nobody changes it for the others.
            Self::AcceptRa(link) => Self::AcceptRa(link.clone()),
        }
    }

    /// One that the switch of all links sets along.
    fn follows_all(&self) -> bool {
        matches!(self, Self::Ipv6(link) if link != ALL)
    }
}

/// As `sysctl` takes it: a dot in a link's name is a slash there.
impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (family, name) = self.names();
        write!(f, "net.{family}.conf.{}.{name}", self.link().replace('.', "/"))
    }
}

impl fmt::Display for ForwardingStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(switch) => write!(f, "set {switch} to {}", switch.ours()),
            Self::GiveBack(switch, before) => write!(f, "set {switch} back to {before}"),
            Self::Forget(switch) => write!(f, "leave {switch} as somebody else has set it"),
        }
    }
}

impl ForwardingStep {
    /// The switch that it is about.
    pub const fn switch(&self) -> &Switch {
        let (Self::Set(switch) | Self::GiveBack(switch, _) | Self::Forget(switch)) = self;
        switch
    }
}

impl Forwarding {
    /// The links by which the host reaches what it serves for others, and ours.
    pub(super) fn of(served: &Served, addresses: &BTreeSet<IpNet>, host: &Host) -> Self {
        let mut found = Self::default();
        let subnets: Vec<&IpNet> = served.listed.iter().filter(|net| !addresses.contains(net)).collect();
        let is_v4 = |net: &IpNet| net.addr().is_ipv4();
        // What no network of the host's holds as a whole goes by its way out, too.
        let is_held = |subnet: &IpNet| host.links.keys().any(|net| !is_default_route(net) && net.contains(subnet));
        let by_way_out: Vec<bool> = subnets
            .iter()
            .filter(|net| !is_held(net))
            .map(|net| is_v4(net))
            .chain(served.internet.iter().map(is_v4))
            .collect();
        for (net, links) in &host.links {
            let is_used = match is_default_route(net) {
                true => by_way_out.contains(&is_v4(net)),
                false => subnets.iter().copied().chain(&served.internet).any(|carried| overlap(carried, net)),
            };
            if is_used {
                let family = if is_v4(net) { &mut found.v4 } else { &mut found.v6 };
                family.extend(links.iter().cloned().chain([own::LINK.to_owned()]));
            }
        }
        found
    }

    /// The switches that are to be ours, in the order in which they are set.
    fn switches(&self, found: &ObservedForwarding) -> Vec<Switch> {
        let mut switches: Vec<Switch> = self.v4.iter().cloned().map(Switch::Ipv4).collect();
        let all = Switch::Ipv6(ALL.to_owned());
        let is_ours = found.before.contains_key(&all);
        let is_on = found.is_on(&all);
        // Where somebody else has it on, there is nothing to do.
        if self.v6.is_empty() || (is_on && !is_ours) {
        } else if found.values.contains_key(&Switch::Ipv6Forced(ALL.to_owned())) {
            switches.extend(self.v6.iter().cloned().map(Switch::Ipv6Forced));
        } else if found.values.contains_key(&all) {
            let is_router = |link: &str| {
                let switch = Switch::Ipv6(link.to_owned());
                found.before.contains_key(&switch) || (!is_on && found.is_on(&switch))
            };
            for (switch, value) in &found.values {
                let is_taken = match switch {
                    Switch::Ipv6(link) => {
                        link != ALL && is_router(link) && (*value != 0 || found.was_set_back_along(switch))
                    }
                    Switch::AcceptRa(link) if [ALL, LOOPBACK, own::LINK].contains(&link.as_str()) => false,
                    Switch::AcceptRa(link) if *value == 1 => !is_router(link),
                    Switch::AcceptRa(_) => *value == switch.ours() && found.before.contains_key(switch),
                    Switch::Ipv4(_) | Switch::Ipv6Forced(_) => false,
                };
                switches.extend(is_taken.then(|| switch.clone()));
            }
            switches.push(all);
        }
        switches.retain(|switch| switch.link() == own::LINK || found.values.contains_key(switch));
        switches
    }

    /// What is to be done before everything else, and what after it.
    pub(super) fn steps(&self, found: &ObservedForwarding) -> (Vec<ForwardingStep>, Vec<ForwardingStep>) {
        let wanted = self.switches(found);
        let may = |switch: &Switch| !found.is_closed || matches!(switch, Switch::Ipv4(_));
        let mut back: Vec<ForwardingStep> = Vec::new();
        for (switch, before) in found.before.iter().filter(|(switch, _)| may(switch)) {
            if !wanted.contains(switch) || found.was_set_back_along(switch) {
                back.push(found.give_back(switch, before));
            }
        }
        // The one for all sets those of links along, so it goes before them; routers are heard as before after both.
        back.sort_by_key(|step| (matches!(step.switch(), Switch::AcceptRa(_)), step.switch().follows_all()));
        let is_due = |switch: &Switch| {
            let is_noted = found.before.contains_key(switch) && !found.was_set_back_along(switch);
            found.value(switch) != switch.ours() || (switch.follows_all() && !is_noted)
        };
        let set = wanted.into_iter().filter(|switch| may(switch) && is_due(switch)).map(ForwardingStep::Set);
        (back, set.collect())
    }

    /// What a person has to type where the switches of IPv6 are closed to us.
    pub fn to_type(&self, found: &ObservedForwarding) -> Option<String> {
        let closed = self.switches(found).into_iter().filter(|switch| !matches!(switch, Switch::Ipv4(_)));
        let missing = closed.filter(|switch| found.is_closed && found.value(switch) != switch.ours());
        let missing: Vec<String> = missing.map(|switch| format!("{switch}={}", switch.ours())).collect();
        (!missing.is_empty()).then(|| format!("sysctl -w {}", missing.join(" ")))
    }
}

impl ObservedForwarding {
    fn value(&self, switch: &Switch) -> u32 {
        self.values.get(switch).copied().unwrap_or_default()
    }

    fn is_on(&self, switch: &Switch) -> bool {
        self.value(switch) != 0
    }

    /// A switch of a link that was on before ours was set for all, and went off with that one.
    fn was_set_back_along(&self, switch: &Switch) -> bool {
        switch.follows_all() && self.before.contains_key(switch) && !self.is_on(switch) && !self.is_on(&switch.of_all())
    }

    fn give_back(&self, switch: &Switch, before: &Before) -> ForwardingStep {
        let is_as_we_left_it = match switch.follows_all() {
            true => self.is_on(switch) || self.was_set_back_along(switch),
            false => self.values.get(switch) == Some(&switch.ours()) && self.is_of_the_same_all(switch, before),
        };
        match is_as_we_left_it {
            true => ForwardingStep::GiveBack(switch.clone(), before.value),
            false => ForwardingStep::Forget(switch.clone()),
        }
    }

    fn is_of_the_same_all(&self, switch: &Switch, before: &Before) -> bool {
        let all = switch.of_all();
        all == *switch || self.value(&all) == before.all
    }

    /// Carries out a step as a kernel does.
    pub(super) fn carry_out(&mut self, step: &ForwardingStep) {
        match step {
            ForwardingStep::Set(switch) => {
                let before = Before { value: self.value(switch), all: self.value(&switch.of_all()) };
                self.before.insert(switch.clone(), before);
                self.write(switch, switch.ours());
            }
            ForwardingStep::GiveBack(switch, value) => {
                self.write(switch, *value);
                self.before.remove(switch);
            }
            ForwardingStep::Forget(switch) => drop(self.before.remove(switch)),
        }
    }

    /// Sets a switch as anybody might.
    pub fn write(&mut self, switch: &Switch, value: u32) {
        if switch.link() == ALL {
            for (other, of_other) in &mut self.values {
                if other.of_all() == *switch {
                    *of_other = value;
                }
            }
        }
        self.values.insert(switch.clone(), value);
    }

    /// A link goes, and its switches with it.
    pub(super) fn remove_link(&mut self, link: &str) {
        self.values.retain(|switch, _| switch.link() != link);
        self.before.retain(|switch, _| switch.link() != link);
    }
}
