//! Where the servers write what they do.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::util::SubscriberInitExt;

use warren_core::types::text::Line;

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

/// Changes what is logged.
pub struct LogFilter {
    set: Set,
}

impl LogFilter {
    /// Logs what `filter` lets through from here on. An error is the reason why it is none; what was logged is logged on.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        (self.set)(parse(filter)?)
    }
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogFilter").finish_non_exhaustive()
    }
}

/// Logs what `filter` lets through to standard error, which the journal stamps and a terminal colours.
///
/// An error is the reason why the filter is none, or that this program logs already.
pub fn log_to_stderr(filter: &str) -> Result<LogFilter, String> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parse(filter)?)
        .fmt_fields(CleanFields)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    let (set, done): (Set, _) = if std::env::var_os("JOURNAL_STREAM").is_some() {
        let builder = builder.without_time().with_filter_reloading();
        let handle = builder.reload_handle();
        (Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())), builder.finish().try_init())
    } else {
        let builder = builder.with_filter_reloading();
        let handle = builder.reload_handle();
        (Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())), builder.finish().try_init())
    };
    done.map_err(|error| error.to_string())?;
    Ok(LogFilter { set })
}

type Set = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

fn parse(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(filter).map_err(|error| error.to_string())
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
