//! The prefixes of one peer. Nearly all peers have two, and there are thousands of peers, several times over: as they are
//! wished for and as they are. So they lie in a row, where a tree would keep room for eleven.

use std::collections::BTreeSet;

use crate::types::IpNet;

/// Prefixes in their order, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedIps(Box<[IpNet]>);

impl AllowedIps {
    /// The prefixes, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, IpNet> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether exactly this prefix is among them.
    pub fn contains(&self, prefix: &IpNet) -> bool {
        self.0.binary_search(prefix).is_ok()
    }

    /// Those that are not among the others.
    pub fn difference<'a>(&'a self, others: &'a Self) -> impl Iterator<Item = &'a IpNet> {
        self.iter().filter(|prefix| !others.contains(prefix))
    }

    /// Adds one.
    pub fn insert(&mut self, prefix: IpNet) {
        self.extend([prefix]);
    }

    /// Takes one away.
    pub fn remove(&mut self, prefix: &IpNet) {
        if self.contains(prefix) {
            self.retain(|kept| kept != prefix);
        }
    }

    /// Keeps those of which this is so.
    pub fn retain(&mut self, is_kept: impl Fn(&IpNet) -> bool) {
        self.0 = self.iter().copied().filter(is_kept).collect();
    }
}

impl From<BTreeSet<IpNet>> for AllowedIps {
    fn from(prefixes: BTreeSet<IpNet>) -> Self {
        Self(prefixes.into_iter().collect())
    }
}

impl FromIterator<IpNet> for AllowedIps {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        prefixes.into_iter().collect::<BTreeSet<IpNet>>().into()
    }
}

impl Extend<IpNet> for AllowedIps {
    fn extend<I: IntoIterator<Item = IpNet>>(&mut self, more: I) {
        *self = self.iter().copied().chain(more).collect();
    }
}

impl<'a> IntoIterator for &'a AllowedIps {
    type Item = &'a IpNet;
    type IntoIter = std::slice::Iter<'a, IpNet>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(number: u8) -> IpNet {
        format!("100.64.0.{number}/32").parse().unwrap()
    }

    #[test]
    fn prefixes_come_and_go_as_in_a_set() {
        let mut ips: AllowedIps = [net(3), net(1), net(3)].into_iter().collect();
        ips.insert(net(2));
        ips.insert(net(2));
        assert_eq!(ips.iter().copied().collect::<Vec<_>>(), [net(1), net(2), net(3)]);
        ips.remove(&net(1));
        ips.remove(&net(9));
        assert_eq!(ips, BTreeSet::from([net(2), net(3)]).into());
        assert!(ips.contains(&net(2)) && !ips.contains(&net(1)));
        let others = BTreeSet::from([net(3), net(4)]).into();
        assert!(ips.difference(&others).eq([&net(2)]));
    }
}
