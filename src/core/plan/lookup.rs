//! Where the kernel would send a packet, and whether that is where it should go.
//!
//! Our own routes and rules may all be there and lead nowhere: whoever puts a rule before ours decides. So the kernel is
//! asked for the outcome, for a few addresses that stand for the rest.

use std::fmt;
use std::net::IpAddr;

use super::desired::{Desired, RouteTarget};
use super::own;

/// What the kernel's routing, asked as `ip route get` does, makes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteLookup {
    /// Where it is to go.
    pub to: IpAddr,
    /// Whether it carries the mark of our own outer packets.
    pub marked: bool,
    /// Where it leaves.
    pub egress: Egress,
}

/// Where a packet leaves this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Egress {
    /// By our own link.
    Tunnel,
    /// By another link.
    Elsewhere {
        /// The link's name.
        link: String,
        /// The number of the table that says so.
        table: u32,
        /// The priority of the rule of another program that asks this table before ours is asked.
        rule: Option<u32>,
    },
    /// Nowhere: routing refuses it.
    Refused {
        /// What the kernel said.
        error: String,
        /// The priority of a rule of another program that comes before ours and may be why.
        rule: Option<u32>,
    },
}

/// A packet that leaves elsewhere than it is desired to. Displays as a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misroute {
    /// What the kernel said.
    pub lookup: RouteLookup,
    /// Whether our firewall keeps the packet from leaving in clear.
    pub guarded: bool,
}

impl RouteLookup {
    /// Compares the answer with what is desired.
    pub fn misroute(&self, desired: &Desired) -> Option<Misroute> {
        let around = desired.routes.iter().filter(|route| route.destination.contains(&self.to));
        let route = around.min_by_key(|route| (u8::MAX - route.destination.prefix_len(), route.metric))?;
        let is_right = match (&self.egress, route.target, self.marked) {
            (Egress::Tunnel, _, marked) => !marked,
            (Egress::Elsewhere { .. } | Egress::Refused { .. }, _, true) => true,
            (Egress::Elsewhere { .. }, target, false) => target == RouteTarget::Throw,
            (Egress::Refused { .. }, target, false) => target != RouteTarget::Tunnel,
        };
        let guards = desired.firewall.as_ref().is_some_and(|firewall| firewall.guards(self.to));
        (!is_right).then(|| Misroute { lookup: self.clone(), guarded: guards })
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tunnel => write!(f, "into {}", own::LINK),
            Self::Elsewhere { link, table, .. } => write!(f, "out by {link} (table {table})"),
            Self::Refused { error, .. } => write!(f, "nowhere ({error})"),
        }
    }
}

impl fmt::Display for Misroute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteLookup { to, marked, egress } = &self.lookup;
        let ip = if to.is_ipv4() { "ip" } else { "ip -6" };
        match egress {
            Egress::Tunnel => {
                return write!(
                    f,
                    "the tunnel's own packets to {to} would go into the tunnel again: a rule of another program sends marked \
                     packets to table {}; `{ip} rule show` lists it",
                    own::ROUTE_TABLE
                );
            }
            Egress::Elsewhere { link, .. } if self.guarded => {
                write!(f, "packets to {to} are sent to {link} and not into the tunnel, so the firewall drops them")?;
            }
            Egress::Elsewhere { link, .. } => {
                write!(f, "packets to {to} leave by {link}, in clear, and not by the tunnel")?
            }
            Egress::Refused { error, .. } => write!(f, "packets to {to} do not get into the tunnel: {error}")?,
        }
        let (rule, table) = match egress {
            Egress::Elsewhere { rule, table, .. } => (*rule, Some(*table)),
            Egress::Refused { rule, .. } => (*rule, None),
            Egress::Tunnel => (None, None),
        };
        let mark = if *marked { own::MARK_BYPASS } else { 0 };
        match (rule, table) {
            // Nothing can be asked before the rule of priority 0, which is the local table's.
            (Some(rule), _) if rule > 0 => {
                write!(f, ": rule {rule} of another program is asked before ours")?;
                table.iter().try_for_each(|table| write!(f, " and sends them to table {table}"))?;
                write!(
                    f,
                    // Without a destination: `not` turns round all that a rule asks for, not the mark alone.
                    ". Let ours come first: `{ip} rule add pref {} not fwmark {:#x} lookup {}`",
                    rule - 1,
                    own::MARK_BYPASS,
                    own::ROUTE_TABLE
                )
            }
            _ => write!(f, "; `{ip} route get {to} mark {mark:#x}` and `{ip} rule show` tell why"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::plan::{Firewall, Route};

    fn wish() -> Desired {
        let route = |to: &str, target, metric| Route { destination: to.parse().unwrap(), target, metric };
        Desired {
            routes: BTreeSet::from([
                route("100.64.0.0/10", RouteTarget::Unreachable, 10_000),
                route("100.64.0.0/10", RouteTarget::Tunnel, 100),
                route("100.100.0.0/16", RouteTarget::Throw, 100),
                route("fd7a:115c:a1e0::/48", RouteTarget::Unreachable, 10_000),
                route("10.2.0.0/16", RouteTarget::Tunnel, 100),
            ]),
            firewall: Some(Arc::new(Firewall::default())),
            ..Desired::default()
        }
    }

    fn told(to: &str, marked: bool, egress: Egress) -> Option<String> {
        RouteLookup { to: to.parse().unwrap(), marked, egress }.misroute(&wish()).map(|misroute| misroute.to_string())
    }

    fn elsewhere(rule: Option<u32>) -> Egress {
        Egress::Elsewhere { link: "eth0".to_owned(), table: 100, rule }
    }

    #[test]
    fn the_way_that_is_wished_for_is_no_fault() {
        let refused = || Egress::Refused { error: "No route to host".to_owned(), rule: None };
        for (to, marked, egress) in [
            ("100.64.0.2", false, Egress::Tunnel),
            ("10.2.0.1", false, Egress::Tunnel),
            ("100.64.0.2", true, elsewhere(None)),
            ("100.64.0.2", true, refused()),
            ("100.100.0.7", false, elsewhere(None)),
            ("fd7a:115c:a1e0::2", false, refused()),
            ("192.0.2.1", false, elsewhere(None)),
        ] {
            assert_eq!(told(to, marked, egress), None, "{to} {marked}");
        }
    }

    #[test]
    fn a_rule_before_ours_is_named_with_the_command_that_mends_it() {
        assert_eq!(
            told("100.64.0.2", false, elsewhere(Some(1000))).unwrap(),
            "packets to 100.64.0.2 are sent to eth0 and not into the tunnel, so the firewall drops them: rule 1000 of \
             another program is asked before ours and sends them to table 100. Let ours come first: `ip rule add pref 999 \
             not fwmark 0x5000000 lookup 22337`"
        );
        assert_eq!(
            told("10.2.0.1", false, elsewhere(Some(1000))).unwrap(),
            "packets to 10.2.0.1 leave by eth0, in clear, and not by the tunnel: rule 1000 of another program is asked \
             before ours and sends them to table 100. Let ours come first: `ip rule add pref 999 not fwmark 0x5000000 \
             lookup 22337`"
        );
        let refused = Egress::Refused { error: "No route to host".to_owned(), rule: Some(7) };
        let text = told("100.64.0.2", false, refused).unwrap();
        assert!(text.contains("do not get into the tunnel: No route to host: rule 7 of another program"), "{text}");
    }

    #[test]
    fn what_should_be_refused_and_leaves_is_a_fault_and_so_is_a_loop() {
        let text = told("fd7a:115c:a1e0::2", false, elsewhere(None)).unwrap();
        assert!(
            text.ends_with("`ip -6 route get fd7a:115c:a1e0::2 mark 0x0` and `ip -6 rule show` tell why"),
            "{text}"
        );
        assert!(told("100.64.0.2", true, Egress::Tunnel).unwrap().contains("into the tunnel again"));
    }
}
