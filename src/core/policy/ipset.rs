//! IP sets: named address sets, built by adding and removing addresses, prefixes, ranges, hosts and other sets.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Subnets, Ipv6Subnets};

use crate::types::{IpNet, Ipv4Net, Ipv6Net};

use super::error::Fault;
use super::selector::parse_net;
use super::syntax::Text;

/// Resolves every set to prefixes, sorted and without overlap.
pub(super) fn resolve(
    sets: &BTreeMap<String, Vec<Text>>,
    hosts: &BTreeMap<String, IpNet>,
) -> Result<BTreeMap<String, Vec<IpNet>>, Fault> {
    let mut resolver = Resolver { sets, hosts, done: BTreeMap::new(), open: Vec::new() };
    for name in sets.keys() {
        resolver.set(name)?;
    }
    Ok(resolver.done.into_iter().map(|(name, ranges)| (name, ranges.prefixes())).collect())
}

/// `nets` without `holes`, as prefixes.
pub(super) fn difference(nets: &[IpNet], holes: &[IpNet]) -> Vec<IpNet> {
    let mut ranges = Ranges::default();
    nets.iter().for_each(|net| ranges.add(&Ranges::from_net(net)));
    holes.iter().for_each(|hole| ranges.remove(&Ranges::from_net(hole)));
    ranges.prefixes()
}

struct Resolver<'p> {
    sets: &'p BTreeMap<String, Vec<Text>>,
    hosts: &'p BTreeMap<String, IpNet>,
    done: BTreeMap<String, Ranges>,
    open: Vec<&'p str>,
}

impl<'p> Resolver<'p> {
    fn set(&mut self, name: &'p str) -> Result<(), Fault> {
        let Some(entries) = self.sets.get(name).filter(|_| !self.done.contains_key(name)) else {
            return Ok(());
        };
        self.open.push(name);
        let mut ranges = Ranges::default();
        for entry in entries {
            let (remove, operand) = match entry.value.split_once(char::is_whitespace) {
                Some(("add", operand)) => (false, operand.trim()),
                Some(("remove", operand)) => (true, operand.trim()),
                _ => (false, entry.value.as_str()),
            };
            let operand = self.operand(entry, operand)?;
            if remove { ranges.remove(&operand) } else { ranges.add(&operand) }
        }
        self.open.pop();
        self.done.insert(name.to_owned(), ranges);
        Ok(())
    }

    fn operand(&mut self, entry: &Text, text: &str) -> Result<Ranges, Fault> {
        if let Some(net) = parse_net(text) {
            return Ok(Ranges::from_net(&net));
        }
        if let Some(range) = text.split_once('-').and_then(|(first, last)| Ranges::from_ends(first, last)) {
            return Ok(range);
        }
        if let Some((name, _)) = self.sets.get_key_value(text) {
            if self.open.contains(&name.as_str()) {
                return Err(entry.fault(format!("{text:?} contains itself")));
            }
            if self.open.len() >= MAX_CHAIN {
                return Err(entry.fault(format!("IP sets are nested more than {MAX_CHAIN} deep")));
            }
            self.set(name)?;
            return Ok(self.done.get(name).cloned().unwrap_or_default());
        }
        let host = text.strip_prefix("host:").unwrap_or(text);
        let net = self.hosts.get(host).ok_or_else(|| entry.fault(format!("{text:?}: invalid address")))?;
        Ok(Ranges::from_net(net))
    }
}

/// How many sets may stand inside one another.
const MAX_CHAIN: usize = 32;

/// Addresses as sorted runs that neither touch nor overlap, IPv4 and IPv6 apart.
#[derive(Clone, Debug, Default)]
struct Ranges {
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
}

impl Ranges {
    fn from_net(net: &IpNet) -> Self {
        Self::between(net.network(), net.broadcast())
    }

    fn from_ends(first: &str, last: &str) -> Option<Self> {
        let (first, last): (IpAddr, IpAddr) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first.is_ipv4() == last.is_ipv4() && first <= last).then(|| Self::between(first, last))
    }

    fn between(first: IpAddr, last: IpAddr) -> Self {
        match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                Self { v4: vec![(u32::from(first).into(), u32::from(last).into())], v6: Vec::new() }
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => Self { v4: Vec::new(), v6: vec![(first.into(), last.into())] },
            _ => Self::default(),
        }
    }

    fn add(&mut self, other: &Self) {
        union(&mut self.v4, &other.v4);
        union(&mut self.v6, &other.v6);
    }

    fn remove(&mut self, other: &Self) {
        subtract(&mut self.v4, &other.v4);
        subtract(&mut self.v6, &other.v6);
    }

    fn prefixes(&self) -> Vec<IpNet> {
        let v4 = |number: u128| Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX));
        let v4 = self.v4.iter().flat_map(|(first, last)| Ipv4Subnets::new(v4(*first), v4(*last), 0));
        let v6 =
            self.v6.iter().flat_map(|(first, last)| Ipv6Subnets::new(Ipv6Addr::from(*first), Ipv6Addr::from(*last), 0));
        v4.map(|net: Ipv4Net| IpNet::V4(net)).chain(v6.map(|net: Ipv6Net| IpNet::V6(net))).collect()
    }
}

fn union(runs: &mut Vec<(u128, u128)>, more: &[(u128, u128)]) {
    runs.extend_from_slice(more);
    runs.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(runs.len());
    for &(first, last) in runs.iter() {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
            _ => merged.push((first, last)),
        }
    }
    *runs = merged;
}

fn subtract(runs: &mut Vec<(u128, u128)>, holes: &[(u128, u128)]) {
    for &(hole_first, hole_last) in holes {
        let mut kept = Vec::with_capacity(runs.len() + 1);
        for &(first, last) in runs.iter() {
            if hole_last < first || last < hole_first {
                kept.push((first, last));
                continue;
            }
            if first < hole_first {
                kept.push((first, hole_first - 1));
            }
            if hole_last < last {
                kept.push((hole_last + 1, last));
            }
        }
        *runs = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::error::Span;

    fn resolved(sets: &[(&str, &[&str])]) -> Result<BTreeMap<String, Vec<String>>, String> {
        let text = |value: &&str| Text { at: Span::default(), value: (*value).to_owned() };
        let sets = sets.iter().map(|(name, entries)| ((*name).to_owned(), entries.iter().map(text).collect()));
        let hosts = BTreeMap::from([("office".to_owned(), "192.0.2.0/28".parse().unwrap())]);
        let sets = resolve(&sets.collect(), &hosts).map_err(|fault| fault.message)?;
        let strings = |nets: Vec<IpNet>| nets.iter().map(ToString::to_string).collect();
        Ok(sets.into_iter().map(|(name, nets)| (name, strings(nets))).collect())
    }

    #[test]
    fn a_set_adds_and_removes_in_order() {
        let sets = resolved(&[
            ("ipset:a", &["10.0.0.0/30", "remove 10.0.0.1", "add office", "fd00::/127"]),
            ("ipset:b", &["ipset:a", "remove host:office", "10.0.0.4-10.0.0.6"]),
        ])
        .unwrap();
        assert_eq!(sets["ipset:a"], ["10.0.0.0/32", "10.0.0.2/31", "192.0.2.0/28", "fd00::/127"]);
        assert_eq!(sets["ipset:b"], ["10.0.0.0/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32", "fd00::/127"]);
    }

    #[test]
    fn a_set_that_contains_itself_or_an_unknown_name_is_refused() {
        assert!(resolved(&[("ipset:a", &["ipset:b"]), ("ipset:b", &["ipset:a"])]).unwrap_err().contains("itself"));
        assert!(resolved(&[("ipset:a", &["nowhere"])]).unwrap_err().contains("invalid address"));
    }

    #[test]
    fn the_whole_of_both_families_can_be_a_set() {
        let sets = resolved(&[("ipset:all", &["0.0.0.0/0", "::/0", "remove 0.0.0.0/1"])]).unwrap();
        assert_eq!(sets["ipset:all"], ["128.0.0.0/1", "::/0"]);
    }
}
