//! A prefix without what lies in it and is somebody else's.

use crate::types::IpNet;

/// The fewest prefixes that make up `net` without `holes`. Nothing where there would be more than `most`.
pub(super) fn carve(net: IpNet, holes: &[IpNet], most: usize) -> Option<Vec<IpNet>> {
    let mut pieces = Vec::new();
    let mut left = vec![(net, holes.to_vec())];
    while let Some((net, holes)) = left.pop() {
        let holes: Vec<IpNet> = holes.into_iter().filter(|hole| hole.contains(&net) || net.contains(hole)).collect();
        if holes.iter().any(|hole| hole.contains(&net)) {
            continue;
        }
        match halves(&net).filter(|_| !holes.is_empty()) {
            Some([lower, upper]) => left.extend([(upper, holes.clone()), (lower, holes)]),
            None if pieces.len() == most => return None,
            None => pieces.push(net),
        }
    }
    Some(pieces)
}

fn halves(net: &IpNet) -> Option<[IpNet; 2]> {
    let mut subnets = net.subnets(net.prefix_len().checked_add(1)?).ok()?;
    Some([subnets.next()?, subnets.next()?])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn carved(net: &str, holes: &[&str]) -> Vec<String> {
        let holes: Vec<IpNet> = holes.iter().map(|hole| hole.parse().unwrap()).collect();
        carve(net.parse().unwrap(), &holes, 256).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_left_of_a_prefix_is_as_few_prefixes_as_can_be() {
        assert_eq!(carved("10.0.0.0/8", &[]), ["10.0.0.0/8"]);
        assert_eq!(carved("10.0.0.0/8", &["192.0.2.0/24"]), ["10.0.0.0/8"]);
        assert_eq!(carved("10.0.0.0/8", &["10.0.0.0/8"]), [""; 0]);
        assert_eq!(carved("10.0.0.0/8", &["0.0.0.0/0"]), [""; 0]);
        assert_eq!(carved("10.0.0.0/22", &["10.0.1.0/24"]), ["10.0.0.0/24", "10.0.2.0/23"]);
        assert_eq!(carved("10.0.0.0/22", &["10.0.1.0/24", "10.0.1.7/32"]), ["10.0.0.0/24", "10.0.2.0/23"]);
        assert_eq!(carved("10.0.0.0/8", &["10.200.0.0/24"]).len(), 16);
        assert_eq!(carved("fd00::/126", &["fd00::1/128"]), ["fd00::/128", "fd00::2/127"]);
        assert_eq!(carve("10.0.0.0/8".parse().unwrap(), &["10.200.0.0/24".parse().unwrap()], 15), None);
    }

    proptest! {
        #[test]
        fn an_address_is_in_one_piece_or_in_a_hole(
            holes in prop::collection::vec((any::<u8>(), 24_u8..=32), 0..6),
            address in any::<u8>(),
        ) {
            let net = |last: u8, length| IpNet::new([10, 0, 0, last].into(), length).unwrap().trunc();
            let holes: Vec<IpNet> = holes.into_iter().map(|(last, length)| net(last, length)).collect();
            let pieces = carve(net(0, 24), &holes, 256).unwrap();
            let address = net(address, 32);
            let within = pieces.iter().filter(|piece| piece.contains(&address)).count();
            let is_hole = holes.iter().any(|hole| hole.contains(&address));
            prop_assert_eq!(within, usize::from(!is_hole));
        }
    }
}
