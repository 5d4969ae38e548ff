//! The log: to standard error, where systemd takes it from.

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use warren_shell::CleanFields;

/// Libraries that log whole messages to the kernel at finer levels, our private key included.
const TALKATIVE: [&str; 4] = ["netlink_proto", "netlink_packet", "genetlink", "rtnetlink"];

/// Begins to log what the filter lets through. Whatever it says, no key gets into the log.
pub fn init(filter: &str) -> Result<(), String> {
    let wanted = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
    let lines = fmt::layer()
        .fmt_fields(CleanFields)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time();
    let lines = lines.with_filter(wanted).with_filter(filter_fn(tells_no_key));
    tracing_subscriber::registry().with(lines).try_init().map_err(|error| error.to_string())
}

fn tells_no_key(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || !TALKATIVE.iter().any(|library| metadata.target().starts_with(library))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_makes_no_sense_is_refused() {
        let error = init("warren=loud").unwrap_err();
        assert!(error.contains("expected one of"), "{error}");
    }

    #[test]
    fn messages_to_the_kernel_are_not_logged_at_any_level_that_shows_them() {
        let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let recorder = Recorder(seen.clone()).with_filter(EnvFilter::new("trace")).with_filter(filter_fn(tells_no_key));

        tracing::subscriber::with_default(tracing_subscriber::registry().with(recorder), || {
            tracing::trace!(target: "netlink_proto::connection", "private key");
            tracing::debug!(target: "netlink_packet_wireguard", "private key");
            tracing::info!(target: "rtnetlink", "harmless");
            tracing::trace!(target: "warren_agent", "ours");
        });

        assert_eq!(*seen.lock().unwrap(), ["rtnetlink", "warren_agent"]);
    }

    struct Recorder(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

    impl<S: tracing::Subscriber> Layer<S> for Recorder {
        fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            self.0.lock().unwrap().push(event.metadata().target().to_owned());
        }
    }
}
