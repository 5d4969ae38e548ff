//! The command line: commands and their output, as text and as JSON.
//!
//! Each command is a few questions to the agent's socket ([`Client`]) and a text made of the answers. Flags are spelled
//! as Tailscale's users know them. Exit status: see [`Exit`].

mod args;
mod client;
mod derp_map;
mod dns;
mod exit_node;
mod login;
mod netcheck;
mod ping;
mod render;
mod settings;
mod why;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use thiserror::Error;

pub use args::{Args, Command};
pub use client::Client;

use warren_core::types::text::{Line, Screen};
use warren_core::wire::local::{HealthReply, MaskedPrefs, PlanReply, Status, VersionReply};

/// How a command ends; the numbers are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what was asked.
    Ok = 0,
    /// It could not do it.
    Failed = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// The agent does not answer.
    NoAgent = 3,
    /// It took longer than `--timeout`.
    Timeout = 4,
}

/// Why a command failed, in a line.
#[derive(Debug, Error)]
pub enum Error {
    /// The socket leads nowhere.
    #[error(
        "no answer at {socket}: {reason}; start the agent with `systemctl start warrend`, or name its socket with --socket"
    )]
    NoAgent {
        /// The path that was tried.
        socket: String,
        /// What the system said.
        reason: String,
    },
    /// The connection broke, or the answer makes no sense.
    #[error("{call}: {reason}")]
    Broken {
        /// Method and path.
        call: String,
        reason: String,
    },
    /// The agent says no.
    #[error("{text}{}", hint(*status))]
    Refused {
        status: u16,
        /// What the agent says, in a sentence.
        text: String,
    },
    /// A file named by a flag cannot be read, or a flag has no usable value.
    #[error("{0}")]
    Usage(String),
    /// Something that was waited for did not come.
    #[error("{0}")]
    Timeout(String),
    /// The agent reports that it cannot get there.
    #[error("{0}")]
    Failed(String),
    /// The output cannot be written.
    #[error("write the output: {0}")]
    Output(#[from] std::io::Error),
}

fn hint(status: u16) -> &'static str {
    if status == 403 { "; use sudo, or join the group that may change things" } else { "" }
}

impl Error {
    /// The exit status that goes with it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoAgent { .. } => Exit::NoAgent,
            Self::Usage(_) => Exit::Usage,
            Self::Timeout(_) => Exit::Timeout,
            Self::Broken { .. } | Self::Refused { .. } | Self::Failed(_) | Self::Output(_) => Exit::Failed,
        }
    }

    /// Whether the reader of our output has gone (`warren status | head -1`): nobody wants to hear of it.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Carries out a command; what it has to say goes to `out`, clean for a terminal.
pub async fn run(args: Args, out: &mut (impl Write + Send)) -> Result<Exit, Error> {
    let client = Client::new(&args.socket);
    let json = args.json;
    let out = &mut Screen::new(out, json);
    match args.command {
        Command::Up(up) => login::up(&client, up, json, out).await,
        Command::Login(login) => login::login(&client, login, json, out).await,
        Command::Logout => {
            client.post("logout", &()).await?;
            settled(&client, json, out).await
        }
        Command::RotateKeys => {
            client.post_own("rotate-keys").await?;
            settled(&client, json, out).await
        }
        Command::Down => {
            let mut change = MaskedPrefs::default();
            change.set("WantRunning", false);
            client.edit_prefs(&change).await?;
            settled(&client, json, out).await
        }
        Command::Dns(asked) => dns::dns(&client, asked, json, out).await,
        Command::Set(settings) => {
            let mut change = settings.change()?;
            exit_node::choose(&client, settings.exit_node.as_deref(), &mut change).await?;
            if change.is_empty() {
                return Err(Error::Usage("nothing to set; `warren set --help` lists what there is".to_owned()));
            }
            let prefs = client.edit_prefs(&change).await?;
            // A disk that cannot be written is told at once, also where the kernel does not get there.
            kept(&client).await?;
            if !held(&client).await?.warren.converged {
                eprintln!("warren: it is set; {}", Line(NOT_HELD));
            }
            if json { print_json(out, &prefs) } else { Ok(Exit::Ok) }
        }
        Command::Status(wanted) => {
            let status = client.status(!wanted.no_peers).await?;
            if json { print_json(out, &wanted.filter(status)) } else { render::status(out, &wanted.filter(status)) }
        }
        Command::Ip(ip) => render::ip(out, &client.status(true).await?, &ip, json),
        Command::Plan => {
            let plan: PlanReply = client.own("plan").await?;
            if json { print_json(out, &plan) } else { render::plan(out, &plan) }
        }
        Command::Ping(wanted) => ping::ping(&client, &wanted, json, out).await,
        Command::Netcheck => netcheck::netcheck(&client, json, out).await,
        Command::DerpMap(wanted) => derp_map::derp_map(&client, &wanted, json, out).await,
        Command::Acl => why::acl(&client, json, out).await,
        Command::Why(wanted) => why::why(&client, &wanted, json, out).await,
        Command::Version => version(&client, json, out).await,
    }
}

const NOT_HELD: &str =
    "the kernel does not hold it yet; `warren plan` lists what is left, `warren status` what is wrong";
/// How long a wait goes without a word.
const QUIET: Duration = Duration::from_secs(1);

/// How things are once the kernel holds the wish, or was waited for long enough; a longer wait is said.
async fn held(client: &Client) -> Result<Status, Error> {
    let mut waiting = std::pin::pin!(client.own("settled"));
    if let Ok(status) = tokio::time::timeout(QUIET, waiting.as_mut()).await {
        return status;
    }
    eprintln!("warren: waiting for the kernel to hold it");
    waiting.await
}

/// Waits until the kernel holds the wish, and says so.
async fn settled(client: &Client, json: bool, out: &mut (impl Write + Send)) -> Result<Exit, Error> {
    let status = held(client).await?;
    if !status.warren.converged {
        return Err(Error::Failed(NOT_HELD.to_owned()));
    }
    kept(client).await?;
    if json {
        return print_json(out, &serde_json::json!({ "BackendState": status.backend_state }));
    }
    Ok(Exit::Ok)
}

/// Whether what was done is on disk as well, and outlives a restart.
async fn kept(client: &Client) -> Result<(), Error> {
    let health: HealthReply = client.own("kept").await?;
    match health.entries.into_iter().find(|entry| entry.code.starts_with("state:")) {
        Some(entry) => Err(Error::Failed(format!("done, but only until the agent starts again: {}", entry.text))),
        None => Ok(()),
    }
}

async fn version(client: &Client, json: bool, out: &mut (impl Write + Send)) -> Result<Exit, Error> {
    let agent: Option<VersionReply> = client.own("version").await.ok();
    let agent = agent.map(|agent| agent.version);
    if json {
        return print_json(out, &serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "agent": agent }));
    }
    writeln!(out, "warren {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(out, "  agent: {}", agent.as_deref().unwrap_or("not running"))?;
    Ok(Exit::Ok)
}

fn print_json(out: &mut impl Write, value: &impl serde::Serialize) -> Result<Exit, Error> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(Exit::Ok)
}
