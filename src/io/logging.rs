//! Where the servers write what they do.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};

use crate::types::text::Line;

/// What an event says, on one line and clean: much of it was said by others first.
#[derive(Clone, Copy, Debug, Default)]
pub struct CleanFields;

impl<'writer> FormatFields<'writer> for CleanFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut said = String::new();
        DefaultFields::new().format_fields(Writer::new(&mut said), fields)?;
        write!(writer, "{}", Line(said))
    }
}

/// Logs what `filter` lets through to standard error, which the journal stamps and a terminal colours.
///
/// An error is the reason why the filter is none, or that this program logs already.
pub fn log_to_stderr(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::builder().parse(filter).map_err(|error| error.to_string())?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(CleanFields)
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_others_said_makes_no_line_of_its_own_and_no_long_one() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(CleanFields)
            .without_time()
            .with_ansi(false)
            .with_target(false)
            .with_writer(move || writer.clone())
            .finish();

        tracing::subscriber::with_default(subscriber, || {
            let host = "web\n ERROR the coordinator was taken over\u{1b}[2K\u{202e}";
            tracing::info!(%host, "a machine was refused");
            tracing::info!("relay 1 says: {}", "x".repeat(100_000));
        });

        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        let said = "a machine was refused host=web\u{fffd} ERROR the coordinator was taken over\u{fffd}[2K\u{fffd}";
        assert!(lines[0].ends_with(said), "{text}");
        assert!(lines[1].ends_with("xxx…") && lines[1].len() < 5_000, "{text}");
    }
}
