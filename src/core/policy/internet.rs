//! What `autogroup:internet` means: public addresses, which only exit nodes carry traffic to.

use crate::types::IpNet;

use super::ipset;
use super::topology::overlaps;

/// All of IPv4, and what is given out of IPv6.
const PUBLIC: [&str; 2] = ["0.0.0.0/0", "2000::/3"];
/// Private (RFC 1918), shared (RFC 6598), link-local and loopback addresses.
const LOCAL: [&str; 6] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "127.0.0.0/8"];

/// The public addresses as prefixes.
pub(super) fn prefixes() -> Vec<IpNet> {
    ipset::difference(&nets(&PUBLIC), &nets(&LOCAL))
}

/// Whether every address of the prefix is public.
pub(super) fn contains(net: &IpNet) -> bool {
    nets(&PUBLIC).iter().any(|public| public.contains(net)) && !nets(&LOCAL).iter().any(|local| overlaps(local, net))
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_internet_is_what_is_neither_private_nor_local() {
        for (net, public) in [
            ("8.8.8.0/24", true),
            ("2001:db8::/32", true),
            ("10.1.0.0/16", false),
            ("0.0.0.0/0", false),
            ("fd00::/8", false),
        ] {
            let net = net.parse().unwrap();
            assert_eq!(contains(&net), public, "{net}");
            assert_eq!(prefixes().iter().any(|public| public.contains(&net)), public, "{net}");
        }
    }
}
