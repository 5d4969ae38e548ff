//! The elements of sets, written and read: of addresses, of flows that were ended, and of sets without a name.
//!
//! An interval is its first element and, flagged, the one behind its last; where it reaches to the last of all there
//! is no end. A range of a concatenated key is one element with two keys.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use warren_core::plan::Packet;
use warren_core::types::IpNet;

use super::super::attributes::{Attributes, attribute, attributes, number};
use super::expression::{LIST_ELEMENT, Value, Verdict};

/// `NFTA_SET_ELEM_LIST_ELEMENTS`.
pub(super) const LIST_ELEMENTS: u16 = 3;
/// `NFTA_SET_ELEM_…`.
const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const TIMEOUT: u16 = 4;
const EXPIRATION: u16 = 5;
const USER_DATA: u16 = 6;
const PAD: u16 = 8;
const KEY_END: u16 = 10;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;
/// `NFTA_DATA_VALUE`.
const DATA_VALUE: u16 = 1;

/// A flow that was ended: the packet that opened it, and the port that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) opening: Packet,
    pub(crate) source_port: u16,
}

/// An element as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element<K> {
    pub(super) key: K,
    /// The end of the range that begins with the key.
    pub(super) last: Option<K>,
    /// Whether an interval ends before this.
    pub(super) is_end: bool,
    pub(super) verdict: Option<Verdict>,
    /// Milliseconds that it stays, where that is not what all of its set do.
    pub(super) timeout: Option<u64>,
}

impl<K: AsRef<[u8]>> Element<K> {
    pub(super) fn of(key: K) -> Self {
        Self { key, last: None, is_end: false, verdict: None, timeout: None }
    }

    /// Adds this to a list of elements.
    pub(super) fn write(&self, list: &mut Attributes<'_>) {
        list.nest(LIST_ELEMENT, |element| {
            if self.is_end {
                element.u32(FLAGS, INTERVAL_END);
            }
            element.nest(KEY, |nest| nest.bytes(DATA_VALUE, self.key.as_ref()));
            if let Some(last) = &self.last {
                element.nest(KEY_END, |nest| nest.bytes(DATA_VALUE, last.as_ref()));
            }
            self.verdict.iter().for_each(|verdict| verdict.write(DATA, element));
            self.timeout.iter().for_each(|timeout| element.u64(TIMEOUT, *timeout));
        });
    }
}

impl<'a> Element<&'a [u8]> {
    /// Reads an element of a list; none where it has more to it than we write.
    fn read(element: &'a [u8]) -> Option<Self> {
        let mut read = Element::of(&[][..]);
        for (kind, value) in attributes(element) {
            match kind {
                KEY => read.key = attribute(value, DATA_VALUE)?,
                KEY_END => read.last = Some(attribute(value, DATA_VALUE)?),
                DATA => read.verdict = Some(Verdict::read(value)?),
                FLAGS => match number(value)? {
                    0 => {}
                    INTERVAL_END => read.is_end = true,
                    _ => return None,
                },
                TIMEOUT => read.timeout = Some(u64::read(value)?),
                EXPIRATION | USER_DATA | PAD => {}
                _ => return None,
            }
        }
        (!read.key.is_empty()).then_some(read)
    }

    /// First and last, where that is all there is to it.
    pub(super) fn range(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let is_plain = !self.is_end && self.verdict.is_none() && self.timeout.is_none();
        is_plain.then(|| (self.key.to_vec(), self.last.unwrap_or(self.key).to_vec()))
    }
}

/// Hands over the elements of a message. Says what is in it that we never write.
pub(super) fn read_message<'a>(message: &'a [u8], mut take: impl FnMut(Element<&'a [u8]>)) -> Result<(), String> {
    for (_, list) in attributes(message).filter(|(kind, _)| *kind == LIST_ELEMENTS) {
        for (_, element) in attributes(list) {
            take(Element::read(element).ok_or("an element that we do not write")?);
        }
    }
    Ok(())
}

/// The key of an address, or of the one behind a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AddressKey {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl AsRef<[u8]> for AddressKey {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::V4(octets) => octets,
            Self::V6(octets) => octets,
        }
    }
}

impl From<IpAddr> for AddressKey {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => Self::V6(address.octets()),
        }
    }
}

impl AddressKey {
    pub(super) fn read(key: &[u8]) -> Option<Self> {
        match key.len() {
            4 => key.try_into().ok().map(Self::V4),
            16 => key.try_into().ok().map(Self::V6),
            _ => None,
        }
    }

    pub(super) fn address(self) -> IpAddr {
        match self {
            Self::V4(octets) => Ipv4Addr::from(octets).into(),
            Self::V6(octets) => Ipv6Addr::from(octets).into(),
        }
    }

    fn before(self) -> Option<Self> {
        match self {
            Self::V4(octets) => u32::from_be_bytes(octets).checked_sub(1).map(|number| Self::V4(number.to_be_bytes())),
            Self::V6(octets) => u128::from_be_bytes(octets).checked_sub(1).map(|number| Self::V6(number.to_be_bytes())),
        }
    }

    fn behind(self) -> Option<Self> {
        match self {
            Self::V4(octets) => u32::from_be_bytes(octets).checked_add(1).map(|number| Self::V4(number.to_be_bytes())),
            Self::V6(octets) => u128::from_be_bytes(octets).checked_add(1).map(|number| Self::V6(number.to_be_bytes())),
        }
    }

    fn greatest(self) -> Self {
        match self {
            Self::V4(_) => Self::V4([0xff; 4]),
            Self::V6(_) => Self::V6([0xff; 16]),
        }
    }
}

/// The prefix from the one address to the other, where that is one.
pub(super) fn prefix_between(first: AddressKey, last: AddressKey) -> Option<IpNet> {
    let (bits, open) = match (first, last) {
        (AddressKey::V4(first), AddressKey::V4(last)) => {
            (32, (u32::from_be_bytes(first) ^ u32::from_be_bytes(last)).count_ones())
        }
        (AddressKey::V6(first), AddressKey::V6(last)) => {
            (128, (u128::from_be_bytes(first) ^ u128::from_be_bytes(last)).count_ones())
        }
        (AddressKey::V4(_), AddressKey::V6(_)) | (AddressKey::V6(_), AddressKey::V4(_)) => return None,
    };
    let net = IpNet::new(first.address(), u8::try_from(bits - open).ok()?).ok()?;
    (net.network() == first.address() && net.broadcast() == last.address()).then_some(net)
}

/// The elements of a prefix in a set: its first address, and in a set of intervals the one behind its last.
pub(super) fn elements_of(net: IpNet, verdict: Option<Verdict>, is_interval: bool) -> [Option<Element<AddressKey>>; 2] {
    let first = Element { verdict, ..Element::of(net.network().into()) };
    let end = AddressKey::from(net.broadcast()).behind().filter(|_| is_interval);
    [Some(first), end.map(|end| Element { is_end: true, ..Element::of(end) })]
}

/// What is in a set of addresses: prefixes, and where each leads if it leads anywhere.
pub(super) type Contents = Vec<(IpNet, Option<Verdict>)>;

/// A set of addresses while it is read.
#[derive(Default)]
pub(super) struct AddressReader {
    /// By key; an end is before what begins at the same place.
    found: Vec<(AddressKey, bool, Option<Verdict>)>,
    is_odd: bool,
}

impl AddressReader {
    pub(super) fn take(&mut self, element: Element<&[u8]>) {
        match AddressKey::read(element.key).filter(|_| element.last.is_none() && element.timeout.is_none()) {
            Some(key) => self.found.push((key, !element.is_end, element.verdict)),
            None => self.is_odd = true,
        }
    }

    /// Puts together what the set holds, or says what of it is nothing of ours.
    pub(super) fn finish(mut self, is_interval: bool) -> Result<Contents, String> {
        if self.is_odd {
            return Err("an element that we do not write".to_owned());
        }
        if !is_interval {
            return self.found.into_iter().map(|(key, _, verdict)| Ok((IpNet::from(key.address()), verdict))).collect();
        }
        self.found.sort_unstable();
        let mut contents = Vec::new();
        let mut open: Option<(AddressKey, Option<Verdict>)> = None;
        for (key, begins, verdict) in self.found {
            match (open.take(), begins) {
                (None, true) => open = Some((key, verdict)),
                (Some((first, verdict)), false) => contents.push((interval(first, key.before())?, verdict)),
                // Some versions of `nft` write an end ahead of the first interval.
                (None, false) => {}
                (Some((first, _)), true) => return Err(format!("an interval from {} has no end", first.address())),
            }
        }
        if let Some((first, verdict)) = open {
            contents.push((interval(first, Some(first.greatest()))?, verdict));
        }
        Ok(contents)
    }
}

fn interval(first: AddressKey, last: Option<AddressKey>) -> Result<IpNet, String> {
    let net = last.and_then(|last| prefix_between(first, last));
    net.ok_or_else(|| format!("what begins at {} is no prefix", first.address()))
}

impl Ended {
    /// Our address and port, the peer's, and the protocol.
    pub(super) fn key(&self) -> Vec<u8> {
        let mut key = Vec::new();
        push_padded(&mut key, AddressKey::from(self.opening.destination).as_ref());
        push_padded(&mut key, &self.opening.port.to_be_bytes());
        push_padded(&mut key, AddressKey::from(self.opening.source).as_ref());
        push_padded(&mut key, &self.source_port.to_be_bytes());
        push_padded(&mut key, &[self.opening.protocol.0]);
        key
    }
}

/// The parts of a key begin at registers.
pub(super) fn push_padded(key: &mut Vec<u8>, part: &[u8]) {
    key.extend(part);
    key.resize(key.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(address: &str) -> AddressKey {
        address.parse::<IpAddr>().unwrap().into()
    }

    fn nets(found: &[(&str, bool)]) -> Result<Vec<String>, String> {
        let mut reader = AddressReader::default();
        for (address, begins) in found {
            let key = key(address);
            reader.take(Element { is_end: !begins, ..Element::of(key.as_ref()) });
        }
        Ok(reader.finish(true)?.into_iter().map(|(net, _)| net.to_string()).collect())
    }

    #[test]
    fn intervals_are_prefixes_again_in_whatever_order_they_come() {
        let found = [("10.0.1.0", false), ("10.0.2.0", false), ("10.0.1.0", true), ("10.0.0.0", true)];
        assert_eq!(nets(&found).unwrap(), ["10.0.0.0/24", "10.0.1.0/24"]);
        assert_eq!(nets(&[("0.0.0.0", true)]).unwrap(), ["0.0.0.0/0"]);
        assert_eq!(nets(&[("::", true)]).unwrap(), ["::/0"]);
        assert_eq!(nets(&[("fd00::1", true), ("fd00::2", false), ("::", false)]).unwrap(), ["fd00::1/128"]);
        assert_eq!(nets(&[("255.255.255.255", true)]).unwrap(), ["255.255.255.255/32"]);
    }

    #[test]
    fn what_is_no_prefix_is_told() {
        assert!(nets(&[("10.0.0.5", true), ("10.0.0.10", false)]).unwrap_err().contains("10.0.0.5"));
        assert!(nets(&[("10.0.0.1", true), ("10.0.0.3", false)]).is_err(), "it does not begin where one may");
        assert!(nets(&[("10.0.0.0", true), ("10.0.0.8", true)]).is_err());
    }

    #[test]
    fn an_element_is_read_as_it_was_written() {
        let plain = Element::of(key("10.0.0.1"));
        let (first, last) = (key("fd00::"), key("fd00::ff"));
        let elements = [
            plain.clone(),
            Element { is_end: true, ..plain.clone() },
            Element { verdict: Some(Verdict::Goto("class_1".to_owned())), ..plain.clone() },
            Element { timeout: Some(600_000), ..plain },
            Element { last: Some(last), ..Element::of(first) },
        ];
        let mut bytes = Vec::new();
        Attributes::after(&mut bytes).nest(LIST_ELEMENTS, |list| elements.iter().for_each(|e| e.write(list)));
        let mut read = Vec::new();
        let take = |element: Element<&[u8]>| {
            let key = |bytes| AddressKey::read(bytes).unwrap();
            let Element { key: first, last, is_end, verdict, timeout } = element;
            read.push(Element { key: key(first), last: last.map(key), is_end, verdict, timeout });
        };
        read_message(&bytes, take).unwrap();
        assert_eq!(read, elements);
    }
}
