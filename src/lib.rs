//! Warren: a mesh VPN for Linux that runs on the kernel's own WireGuard. This is the map of its tree.
//!
//! Every hard thing is a value, a pure function and a thin hand. What should be true of this host is
//! one value, `plan::Desired`, computed from scratch; what is true is another, `plan::Observed`,
//! read back from the kernel; the difference is a `plan::Plan`, an ordered list of printable steps. A
//! thin hand applies steps and looks again.
//!
//! ```text
//! coordinator ──> agent ──bytes──> control::Session ──Delta──> Netmap ──┐
//! warren (CLI) ──> agent::local_api ─────────────────────────Prefs──────┤
//! network ──> agent ──> path (which way to reach each peer) ──Paths─────┤
//!                                                                       v
//! linux::observe() = Observed ──────────────────────┐        plan::desired() = Desired
//!                                                   v                   v
//!              linux::apply(step) <── plan::Reconciler <── plan::diff(desired, observed) = Plan
//! ```
//!
//! `core::node` holds all of these for one node, as one value that is simulated as it is; `agent::run` is its hand.
//!
//! | member | what | programs |
//! | --- | --- | --- |
//! | `src/core` | decides: no clock, no randomness, no sockets, no files, no `async`; time and chance come in as arguments | |
//! | `src/linux` | the only door to the kernel, and the only `unsafe` | |
//! | `src/shell` | what more than one program acts with: sockets, TLS, connections, secret files, the log | |
//! | `src/relay` | sockets and tasks around the relay protocol and STUN; also embedded in the coordinator | `warren-relay` |
//! | `src/agent` | a node: run loop, pipes, local API, command line | `warrend`, `warren` |
//! | `src/coordinator` | HTTP, Noise and map streams, the store, administration | `warren-coordinator` |
//!
//! The manifests say which member may name which, so that purity and layers are the compiler's business; between the
//! modules of `core` it is `tests/tidy.rs`'s. A member declares the tests that drive it alone, and cargo builds its
//! programs for them; this package declares those that join several. All of them lie in `tests`.
//!
//! Vocabulary: a *node* is a machine in the network; its *machine key* names it to the coordinator, its
//! *node key* is its WireGuard key. The *map* is what the coordinator tells a node of itself and its
//! *peers*. The *overlay* is the network the addresses of 100.64.0.0/10 and fd7a:115c:a1e0::/48 make.

#![forbid(unsafe_code)]
