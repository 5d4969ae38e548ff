//! What whoever tells the host says to whoever wanted it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::types::bounded_vec;
use crate::types::text::clean_text;

/// The longest message in either direction: 256 of the longest names.
pub const MESSAGE_LEN: usize = 128 << 10;
/// Name servers of a host. Programs ask three.
const UPSTREAMS: usize = 32;
/// Bytes of a text for people.
const TEXT: usize = 2_048;

/// How the host is told now. The default is: not at all, and nothing is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostReport {
    /// By whom, in a few words; empty where it is as it was.
    #[serde(deserialize_with = "clean_text::<_, TEXT>")]
    pub told_by: String,
    /// Whom the file named, and names no more.
    #[serde(deserialize_with = "bounded_vec::<_, _, UPSTREAMS>")]
    pub upstreams: Vec<IpAddr>,
    /// Why it is not told, or could be told better.
    #[serde(deserialize_with = "clean_text::<_, TEXT>")]
    pub trouble: String,
}
