//! From a request to what it asks for.

use std::net::{IpAddr, SocketAddr};

use axum::extract::Query;
use http::{Method, Uri};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::elsewhere;
use warren_core::types::{NodeId, NodePublic, UserId};
use warren_core::wire::local::{Mask, MaskedPrefs, PingKind, Prefs, StartOptions, WhyQuestion, dns_type, path};

/// What is asked of the agent.
pub enum Ask {
    /// The state of this node, with or without its peers.
    Status {
        /// Whether the peers are wanted.
        peers: bool,
    },
    /// Whose an address or a key is.
    WhoIs(Subject),
    /// The node of a number.
    Peer(NodeId),
    /// The user of a number.
    User(UserId),
    /// The preferences.
    Prefs,
    /// Change some preferences.
    EditPrefs(MaskedPrefs),
    /// Whether these preferences would be taken.
    CheckPrefs(Box<Prefs>),
    /// Start, with these preferences and this key.
    Start(StartOptions),
    /// Ask the coordinator for a page where a person lets this node in.
    Login,
    /// Leave the network.
    Logout,
    /// Tell of changes.
    Watch(Mask),
    /// Whether and how a peer answers.
    Ping(IpAddr, PingKind),
    /// What this host's network allows.
    Netcheck,
    /// How the connections to relays stand.
    Relays,
    /// Where the relays are.
    DerpMap,
    /// What the coordinator says of names.
    DnsConfig,
    /// The records of a name, of a type by its number.
    DnsQuery(String, u16),
    /// What of this host's resolver we have set.
    DnsOsConfig,
    /// Connect to a port of a node.
    Dial(String, u16),
    /// Everything that the coordinator has told.
    NetMap,
    /// Figures for a monitor: those that official clients have, or all.
    Metrics {
        /// Whether ours are wanted too.
        all: bool,
    },
    /// Write the agent's state into the log, with a mark and this note.
    BugReport(String),
    /// The state of the network's lock.
    LockStatus,
    /// What may be wanted of a client that is built without it.
    Features,
    /// Whether a host is set up for many packets.
    CheckGro,
    /// The domains that certificates can be had for.
    CertDomains,
    /// What this node serves to others: nothing yet.
    ServeConfig,
    /// The present login profile.
    Profile,
    /// All login profiles.
    Profiles,
    /// The steps that would be done.
    Plan,
    /// What is wrong.
    Health,
    /// Wait until the kernel holds the whole wish.
    Settled,
    /// The faults, once the disk holds what it should or could not be made to.
    Kept,
    /// Who may open what here.
    Acl,
    /// Why a packet passes or does not.
    Why(WhyQuestion),
    /// Which program this is.
    Version,
}

/// What `whois` asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// An overlay address.
    Address(IpAddr),
    /// A node key.
    Key(NodePublic),
}

/// Why a request is not served.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text}")]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The reason, for people.
    pub text: String,
}

impl Refusal {
    /// Puts the two together.
    pub fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

impl Ask {
    /// Whether answering it changes anything or tells everything, so that not everybody may ask.
    pub fn changes(&self) -> bool {
        match self {
            Self::EditPrefs(_) | Self::CheckPrefs(_) | Self::Start(_) | Self::Login | Self::Logout => true,
            // It holds all there is; the official agent asks for as much.
            Self::NetMap => true,
            _ => false,
        }
    }
}

/// Prints the name only: a start may carry a key.
impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.changes() { "change" } else { "question" })
    }
}

/// What a request asks for.
pub fn route(method: &Method, uri: &Uri, body: &[u8]) -> Result<Ask, Refusal> {
    if let Some(call) = uri.path().strip_prefix(path::TAILSCALE) {
        return tailscale(method, call, uri, body);
    }
    match (uri.path().strip_prefix(path::WARREN), method) {
        (Some("plan"), &Method::GET) => Ok(Ask::Plan),
        (Some("health"), &Method::GET) => Ok(Ask::Health),
        (Some("settled"), &Method::GET) => Ok(Ask::Settled),
        (Some("kept"), &Method::GET) => Ok(Ask::Kept),
        (Some("version"), &Method::GET) => Ok(Ask::Version),
        (Some("netcheck"), &Method::GET) => Ok(Ask::Netcheck),
        (Some("relays"), &Method::GET) => Ok(Ask::Relays),
        (Some("acl"), &Method::GET) => Ok(Ask::Acl),
        (Some("why"), &Method::GET) => Ok(Ask::Why(query(uri)?)),
        (Some("plan" | "health" | "settled" | "kept" | "version" | "netcheck" | "relays" | "acl" | "why"), _) => {
            Err(wants("GET"))
        }
        _ => Err(Refusal::new(404, format!("no call {}", uri.path()))),
    }
}

fn tailscale(method: &Method, call: &str, uri: &Uri, body: &[u8]) -> Result<Ask, Refusal> {
    let wanted = match call {
        "prefs" if *method == Method::PATCH => Method::PATCH,
        "check-prefs" | "start" | "login-interactive" | "logout" | "ping" | "bugreport" | "debug" => Method::POST,
        "status"
        | "whois"
        | "peer-by-id"
        | "user-profile"
        | "prefs"
        | "watch-ipn-bus"
        | "derpmap"
        | "dns-config"
        | "dns-query"
        | "dns-osconfig"
        | "usermetrics"
        | "metrics"
        | "tka/status"
        | "optional-features"
        | "check-udp-gro-forwarding"
        | "cert-domains"
        | "serve-config"
        | "profiles/current"
        | "profiles/" => Method::GET,
        _ => {
            let unknown = || Refusal::new(404, format!("no call {}{call}", path::TAILSCALE));
            return Err(elsewhere::refusal(call).unwrap_or_else(unknown));
        }
    };
    // Clients ask for features in either way.
    if *method != wanted && call != "optional-features" {
        return Err(wants(wanted.as_str()));
    }
    Ok(match call {
        "status" => Ask::Status { peers: flag(query::<Peers>(uri)?.peers.as_deref(), true) },
        "whois" => Ask::WhoIs(subject(&query::<WhoIs>(uri)?.addr)?),
        "peer-by-id" => Ask::Peer(NodeId(query::<Number>(uri)?.id)),
        "user-profile" => Ask::User(UserId(query::<Number>(uri)?.id)),
        "prefs" if wanted == Method::PATCH => Ask::EditPrefs(json(body)?),
        "prefs" => Ask::Prefs,
        "check-prefs" => Ask::CheckPrefs(json(body)?),
        "start" => Ask::Start(json(body)?),
        "login-interactive" => Ask::Login,
        "logout" => Ask::Logout,
        "watch-ipn-bus" => Ask::Watch(Mask(query::<Watch>(uri)?.mask)),
        "ping" => ping(&query(uri)?)?,
        "derpmap" => Ask::DerpMap,
        "dns-config" => Ask::DnsConfig,
        "dns-query" => dns_query(query(uri)?)?,
        "dns-osconfig" => Ask::DnsOsConfig,
        "usermetrics" => Ask::Metrics { all: false },
        "metrics" => Ask::Metrics { all: true },
        "bugreport" => Ask::BugReport(query::<Note>(uri)?.note.chars().take(NOTE_LEN).collect()),
        "debug" => debug(&query::<Debug>(uri)?.action)?,
        "tka/status" => Ask::LockStatus,
        "optional-features" => Ask::Features,
        "check-udp-gro-forwarding" => Ask::CheckGro,
        "cert-domains" => Ask::CertDomains,
        "serve-config" => Ask::ServeConfig,
        "profiles/current" => Ask::Profile,
        _ => Ask::Profiles,
    })
}

#[derive(Deserialize)]
struct Peers {
    peers: Option<String>,
}

#[derive(Deserialize)]
struct WhoIs {
    addr: String,
}

#[derive(Deserialize)]
struct Number {
    id: u64,
}

#[derive(Deserialize)]
struct Watch {
    #[serde(default)]
    mask: u64,
}

#[derive(Deserialize)]
struct Ping {
    ip: IpAddr,
    #[serde(default)]
    r#type: String,
}

#[derive(Deserialize)]
struct Note {
    #[serde(default)]
    note: String,
}

#[derive(Deserialize)]
struct Debug {
    #[serde(default)]
    action: String,
}

#[derive(Deserialize)]
struct DnsQuery {
    name: String,
    #[serde(default)]
    r#type: String,
}

fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Refusal> {
    Query::try_from_uri(uri).map(|Query(query)| query).map_err(|error| Refusal::new(400, error.body_text()))
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::new(400, format!("body: {error}")))
}

fn wants(method: &str) -> Refusal {
    Refusal::new(405, format!("use {method}"))
}

/// A boolean as Go reads one; anything else counts as not said.
fn flag(text: Option<&str>, default: bool) -> bool {
    match text {
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
        _ => default,
    }
}

/// Longer ones are nobody's remark on a fault.
const NOTE_LEN: usize = 1_024;

fn debug(action: &str) -> Result<Ask, Refusal> {
    match action {
        "current-netmap" => Ok(Ask::NetMap),
        "" => Err(Refusal::new(400, "no action")),
        _ => Err(Refusal::new(501, format!("this agent does not serve `debug` with the action `{action}`"))),
    }
}

/// The types that we have records of, and the question for all.
fn dns_query(asked: DnsQuery) -> Result<Ask, Refusal> {
    let kind = match asked.r#type.to_ascii_uppercase().as_str() {
        "" | "A" => dns_type::A,
        "AAAA" => dns_type::AAAA,
        "ALL" | "ANY" => dns_type::ANY,
        other => return Err(Refusal::new(501, format!("no records of type `{other}`: ask for A or AAAA"))),
    };
    Ok(Ask::DnsQuery(asked.name, kind))
}

fn ping(asked: &Ping) -> Result<Ask, Refusal> {
    let kind = PingKind::from_name(&asked.r#type);
    let kind =
        kind.ok_or_else(|| Refusal::new(400, format!("no ping of type `{}`; use disco or ICMP", asked.r#type)))?;
    Ok(Ask::Ping(asked.ip, kind))
}

fn subject(text: &str) -> Result<Subject, Refusal> {
    if let Ok(key) = text.parse() {
        return Ok(Subject::Key(key));
    }
    let address = text.parse::<SocketAddr>().map(|socket| socket.ip()).or_else(|_| text.parse());
    address.map(Subject::Address).map_err(|_| Refusal::new(400, format!("`{text}` is no address and no node key")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: Method, uri: &str, body: &str) -> Result<Ask, Refusal> {
        route(&method, &uri.parse().unwrap(), body.as_bytes())
    }

    fn refusal(method: Method, uri: &str, body: &str) -> Refusal {
        ask(method, uri, body).err().unwrap()
    }

    #[test]
    fn a_status_has_peers_unless_they_are_not_wanted() {
        for (uri, wanted) in [("", true), ("?peers=false", false), ("?peers=perhaps", true)] {
            let asked = ask(Method::GET, &format!("/localapi/v0/status{uri}"), "");
            assert!(matches!(asked, Ok(Ask::Status { peers }) if peers == wanted), "{uri}");
        }
    }

    #[test]
    fn whois_takes_an_address_an_address_with_a_port_and_a_key() {
        let key = "nodekey:8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
        for (text, subject) in [
            ("100.64.0.1", Subject::Address("100.64.0.1".parse().unwrap())),
            ("100.64.0.1%3A80", Subject::Address("100.64.0.1".parse().unwrap())),
            ("%5Bfd7a%3A115c%3Aa1e0%3A%3A1%5D%3A80", Subject::Address("fd7a:115c:a1e0::1".parse().unwrap())),
            (key, Subject::Key(key.parse().unwrap())),
        ] {
            let asked = ask(Method::GET, &format!("/localapi/v0/whois?addr={text}"), "");
            assert!(matches!(asked, Ok(Ask::WhoIs(found)) if found == subject), "{text}");
        }
        assert_eq!(refusal(Method::GET, "/localapi/v0/whois?addr=web", "").status, 400);
        assert_eq!(refusal(Method::GET, "/localapi/v0/whois", "").status, 400);
    }

    #[test]
    fn only_calls_that_change_something_need_an_operator() {
        for (method, uri, body, changes) in [
            (Method::GET, "/localapi/v0/prefs", "", false),
            (Method::PATCH, "/localapi/v0/prefs", "{}", true),
            (Method::POST, "/localapi/v0/start", "{}", true),
            (Method::POST, "/localapi/v0/login-interactive", "", true),
            (Method::POST, "/localapi/v0/logout", "", true),
            (Method::GET, "/localapi/v0/watch-ipn-bus?mask=2", "", false),
            (Method::GET, "/warren/v0/plan", "", false),
        ] {
            assert_eq!(ask(method, uri, body).unwrap().changes(), changes, "{uri}");
        }
    }

    #[test]
    fn a_wrong_method_a_broken_body_and_an_unknown_call_are_told_apart() {
        assert_eq!(refusal(Method::GET, "/localapi/v0/start", "").status, 405);
        assert_eq!(refusal(Method::DELETE, "/localapi/v0/prefs", "").status, 405);
        assert_eq!(refusal(Method::POST, "/warren/v0/plan", "").status, 405);
        assert_eq!(refusal(Method::PATCH, "/localapi/v0/prefs", "{").status, 400);
        assert_eq!(refusal(Method::GET, "/localapi/v0/no-such-call", "").status, 404);
        assert_eq!(refusal(Method::GET, "/etc/passwd", "").status, 404);
    }

    #[test]
    fn printing_a_question_never_prints_its_key() {
        let start = ask(Method::POST, "/localapi/v0/start", r#"{"AuthKey":"secret"}"#).unwrap();
        assert!(!format!("{start:?}").contains("secret"));
    }
}
