//! `doctor`: looks at everything that a server needs, from its files to how a node reaches it, and says what is wrong.

mod network;
mod state;

use std::process::ExitCode;

use serde::Serialize;

use super::config::Settings;
use warren_core::types::text::{Line, Lines};

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and may not for long, or not for all.
    Warning,
    /// It does not work.
    Failed,
}

/// What was looked at, and how it is.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    /// What was examined, as the table shows it.
    what: String,
    verdict: Verdict,
    /// In words, with what to do where something is wrong.
    text: String,
}

impl Finding {
    fn new(what: impl Into<String>, verdict: Verdict, text: impl Into<String>) -> Self {
        Self { what: what.into(), verdict, text: text.into() }
    }

    fn ok(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(what, Verdict::Ok, text)
    }

    fn warning(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(what, Verdict::Warning, text)
    }

    fn failed(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(what, Verdict::Failed, text)
    }
}

/// Looks, prints, and ends with 1 where something does not work.
pub(crate) async fn run(settings: &Settings, json: bool) -> ExitCode {
    let is_running = tokio::net::UnixStream::connect(&settings.socket).await.is_ok();
    let mut findings = vec![match is_running {
        true => Finding::ok("server", format!("it runs and serves {}", settings.socket.display())),
        false => Finding::warning(
            "server",
            format!("none runs on {}: what needs one is not tried", settings.socket.display()),
        ),
    }];
    findings.extend(state::look(settings, is_running).await);
    findings.extend(network::look(settings, is_running).await);
    let text = if json { as_json(&findings) } else { as_table(&findings) };
    print!("{}", Lines(text));
    match findings.iter().any(|finding| finding.verdict == Verdict::Failed) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

fn as_json(findings: &[Finding]) -> String {
    serde_json::to_string_pretty(findings).unwrap_or_default() + "\n"
}

fn as_table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or_default();
    let line = |finding: &Finding| {
        let mark = match finding.verdict {
            Verdict::Ok => "ok     ",
            Verdict::Warning => "WARNING",
            Verdict::Failed => "FAILED ",
        };
        format!("{mark}  {:width$}  {}\n", finding.what, Line(&finding.text))
    };
    findings.iter().map(line).collect()
}
