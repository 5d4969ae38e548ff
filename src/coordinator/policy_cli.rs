//! `warren-coordinator policy check|test FILE`: what can be said of a policy without a server.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use serde_json::json;

use crate::policy::{Compiled, Policy, PolicyErrors, Topology, limit};

/// What to do with a policy file.
#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
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
    /// Prints that all is well, or gives back why it is not.
    pub(super) fn run(&self, json: bool) -> Result<(), String> {
        let (Self::Check { file } | Self::Test { file }) = self;
        let bytes = read(file).map_err(|error| format!("read {}: {error}", file.display()))?;
        let found = Policy::parse(&bytes).and_then(|policy| match self {
            Self::Check { .. } => Ok(()),
            Self::Test { .. } => {
                let topology = Topology::imagined(&policy);
                Compiled::new(Arc::new(policy), topology).check()
            }
        });
        match found {
            Ok(()) if json => println!("{}", json!({ "ok": true, "errors": [] })),
            Ok(()) => println!("{}: ok", file.display()),
            Err(errors) if json => {
                println!("{}", listed(&errors));
                return Err(format!("{} is refused", file.display()));
            }
            Err(errors) => return Err(format!("{} is refused\n{errors}", file.display())),
        }
        Ok(())
    }
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
