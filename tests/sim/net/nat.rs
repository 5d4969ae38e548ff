//! Routers between networks: NATs in the terms of RFC 4787, and stateful firewalls.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::chance::Chance;

/// How long a mapping or a permission lasts without outbound packets.
const LIFE: Duration = Duration::from_secs(60);

/// What a mapping, or a filter, takes into account of the remote side (RFC 4787 §4.1 and §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Depends {
    Nothing,
    Address,
    AddressAndPort,
}

pub(crate) const DEPENDS: [Depends; 3] = [Depends::Nothing, Depends::Address, Depends::AddressAndPort];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// A firewall does not translate; IPv6 is never translated.
    pub(crate) translates: bool,
    pub(crate) mapping: Depends,
    pub(crate) filtering: Depends,
    /// External ports are counted upwards; otherwise they are random.
    pub(crate) counts_ports: bool,
    pub(crate) hairpins: bool,
    pub(crate) blocks_udp: bool,
}

impl Kind {
    pub(crate) const fn nat(mapping: Depends, filtering: Depends) -> Self {
        Self { translates: true, mapping, filtering, counts_ports: false, hairpins: true, blocks_udp: false }
    }

    pub(crate) const FIREWALL: Self =
        Self { translates: false, ..Self::nat(Depends::Nothing, Depends::AddressAndPort) };
    pub(crate) const BLOCKED: Self = Self { blocks_udp: true, ..Self::nat(Depends::Nothing, Depends::Nothing) };
}

/// Who sends, and what of the remote side its mapping depends on.
type Mapped = (SocketAddr, Option<IpAddr>, Option<u16>);

pub(crate) struct Gateway {
    pub(crate) kind: Kind,
    /// The network on its outer side.
    pub(crate) outer: usize,
    /// The network on its inner side.
    pub(crate) inner: usize,
    pub(crate) public: IpAddr,
    mappings: BTreeMap<Mapped, (u16, Duration)>,
    contacted: BTreeMap<(SocketAddr, SocketAddr), Duration>,
    next_port: u16,
}

impl Gateway {
    pub(crate) fn new(kind: Kind, outer: usize, inner: usize, public: IpAddr) -> Self {
        let (mappings, contacted) = (BTreeMap::new(), BTreeMap::new());
        Self { kind, outer, inner, public, mappings, contacted, next_port: 20_000 }
    }

    /// All state is lost.
    pub(crate) fn reboot(&mut self) {
        self.mappings.clear();
        self.contacted.clear();
        self.next_port = self.next_port.wrapping_add(777);
    }

    pub(crate) fn translates(&self, ip: IpAddr) -> bool {
        self.kind.translates && ip.is_ipv4()
    }

    /// A packet leaves: its source as the outer side sees it.
    pub(crate) fn outbound(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        now: Duration,
        chance: &mut Chance,
    ) -> Option<SocketAddr> {
        if self.kind.blocks_udp {
            return None;
        }
        self.contacted.insert((from, to), now + LIFE);
        if !self.translates(from.ip()) {
            return Some(from);
        }
        let ip = (self.kind.mapping >= Depends::Address).then(|| to.ip());
        let port = (self.kind.mapping == Depends::AddressAndPort).then(|| to.port());
        let fresh = if self.kind.counts_ports { self.next_port } else { 1_024 + chance.below(64_000) as u16 };
        self.mappings.retain(|_, (_, until)| *until > now);
        let entry = self.mappings.entry((from, ip, port)).or_insert((fresh, now));
        entry.1 = now + LIFE;
        if entry.0 == self.next_port {
            self.next_port = self.next_port.checked_add(1).unwrap_or(20_000);
        }
        Some(SocketAddr::new(self.public, entry.0))
    }

    /// A packet arrives: whom it is for on the inner side, if it may pass.
    pub(crate) fn inbound(&mut self, from: SocketAddr, to: SocketAddr, now: Duration) -> Option<SocketAddr> {
        if self.kind.blocks_udp {
            return None;
        }
        let (inner, filtering) = if self.translates(to.ip()) {
            let live = self.mappings.iter().find(|(_, (port, until))| *port == to.port() && *until > now);
            (live?.0.0, self.kind.filtering)
        } else {
            (to, if self.kind.translates { Depends::AddressAndPort } else { self.kind.filtering })
        };
        let known = |remote: &SocketAddr| match filtering {
            Depends::Nothing => true,
            Depends::Address => remote.ip() == from.ip(),
            Depends::AddressAndPort => *remote == from,
        };
        let mut permits = self.contacted.iter().filter(|((host, _), until)| *host == inner && **until > now);
        let open = filtering == Depends::Nothing && self.translates(to.ip());
        (open || permits.any(|((_, remote), _)| known(remote))).then_some(inner)
    }
}
