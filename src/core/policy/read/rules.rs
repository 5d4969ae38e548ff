//! `acls` and `grants`.

use std::collections::BTreeMap;
use std::sync::Arc;

use jsonc_parser::ast::Value;

use super::origin::RuleNames;
use super::{Reader, capabilities, is_source, is_target, place};
use crate::policy::document::{Open, Rule};
use crate::policy::error::{Fault, Span};
use crate::policy::limit;
use crate::policy::ports::{Protocol, check_ports, parse_ports, parse_protocol, parse_protocol_ports};
use crate::policy::selector::{Autogroup, Selector, canonical_tag, split_ports};
use crate::policy::syntax::{self, Text};
use crate::types::is_default_route;
use crate::wire::control::{CapMap, RuleOrigin};

const SELF_SOURCES: &str = "autogroup:self can only be used with users, groups, or supported autogroups";

/// Capabilities of `tailscale.com/cap/` that a policy may give; the others are the coordinator's to give.
const GRANTABLE: &[&str] = &["drive", "relay", "webui", "kubernetes", "tsidp", "secrets", "golink"];

impl Reader {
    pub(super) fn rules(&mut self, sections: &BTreeMap<&str, &Value<'_>>) {
        let default_posture = sections.get("defaultSrcPosture").map(|value| self.postures(value)).transpose();
        let default_posture = self.keep(default_posture).flatten().unwrap_or_default();
        let (mut rules, mut names) = (Vec::new(), RuleNames::default());
        type Read = fn(&Reader, &Value<'_>) -> Result<Rule, Fault>;
        for (section, read) in [("grants", Self::grant as Read), ("acls", Self::acl as Read)] {
            self.each(sections, section, |reader, value| {
                let too_many = limit::RULES.check(rules.len() + 1);
                too_many.map_err(|error| Fault::new(place(value), error.to_string()))?;
                let mut rule = read(reader, value)?;
                if rule.postures.is_empty() {
                    rule.postures.clone_from(&default_posture);
                }
                rule.origin = names.give(section, value, reader.policy.line(rule.at)).into();
                rules.push(rule);
                Ok(())
            });
        }
        let restricts = sections.contains_key("acls") || sections.contains_key("grants");
        self.policy.rules = restricts.then_some(rules);
    }

    fn acl(&self, value: &Value<'_>) -> Result<Rule, Fault> {
        const FIELDS: &[&str] = &["action", "src", "dst", "proto", "srcPosture", "users", "ports"];
        let mut rule = empty(place(value));
        let (mut accepts, mut protocol, mut targets) = (false, None, Vec::new());
        for (field, value) in syntax::fields("a rule", FIELDS, value)? {
            match field {
                "action" => {
                    let action = syntax::string("action", value)?;
                    accepts = action.value.trim() == "accept";
                    if !accepts {
                        return Err(action.fault(format!("action={:?} is not supported", action.value)));
                    }
                }
                "proto" => protocol = protocol_of(value)?,
                "srcPosture" => rule.postures = self.postures(value)?,
                "src" | "users" => rule.sources = self.sources(value)?,
                _ => targets = syntax::strings("dst", value)?,
            }
        }
        if !accepts {
            return Err(Fault::new(rule.at, "action=\"\" is not supported: write \"action\": \"accept\""));
        }
        for text in &targets {
            rule.opens.push(self.access(text, protocol)?);
        }
        rule.targets = rule.opens.iter().flat_map(|open| open.targets.iter().cloned()).collect();
        check_self(&rule, true)?;
        Ok(rule)
    }

    /// `HOST:PORTS` of an access rule.
    fn access(&self, text: &Text, protocol: Option<Protocol>) -> Result<Open, Fault> {
        let fault = |entry: &str, reason: String| text.fault(format!("dst={entry:?}: {reason}"));
        let Some((host, ports)) = split_ports(&text.value) else {
            return Err(fault(&text.value, "hostport must contain a colon (\":\")".to_owned()));
        };
        let ports = parse_ports(ports).map_err(|reason| fault(&text.value, reason))?;
        check_ports(protocol, &ports).map_err(|reason| fault(&text.value, reason))?;
        let host = Text { at: text.at, value: host };
        let target = self.target(&host).map_err(|error| match error {
            NameError::Unknown(reason) => fault(&host.value, reason),
            NameError::Misplaced(reason) => text.fault(reason),
        })?;
        Ok(Open { targets: Arc::from([target]), protocol, ports })
    }

    fn grant(&self, value: &Value<'_>) -> Result<Rule, Fault> {
        const FIELDS: &[&str] = &["src", "dst", "ip", "app", "via", "srcPosture"];
        let mut rule = empty(place(value));
        let mut ip = Vec::new();
        for (field, value) in syntax::fields("a grant", FIELDS, value)? {
            match field {
                "src" => rule.sources = self.sources(value)?,
                "dst" => rule.targets = self.grant_targets(value)?,
                "ip" => ip = syntax::strings("ip", value)?,
                "app" => rule.app = app(value)?,
                "via" => rule.via = self.via(value)?,
                _ => rule.postures = self.postures(value)?,
            }
        }
        if ip.is_empty() && rule.app.is_empty() {
            return Err(Fault::new(rule.at, "ip and app can not both be empty"));
        }
        for text in &ip {
            let (protocol, ports) = parse_protocol_ports(&text.value).map_err(|reason| text.fault(reason))?;
            rule.opens.push(Open { targets: rule.targets.clone(), protocol, ports });
        }
        if !rule.app.is_empty() && rule.targets.contains(&Selector::Auto(Autogroup::Internet)) {
            return Err(Fault::new(rule.at, "cannot use app grants with autogroup:internet"));
        }
        check_self(&rule, false)?;
        Ok(rule)
    }

    fn sources(&self, value: &Value<'_>) -> Result<Vec<Selector>, Fault> {
        let source = |text: Text| match self.selector(&text) {
            Ok(Selector::Auto(group)) if !is_source(group) => {
                Err(text.fault(format!("{:?} not valid on the src side of a rule", group.name())))
            }
            Ok(selector) => Ok(selector),
            Err(reason) => Err(text.fault(format!("src={reason}"))),
        };
        syntax::strings("src", value)?.into_iter().map(source).collect()
    }

    fn grant_targets(&self, value: &Value<'_>) -> Result<Arc<[Selector]>, Fault> {
        let mut targets = Vec::new();
        for text in syntax::strings("dst", value)? {
            let target = self.target(&text).map_err(|error| match error {
                NameError::Unknown(reason) => text.fault(format!("dst={reason}")),
                NameError::Misplaced(reason) => text.fault(reason),
            })?;
            if matches!(target, Selector::Net(net) if is_default_route(&net)) {
                let advice = "to allow all IP addresses, use \"*\" or \"autogroup:internet\"";
                return Err(text.fault(format!("dst {:?}: {advice}", text.value)));
            }
            targets.push(target);
        }
        Ok(targets.into())
    }

    fn target(&self, text: &Text) -> Result<Selector, NameError> {
        match self.selector(text).map_err(NameError::Unknown)? {
            Selector::Auto(group) if !is_target(group) => {
                Err(NameError::Misplaced(format!("cannot use {} as a dst", group.name())))
            }
            selector @ (Selector::Any
            | Selector::Net(_)
            | Selector::Set(_)
            | Selector::User(_)
            | Selector::Domain(_)
            | Selector::Group(_)
            | Selector::Tag(_)
            | Selector::Auto(_)) => Ok(selector),
        }
    }

    fn via(&self, value: &Value<'_>) -> Result<Vec<Selector>, Fault> {
        let mut tags = Vec::new();
        for text in syntax::strings("via", value)? {
            if !text.value.starts_with("tag:") {
                return Err(text.fault("via can only be a tag"));
            }
            let tag = canonical_tag(&text.value);
            if !self.policy.tag_owners.contains_key(&tag) {
                return Err(text.fault(format!("tag {:?} not found", text.value)));
            }
            tags.push(Selector::Tag(tag));
        }
        Ok(tags)
    }
}

/// Why a text is no destination.
enum NameError {
    /// It names nothing.
    Unknown(String),
    /// What it names cannot stand there.
    Misplaced(String),
}

fn empty(at: Span) -> Rule {
    Rule {
        at,
        origin: Arc::new(RuleOrigin { reference: String::new(), line: 0 }),
        sources: Vec::new(),
        postures: Vec::new(),
        targets: Arc::from([]),
        opens: Vec::new(),
        app: CapMap::new(),
        via: Vec::new(),
    }
}

fn protocol_of(value: &Value<'_>) -> Result<Option<Protocol>, Fault> {
    let text = syntax::string("proto", value)?;
    parse_protocol(&text.value).map_err(|reason| text.fault(reason))
}

fn app(value: &Value<'_>) -> Result<CapMap, Fault> {
    let mut map = CapMap::new();
    for (name, arguments) in capabilities("app", value)? {
        if name.value.contains("://") || !name.value.contains('/') {
            return Err(name.fault("capability name must have the form {domain}/{path}"));
        }
        let ours = name.value.strip_prefix("tailscale.com/");
        let grantable = |path: &str| path.strip_prefix("cap/").is_some_and(|cap| GRANTABLE.contains(&cap));
        if ours.is_some_and(|path| !grantable(path)) {
            return Err(name.fault("capability name must not be in the tailscale.com domain"));
        }
        map.insert(name.value, arguments);
    }
    Ok(map)
}

/// A rule towards each user's own nodes needs sources that are users. An access rule may also say `*`.
fn check_self(rule: &Rule, any_source: bool) -> Result<(), Fault> {
    let is_user = |source: &Selector| match source {
        Selector::User(_) | Selector::Domain(_) | Selector::Group(_) => true,
        Selector::Auto(group) => group.is_identity() && *group != Autogroup::Tagged,
        Selector::Any => any_source,
        Selector::Net(_) | Selector::Set(_) | Selector::Tag(_) => false,
    };
    if rule.targets.contains(&Selector::Auto(Autogroup::SelfNodes)) && !rule.sources.iter().all(is_user) {
        return Err(Fault::new(rule.at, SELF_SOURCES));
    }
    Ok(())
}
