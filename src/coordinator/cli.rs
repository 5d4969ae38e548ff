//! The command line of `warren-coordinator`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand};
use serde_json::json;

use super::admin::{self, AuditArgs, KeyCommand, NodeCommand, RouteCommand, ServerKeyCommand, UserCommand};
use super::clock;
use super::config::{ConfigError, GlobalOptions, Options, Settings};
use super::policy_cli::PolicyCommand;
use super::reload::Reload;
use super::state_dir::StateDir;
use super::store::written_by_newer;
use super::{backup, doctor, serve};
use warren_core::types::Traffic;
use warren_core::types::text::Lines;
use warren_core::wire::admin::{NetworkRequest, Request};
use warren_shell::log_to_stderr;

/// It was refused, or failed.
const FAILED: u8 = 1;
/// The command line or the configuration is not understood; clap ends with the same number.
const USAGE: u8 = 2;

/// The coordination server of a Warren network
///
/// `serve` needs no configuration. Each option of `serve` may be a flag, an environment variable, or a key in the
/// configuration file (`cert` in the section `[tls]` for --tls-cert); a flag wins over a variable, a variable over the
/// file.
#[derive(Debug, Parser)]
#[command(name = "warren-coordinator", version)]
pub struct Cli {
    #[command(flatten)]
    places: GlobalOptions,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve(Box<Options>),
    /// Say how the server is, and the key by which nodes know it
    Status,
    /// Change the key by which nodes know the server
    #[command(subcommand)]
    ServerKey(ServerKeyCommand),
    /// Users, whom nodes belong to
    #[command(subcommand)]
    User(UserCommand),
    /// Keys that admit nodes without a person present
    #[command(subcommand)]
    Key(KeyCommand),
    /// Nodes, and machines that wait to become one
    #[command(subcommand)]
    Node(NodeCommand),
    /// Subnets that nodes route
    #[command(subcommand)]
    Route(RouteCommand),
    /// Policies: who may reach what
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Say whether the configuration and a database that is there can be used: 2 where not; takes the options of serve
    Check(Box<Options>),
    /// Print who changed what: users, keys, nodes, routes and policies, the newest changes last
    Audit(AuditArgs),
    /// Look at everything a server needs: files, clock, ports, certificate, the way of a node; takes the options of serve
    Doctor(Box<Options>),
    /// Write the whole state into one file: users, nodes, policies and keys
    Backup {
        /// The file
        file: PathBuf,
        /// Replace a file that is there
        #[arg(long)]
        force: bool,
    },
    /// Make the state of a backup the state of this server, which must not run
    Restore {
        /// The file
        file: PathBuf,
        /// Move a state that is there aside
        #[arg(long)]
        force: bool,
    },
    /// Make a part of the state anew that is lost for good
    #[command(group(clap::ArgGroup::new("part").required(true).multiple(true)))]
    Init {
        /// A network without users and nodes, for a server key that is there
        #[arg(long, group = "part")]
        empty_network: bool,
        /// A server key, for a database that is there
        #[arg(long, group = "part")]
        new_key: bool,
    },
    /// Say whether one node may reach another, by which line of the policy, or why not
    Why {
        /// Name, number or address of a node, or an address behind one
        from: String,
        /// The same of the other end
        to: String,
        /// A protocol and a port, as tcp/22, udp/53, icmp; a port alone is TCP [default: anything]
        #[arg(value_name = "PACKET")]
        traffic: Option<Traffic>,
    },
}

impl Cli {
    /// What was typed; where it makes no sense, the program ends and says so.
    pub fn read() -> Self {
        Self::try_parse().unwrap_or_else(|error| without_places(error).exit())
    }

    /// Does what was asked, and says so on the standard streams.
    pub fn run(self) -> ExitCode {
        let done = match self.command {
            Command::Serve(options) => return run_server(*options, self.places),
            Command::Status => administer(self.places, Request::Status, self.json),
            Command::ServerKey(command) => administer(self.places, command.into(), self.json),
            Command::User(command) => administer(self.places, command.into(), self.json),
            Command::Key(command) => administer(self.places, command.into(), self.json),
            Command::Node(NodeCommand::AddWireguard(device)) => {
                let (request, key) = device.request();
                with_socket(self.places, self.json, async |socket, json| {
                    admin::run_device(socket, &request, key.as_ref(), json).await
                })
            }
            Command::Node(command) => administer(self.places, command.into(), self.json),
            Command::Route(command) => administer(self.places, command.into(), self.json),
            Command::Policy(command) => match command.run(self.json) {
                Ok(Some(request)) => administer(self.places, request, self.json),
                Ok(None) => return ExitCode::SUCCESS,
                Err(error) => return failed(&error),
            },
            Command::Check(options) => return check(*options, self.places),
            Command::Audit(args) => administer(self.places, args.request(clock::now()), self.json),
            Command::Doctor(options) => return examine(*options, self.places, self.json),
            Command::Backup { file, force } => {
                keep(self.places, self.json, async |dir, socket| backup::backup(dir, socket, &file, force).await)
            }
            Command::Restore { file, force } => {
                keep(self.places, self.json, async |dir, socket| backup::restore(dir, socket, &file, force).await)
            }
            Command::Init { empty_network, new_key } => keep(self.places, self.json, async |dir, socket| {
                backup::init(dir, socket, empty_network, new_key).await
            }),
            Command::Why { from, to, traffic } => {
                let why = NetworkRequest::Why { from, to, traffic: traffic.unwrap_or_default() };
                administer(self.places, Request::Network(why), self.json)
            }
        };
        done.unwrap_or_else(|error| misconfigured(&error))
    }
}

/// A line of usage names what is given, from wherever it comes, as if it had to be. Where the state lies never has to.
fn without_places(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) {
        let usage = [" --config <FILE>", " --state-dir <DIR>", " --socket <PATH>"]
            .iter()
            .fold(usage.to_string(), |usage, place| usage.replace(place, ""));
        error.insert(ContextKind::Usage, ContextValue::StyledStr(usage.into()));
    }
    error
}

fn run_server(options: Options, places: GlobalOptions) -> ExitCode {
    let settings = match places.complete(options.clone()).and_then(Settings::of) {
        Ok(settings) => settings,
        Err(error) => return misconfigured(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };
    let log = match log_to_stderr(&settings.log.filter) {
        Ok(log) => log,
        Err(error) => return unusable("configuration: log", &error),
    };
    // Anything else that is wrong with it is said by those who open it.
    if let Ok(Some(newer)) = runtime.block_on(written_by_newer(&StateDir::new(&settings.state_dir).database())) {
        return unusable("database", &newer);
    }
    match runtime.block_on(serve::run(settings, Reload { options, places, log })) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn check(options: Options, places: GlobalOptions) -> ExitCode {
    let settings = match places.complete(options).and_then(Settings::of) {
        Ok(settings) => settings,
        Err(error) => return misconfigured(&error),
    };
    if let Err(error) = log_to_stderr(&settings.log.filter) {
        return unusable("configuration: log", &error);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };
    let database = StateDir::new(&settings.state_dir).database();
    let mut seen = "";
    if !matches!(database.try_exists(), Ok(false)) {
        match runtime.block_on(written_by_newer(&database)) {
            Ok(None) => seen = ", and so can the database",
            Ok(Some(newer)) => return unusable("database", &newer),
            Err(error) => eprintln!("warren-coordinator: not looked at: {}", Lines(error.to_string())),
        }
    }
    println!("warren-coordinator: the configuration can be used{}", Lines(seen));
    ExitCode::SUCCESS
}

fn examine(options: Options, places: GlobalOptions, json: bool) -> ExitCode {
    let settings = match places.complete(options).and_then(Settings::of) {
        Ok(settings) => settings,
        Err(error) => return misconfigured(&error),
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(doctor::run(&settings, json)),
        Err(error) => failed(&error.to_string()),
    }
}

/// Does something to the state as a whole, and says what.
fn keep(
    places: GlobalOptions,
    json: bool,
    work: impl AsyncFnOnce(&StateDir, &Path) -> Result<String, String>,
) -> Result<ExitCode, ConfigError> {
    let (dir, socket) = places.find()?;
    let dir = StateDir::new(&dir);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Ok(failed(&error.to_string())),
    };
    Ok(match runtime.block_on(work(&dir, &socket)) {
        Ok(done) if json => match admin::show(&format!("{}\n", json!({ "done": done })), true) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        },
        Ok(done) => {
            println!("{}", Lines(done));
            ExitCode::SUCCESS
        }
        Err(error) => refused(&error, json),
    })
}

fn administer(places: GlobalOptions, request: Request, json: bool) -> Result<ExitCode, ConfigError> {
    with_socket(places, json, async |socket, json| admin::run(socket, &request, json).await)
}

fn with_socket(
    places: GlobalOptions,
    json: bool,
    ask: impl AsyncFnOnce(&Path, bool) -> Result<(), String>,
) -> Result<ExitCode, ConfigError> {
    let (_, socket) = places.find()?;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Ok(failed(&error.to_string())),
    };
    Ok(match runtime.block_on(ask(&socket, json)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refused(&error, json),
    })
}

/// Where JSON is printed, so is a refusal; the sentence is said in each case.
fn refused(error: &str, json: bool) -> ExitCode {
    if json && let Err(closed) = admin::show(&format!("{}\n", json!({ "error": error })), true) {
        tracing::debug!("{closed}");
    }
    failed(error)
}

fn failed(error: &str) -> ExitCode {
    eprintln!("warren-coordinator: {}", Lines(error));
    ExitCode::from(FAILED)
}

fn unusable(what: &str, error: &str) -> ExitCode {
    eprintln!("warren-coordinator: {what}: {}", Lines(error));
    ExitCode::from(USAGE)
}

fn misconfigured(error: &ConfigError) -> ExitCode {
    eprintln!("warren-coordinator: {}", Lines(error));
    ExitCode::from(USAGE)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;

    const PAGE: &str = include_str!("../../packaging/man/warren-coordinator-operation.7");
    const OBJECTS: &[&str] = &["user", "key", "node", "route", "policy"];

    /// The table of the page: a command for each verb that an operator needs of each object, or why there is none.
    #[test]
    fn the_table_of_commands_names_those_there_are_and_all_of_them() {
        let table = PAGE.split(".TS\n").nth(1).and_then(|rest| rest.split(".TE").next()).unwrap();
        let rows: Vec<Vec<&str>> = table.lines().skip(1).map(|line| line.split('\t').collect()).collect();
        assert!(rows.len() > 30 && rows.iter().all(|row| row.len() == 3), "{rows:?}");
        let cells = rows.iter().map(|row| row[2]).filter(|cell| !cell.starts_with("\\- "));
        let named: BTreeSet<String> = cells
            .flat_map(|cell| cell.split(", "))
            .map(|command| command.replace("\\fB", "").replace("\\fR", ""))
            .collect();
        let cli = Cli::command();
        let objects = cli.get_subcommands().filter(|object| OBJECTS.contains(&object.get_name()));
        let there = objects.flat_map(|object| {
            let verbs = object.get_subcommands().map(clap::Command::get_name);
            verbs.map(move |verb| format!("{} {verb}", object.get_name()))
        });
        assert_eq!(named, there.collect());
    }
}
