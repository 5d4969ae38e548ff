//! How large a policy may be, and why.

use crate::types::Limit;

/// A thousand rules with comments are about 200 KiB; this leaves room for twenty times that.
pub const TEXT: Limit = Limit::new("bytes of policy", 4 << 20);
/// The language nests seven deep at most; capability arguments are free-form and may go deeper.
pub const DEPTH: Limit = Limit::new("levels of nesting", 64);
/// Each value costs about 50 bytes while the text is parsed.
pub const VALUES: Limit = Limit::new("values in a policy", 1_000_000);
/// Rules are compared with every node; more of them would not compile within seconds.
pub const RULES: Limit = Limit::new("rules in a policy", 20_000);
/// Groups, hosts, tags, IP sets and postures, each.
pub const NAMES: Limit = Limit::new("names of a kind", 20_000);
/// Characters in a tag, `tag:` included: as of a host's label, and it is in every peer's map.
pub const TAG_LENGTH: usize = 63;
/// Errors reported at once: enough to work through, few enough to read.
pub const ERRORS: usize = 20;
