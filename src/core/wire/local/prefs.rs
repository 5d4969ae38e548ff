//! Preferences: what the operator of this machine wants, and partial changes to it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use super::limit;
use crate::types::{HostLabel, IpNet, bounded_vec, why_not_routed};

/// What the operator wants. The default is the protocol's zero; a new machine starts from [`Prefs::initial`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Prefs {
    #[serde(rename = "ControlURL")]
    pub control_url: String,
    /// Take the subnets that peers offer.
    pub route_all: bool,
    #[serde(rename = "ExitNodeID")]
    pub exit_node_id: String,
    #[serde(rename = "ExitNodeIP")]
    pub exit_node_ip: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub auto_exit_node: String,
    #[serde(rename = "ExitNodeAllowLANAccess")]
    pub exit_node_allow_lan_access: bool,
    #[serde(rename = "CorpDNS")]
    pub corp_dns: bool,
    #[serde(rename = "RunSSH")]
    pub run_ssh: bool,
    pub run_web_client: bool,
    pub want_running: bool,
    pub logged_out: bool,
    pub shields_up: bool,
    #[serde(deserialize_with = "bounded_vec::<_, _, { limit::TAGS }>")]
    pub advertise_tags: Vec<String>,
    /// Empty: what the machine calls itself.
    pub hostname: String,
    #[serde(rename = "NotepadURLs")]
    pub notepad_urls: bool,
    #[serde(deserialize_with = "bounded_vec::<_, _, { limit::ROUTES }>")]
    pub advertise_routes: Vec<IpNet>,
    #[serde(deserialize_with = "bounded_vec::<_, _, { limit::TAGS }>")]
    pub advertise_services: Vec<String>,
    /// A boolean, or absent.
    pub sync: Value,
    #[serde(rename = "NoSNAT")]
    pub no_snat: bool,
    /// A boolean, or absent.
    pub no_stateful_filtering: Value,
    /// 2 is "on"; the firewall is not optional here.
    pub netfilter_mode: i64,
    /// A local user who may change things without being root.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operator_user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub profile_name: String,
    pub auto_update: AutoUpdate,
    pub app_connector: AppConnector,
    pub posture_checking: bool,
    pub netfilter_kind: String,
    pub remote_config: bool,
    pub drive_shares: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay_server_port: Option<u16>,
    /// Where the protocol keeps a profile's keys; always null here.
    #[serde(skip_deserializing)]
    pub config: (),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AutoUpdate {
    pub check: bool,
    /// A boolean, or absent.
    pub apply: Value,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AppConnector {
    pub advertise: bool,
}

/// Why preferences are refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PrefsError {
    /// A field has a value of the wrong kind.
    #[error("preferences: {0}")]
    Malformed(String),
    /// A field asks for something that this agent does not do.
    #[error("{0}: not supported by this agent")]
    Unsupported(&'static str),
    /// A field has a value that cannot be used.
    #[error("{field}: {reason}")]
    Invalid { field: &'static str, reason: String },
}

/// A change to some preferences: fields `X`, each counted only where `XSet` is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MaskedPrefs(Map<String, Value>);

impl Prefs {
    /// What a new machine starts with.
    pub fn initial() -> Self {
        Self { corp_dns: true, netfilter_mode: 2, ..Self::default() }
    }

    /// Whether all that leaves this machine is to leave by a peer.
    pub fn wants_exit_node(&self) -> bool {
        !self.exit_node_id.is_empty() || !self.exit_node_ip.is_empty()
    }

    /// Whether this agent can do what the preferences say.
    pub fn check(&self) -> Result<(), PrefsError> {
        for (wanted, name) in [
            (self.run_ssh, "RunSSH"),
            (self.run_web_client, "RunWebClient"),
            (!self.auto_exit_node.is_empty(), "AutoExitNode"),
            (self.app_connector.advertise, "AppConnector"),
            (self.remote_config, "RemoteConfig"),
            (self.relay_server_port.is_some(), "RelayServerPort"),
            (!self.advertise_services.is_empty(), "AdvertiseServices"),
            (self.auto_update.apply == Value::Bool(true), "AutoUpdate"),
            (self.posture_checking, "PostureChecking"),
        ] {
            if wanted {
                return Err(PrefsError::Unsupported(name));
            }
        }
        let invalid = |field, reason: String| Err(PrefsError::Invalid { field, reason });
        if !self.control_url.is_empty() && !["http://", "https://"].iter().any(|s| self.control_url.starts_with(s)) {
            return invalid("coordinator", format!("`{}` does not begin with http:// or https://", self.control_url));
        }
        if !self.hostname.is_empty() && HostLabel::from_any(&self.hostname).is_none() {
            return invalid("Hostname", format!("nothing of `{}` can stand in a host name", self.hostname));
        }
        if !self.exit_node_ip.is_empty() && self.exit_node_ip.parse::<IpAddr>().is_err() {
            return invalid("ExitNodeIP", format!("`{}` is no address", self.exit_node_ip));
        }
        for tag in &self.advertise_tags {
            if let Err(reason) = check_tag(tag) {
                return invalid("AdvertiseTags", format!("`{tag}` {reason}"));
            }
        }
        for route in &self.advertise_routes {
            if *route != route.trunc() {
                return invalid("AdvertiseRoutes", format!("{route} has host bits, {} is meant?", route.trunc()));
            }
            if let Some(reason) = why_not_routed(route) {
                return invalid("AdvertiseRoutes", format!("{route} {reason}; no node can be a router of it"));
            }
        }
        Ok(())
    }
}

/// A tag is `tag:`, a letter, then letters, digits and hyphens.
fn check_tag(tag: &str) -> Result<(), &'static str> {
    let name = tag.strip_prefix("tag:").ok_or("does not begin with `tag:`")?;
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err("needs a letter after `tag:`");
    }
    if name.chars().any(|c| !c.is_ascii_alphanumeric() && c != '-') {
        return Err("is made of letters, digits and hyphens");
    }
    Ok(())
}

impl MaskedPrefs {
    /// Adds a change of one field, named as on the wire.
    pub fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.0.insert(field.to_owned(), value.into());
        self.0.insert(format!("{field}Set"), Value::Bool(true));
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        !self.0.iter().any(|(name, set)| name.ends_with("Set") && *set != Value::Bool(false))
    }

    /// The preferences with the change made. A field that is set but absent or null takes its zero.
    pub fn apply(&self, prefs: &Prefs) -> Result<Prefs, PrefsError> {
        let malformed = |error: serde_json::Error| PrefsError::Malformed(error.to_string());
        let mut whole = serde_json::to_value(prefs).map_err(malformed)?;
        edit(&mut whole, &self.0, &self.0);
        serde_json::from_value(whole).map_err(malformed)
    }
}

/// Copies the fields of `values` that `mask` names; a mask that is an object names fields of a nested one.
fn edit(target: &mut Value, values: &Map<String, Value>, mask: &Map<String, Value>) {
    let Value::Object(target) = target else { return };
    for (name, set) in mask {
        let Some(field) = name.strip_suffix("Set") else { continue };
        match (set, values.get(field)) {
            (Value::Bool(true), Some(value)) if !value.is_null() => {
                target.insert(field.to_owned(), value.clone());
            }
            (Value::Bool(true), _) => {
                target.remove(field);
            }
            (Value::Object(inner_mask), Some(Value::Object(inner))) => {
                edit(target.entry(field).or_insert_with(|| Map::new().into()), inner, inner_mask);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(json: &str) -> MaskedPrefs {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn only_fields_that_are_marked_as_set_change() {
        let before = Prefs { hostname: "old".into(), route_all: true, ..Prefs::initial() };
        let change = masked(r#"{"Hostname":"new","HostnameSet":true,"RouteAll":false,"ShieldsUp":true}"#);

        let after = change.apply(&before).unwrap();

        assert_eq!(after, Prefs { hostname: "new".into(), ..before });
    }

    #[test]
    fn a_set_field_that_is_absent_or_null_becomes_its_zero() {
        let before = Prefs {
            operator_user: "ada".into(),
            advertise_routes: vec!["10.0.0.0/8".parse().unwrap()],
            ..Prefs::initial()
        };
        let change = masked(r#"{"OperatorUserSet":true,"AdvertiseRoutes":null,"AdvertiseRoutesSet":true}"#);

        assert_eq!(change.apply(&before).unwrap(), Prefs::initial());
    }

    #[test]
    fn a_nested_field_changes_alone() {
        let change = masked(r#"{"AutoUpdate":{"Check":true,"Apply":true},"AutoUpdateSet":{"CheckSet":true}}"#);

        let after = change.apply(&Prefs::initial()).unwrap();

        assert_eq!(after.auto_update, AutoUpdate { check: true, apply: Value::Null });
    }

    #[test]
    fn a_change_of_the_wrong_kind_is_refused_with_its_reason() {
        let error = masked(r#"{"ShieldsUp":"yes","ShieldsUpSet":true}"#).apply(&Prefs::initial()).unwrap_err();
        assert!(error.to_string().contains("expected a boolean"), "{error}");
    }

    #[test]
    fn the_official_command_lines_preferences_are_read() {
        let json = r#"{"ControlURL":"http://c:8080","RouteAll":true,"ExitNodeID":"","ExitNodeIP":"",
            "InternalExitNodePrior":"","ExitNodeAllowLANAccess":false,"CorpDNS":true,"RunSSH":false,"WantRunning":true,
            "AdvertiseTags":null,"AdvertiseRoutes":["10.0.0.0/24"],"AdvertiseServices":null,"Sync":null,
            "NetfilterMode":2,"AutoUpdate":{"Check":false,"Apply":null},"AppConnector":{"Advertise":false},
            "DriveShares":null,"Config":null}"#;

        let prefs: Prefs = serde_json::from_str(json).unwrap();

        assert!(prefs.want_running && prefs.route_all && prefs.advertise_tags.is_empty());
        prefs.check().unwrap();
    }

    #[test]
    fn what_this_agent_does_not_do_is_refused_by_name() {
        let error = Prefs { run_ssh: true, ..Prefs::initial() }.check().unwrap_err();
        assert_eq!(error.to_string(), "RunSSH: not supported by this agent");
    }

    #[test]
    fn values_that_cannot_be_used_are_refused_with_field_and_reason() {
        for (prefs, text) in [
            (Prefs { control_url: "c:8080".into(), ..Prefs::initial() }, "coordinator: `c:8080` does not begin"),
            (Prefs { hostname: "日本".into(), ..Prefs::initial() }, "Hostname: nothing of"),
            (Prefs { advertise_tags: vec!["web".into()], ..Prefs::initial() }, "AdvertiseTags: `web` does not begin"),
            (Prefs { advertise_tags: vec!["tag:9".into()], ..Prefs::initial() }, "AdvertiseTags: `tag:9` needs"),
            (
                Prefs { advertise_routes: vec!["10.0.0.1/8".parse().unwrap()], ..Prefs::initial() },
                "AdvertiseRoutes: 10.0.0.1/8 has host bits, 10.0.0.0/8 is meant?",
            ),
            (
                Prefs { advertise_routes: vec!["100.64.0.0/10".parse().unwrap()], ..Prefs::initial() },
                "AdvertiseRoutes: 100.64.0.0/10 is inside the overlay itself",
            ),
            (
                Prefs { advertise_routes: vec!["127.0.0.0/8".parse().unwrap()], ..Prefs::initial() },
                "AdvertiseRoutes: 127.0.0.0/8 is of one host",
            ),
        ] {
            let error = prefs.check().unwrap_err().to_string();
            assert!(error.starts_with(text), "{error}");
        }
    }
}
