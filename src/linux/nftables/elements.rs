//! The elements of our sets, as the kernel lists them.
//!
//! `nft` takes half a minute of a processor for what the kernel tells in a fraction of a second, so the sets that grow
//! with the network are read here and the rest of the table by `nft`. An interval comes as its first element and, flagged,
//! the one behind its last; where it reaches to the last of all there is no end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLA_TYPE_MASK, NlaBuffer, NlasIterator};

use warren_core::types::IpNet;

use super::object::{Address, Verdict};

/// `NFTA_SET_ELEM_LIST_ELEMENTS`.
const LIST_ELEMENTS: u16 = 3;
/// `NFTA_SET_ELEM_KEY`, `_DATA`, `_FLAGS`, `_USERDATA` (comments) and `_PAD`.
const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const USER_DATA: u16 = 6;
const PAD: u16 = 8;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;
/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`, `NFTA_VERDICT_CODE`, `NFTA_VERDICT_CHAIN`.
const VALUE: u16 = 1;
const VERDICT: u16 = 2;
const CODE: u16 = 1;
const CHAIN: u16 = 2;
/// `NFT_GOTO`.
const GOTO: i32 = -4;

/// The sets whose elements are read here.
pub(super) const SETS: [(&str, Kind); 12] = [
    ("served4", Kind::Intervals),
    ("served6", Kind::Intervals),
    ("internet4", Kind::Intervals),
    ("internet6", Kind::Intervals),
    ("tunnelled4", Kind::Intervals),
    ("tunnelled6", Kind::Intervals),
    ("elsewhere4", Kind::Intervals),
    ("elsewhere6", Kind::Intervals),
    ("hosts4", Kind::Singles),
    ("hosts6", Kind::Singles),
    ("subnets4", Kind::Intervals),
    ("subnets6", Kind::Intervals),
];

/// What the elements of a set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Single addresses.
    Singles,
    /// First elements and ends.
    Intervals,
}

/// What is in a set: addresses, and where each leads if it leads anywhere.
pub(super) type Contents = Vec<(Address, Option<Verdict>)>;

/// An element, or the end of an interval.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Raw {
    key: Key,
    /// Whether this begins something. An end sorts before what begins at the same place.
    begins: bool,
    target: Option<String>,
}

/// An address as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    V4(u32),
    V6(u128),
}

/// Adds the elements of one message to those found. Says what is in it that we never write.
pub(super) fn read_message(attributes: &[u8], found: &mut Vec<Raw>) -> Result<(), String> {
    let list = NlasIterator::new(attributes).flatten().filter(|nla| kind(nla) == LIST_ELEMENTS);
    for list in list {
        for element in NlasIterator::new(list.value()).flatten() {
            found.push(read_element(element.value()).ok_or("an element that we do not write")?);
        }
    }
    Ok(())
}

/// Puts together what a set holds.
pub(super) fn assemble(set: Kind, mut found: Vec<Raw>) -> Result<Contents, String> {
    if set == Kind::Singles {
        return found.into_iter().map(|raw| element(raw.key, raw.key.net(raw.key), raw.target)).collect();
    }
    found.sort_unstable();
    let mut contents = Vec::new();
    let mut open: Option<Raw> = None;
    for raw in found {
        match (open.take(), raw.begins) {
            (None, true) => open = Some(raw),
            (Some(first), false) => contents.push(interval(first, raw.key.before())?),
            // Some versions of `nft` write an end ahead of the first interval.
            (None, false) => {}
            (Some(first), true) => return Err(format!("an interval from {} has no end", first.key.address())),
        }
    }
    if let Some(first) = open {
        let last = first.key.greatest();
        contents.push(interval(first, Some(last))?);
    }
    Ok(contents)
}

fn interval(first: Raw, last: Option<Key>) -> Result<(Address, Option<Verdict>), String> {
    let net = last.and_then(|last| first.key.net(last));
    element(first.key, net, first.target)
}

fn element(key: Key, net: Option<IpNet>, target: Option<String>) -> Result<(Address, Option<Verdict>), String> {
    let net = net.ok_or_else(|| format!("what begins at {} is no prefix", key.address()))?;
    Ok((Address::from(net), target.map(|target| Verdict::Goto { target })))
}

fn kind(nla: &NlaBuffer<&[u8]>) -> u16 {
    nla.kind() & NLA_TYPE_MASK
}

/// The element; none where it has more to it than we write.
fn read_element(attributes: &[u8]) -> Option<Raw> {
    let (mut key, mut target, mut begins) = (None, None, true);
    for attribute in NlasIterator::new(attributes).flatten() {
        match kind(&attribute) {
            KEY => key = Some(read_key(attribute.value())?),
            DATA => target = Some(read_target(attribute.value())?),
            FLAGS => match u32::from_be_bytes(attribute.value().try_into().ok()?) {
                0 => {}
                INTERVAL_END => begins = false,
                _ => return None,
            },
            USER_DATA | PAD => {}
            _ => return None,
        }
    }
    Some(Raw { key: key?, begins, target })
}

fn read_key(data: &[u8]) -> Option<Key> {
    let value = NlasIterator::new(data).flatten().find(|nla| kind(nla) == VALUE)?;
    match value.value().len() {
        4 => value.value().try_into().ok().map(u32::from_be_bytes).map(Key::V4),
        16 => value.value().try_into().ok().map(u128::from_be_bytes).map(Key::V6),
        _ => None,
    }
}

fn read_target(data: &[u8]) -> Option<String> {
    let verdict = NlasIterator::new(data).flatten().find(|nla| kind(nla) == VERDICT)?;
    let (mut code, mut chain) = (None, None);
    for attribute in NlasIterator::new(verdict.value()).flatten() {
        match kind(&attribute) {
            CODE => code = attribute.value().try_into().ok().map(i32::from_be_bytes),
            CHAIN => chain = String::from_utf8(attribute.value().strip_suffix(&[0])?.to_vec()).ok(),
            _ => {}
        }
    }
    chain.filter(|_| code == Some(GOTO))
}

impl Key {
    fn address(self) -> IpAddr {
        match self {
            Self::V4(number) => Ipv4Addr::from(number).into(),
            Self::V6(number) => Ipv6Addr::from(number).into(),
        }
    }

    fn before(self) -> Option<Self> {
        match self {
            Self::V4(number) => number.checked_sub(1).map(Self::V4),
            Self::V6(number) => number.checked_sub(1).map(Self::V6),
        }
    }

    fn greatest(self) -> Self {
        match self {
            Self::V4(_) => Self::V4(u32::MAX),
            Self::V6(_) => Self::V6(u128::MAX),
        }
    }

    /// The prefix from here to there, where that is one.
    fn net(self, last: Self) -> Option<IpNet> {
        let open = match (self, last) {
            (Self::V4(first), Self::V4(last)) => (first ^ last).count_ones(),
            (Self::V6(first), Self::V6(last)) => (first ^ last).count_ones(),
            _ => return None,
        };
        let bits = if matches!(self, Self::V4(_)) { 32 } else { 128 };
        let net = IpNet::new(self.address(), u8::try_from(bits - open).ok()?).ok()?;
        (net.network() == self.address() && net.broadcast() == last.address()).then_some(net)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(address: &str, begins: bool) -> Raw {
        let key = match address.parse().unwrap() {
            IpAddr::V4(address) => Key::V4(address.to_bits()),
            IpAddr::V6(address) => Key::V6(address.to_bits()),
        };
        Raw { key, begins, target: None }
    }

    fn nets(found: Vec<Raw>) -> Result<Vec<String>, String> {
        let contents = assemble(Kind::Intervals, found)?;
        Ok(contents.into_iter().map(|(address, _)| address.net().unwrap().to_string()).collect())
    }

    #[test]
    fn intervals_are_prefixes_again_in_whatever_order_they_come() {
        let found = vec![raw("10.0.1.0", false), raw("10.0.2.0", false), raw("10.0.1.0", true), raw("10.0.0.0", true)];
        assert_eq!(nets(found).unwrap(), ["10.0.0.0/24", "10.0.1.0/24"]);
        assert_eq!(nets(vec![raw("0.0.0.0", true)]).unwrap(), ["0.0.0.0/0"]);
        assert_eq!(nets(vec![raw("::", true)]).unwrap(), ["::/0"]);
        assert_eq!(nets(vec![raw("fd00::1", true), raw("fd00::2", false), raw("::", false)]).unwrap(), ["fd00::1/128"]);
        assert_eq!(nets(vec![raw("255.255.255.255", true)]).unwrap(), ["255.255.255.255/32"]);
    }

    #[test]
    fn what_is_no_prefix_is_told() {
        assert!(nets(vec![raw("10.0.0.5", true), raw("10.0.0.10", false)]).unwrap_err().contains("10.0.0.5"));
        assert!(nets(vec![raw("10.0.0.1", true), raw("10.0.0.3", false)]).is_err(), "it does not begin where one may");
        assert!(nets(vec![raw("10.0.0.0", true), raw("10.0.0.8", true)]).is_err());
    }
}
