//! Whether a packet is allowed, and by which rules: the policy's own answer, whatever the nodes enforce.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::types::IpNet;

use super::compile::{Compiled, Flow, FlowOpen, SourceList};
use super::internet;
use super::ports::Protocol;
use super::posture::Attribute;
use super::selector::{Autogroup, Selector};
use super::sources::Sources;

/// A packet, or all packets between two prefixes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) from: IpNet,
    pub(super) to: IpNet,
    /// None is any of those that a rule without a protocol lets through.
    pub(super) protocol: Option<Protocol>,
    pub(super) port: u16,
}

impl Compiled {
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
            _ => self.index.slots_in(to).any(|slot| self.index.selected(target).contains(slot)),
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
