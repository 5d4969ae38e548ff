//! The answer to `dns-query`: a DNS message (RFC 1035).

use serde::{Deserialize, Serialize};

use crate::wire::control::Resolver;

/// `dns-query`. The last two are ours alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DnsReply {
    /// The message, in base64.
    pub bytes: String,
    /// Who was asked: nobody, where the answer is the agent's own.
    pub resolvers: Vec<Resolver>,
    /// Why these, in words.
    pub rule: String,
    /// How long that took.
    pub milliseconds: f64,
}
