//! Word that something of ours may have changed.
//!
//! The kernel tells of links, addresses, routes, rules and nftables by multicast; readers of their own take
//! every message from the sockets and keep one bit of it, "look again". What cannot concern us (another
//! table, another link) is passed over, so that a router that learns a million routes does not wake the
//! planner. Lost messages are a reason to look again.
//!
//! WireGuard tells of nothing. So a digest of the device is taken once a second while there is one. It costs
//! the kernel a dump of all peers, so with more than [`DIGEST_PEERS`] of them it is taken less often: an idle agent
//! takes less than a thousandth part of a processor, however many they are.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_sys::protocols::NETLINK_NETFILTER;
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use warren_core::plan::{Change, own};
use warren_shell::lasting;

use super::attributes::{attribute, text};
use super::netfilter::body;
use super::subscription::{Subscription, route_message};
use super::wireguard::{Digest, WireguardSocket};
use super::{link, route, rule};

/// How often WireGuard is looked at: twice within the two seconds in which a missing peer must be back.
const DIGEST_INTERVAL: Duration = Duration::from_secs(1);
/// So many peers are read in one second's digest; for each further so many, the next one is a second later. Reading
/// one takes a microsecond or two.
const DIGEST_PEERS: u64 = 400;
/// The rest between two digests is at least this many times what the last one took, on however slow a machine.
const DIGEST_REST: u32 = 20;
/// `NFNLGRP_NFTABLES`.
const NFTABLES_GROUP: u32 = 7;
/// `NFT_MSG_NEWGEN` of `NFNL_SUBSYS_NFTABLES`: a transaction ended. It names no table.
const NFTABLES_NEW_GENERATION: u16 = (10 << 8) | 15;
/// `NFT_MSG_DELTABLE`.
const NFTABLES_DELETE_TABLE: u16 = (10 << 8) | 2;
/// In every other nftables notice, the attribute that names the table.
const NFTABLES_TABLE: u16 = 1;

/// The readers, stopped when this is dropped.
pub(super) struct Monitor {
    shared: Arc<Shared>,
    _readers: JoinSet<()>,
}

/// What the readers and their owner share.
#[derive(Default)]
struct Shared {
    changed: Notify,
    /// The number of our link; 0 while there is none.
    link: AtomicU32,
    /// Whether a table of our name was deleted.
    firewall_gone: AtomicBool,
    /// Whether routes of ours may lie outside our table.
    strays: AtomicBool,
}

impl Monitor {
    /// Subscribes: what changes from here on is noticed.
    pub(super) fn open(wireguard: Arc<WireguardSocket>) -> io::Result<Self> {
        let shared = Arc::new(Shared { strays: AtomicBool::new(true), ..Shared::default() });
        let route = Subscription::open_route(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ])?;
        let nftables = Subscription::open(NETLINK_NETFILTER, &[NFTABLES_GROUP])?;

        let mut readers = JoinSet::new();
        readers.spawn(lasting("reader of routes", shared.clone().read_route(route)));
        readers.spawn(lasting("reader of the firewall", shared.clone().read_nftables(nftables)));
        readers.spawn(lasting("watch on WireGuard", shared.clone().watch_wireguard(wireguard)));
        Ok(Self { shared, _readers: readers })
    }

    /// Waits until something may have changed since the last time.
    pub(super) async fn changed(&self) -> Change {
        self.shared.changed.notified().await;
        match self.shared.firewall_gone.swap(false, Ordering::Relaxed) {
            true => Change::FirewallGone,
            false => Change::Something,
        }
    }

    /// Says which link is ours.
    pub(super) fn set_link(&self, index: Option<u32>) {
        self.shared.link.store(index.unwrap_or_default(), Ordering::Relaxed);
    }

    /// Whether a look into every routing table is due; it is until one finds nothing.
    pub(super) fn strays(&self) -> bool {
        self.shared.strays.swap(false, Ordering::Relaxed)
    }

    /// Asks for that look again.
    pub(super) fn expect_strays(&self) {
        self.shared.strays.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    async fn read_route(self: Arc<Self>, mut subscription: Subscription) {
        loop {
            subscription.next(|kind, payload| self.concerns(kind, payload)).await;
            self.changed.notify_one();
        }
    }

    async fn read_nftables(self: Arc<Self>, mut subscription: Subscription) {
        loop {
            subscription.next(|kind, payload| self.concerns_firewall(kind, payload)).await;
            self.changed.notify_one();
        }
    }

    async fn watch_wireguard(self: Arc<Self>, wireguard: Arc<WireguardSocket>) {
        let mut last = None;
        let mut rest = DIGEST_INTERVAL;
        loop {
            tokio::time::sleep(rest).await;
            if self.link.load(Ordering::Relaxed) == 0 {
                (last, rest) = (None, DIGEST_INTERVAL);
                continue;
            }
            let begun = Instant::now();
            let mut peers = 0;
            match wireguard.digest().await {
                Ok(digest) => {
                    peers = digest.as_ref().map_or(0, Digest::peers);
                    if last.as_ref().is_some_and(|last| *last != digest) {
                        self.changed.notify_one();
                    }
                    last = Some(digest);
                }
                Err(error) => tracing::debug!(%error, "taking a digest of the WireGuard device"),
            }
            let share = Duration::from_secs(peers / DIGEST_PEERS);
            rest = DIGEST_INTERVAL.max(share).max(begun.elapsed() * DIGEST_REST);
        }
    }

    /// Whether a notice of rtnetlink is about something of ours. What cannot be read might be.
    fn concerns(&self, kind: u16, payload: &[u8]) -> bool {
        match route_message(kind, payload) {
            Some(RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)) => {
                self.is_our_link(&message)
            }
            Some(RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message)) => {
                message.header.index == self.link.load(Ordering::Relaxed)
            }
            Some(RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message)) => {
                self.is_our_route(&message)
            }
            Some(RouteNetlinkMessage::NewRule(message) | RouteNetlinkMessage::DelRule(message)) => {
                rule::concerns_us(&message)
            }
            Some(_) => false,
            None => true,
        }
    }

    fn concerns_firewall(&self, kind: u16, payload: &[u8]) -> bool {
        let concerns = concerns_our_table(kind, payload);
        if concerns && kind == NFTABLES_DELETE_TABLE {
            self.firewall_gone.store(true, Ordering::Relaxed);
        }
        concerns
    }

    fn is_our_link(&self, message: &LinkMessage) -> bool {
        message.header.index == self.link.load(Ordering::Relaxed) || link::name_of(message) == Some(own::LINK)
    }

    fn is_our_route(&self, message: &RouteMessage) -> bool {
        if route::table_of(message) == own::ROUTE_TABLE {
            return true;
        }
        let strays = route::is_our_protocol(message);
        if strays {
            self.strays.store(true, Ordering::Relaxed);
        }
        strays
    }
}

/// Whether a notice of nftables is about our table.
fn concerns_our_table(kind: u16, payload: &[u8]) -> bool {
    if kind == NFTABLES_NEW_GENERATION {
        return false;
    }
    // What cannot be read might be ours.
    attribute(body(payload), NFTABLES_TABLE).is_none_or(|name| text(name) == Some(own::NFT_TABLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A notice with one attribute: the number 1, holding this text and its closing zero.
    fn notice(table: &str) -> Vec<u8> {
        let length = u16::try_from(4 + table.len() + 1).unwrap();
        let mut payload = vec![1, 0, 0, 0];
        payload.extend(length.to_ne_bytes());
        payload.extend(1u16.to_ne_bytes());
        payload.extend(table.as_bytes());
        payload.push(0);
        payload
    }

    #[test]
    fn of_nftables_only_our_own_table_concerns_us() {
        let new_element = (10 << 8) | 12;
        assert!(concerns_our_table(new_element, &notice("warren")));
        assert!(!concerns_our_table(new_element, &notice("warren2")));
        assert!(!concerns_our_table(new_element, &notice("filter")));
        assert!(!concerns_our_table(NFTABLES_NEW_GENERATION, &notice("warren")));
        assert!(concerns_our_table(new_element, &[]), "what cannot be read might be ours");
    }

    #[test]
    fn a_notice_of_rtnetlink_that_cannot_be_read_concerns_us() {
        assert!(Shared::default().concerns(16, &[1, 2, 3]));
    }
}
