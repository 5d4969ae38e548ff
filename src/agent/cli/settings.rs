//! Settings as flags, and the change of preferences that they make.

use clap::Args;
use serde_json::json;

use super::Error;
use warren_core::types::IpNet;
use warren_core::wire::local::MaskedPrefs;

/// What `up` and `set` can change. A flag that is not given changes nothing.
#[derive(Clone, Debug, Default, Args)]
pub struct Settings {
    /// The name to go by, in place of the machine's own
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Take the subnets that peers offer
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub accept_routes: Option<bool>,
    /// Take the coordinator's DNS settings
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub accept_dns: Option<bool>,
    /// Let nobody open a connection to this machine
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub shields_up: Option<bool>,
    /// Subnets to offer, separated by commas; empty for none
    #[arg(long, value_name = "PREFIXES")]
    pub advertise_routes: Option<String>,
    /// Give what peers send to those subnets this machine's own address, so that answers come back to it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub snat_subnet_routes: Option<bool>,
    /// The peer by which all that leaves this machine leaves, by name or address; empty for none. Nothing leaves where it
    /// cannot be had
    #[arg(long, value_name = "NODE")]
    pub exit_node: Option<String>,
    /// Reach the networks that this machine is attached to beside the exit node
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub exit_node_allow_lan_access: Option<bool>,
    /// Tags to ask for, separated by commas (`tag:` may be left out); empty for none
    #[arg(long, value_name = "TAGS")]
    pub advertise_tags: Option<String>,
    /// A local user who may change things without being root; empty for none
    #[arg(long, value_name = "USER")]
    pub operator: Option<String>,
}

impl Settings {
    /// The change that the flags ask for, but for the exit node: which peer that is the agent knows.
    pub fn change(&self) -> Result<MaskedPrefs, Error> {
        let mut change = MaskedPrefs::default();
        for (field, value) in [
            ("RouteAll", self.accept_routes),
            ("CorpDNS", self.accept_dns),
            ("ShieldsUp", self.shields_up),
            ("ExitNodeAllowLANAccess", self.exit_node_allow_lan_access),
            ("NoSNAT", self.snat_subnet_routes.map(|is_on| !is_on)),
        ] {
            if let Some(value) = value {
                change.set(field, value);
            }
        }
        if let Some(name) = self.operator.as_deref().filter(|name| !name.is_empty()) {
            check_user(name)?;
        }
        for (field, value) in [("Hostname", &self.hostname), ("OperatorUser", &self.operator)] {
            if let Some(value) = value {
                change.set(field, value.as_str());
            }
        }
        if let Some(list) = &self.advertise_routes {
            let routes = items(list).map(prefix).collect::<Result<Vec<_>, _>>()?;
            change.set("AdvertiseRoutes", json!(routes));
        }
        if let Some(list) = &self.advertise_tags {
            let tag = |name: &str| if name.contains(':') { name.to_owned() } else { format!("tag:{name}") };
            change.set("AdvertiseTags", json!(items(list).map(tag).collect::<Vec<_>>()));
        }
        Ok(change)
    }
}

/// A right that is nobody's today is somebody's once a user of that name is made.
fn check_user(name: &str) -> Result<(), Error> {
    match nix::unistd::User::from_name(name) {
        Ok(None) => Err(Error::Usage(format!("--operator: this machine has no user `{name}`"))),
        // Where users cannot be looked up, that is no fault of the name.
        Ok(Some(_)) | Err(_) => Ok(()),
    }
}

fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn prefix(text: &str) -> Result<IpNet, Error> {
    text.parse().map_err(|_| Error::Usage(format!("--advertise-routes: `{text}` is not a prefix such as 10.0.0.0/24")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_core::wire::local::Prefs;

    #[test]
    fn an_operator_is_a_user_of_this_machine() {
        let operator = |name: &str| Settings { operator: Some(name.to_owned()), ..Settings::default() }.change();
        assert!(operator("root").is_ok() && operator("").is_ok());
        let error = operator("nobody-of-this-name").unwrap_err().to_string();
        assert!(error.contains("has no user `nobody-of-this-name`"), "{error}");
    }

    #[test]
    fn flags_that_are_not_given_change_nothing() {
        assert!(Settings::default().change().unwrap().is_empty());
    }

    #[test]
    fn each_flag_changes_its_preference() {
        let settings = Settings {
            hostname: Some("web".into()),
            accept_routes: Some(true),
            accept_dns: Some(false),
            shields_up: Some(true),
            advertise_routes: Some("10.0.0.0/24, fd00::/64".into()),
            snat_subnet_routes: Some(false),
            exit_node: None,
            exit_node_allow_lan_access: Some(true),
            advertise_tags: Some("web,tag:db".into()),
            operator: Some("root".into()),
        };

        let prefs = settings.change().unwrap().apply(&Prefs::initial()).unwrap();

        assert_eq!(
            prefs,
            Prefs {
                hostname: "web".into(),
                route_all: true,
                corp_dns: false,
                shields_up: true,
                advertise_routes: vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
                advertise_tags: vec!["tag:web".into(), "tag:db".into()],
                no_snat: true,
                exit_node_allow_lan_access: true,
                operator_user: "root".into(),
                ..Prefs::initial()
            }
        );
    }

    #[test]
    fn an_empty_list_takes_everything_back() {
        let before = Prefs { advertise_tags: vec!["tag:web".into()], ..Prefs::initial() };
        let settings = Settings { advertise_tags: Some(String::new()), ..Settings::default() };
        assert_eq!(settings.change().unwrap().apply(&before).unwrap(), Prefs::initial());
    }

    #[test]
    fn what_is_no_prefix_is_refused_with_the_flag_and_the_text() {
        let settings = Settings { advertise_routes: Some("10.0.0.0/24,lan".into()), ..Settings::default() };
        let error = settings.change().unwrap_err();
        assert_eq!(error.to_string(), "--advertise-routes: `lan` is not a prefix such as 10.0.0.0/24");
    }
}
