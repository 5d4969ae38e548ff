//! The packet filter: which sources may open what.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::limit;
use crate::types::{IpNet, bounded_vec};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FilterRule {
    /// Each an address, a prefix, a range `a-b`, `*`, or `cap:NAME`.
    #[serde(rename = "SrcIPs", deserialize_with = "bounded_vec::<_, _, { limit::RULE_ENTRIES }>")]
    pub src_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::RULE_ENTRIES }>")]
    pub dst_ports: Vec<NetPortRange>,
    /// Protocol numbers; none listed means TCP, UDP, ICMP and ICMPv6.
    #[serde(
        rename = "IPProto",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded_vec::<_, _, { limit::SMALL }>"
    )]
    pub ip_proto: Vec<i32>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::RULE_ENTRIES }>")]
    pub cap_grant: Vec<CapGrant>,
    /// Our own extension: which rule of the policy this comes from. Other clients ignore it; other coordinators
    /// do not send it. One that cannot be read counts as none: it only explains, and the rule holds without it.
    #[serde(rename = "WarrenRule", skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    pub origin: Option<RuleOrigin>,
}

/// Where in the policy a rule is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RuleOrigin {
    /// A short name that stays while the rule's text does, wherever it stands: `acl-1f0c9a3b`. At most
    /// [`RuleOrigin::REF_BYTES`] bytes, printable ASCII without spaces.
    #[serde(rename = "Ref")]
    pub reference: String,
    /// The line of the policy file on which the rule begins, counted from 1.
    pub line: u32,
}

impl RuleOrigin {
    /// The longest reference that is taken from the wire: it is shown, and may become part of a name elsewhere.
    pub const REF_BYTES: usize = 64;

    fn is_sound(&self) -> bool {
        let reference = &self.reference;
        !reference.is_empty()
            && reference.len() <= Self::REF_BYTES
            && reference.bytes().all(|byte| byte.is_ascii_graphic())
            && self.line > 0
    }
}

/// An origin, if this is one.
fn lenient<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RuleOrigin>, D::Error> {
    let raw = Option::<Box<RawValue>>::deserialize(deserializer)?;
    Ok(raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).filter(RuleOrigin::is_sound))
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetPortRange {
    /// An address, a prefix, a range `a-b`, or `*`.
    #[serde(rename = "IP")]
    pub ip: String,
    pub ports: Ports,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CapGrant {
    #[serde(deserialize_with = "bounded_vec::<_, _, { limit::PREFIXES }>")]
    pub dsts: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::SMALL }>")]
    pub caps: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cap_map: BTreeMap<String, Option<Vec<Box<RawValue>>>>,
}

/// The filter that admits everyone to everything.
pub fn match_all() -> Vec<FilterRule> {
    vec![FilterRule {
        src_ips: vec!["*".to_owned()],
        dst_ports: vec![NetPortRange { ip: "*".to_owned(), ports: Ports { first: 0, last: u16::MAX } }],
        ..FilterRule::default()
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Option<RuleOrigin> {
        serde_json::from_str::<FilterRule>(&format!("{{\"SrcIPs\":[\"*\"],\"WarrenRule\":{text}}}")).unwrap().origin
    }

    #[test]
    fn a_rule_says_where_in_the_policy_it_is_written() {
        let known = RuleOrigin { reference: "acl-1f0c9a3b".to_owned(), line: 12 };
        let text = r#"{"Ref":"acl-1f0c9a3b","Line":12}"#;
        assert_eq!(serde_json::to_string(&known).unwrap(), text);
        assert_eq!(origin(text), Some(known));
    }

    #[test]
    fn an_origin_that_cannot_be_read_does_not_cost_the_rule() {
        let long = format!(r#"{{"Ref":"{}","Line":1}}"#, "x".repeat(65));
        for bad in
            [r#""line 3""#, "7", "[]", "{}", "null", r#"{"Ref":"a","Line":-1}"#, r#"{"Ref":"a b","Line":1}"#, &long]
        {
            assert_eq!(origin(bad), None, "{bad}");
        }
    }
}
