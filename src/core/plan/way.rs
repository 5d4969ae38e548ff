//! Where the kernel would send a packet, and whether that is where it should go.
//!
//! Our own routes and rules may all be there and lead nowhere: whoever puts a rule before ours decides. So the kernel is
//! asked for the outcome, for a few addresses that stand for the rest.

use std::fmt;
use std::net::IpAddr;

use super::desired::{Desired, RouteTarget};
use super::own;

/// What routing makes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where it is to go.
    pub to: IpAddr,
    /// Whether it carries the mark of our own outer packets.
    pub marked: bool,
    /// Which way it takes.
    pub outcome: Outcome,
}

/// Which way a packet takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Into the tunnel.
    Tunnel,
    /// Out by another link.
    Elsewhere {
        /// Its name.
        link: String,
        /// The table that says so.
        table: u32,
        /// The priority of the rule of another program that asks this table before ours is asked.
        rule: Option<u32>,
    },
    /// It is refused.
    Refused {
        /// What the kernel said.
        error: String,
        /// The priority of a rule of another program that comes before ours and may be why.
        rule: Option<u32>,
    },
}

/// A way that is not the one that is wished for. Displays as a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Astray {
    /// The way.
    pub way: Way,
    /// Whether our firewall keeps the packet from leaving in clear.
    pub guarded: bool,
}

impl Way {
    /// Compares the way with the wish.
    pub fn astray(&self, wish: &Desired) -> Option<Astray> {
        let around = wish.routes.iter().filter(|route| route.destination.contains(&self.to));
        let route = around.min_by_key(|route| (u8::MAX - route.destination.prefix_len(), route.metric))?;
        let is_right = match (&self.outcome, route.target, self.marked) {
            (Outcome::Tunnel, _, marked) => !marked,
            (Outcome::Elsewhere { .. } | Outcome::Refused { .. }, _, true) => true,
            (Outcome::Elsewhere { .. }, target, false) => target == RouteTarget::Throw,
            (Outcome::Refused { .. }, target, false) => target != RouteTarget::Tunnel,
        };
        let guards = wish.firewall.as_ref().is_some_and(|firewall| firewall.guards(self.to));
        (!is_right).then(|| Astray { way: self.clone(), guarded: guards })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tunnel => write!(f, "into {}", own::LINK),
            Self::Elsewhere { link, table, .. } => write!(f, "out by {link} (table {table})"),
            Self::Refused { error, .. } => write!(f, "nowhere ({error})"),
        }
    }
}

impl fmt::Display for Astray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Way { to, marked, outcome } = &self.way;
        let ip = if to.is_ipv4() { "ip" } else { "ip -6" };
        match outcome {
            Outcome::Tunnel => {
                return write!(
                    f,
                    "the tunnel's own packets to {to} would go into the tunnel again: a rule of another program sends marked \
                     packets to table {}; `{ip} rule show` lists it",
                    own::ROUTE_TABLE
                );
            }
            Outcome::Elsewhere { link, .. } if self.guarded => {
                write!(f, "packets to {to} are sent to {link} and not into the tunnel, so the firewall drops them")?;
            }
            Outcome::Elsewhere { link, .. } => {
                write!(f, "packets to {to} leave by {link}, in clear, and not by the tunnel")?
            }
            Outcome::Refused { error, .. } => write!(f, "packets to {to} do not get into the tunnel: {error}")?,
        }
        let (rule, table) = match outcome {
            Outcome::Elsewhere { rule, table, .. } => (*rule, Some(*table)),
            Outcome::Refused { rule, .. } => (*rule, None),
            Outcome::Tunnel => (None, None),
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

    fn told(to: &str, marked: bool, outcome: Outcome) -> Option<String> {
        Way { to: to.parse().unwrap(), marked, outcome }.astray(&wish()).map(|astray| astray.to_string())
    }

    fn elsewhere(rule: Option<u32>) -> Outcome {
        Outcome::Elsewhere { link: "eth0".to_owned(), table: 100, rule }
    }

    #[test]
    fn the_way_that_is_wished_for_is_no_fault() {
        let refused = || Outcome::Refused { error: "No route to host".to_owned(), rule: None };
        for (to, marked, outcome) in [
            ("100.64.0.2", false, Outcome::Tunnel),
            ("10.2.0.1", false, Outcome::Tunnel),
            ("100.64.0.2", true, elsewhere(None)),
            ("100.64.0.2", true, refused()),
            ("100.100.0.7", false, elsewhere(None)),
            ("fd7a:115c:a1e0::2", false, refused()),
            ("192.0.2.1", false, elsewhere(None)),
        ] {
            assert_eq!(told(to, marked, outcome), None, "{to} {marked}");
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
        let refused = Outcome::Refused { error: "No route to host".to_owned(), rule: Some(7) };
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
        assert!(told("100.64.0.2", true, Outcome::Tunnel).unwrap().contains("into the tunnel again"));
    }
}
