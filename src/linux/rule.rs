//! Policy rules at our priorities.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{RouteHeader, RouteProtocol};
use netlink_packet_route::rule::{self, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use warren_core::plan::{Rule, RuleAction, RulePackets, own};
use warren_core::types::IpNet;

use super::netlink::{RouteSocket, first, is_errno, tolerate};

/// How the kernel prints "no suppression" in every rule.
const NO_SUPPRESSION: u32 = u32::MAX;

/// What was found at our priorities.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Rules as we make them, duplicates included.
    pub(super) rules: Vec<Rule>,
    /// The others, each with the text that names it.
    pub(super) strange: Vec<(String, RuleMessage)>,
    /// Rules of other programs that are asked before ours, in the order in which they are.
    pub(super) earlier: Vec<Earlier>,
    /// The kernel has no rules of IPv6, because it has no IPv6.
    pub(super) no_ipv6: bool,
}

/// A rule of another program that is asked before ours, as far as it may lead packets astray.
#[derive(Debug)]
pub(super) struct Earlier {
    pub(super) priority: u32,
    is_ipv6: bool,
    /// The destinations it is for; all of them without.
    pub(super) destination: Option<IpNet>,
    /// The table it asks; without, it refuses.
    table: Option<u32>,
    /// Whether it is for every packet to those destinations.
    is_plain: bool,
}

impl Earlier {
    /// Whether it may be this rule that sends packets to this table, or where none is named, that has them refused.
    pub(super) fn leads(&self, to: IpAddr, table: Option<u32>) -> bool {
        let is_for = self.is_ipv6 == to.is_ipv6() && self.destination.is_none_or(|net| net.contains(&to));
        is_for
            && match table {
                Some(table) => self.table == Some(table),
                None => self.is_plain,
            }
    }
}

pub(super) async fn observe(socket: &RouteSocket) -> io::Result<Found> {
    let mut found = Found::default();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RuleMessage::default();
        question.header.family = family;
        let rules = match socket.dump(RouteNetlinkMessage::GetRule(question)).await {
            Err(error) if family == AddressFamily::Inet6 && is_unsupported(&error) => {
                found.no_ipv6 = true;
                continue;
            }
            other => other?,
        };
        for message in rules {
            let RouteNetlinkMessage::NewRule(message) = message else { continue };
            if !is_ours(&message) {
                found.earlier.extend(earlier(&message));
                continue;
            }
            match read(&message) {
                Some(rule) => found.rules.push(rule),
                None => found.strange.push((format!("rule {}", describe(&message)), message)),
            }
        }
    }
    found.rules.sort_unstable();
    Ok(found)
}

fn is_unsupported(error: &io::Error) -> bool {
    is_errno(error, Errno::EAFNOSUPPORT) || is_errno(error, Errno::EOPNOTSUPP)
}

pub(super) async fn add(socket: &RouteSocket, rule: &Rule) -> io::Result<()> {
    let mut message = write(rule);
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(own::ROUTE_PROTOCOL)));
    let added = socket.ask(RouteNetlinkMessage::NewRule(message), NLM_F_CREATE | NLM_F_EXCL).await;
    tolerate(added, &[Errno::EEXIST])
}

/// Removes one rule that looks like this, whoever's protocol number it carries.
pub(super) async fn remove(socket: &RouteSocket, rule: &Rule) -> io::Result<()> {
    let removed = socket.ask(RouteNetlinkMessage::DelRule(write(rule)), 0).await;
    tolerate(removed, &[Errno::ENOENT])
}

pub(super) async fn remove_strange(socket: &RouteSocket, message: &RuleMessage) -> io::Result<()> {
    let removed = socket.ask(RouteNetlinkMessage::DelRule(message.clone()), 0).await;
    tolerate(removed, &[Errno::ENOENT])
}

pub(super) fn is_ours(message: &RuleMessage) -> bool {
    (own::RULE_FIRST..=own::RULE_LAST).contains(&priority_of(message))
}

/// Whether a change of this rule may change where our packets go.
pub(super) fn concerns_us(message: &RuleMessage) -> bool {
    priority_of(message) <= own::RULE_LAST
}

/// A rule of another program that is asked before ours. That of the local table, which every host has, is none.
fn earlier(message: &RuleMessage) -> Option<Earlier> {
    let (priority, header) = (priority_of(message), &message.header);
    if !(1..own::RULE_OVERLAY).contains(&priority) {
        return None;
    }
    let table = first!(message.attributes, RuleAttribute::Table).copied().unwrap_or(u32::from(header.table));
    let destination = first!(message.attributes, RuleAttribute::Destination);
    let destination = destination.and_then(|address| IpNet::new(*address, header.dst_len).ok());
    let is_condition = |attribute: &RuleAttribute| {
        matches!(
            attribute,
            RuleAttribute::Source(_)
                | RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::FwMark(_)
                | RuleAttribute::UidRange(_)
                | RuleAttribute::IpProtocol(_)
        )
    };
    Some(Earlier {
        priority,
        is_ipv6: header.family == AddressFamily::Inet6,
        destination,
        table: (header.action == rule::RuleAction::ToTable).then_some(table),
        is_plain: !message.attributes.iter().any(is_condition),
    })
}

fn priority_of(message: &RuleMessage) -> u32 {
    first!(message.attributes, RuleAttribute::Priority).copied().unwrap_or_default()
}

/// A kernel rule as ours, or nothing where we would never have made it.
#[expect(clippy::wildcard_enum_match_arm, reason = "of the kernel's attributes we set few")]
fn read(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    let plain = [rule::RuleAction::ToTable, rule::RuleAction::Goto, rule::RuleAction::Nop].contains(&header.action)
        && header.dst_len == 0
        && header.tos == 0
        // One that leads to no rule yet is as we make it.
        && (header.flags - RuleFlags::Invert - RuleFlags::Unresolved).is_empty();
    if !plain {
        return None;
    }
    let mut table = u32::from(header.table);
    let (mut mark, mut mask, mut from, mut goto) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = Some(*value),
            RuleAttribute::Source(address) if header.src_len == bits_of(address) => from = Some(*address),
            RuleAttribute::Goto(priority) => goto = Some(*priority),
            RuleAttribute::Priority(_) | RuleAttribute::Protocol(_) => {}
            RuleAttribute::SuppressPrefixLen(NO_SUPPRESSION) | RuleAttribute::SuppressIfGroup(NO_SUPPRESSION) => {}
            _ => return None,
        }
    }
    let action = match (header.action, goto, table) {
        (rule::RuleAction::Goto, Some(own::RULE_BEYOND), 0) => RuleAction::Beyond,
        (rule::RuleAction::Nop, None, 0) => RuleAction::Nothing,
        (rule::RuleAction::ToTable, None, own::ROUTE_TABLE) => RuleAction::Ours,
        (rule::RuleAction::ToTable, None, table) if table == u32::from(RouteHeader::RT_TABLE_MAIN) => RuleAction::Main,
        _ => return None,
    };
    if from.is_some() != (header.src_len > 0) {
        return None;
    }
    let is_inverted = header.flags.contains(RuleFlags::Invert);
    let packets = match (mark, mask) {
        (None, None | Some(0)) if from.is_some() && !is_inverted => RulePackets::From(from?),
        _ if from.is_some() => return None,
        // The opposite of all packets is none: not of our making.
        (None, None | Some(0)) if is_inverted => return None,
        (None, None | Some(0)) => RulePackets::All,
        (mark, mask) => {
            let (mark, mask) = (mark.unwrap_or(0), mask.unwrap_or(u32::MAX));
            if is_inverted { RulePackets::NotMarked { mark, mask } } else { RulePackets::Marked { mark, mask } }
        }
    };
    Some(Rule { priority: priority_of(message), ipv6: header.family == AddressFamily::Inet6, packets, action })
}

fn bits_of(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn write(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let (action, leads) = match rule.action {
        RuleAction::Main => {
            (rule::RuleAction::ToTable, Some(RuleAttribute::Table(u32::from(RouteHeader::RT_TABLE_MAIN))))
        }
        RuleAction::Ours => (rule::RuleAction::ToTable, Some(RuleAttribute::Table(own::ROUTE_TABLE))),
        RuleAction::Beyond => (rule::RuleAction::Goto, Some(RuleAttribute::Goto(own::RULE_BEYOND))),
        RuleAction::Nothing => (rule::RuleAction::Nop, None),
    };
    message.header.action = action;
    message.attributes.extend(leads);
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    let (is_inverted, marked) = match rule.packets {
        RulePackets::All => (false, None),
        RulePackets::From(address) => {
            message.header.src_len = bits_of(&address);
            message.attributes.push(RuleAttribute::Source(address));
            (false, None)
        }
        RulePackets::Marked { mark, mask } => (false, Some((mark, mask))),
        RulePackets::NotMarked { mark, mask } => (true, Some((mark, mask))),
    };
    message.header.flags.set(RuleFlags::Invert, is_inverted);
    if let Some((mark, mask)) = marked {
        message.attributes.push(RuleAttribute::FwMark(mark));
        message.attributes.push(RuleAttribute::FwMask(mask));
    }
    message
}

fn describe(message: &RuleMessage) -> String {
    let header = &message.header;
    let family = if header.family == AddressFamily::Inet6 { "inet6" } else { "inet" };
    let details: Vec<String> = message
        .attributes
        .iter()
        .filter(|attribute| {
            !matches!(
                attribute,
                RuleAttribute::SuppressPrefixLen(NO_SUPPRESSION) | RuleAttribute::SuppressIfGroup(NO_SUPPRESSION)
            )
        })
        .map(|attribute| format!("{attribute:?}"))
        .collect();
    format!(
        "{family} {:?} from /{} to /{} tos {} flags {:#x} {}",
        header.action,
        header.src_len,
        header.dst_len,
        header.tos,
        header.flags.bits(),
        details.join(" "),
    )
}
