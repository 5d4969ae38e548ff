//! How the agent is started: flags, each with an environment variable beside it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::firewall_flags::FirewallFlags;
use warren_core::plan::own;
use warren_core::types::{IpNet, parse_duration};
use warren_core::wire::local::path;

/// The Warren agent: joins this machine to a network and keeps the kernel as the coordinator's map says.
#[derive(Clone, Debug, Parser)]
#[command(name = "warrend", version, max_term_width = 100)]
pub struct Config {
    /// Where keys, preferences and the last map are kept
    #[arg(long, env = "WARREN_STATE_DIR", value_name = "DIR", default_value = "/var/lib/warren")]
    pub state_dir: PathBuf,

    /// The socket that `warren` talks to
    #[arg(long, env = "WARREN_SOCKET", value_name = "PATH", default_value = path::SOCKET)]
    pub socket: PathBuf,

    /// Members of this group may change things; everybody may look
    #[arg(long, env = "WARREN_OPERATOR_GROUP", value_name = "GROUP", default_value = "warren")]
    pub operator_group: String,

    /// The UDP port of the tunnel
    #[arg(long, env = "WARREN_PORT", value_name = "PORT", default_value_t = own::LISTEN_PORT,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    /// An address and port at which others reach this machine's tunnel, beside those that are found: a port that
    /// somebody forwards to it
    #[arg(long = "endpoint", env = "WARREN_ENDPOINT", value_name = "ADDRESS:PORT", value_delimiter = ',')]
    pub endpoints: Vec<SocketAddr>,

    /// Networks that stay this machine's own although peers' addresses or subnets lie around them, and although it has
    /// neither an address in them nor a route to them: a cloud's metadata service, pods behind the default route
    #[arg(long, env = "WARREN_KEEP_LOCAL", value_name = "PREFIX", value_delimiter = ',')]
    pub keep_local: Vec<IpNet>,

    /// Close the network when the coordinator has confirmed no map for this long (90s, 36h, 7d); without this a
    /// machine stays on its last map, and says how old it is
    #[arg(long, env = "WARREN_MAX_MAP_AGE", value_name = "TIME", value_parser = parse_duration)]
    pub max_map_age: Option<Duration>,

    /// Let the subnets of --accept-routes carry packets to this host's name servers, for hosts whose name servers are
    /// behind a peer; without this the way to a name server stays as it is
    #[arg(long, env = "WARREN_ROUTE_RESOLVERS")]
    pub route_resolvers: bool,

    /// The socket of what tells this host's resolver of the network's names; empty where nothing should
    #[arg(long, env = "WARREN_DNS_SOCKET", value_name = "PATH", default_value = "/run/warren-dns/socket")]
    pub dns_socket: String,

    /// How the firewall is to be
    #[command(flatten)]
    pub firewall: FirewallFlags,

    /// What is logged: a level (error, warn, info, debug, trace), or levels by module
    #[arg(long, env = "WARREN_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// Remove everything of ours from the kernel, and exit
    #[arg(long)]
    pub cleanup: bool,

    /// Tell this host's resolver of names for an agent, as root: on the socket that is standard input, or at --dns-socket
    #[arg(long, conflicts_with_all = ["cleanup", "check"])]
    pub dns_helper: bool,

    /// Say whether these settings, and the state that is there, can be used, and exit: 2 where they cannot
    #[arg(long, conflicts_with = "cleanup")]
    pub check: bool,
}

impl Config {
    /// Where whoever tells this host's resolver listens.
    pub(super) fn dns_helper_socket(&self) -> Option<PathBuf> {
        Some(&self.dns_socket).filter(|socket| !socket.is_empty()).map(PathBuf::from)
    }

    /// Reads the arguments and the environment. The error is what to print, and the exit status.
    pub fn read(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self, (String, u8)> {
        Self::try_parse_from(arguments)
            .map_err(|error| if error.use_stderr() { (one_line(&error), 2) } else { (error.to_string(), 0) })
    }
}

/// The first paragraph of clap's message, in a line.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    format!("warrend: {}", words.join(" ").trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Config, (String, u8)> {
        Config::read(std::iter::once("warrend").chain(arguments.iter().copied()).map(Into::into))
    }

    #[test]
    fn without_arguments_everything_has_its_place() {
        let config = read(&[]).unwrap();
        assert_eq!(config.state_dir, PathBuf::from("/var/lib/warren"));
        assert_eq!(config.socket, PathBuf::from("/run/warren/warrend.sock"));
        assert_eq!(config.port, own::LISTEN_PORT);
        assert_eq!(config.max_map_age, None);
        assert_eq!(config.firewall, FirewallFlags::default());
    }

    #[test]
    fn what_is_malformed_is_one_line_with_key_and_reason_and_status_2() {
        for (arguments, line) in [
            (&["--port", "0"][..], "warrend: invalid value '0' for '--port <PORT>': 0 is not in 1..=65535"),
            (
                &["--max-map-age", "soon"],
                "warrend: invalid value 'soon' for '--max-map-age <TIME>': `soon` is not a length of time such as 90s, \
                 15m, 36h or 7d",
            ),
            (&["--nonsense"], "warrend: unexpected argument '--nonsense' found"),
        ] {
            assert_eq!(read(arguments).unwrap_err(), (line.to_owned(), 2));
        }
    }

    #[test]
    fn denials_are_logged_to_our_group_or_another() {
        assert_eq!(read(&["--log-denied"]).unwrap().firewall.log_denied, Some(5741));
        assert_eq!(read(&["--log-denied=7"]).unwrap().firewall.log_denied, Some(7));
    }

    #[test]
    fn settings_can_be_tried_before_they_are_used() {
        assert!(read(&["--check", "--port", "7"]).unwrap().check);
        assert_eq!(read(&["--check", "--port", "0"]).unwrap_err().1, 2);
        assert_eq!(read(&["--check", "--cleanup"]).unwrap_err().1, 2);
    }

    #[test]
    fn help_is_no_error() {
        assert_eq!(read(&["--help"]).unwrap_err().1, 0);
    }
}
