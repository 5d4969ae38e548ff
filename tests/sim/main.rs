//! The deciding half against a kernel that is a value: the planner's laws on random maps and random
//! kernels, and the reconciler among failures, crashes and other people's commands.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod forwarding;
mod laws;
mod net;
mod paths;
mod relays;
mod repair;
mod rotation;
mod storms;
mod wishes;
mod world;
