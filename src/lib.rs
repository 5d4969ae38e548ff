//! Warren: a mesh VPN for Linux that runs on the kernel's own WireGuard.
//!
//! Every hard thing is a value, a pure function and a thin hand. What should be true of this host is
//! one value, [`plan::Desired`], computed from scratch; what is true is another, [`plan::Observed`],
//! read back from the kernel; the difference is a [`plan::Plan`], an ordered list of printable steps. A
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
//! The upper half of the modules decides: no clock, no randomness, no sockets, no files, no `async`; time
//! and chance come in as arguments. The lower half acts, and is thin. `tests/tidy.rs` holds the line.
//! What more than one program's shell needs lies in `io`, because the programs may not name each other.
//!
//! Vocabulary: a *node* is a machine in the network; its *machine key* names it to the coordinator, its
//! *node key* is its WireGuard key. The *map* is what the coordinator tells a node of itself and its
//! *peers*. The *overlay* is the network the addresses of 100.64.0.0/10 and fd7a:115c:a1e0::/48 make.

// ---- decides ----
pub mod control;
pub mod derp;
pub mod dns;
pub mod netmap;
pub mod path;
pub mod plan;
pub mod policy;
pub mod registry;
pub mod types;
pub mod wire;

// ---- acts ----
#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "agent")]
pub mod cli;
#[cfg(feature = "coordinator")]
pub mod coordinator;
#[cfg(feature = "shell")]
pub mod io;
#[cfg(feature = "agent")]
pub mod linux;
#[cfg(feature = "relay")]
pub mod relay;
