//! From a request to what it asks for.

use std::net::{IpAddr, SocketAddr};

use axum::extract::Query;
use http::{Method, Uri};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::elsewhere;
use warren_core::node::{Refusal, Request, Subject};
use warren_core::types::{NodeId, UserId};
use warren_core::wire::local::{Mask, PingKind, dns_type, path};

/// What a request asks for.
pub fn route(method: &Method, uri: &Uri, body: &[u8]) -> Result<Request, Refusal> {
    if let Some(call) = uri.path().strip_prefix(path::TAILSCALE) {
        return tailscale(method, call, uri, body);
    }
    match (uri.path().strip_prefix(path::WARREN), method) {
        (Some("plan"), &Method::GET) => Ok(Request::Plan),
        (Some("health"), &Method::GET) => Ok(Request::Health),
        (Some("settled"), &Method::GET) => Ok(Request::Settled),
        (Some("kept"), &Method::GET) => Ok(Request::Kept),
        (Some("version"), &Method::GET) => Ok(Request::Version),
        (Some("netcheck"), &Method::GET) => Ok(Request::Netcheck),
        (Some("relays"), &Method::GET) => Ok(Request::Relays),
        (Some("acl"), &Method::GET) => Ok(Request::Acl),
        (Some("why"), &Method::GET) => Ok(Request::Why(query(uri)?)),
        (Some("plan" | "health" | "settled" | "kept" | "version" | "netcheck" | "relays" | "acl" | "why"), _) => {
            Err(wants("GET"))
        }
        _ => Err(Refusal::new(404, format!("no call {}", uri.path()))),
    }
}

fn tailscale(method: &Method, call: &str, uri: &Uri, body: &[u8]) -> Result<Request, Refusal> {
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
        "status" => Request::Status { peers: flag(query::<Peers>(uri)?.peers.as_deref(), true) },
        "whois" => Request::WhoIs(subject(&query::<WhoIs>(uri)?.addr)?),
        "peer-by-id" => Request::Peer(NodeId(query::<Number>(uri)?.id)),
        "user-profile" => Request::User(UserId(query::<Number>(uri)?.id)),
        "prefs" if wanted == Method::PATCH => Request::EditPrefs(json(body)?),
        "prefs" => Request::Prefs,
        "check-prefs" => Request::CheckPrefs(json(body)?),
        "start" => Request::Start(json(body)?),
        "login-interactive" => Request::Login,
        "logout" => Request::Logout,
        "watch-ipn-bus" => Request::Watch(Mask(query::<Watch>(uri)?.mask)),
        "ping" => ping(&query(uri)?)?,
        "derpmap" => Request::DerpMap,
        "dns-config" => Request::DnsConfig,
        "dns-query" => dns_query(query(uri)?)?,
        "dns-osconfig" => Request::DnsOsConfig,
        "usermetrics" => Request::Metrics { all: false },
        "metrics" => Request::Metrics { all: true },
        "bugreport" => Request::BugReport(query::<Note>(uri)?.note.chars().take(NOTE_LEN).collect()),
        "debug" => debug(&query::<Debug>(uri)?.action)?,
        "tka/status" => Request::LockStatus,
        "optional-features" => Request::Features,
        "check-udp-gro-forwarding" => Request::CheckGro,
        "cert-domains" => Request::CertDomains,
        "serve-config" => Request::ServeConfig,
        "profiles/current" => Request::Profile,
        _ => Request::Profiles,
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

fn debug(action: &str) -> Result<Request, Refusal> {
    match action {
        "current-netmap" => Ok(Request::NetMap),
        "" => Err(Refusal::new(400, "no action")),
        _ => Err(Refusal::new(501, format!("this agent does not serve `debug` with the action `{action}`"))),
    }
}

/// The types that we have records of, and the question for all.
fn dns_query(asked: DnsQuery) -> Result<Request, Refusal> {
    let kind = match asked.r#type.to_ascii_uppercase().as_str() {
        "" | "A" => dns_type::A,
        "AAAA" => dns_type::AAAA,
        "ALL" | "ANY" => dns_type::ANY,
        other => return Err(Refusal::new(501, format!("no records of type `{other}`: ask for A or AAAA"))),
    };
    Ok(Request::DnsQuery(asked.name, kind))
}

fn ping(asked: &Ping) -> Result<Request, Refusal> {
    let kind = PingKind::from_name(&asked.r#type);
    let kind =
        kind.ok_or_else(|| Refusal::new(400, format!("no ping of type `{}`; use disco or ICMP", asked.r#type)))?;
    Ok(Request::Ping(asked.ip, kind))
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

    fn ask(method: Method, uri: &str, body: &str) -> Result<Request, Refusal> {
        route(&method, &uri.parse().unwrap(), body.as_bytes())
    }

    fn refusal(method: Method, uri: &str, body: &str) -> Refusal {
        ask(method, uri, body).err().unwrap()
    }

    #[test]
    fn a_status_has_peers_unless_they_are_not_wanted() {
        for (uri, wanted) in [("", true), ("?peers=false", false), ("?peers=perhaps", true)] {
            let asked = ask(Method::GET, &format!("/localapi/v0/status{uri}"), "");
            assert!(matches!(asked, Ok(Request::Status { peers }) if peers == wanted), "{uri}");
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
            assert!(matches!(asked, Ok(Request::WhoIs(found)) if found == subject), "{text}");
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
