//! Whether a packet is allowed, and by which rules: the policy's own answer, whatever the nodes enforce.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::types::IpNet;
use crate::wire::control::RuleOrigin;

use super::compile::{Compiled, Flow, FlowOpen};
use super::internet;
use super::ports::{PortRange, Protocol};
use super::posture::Attribute;
use super::selector::{Autogroup, Selector};
use super::sources::{SourceList, Sources};

/// A packet, or all packets between two prefixes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) from: IpNet,
    pub(super) to: IpNet,
    /// None is any of those that a rule without a protocol lets through.
    pub(super) protocol: Option<Protocol>,
    pub(super) port: u16,
}

/// What one rule opens from one address to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The rule; none for what holds without being written.
    pub origin: Option<Arc<RuleOrigin>>,
    /// The protocol; none for the usual ones ([`Protocol::DEFAULT`]).
    pub protocol: Option<Protocol>,
    pub ports: Vec<PortRange>,
}

impl Access {
    /// Whether this is of a packet. Ports count only where the protocol has them.
    pub fn allows(&self, protocol: Protocol, port: Option<u16>) -> bool {
        let is_open = |port| self.ports.iter().any(|run| run.contains(port));
        is_of(self.protocol, Some(protocol)) && (!protocol.has_ports() || port.is_none_or(is_open))
    }
}

impl Compiled {
    /// What rules open from one address to another, in the order of the policy.
    pub fn access(&self, from: IpAddr, to: IpAddr) -> Vec<Access> {
        let packet = Packet { from: from.into(), to: to.into(), protocol: None, port: 0 };
        let flows = self.flows.iter().filter(|flow| self.admits(flow, &packet, None));
        let opens = flows.flat_map(|flow| flow.opens.iter().map(move |open| (flow, open)));
        let covering = opens.filter(|(_, open)| open.targets.iter().any(|target| self.covers(*target, &packet)));
        let access = covering.map(|(flow, open)| Access {
            origin: flow.origin.clone(),
            protocol: open.protocol,
            ports: open.ports.clone(),
        });
        access.collect()
    }

    /// The lines of the rules that allow a packet; a policy that allows everything has none to show and
    /// answers with line 0.
    pub fn lines_allowing(&self, from: IpAddr, to: IpAddr, protocol: Protocol, port: u16) -> Vec<usize> {
        let packet = Packet { from: from.into(), to: to.into(), protocol: Some(protocol), port };
        self.allowing(packet, None).map(|flow| flow.origin.as_ref().map_or(0, |origin| origin.line as usize)).collect()
    }

    /// The rules that allow a packet, from a source that has, or claims, some posture attributes.
    pub(super) fn allowing<'c>(
        &'c self,
        packet: Packet,
        claimed: Option<&'c BTreeMap<String, Attribute>>,
    ) -> impl Iterator<Item = &'c Flow> {
        let opens = move |open: &FlowOpen| {
            is_of(open.protocol, packet.protocol)
                && open.ports.iter().any(|run| run.contains(packet.port))
                && open.targets.iter().any(|target| self.covers(*target, &packet))
        };
        self.flows.iter().filter(move |flow| flow.opens.iter().any(opens) && self.admits(flow, &packet, claimed))
    }

    fn admits(&self, flow: &Flow, packet: &Packet, claimed: Option<&BTreeMap<String, Attribute>>) -> bool {
        let list = self.list_of(flow);
        let Some(claimed) = claimed.filter(|_| !list.postures.is_empty()) else {
            return self.sources_of(flow).overlap(&packet.from, &self.index);
        };
        let mut postures = list.postures.iter().filter_map(|name| self.policy().postures.get(name));
        let unconditional = SourceList { selectors: list.selectors.clone(), postures: Vec::new() };
        postures.any(|posture| posture.holds(claimed))
            && Sources::new(&unconditional, &self.index).overlap(&packet.from, &self.index)
    }

    fn covers(&self, target: usize, packet: &Packet) -> bool {
        let to = &packet.to;
        match self.index.selector(target) {
            Selector::Any => true,
            Selector::Net(_) | Selector::Set(_) => self.index.prefixes(target).iter().any(|net| net.contains(to)),
            Selector::Auto(Autogroup::Internet) => internet::contains(to),
            Selector::Auto(Autogroup::SelfNodes) => self.index.owned.values().any(|own| {
                let owns = |net| self.index.slots_in(net).any(|slot| own.contains(slot));
                owns(&packet.from) && owns(to)
            }),
            Selector::User(_) | Selector::Domain(_) | Selector::Group(_) | Selector::Tag(_) | Selector::Auto(_) => {
                self.index.slots_in(to).any(|slot| self.index.selected(target).contains(slot))
            }
        }
    }
}

fn is_of(open: Option<Protocol>, wanted: Option<Protocol>) -> bool {
    match (open, wanted) {
        (Some(open), Some(wanted)) => open == wanted,
        (None, Some(one)) | (Some(one), None) => Protocol::DEFAULT.contains(&one),
        (None, None) => true,
    }
}
