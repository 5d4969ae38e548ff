//! Commands and their flags.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as Arguments, Parser, Subcommand};

use super::dns::Dns;
use super::settings::Settings;
use super::why::Why;
use warren_core::types::{Fingerprint, parse_duration};
use warren_core::wire::local::{PingKind, Status, path};

/// Talk to the Warren agent of this machine.
///
/// Exit status: 0 done, 1 failed, 2 wrong arguments, 3 the agent does not answer, 4 timed out.
#[derive(Debug, Parser)]
#[command(name = "warren", version, max_term_width = 100)]
pub struct Args {
    /// The agent's socket
    #[arg(long, env = "WARREN_SOCKET", value_name = "PATH", default_value = path::SOCKET, global = true)]
    pub socket: PathBuf,

    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join the network, or come back to it; settings that are not named stay as they are
    Up(Up),
    /// Leave the network for now; `warren up` comes back
    Down,
    /// Show this machine and its peers
    Status(StatusWanted),
    /// Print overlay addresses, of this machine or of a peer
    Ip(Ip),
    /// Change settings
    Set(Settings),
    /// Sign this machine in anew
    Login(Login),
    /// Sign this machine out: its key is expired and forgotten
    Logout,
    /// Give this machine another node key; nothing that is under way is lost
    RotateKeys,
    /// Ask a peer to answer, and tell which way the answer came
    Ping(Ping),
    /// Look at this machine's network: UDP, addresses, NAT, port mapping, and how far the relays are
    Netcheck,
    /// List the relays, and how the connections to them stand
    DerpMap(DerpMap),
    /// Tell how this machine resolves names
    #[command(subcommand)]
    Dns(Dns),
    /// List who may open what here, with counters
    Acl,
    /// Tell whether a packet passes this machine's filter, and which line of the policy decides
    Why(Why),
    /// Print what the agent would change in the kernel at this moment
    Plan,
    /// Print the version of this program and of the agent
    Version,
}

/// The flags of `up`.
#[derive(Debug, Default, Arguments)]
pub struct Up {
    /// How to sign in
    #[command(flatten)]
    pub sign_in: SignIn,
    /// Settings to change on the way
    #[command(flatten)]
    pub settings: Settings,
    /// Put settings that are not named back to their defaults
    #[arg(long)]
    pub reset: bool,
    /// Sign in anew, even if the machine is known
    #[arg(long)]
    pub force_reauth: bool,
}

/// The flags of `login`.
#[derive(Debug, Default, Arguments)]
pub struct Login {
    /// How to sign in
    #[command(flatten)]
    pub sign_in: SignIn,
    /// Settings to change on the way
    #[command(flatten)]
    pub settings: Settings,
}

/// How to sign in.
#[derive(Default, Arguments)]
pub struct SignIn {
    /// The coordinator's address
    #[arg(long, visible_alias = "login-server", env = "WARREN_COORDINATOR", value_name = "URL")]
    pub coordinator: Option<String>,
    /// The coordinator's key, as `warren-coordinator key create` prints it: no other server is talked to. Over https, any
    /// certificate will do then
    #[arg(long, env = "WARREN_COORDINATOR_KEY", value_name = "KEY")]
    pub coordinator_key: Option<Fingerprint>,
    /// A key that lets this machine in; `file:PATH` reads it from a file
    #[arg(long, visible_alias = "authkey", env = "WARREN_AUTH_KEY", hide_env_values = true, value_name = "KEY")]
    pub auth_key: Option<String>,
    /// How long to wait until the machine is in; without this, for ever
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

/// The key is a secret.
impl std::fmt::Debug for SignIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignIn").field("coordinator", &self.coordinator).finish_non_exhaustive()
    }
}

/// The flags of `status`.
#[derive(Debug, Default, Arguments)]
pub struct StatusWanted {
    /// Only peers with a tunnel in use
    #[arg(long)]
    pub active: bool,
    /// Only this machine
    #[arg(long)]
    pub no_peers: bool,
}

impl StatusWanted {
    /// Leaves out what was not asked for.
    pub fn filter(&self, mut status: Status) -> Status {
        if self.active {
            status.peer.retain(|_, peer| peer.active);
        }
        status
    }
}

/// The flags of `ip`.
#[derive(Debug, Default, Arguments)]
pub struct Ip {
    /// Only the IPv4 address
    #[arg(short = '4', long = "4", conflicts_with = "v6")]
    pub v4: bool,
    /// Only the IPv6 address
    #[arg(short = '6', long = "6")]
    pub v6: bool,
    /// Only one address
    #[arg(short = '1', long = "1")]
    pub one: bool,
    /// A peer's name or address; without it, this machine
    pub peer: Option<String>,
}

/// The flags of `derp-map`.
#[derive(Debug, Default, Arguments)]
pub struct DerpMap {
    /// Print what passed through relays instead, and what was lost, by reason
    #[arg(long)]
    pub counters: bool,
}

/// The flags of `ping`.
#[derive(Debug, Arguments)]
pub struct Ping {
    /// The peer's name or overlay address
    pub node: String,
    /// Stop once the answer comes directly, and fail where it never does
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub until_direct: bool,
    /// How many pings are sent at most; 0 for any number
    #[arg(short = 'c', long = "count", visible_alias = "c", value_name = "COUNT", default_value_t = 10)]
    pub count: u32,
    /// How long to wait for each answer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// `disco` probes the paths outside the tunnel, `icmp` goes through it
    #[arg(long = "type", value_name = "TYPE", default_value = "disco", value_parser = parse_kind)]
    pub kind: PingKind,
}

fn parse_kind(text: &str) -> Result<PingKind, String> {
    PingKind::from_name(text).ok_or_else(|| "the types are disco and icmp".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_commands_are_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_are_taken_as_tailscales_users_write_them() {
        let args = Args::try_parse_from([
            "warren",
            "up",
            "--login-server=http://c:8080",
            "--authkey",
            "k",
            "--accept-routes",
            "--shields-up=false",
            "--advertise-tags=tag:web",
            "--timeout=30s",
        ])
        .unwrap();

        let Command::Up(up) = args.command else { unreachable!("the command is `up`") };
        assert_eq!(up.sign_in.coordinator.as_deref(), Some("http://c:8080"));
        assert_eq!(up.sign_in.auth_key.as_deref(), Some("k"));
        assert_eq!(up.sign_in.timeout, Some(Duration::from_secs(30)));
        assert_eq!((up.settings.accept_routes, up.settings.shields_up), (Some(true), Some(false)));
    }

    #[test]
    fn printing_the_arguments_never_prints_the_key() {
        let args = Args::try_parse_from(["warren", "up", "--auth-key=secret"]).unwrap();
        assert!(!format!("{args:?}").contains("secret"));
    }
}
