//! `warren-coordinator policy`: what can be said of a policy file without a server, and what goes to the server.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use serde_json::json;

use super::admin::show;
use warren_core::policy::{Compiled, Policy, PolicyErrors, Topology, limit};
use warren_core::wire::admin::{NetworkRequest, PolicyRequest, Request};

/// `policy …`
#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Print the policy in force, or an earlier version
    Get {
        /// The number of an earlier version
        #[arg(long)]
        version: Option<u64>,
    },
    /// Put a policy in force, if it is sound and passes its own tests
    Set {
        /// The file, or - for the standard input
        file: PathBuf,
        /// Only if this version is in force, so that nobody's change is lost; 0 where none was ever set
        #[arg(long, value_name = "N")]
        if_version: Option<u64>,
    },
    /// Say who would gain and who would lose what if a policy were set
    Diff {
        /// The file, or - for the standard input
        file: PathBuf,
    },
    /// Print the versions of the policy, who set them and when
    Versions,
    /// Put an earlier version in force again
    Restore {
        /// Its number
        version: u64,
        /// Only if this version is in force
        #[arg(long, value_name = "N")]
        if_version: Option<u64>,
    },
    /// Read a policy and say what is wrong with it, with line and column
    Check {
        /// The file, or - for the standard input
        file: PathBuf,
    },
    /// Check a policy, and run its tests against a made-up network of all users and tags it names
    Test {
        /// The file, or - for the standard input
        file: PathBuf,
    },
}

impl PolicyCommand {
    /// What to ask the server; or, where that needs none, does it and prints that all is well. The error says why
    /// it is not.
    pub(super) fn run(self, json: bool) -> Result<Option<Request>, String> {
        let request = match self {
            Self::Check { file } => return examine(&file, json, |_| Ok(())),
            Self::Test { file } => {
                return examine(&file, json, |policy| {
                    let topology = Topology::imagined(&policy);
                    Compiled::new(Arc::new(policy), topology).check()
                });
            }
            Self::Get { version } => PolicyRequest::Get { version },
            Self::Set { file, if_version } => PolicyRequest::Set { text: text(&file, json)?, by: author(), if_version },
            Self::Diff { file } => PolicyRequest::Diff { text: text(&file, json)? },
            Self::Versions => PolicyRequest::Versions,
            Self::Restore { version, if_version } => PolicyRequest::Restore { version, by: author(), if_version },
        };
        Ok(Some(Request::Network(NetworkRequest::Policy(request))))
    }
}

/// Says whether a policy file passes.
fn examine(
    file: &Path,
    json: bool,
    check: impl FnOnce(Policy) -> Result<(), PolicyErrors>,
) -> Result<Option<Request>, String> {
    let bytes = read(file).map_err(|error| format!("read {}: {error}", file.display()))?;
    Policy::parse(&bytes).and_then(check).map_err(|errors| refused(file, &errors, json))?;
    match json {
        true => show(&format!("{}\n", json!({ "ok": true, "errors": [] })), true)?,
        false => show(&format!("{}: ok\n", file.display()), false)?,
    }
    Ok(None)
}

/// The text of a policy file that can be read as one, so that what is wrong with it is said before anybody is asked.
fn text(file: &Path, json: bool) -> Result<String, String> {
    let bytes = read(file).map_err(|error| format!("read {}: {error}", file.display()))?;
    Policy::parse(&bytes).map_err(|errors| refused(file, &errors, json))?;
    String::from_utf8(bytes).map_err(|error| format!("read {}: {error}", file.display()))
}

fn refused(file: &Path, errors: &PolicyErrors, json: bool) -> String {
    if json {
        let shown = show(&format!("{}\n", listed(errors)), true);
        return shown.err().unwrap_or_else(|| format!("{} is refused", file.display()));
    }
    format!("{} is refused\n{errors}", file.display())
}

/// Who asks: behind sudo the person, not root.
fn author() -> String {
    let behind_sudo = std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty());
    let own = || nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name);
    behind_sudo.or_else(own).unwrap_or_else(|| format!("uid {}", nix::unistd::geteuid()))
}

/// The bytes of a file, one more than the limit at most: enough for the policy to refuse itself.
fn read(file: &Path) -> io::Result<Vec<u8>> {
    let most = u64::try_from(limit::TEXT.most).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        io::stdin().lock().take(most).read_to_end(&mut bytes)?;
    } else {
        fs::File::open(file)?.take(most).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn listed(errors: &PolicyErrors) -> serde_json::Value {
    let errors = errors.0.iter().map(|error| {
        json!({ "line": error.line, "column": error.column, "message": error.message, "details": error.details })
    });
    json!({ "ok": false, "errors": errors.collect::<Vec<_>>() })
}
