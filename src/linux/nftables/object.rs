//! Our own table in the words of `nft -j`: what a change is about, and what a listing says.
//!
//! The `nftables` crate has tables, chains and rules. Named verdict maps, address sets with many elements,
//! and counters past 32 bits are ours.

use std::net::IpAddr;

use nftables::schema::{Chain, Rule, Table};
use nftables::stmt::Statement;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use warren_core::plan::Packet;
use warren_core::types::IpNet;

/// The whole of a listing.
#[derive(Serialize, Deserialize)]
pub(super) struct Document<T> {
    pub(super) nftables: Vec<T>,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Add(Object),
    Delete(Object),
    Flush(Object),
}

/// One line of a listing, or what a change is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Object {
    Metainfo(serde_json::Value),
    Table(Table<'static>),
    Chain(Chain<'static>),
    Rule(#[serde(serialize_with = "spell")] Rule<'static>),
    Set(Set),
    Map(VerdictMap),
    Counter(Counter),
    #[serde(skip)]
    Element(Elements),
}

/// A named set of ours. Which it is shows in the type of its key: one, or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Set {
    Addresses(AddressSet),
    Cut(CutSet),
}

/// A named set of ended flows. What is in it is nobody's wish, so its elements are passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CutSet {
    pub(super) family: String,
    pub(super) table: String,
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) key: Vec<String>,
    #[serde(default)]
    pub(super) size: u64,
    #[serde(default, deserialize_with = "one_or_many")]
    pub(super) flags: Vec<String>,
    #[serde(default)]
    pub(super) timeout: u64,
}

/// A named set of addresses or prefixes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AddressSet {
    pub(super) family: String,
    pub(super) table: String,
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) key: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_many")]
    pub(super) flags: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) elem: Vec<Address>,
    /// What we never write: a set that has one is not ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<u64>,
}

/// A named map from addresses or prefixes to the chain that judges them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VerdictMap {
    pub(super) family: String,
    pub(super) table: String,
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) key: String,
    pub(super) map: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_many")]
    pub(super) flags: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) elem: Vec<(Address, Verdict)>,
    /// What we never write: a map that has one is not ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<u64>,
}

/// A named counter. Its figures are not part of what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counter {
    pub(super) family: String,
    pub(super) table: String,
    pub(super) name: String,
    #[serde(default, skip_serializing)]
    pub(super) packets: u64,
    #[serde(default, skip_serializing)]
    pub(super) bytes: u64,
}

/// Elements that come to a set or map, or leave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elements {
    pub(super) name: String,
    pub(super) elem: ElementList,
}

/// Elements of each kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ElementList {
    Addresses(Vec<Address>),
    Verdicts(Vec<(Address, Verdict)>),
    Ended(Vec<Ended>),
}

/// A flow that was ended: the packet that opened it, and the port that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) opening: Packet,
    pub(crate) source_port: u16,
}

/// A single address, or a prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Address {
    Host(IpAddr),
    Prefix { prefix: Prefix },
}

/// A prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Prefix {
    pub(super) addr: IpAddr,
    pub(super) len: u8,
}

/// Where a mapped packet goes on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Goto { target: String },
}

impl From<IpNet> for Address {
    fn from(net: IpNet) -> Self {
        if net.prefix_len() == net.max_prefix_len() {
            Self::Host(net.addr())
        } else {
            Self::Prefix { prefix: Prefix { addr: net.addr(), len: net.prefix_len() } }
        }
    }
}

impl Address {
    pub(super) fn net(&self) -> Option<IpNet> {
        match self {
            Self::Host(address) => Some(IpNet::from(*address)),
            Self::Prefix { prefix } => IpNet::new(prefix.addr, prefix.len).ok(),
        }
    }
}

/// The `nftables` crate writes the statement that takes no argument as a word alone, which `nft` does not read.
fn spell<S: Serializer>(rule: &Rule<'static>, serializer: S) -> Result<S::Ok, S::Error> {
    if !rule.expr.iter().any(|statement| matches!(statement, Statement::Notrack)) {
        return rule.serialize(serializer);
    }
    let mut value = serde_json::to_value(rule).map_err(serde::ser::Error::custom)?;
    let statements = value.get_mut("expr").and_then(serde_json::Value::as_array_mut).into_iter().flatten();
    for statement in statements.filter(|statement| statement.is_string()) {
        *statement = serde_json::json!({ "notrack": null });
    }
    value.serialize(serializer)
}

/// Some versions of `nft` print a list of one as the one.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}
