//! What Warren decides: no clock, no randomness, no sockets, no files, no `async`; time and chance come in as arguments.
//!
//! | module | decides |
//! | --- | --- |
//! | `types` | nothing: the nouns that all others share: keys by role, prefixes, limits, names |
//! | `wire` | what bytes mean: control protocol, Noise, DERP, STUN, disco, port mapping, local API, administration |
//! | `netmap` | what of the map as told a node may go by |
//! | `control` | what a node asks its coordinator, and when |
//! | `netcheck` | where this host can be reached, and which relay is its home |
//! | `path` | which way packets to each peer go |
//! | `derp` | what both ends of a relay connection do with a frame |
//! | `dns` | nothing yet: here MagicDNS has its place |
//! | `plan` | what should be in the kernel, and the steps from what is there |
//! | `hostfirewall` | what other programs' chains do with our packets |
//! | `node` | what an agent does: it holds the modules above by value |
//! | `policy` | who may reach what, by the policy file |
//! | `registry` | what a coordinator does: it holds users, keys, nodes, who is there, and what each was sent |
//!
//! The manifest names no runtime, system interface or source of chance, so that purity is the compiler's business;
//! which module may name which is `tests/tidy.rs`'s.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

pub mod control;
pub mod derp;
pub mod dns;
pub mod hostfirewall;
pub mod netcheck;
pub mod netmap;
pub mod node;
pub mod path;
pub mod plan;
pub mod policy;
pub mod registry;
pub mod types;
pub mod wire;
