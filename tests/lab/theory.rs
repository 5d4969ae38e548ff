//! Which kinds of site can reach each other directly, by theory, and why.

use crate::nat::Kind;

/// How packets between two sites travel once all has been tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Direct,
    Relay,
}

/// One row and one column per kind, in the order of [`Kind::ALL`]: `D` is direct, `r` is through the relay.
///
/// Each kind gives the reason for its row ([`reason`]); where two rows disagree about nothing, the table is symmetric.
const TABLE: [&str; 8] = [
    "D D D r D D r D",
    "D D r r D D r D",
    "D r r r r r r r",
    "r r r r r r r r",
    "D D r r D D r D",
    "D D r r D D r D",
    "r r r r r r D D",
    "D D r r D D D D",
];

/// What theory says of these two.
pub(crate) fn expected(left: Kind, right: Kind) -> Way {
    let place = |kind| Kind::ALL.iter().position(|k| *k == kind).unwrap();
    match TABLE[place(left)].split(' ').nth(place(right)) {
        Some("D") => Way::Direct,
        _ => Way::Relay,
    }
}

/// Why a row is as it is.
pub(crate) fn reason(kind: Kind) -> &'static str {
    match kind {
        Kind::Open => "anyone who can send UDP over IPv4 reaches it, whatever port they come from",
        Kind::EasyNat | Kind::DoubleNat => {
            "its port is the same for all, and open for whom it has sent to: all whose port it can know"
        }
        Kind::HardNat => "its port differs for each destination: only one that admits any port is reached",
        Kind::UdpBlocked => "WireGuard is UDP, and none passes",
        Kind::Firewall => "its port is known, and open for whom it has sent to: all whose port it can know",
        Kind::V6Only => "only those with IPv6 have an address family in common with it",
        Kind::DualStack => "as an easy NAT over IPv4, as a firewall over IPv6",
    }
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
        }
    }
}
