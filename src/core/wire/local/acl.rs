//! Who may open what here, and why something passes or does not.

use serde::{Deserialize, Serialize};

use crate::types::IpNet;
use crate::wire::control::RuleOrigin;

/// The answer to `acl`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AclReply {
    /// What others may open here: our own addresses and the subnets that we carry.
    pub served: Vec<IpNet>,
    pub rules: Vec<AclRule>,
    /// What was dropped, by reason.
    pub denied: Vec<DeniedCount>,
    /// How the kernel's table differs from what it should be; empty where it does not.
    pub kernel: String,
}

/// Rights that one or several rules of the policy give, and what used them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AclRule {
    /// The name of its counter in nftables, `rule_` left out.
    pub id: String,
    /// Where in the policy; empty where the coordinator does not say.
    pub origins: Vec<RuleOrigin>,
    /// One right a line: "tcp to 100.64.0.1/32 port 80".
    pub rights: Vec<String>,
    /// Addresses and prefixes of peers that have these rights.
    pub sources: usize,
    /// Packets that opened something by it.
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeniedCount {
    /// The name of its counter in nftables.
    pub reason: String,
    pub packets: u64,
    pub bytes: u64,
}

/// The question `why`, as the query of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyQuestion {
    /// A node's name, an address, or `self`.
    pub src: String,
    /// The same of the destination.
    pub dst: String,
    /// `tcp`, `udp`, `icmp`, … or a number.
    #[serde(default)]
    pub proto: String,
    #[serde(default)]
    pub port: u16,
}

/// The answer to `why`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WhyReply {
    /// What was judged: "tcp to port 80 from alice (100.64.0.2) to this machine (100.64.0.1)".
    pub packet: String,
    /// Whether this machine lets it pass, as the policy has it.
    pub allowed: bool,
    /// In a sentence.
    pub because: String,
    /// The rule that lets it pass, or that let it pass until lately.
    pub rule: Option<AclRule>,
    /// Rules that name source and destination, but not for this packet.
    pub near: Vec<AclRule>,
    /// What the kernel does with it.
    pub kernel: String,
    /// Whether that is what the policy has.
    pub kernel_agrees: bool,
}
