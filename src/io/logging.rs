//! Where the servers write what they do.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Logs what `filter` lets through to standard error, which the journal stamps and a terminal colours.
///
/// An error is the reason why the filter is none, or that this program logs already.
pub fn log_to_stderr(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::builder().parse(filter).map_err(|error| error.to_string())?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    let done = if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().try_init()
    } else {
        builder.try_init()
    };
    done.map_err(|error| error.to_string())
}
