//! The coordinator: `warren-coordinator`.

use std::process::ExitCode;

use warren_coordinator::Cli;

fn main() -> ExitCode {
    // Chosen once for the process; a second choice is the only way to fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Cli::read().run()
}
