//! The relay.

use std::process::ExitCode;

use clap::Parser;
use warren_relay::Cli;

fn main() -> ExitCode {
    // Chosen once for the process; a second choice is the only way to fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Cli::parse().run()
}
