//! How a policy points at users, nodes and addresses.

use crate::types::IpNet;

/// One entry of a `src` or `dst`, resolved as far as the policy alone allows.
///
/// Hosts are resolved to their prefix and IP sets to theirs; users, groups and tags wait for a
/// [`Topology`](super::Topology).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    /// `*`: every node, and everything behind approved routes.
    Any,
    /// An address, a prefix, or a host.
    Net(IpNet),
    /// An IP set, by name.
    Set(String),
    /// A user, by login: their untagged nodes.
    User(String),
    /// `user:*@DOMAIN`: every user of a domain.
    Domain(String),
    /// `group:NAME`.
    Group(String),
    /// `tag:NAME`.
    Tag(String),
    /// `autogroup:NAME`.
    Auto(Autogroup),
}

/// A group that the network defines, not the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Autogroup {
    /// Untagged nodes.
    Member,
    /// Tagged nodes.
    Tagged,
    /// Untagged nodes of administrators and owners.
    Admin,
    /// Untagged nodes of owners.
    Owner,
    /// As a destination: the source user's own untagged nodes.
    SelfNodes,
    /// As a destination: what is reached through exit nodes.
    Internet,
    /// As a source: any address at all.
    DangerAll,
    /// For SSH: any account but `root`.
    NonRoot,
}

impl Autogroup {
    const ALL: [(&'static str, Self); 8] = [
        ("autogroup:member", Self::Member),
        ("autogroup:tagged", Self::Tagged),
        ("autogroup:admin", Self::Admin),
        ("autogroup:owner", Self::Owner),
        ("autogroup:self", Self::SelfNodes),
        ("autogroup:internet", Self::Internet),
        ("autogroup:danger-all", Self::DangerAll),
        ("autogroup:nonroot", Self::NonRoot),
    ];

    /// The name, `autogroup:` included.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, group)| *group == self).map_or("autogroup:", |(name, _)| name)
    }

    /// The group that a misspelt name is most like: the plural of it, or the same in other case.
    pub(super) fn nearest(text: &str) -> Option<Self> {
        let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "").trim_end_matches('s').to_owned();
        Self::ALL.iter().find(|(name, _)| plain(name) == plain(text)).map(|(_, group)| *group)
    }

    /// Whether this names nodes by who owns them.
    pub(super) fn is_identity(self) -> bool {
        matches!(self, Self::Member | Self::Tagged | Self::Admin | Self::Owner)
    }
}

/// What a text in a policy is, by its shape alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Known(Selector),
    /// Anything without a colon or `@`: to be looked up among the hosts.
    Host(String),
    /// `ipset:NAME`.
    Set(String),
    UnknownAutogroup,
    /// A colon where none may be.
    Other,
}

/// Tells what `text` is.
pub(super) fn shape(text: &str) -> Shape {
    if let Some(net) = parse_net(text) {
        return Shape::Known(Selector::Net(net));
    }
    if text == "*" {
        return Shape::Known(Selector::Any);
    }
    if let Some(domain) = text.strip_prefix("user:*@") {
        return Shape::Known(Selector::Domain(domain.to_owned()));
    }
    let owned = text.to_owned();
    match text.split_once(':').map(|(kind, _)| kind) {
        Some("group") => Shape::Known(Selector::Group(owned)),
        Some("tag") => Shape::Known(Selector::Tag(canonical_tag(&owned))),
        Some("ipset") => Shape::Set(owned),
        Some("autogroup") => Autogroup::ALL
            .iter()
            .find(|(name, _)| *name == text)
            .map_or(Shape::UnknownAutogroup, |(_, group)| Shape::Known(Selector::Auto(*group))),
        Some("host") => Shape::Host(text["host:".len()..].to_owned()),
        _ if text.contains('@') => Shape::Known(Selector::User(owned)),
        Some(_) => Shape::Other,
        None => Shape::Host(owned),
    }
}

/// The one form of a tag: `tag:Prod` and `tag:prod` are one.
pub(super) fn canonical_tag(text: &str) -> String {
    text.to_ascii_lowercase()
}

/// An address or a prefix; host bits are dropped.
pub(super) fn parse_net(text: &str) -> Option<IpNet> {
    let net = match text.parse::<std::net::IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse().ok()?,
    };
    Some(net.trunc())
}

/// Parts an access rule's destination, `HOST:PORTS`, at its last colon; IPv6 may stand in brackets.
pub(super) fn split_ports(text: &str) -> Option<(String, &str)> {
    let (host, ports) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inner, bits)) if inner.contains(':') => format!("{inner}{bits}"),
        _ => host.to_owned(),
    };
    (!host.is_empty()).then_some((host, ports))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_of_a_text_tells_what_it_names() {
        let net = |text: &str| Shape::Known(Selector::Net(text.parse().unwrap()));
        for (text, expected) in [
            ("*", Shape::Known(Selector::Any)),
            ("100.64.0.1", net("100.64.0.1/32")),
            ("10.0.0.1/8", net("10.0.0.0/8")),
            ("fd00::1", net("fd00::1/128")),
            ("ada@example.com", Shape::Known(Selector::User("ada@example.com".into()))),
            ("ada@", Shape::Known(Selector::User("ada@".into()))),
            ("user:*@example.com", Shape::Known(Selector::Domain("example.com".into()))),
            ("group:ops", Shape::Known(Selector::Group("group:ops".into()))),
            ("tag:web", Shape::Known(Selector::Tag("tag:web".into()))),
            ("autogroup:self", Shape::Known(Selector::Auto(Autogroup::SelfNodes))),
            ("autogroup:nobody", Shape::UnknownAutogroup),
            ("ipset:lan", Shape::Set("ipset:lan".into())),
            ("web-1", Shape::Host("web-1".into())),
            ("a:b", Shape::Other),
        ] {
            assert_eq!(shape(text), expected, "{text}");
        }
    }

    #[test]
    fn a_destination_is_parted_at_its_last_colon() {
        for (text, parts) in [
            ("tag:web:22,80", Some(("tag:web", "22,80"))),
            ("autogroup:self", Some(("autogroup", "self"))),
            ("fd00::1:443", Some(("fd00::1", "443"))),
            ("[fd00::1]:443", Some(("fd00::1", "443"))),
            ("[fd00::]/64:*", Some(("fd00::/64", "*"))),
            ("web", None),
            (":80", None),
        ] {
            assert_eq!(split_ports(text), parts.map(|(host, ports)| (host.to_owned(), ports)), "{text}");
        }
    }
}
