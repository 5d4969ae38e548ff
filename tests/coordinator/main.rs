//! The coordinator as a program: a real process, asked over the real protocol.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod abuse;
mod admin;
mod backup;
mod disk;
mod doctor;
mod github;
mod http;
mod joining;
mod maps;
mod node;
#[path = "../common/place.rs"]
mod place;
mod policy;
mod policy_set;
mod presence;
#[path = "../common/program.rs"]
mod program;
mod provider;
mod relay;
#[path = "../relay/client.rs"]
mod relay_client;
mod reload;
mod rights;
mod server;
mod server_key;
mod sign_in;
mod sign_in_again;
