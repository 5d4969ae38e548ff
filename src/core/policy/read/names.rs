//! The sections that define names: hosts, groups, tags, IP sets and postures; and looking names up.

use std::collections::BTreeMap;

use jsonc_parser::ast::Value;

use super::Reader;
use crate::policy::error::Fault;
use crate::policy::login::is_unseen;
use crate::policy::posture::{Condition, Posture};
use crate::policy::selector::{Autogroup, Selector, Shape, canonical_tag, parse_net, shape};
use crate::policy::syntax::{self, Text};
use crate::policy::{ipset, limit};

impl Reader {
    pub(super) fn names(&mut self, sections: &BTreeMap<&str, &Value<'_>>) -> Result<(), Fault> {
        let section = |name: &str| match sections.get(name) {
            Some(value) => definitions(name, value),
            None => Ok(Vec::new()),
        };
        for (name, value) in section("hosts")? {
            self.host(name, value)?;
        }
        self.groups(&section("groups")?)?;
        // Owners of tags may be tags, so all names go first.
        let tags = section("tagOwners")?;
        for (name, _) in &tags {
            check_tag(name)?;
            if self.policy.tag_owners.insert(canonical_tag(&name.value), Vec::new()).is_some() {
                let tag = canonical_tag(&name.value);
                return Err(
                    name.fault(format!("tagOwners[{:?}]: {tag:?} is there already; case does not count", name.value))
                );
            }
        }
        for (name, value) in &tags {
            let owners = self.owners("owners of a tag", value)?;
            self.policy.tag_owners.insert(canonical_tag(&name.value), owners);
        }
        self.sets(&section("ipsets")?)?;
        for (name, value) in section("postures")? {
            self.posture(&name, value)?;
        }
        Ok(())
    }

    fn host(&mut self, name: Text, value: &Value<'_>) -> Result<(), Fault> {
        if name.value.is_empty() || name.value.contains([':', '@', '*', '/', ' ']) || parse_net(&name.value).is_some() {
            return Err(name.fault(format!("{:?} cannot name a host", name.value)));
        }
        let address = syntax::string("the address of a host", value)?;
        let net = parse_net(&address.value);
        let net = net.ok_or_else(|| address.fault(format!("{:?}: invalid address", address.value)))?;
        self.policy.hosts.insert(name.value, net);
        Ok(())
    }

    /// Groups hold users. Of several groups inside groups the last by name is reported.
    fn groups(&mut self, groups: &[(Text, &Value<'_>)]) -> Result<(), Fault> {
        let mut nested: Option<(&str, Fault)> = None;
        for (name, value) in groups {
            check_prefix(name, "group:")?;
            let mut members = Vec::new();
            for text in syntax::strings("the members of a group", value)? {
                check_seen(&text.value).map_err(|message| text.fault(message))?;
                match shape(&text.value) {
                    Shape::Known(member @ (Selector::User(_) | Selector::Domain(_))) => members.push(member),
                    Shape::Known(Selector::Group(_)) => {
                        let message = format!("{:?}: group members cannot be recursive", text.value);
                        if nested.as_ref().is_none_or(|(last, _)| *last < name.value.as_str()) {
                            nested = Some((&name.value, text.fault(format!("groups[{:?}]: {message}", name.value))));
                        }
                    }
                    Shape::Known(_) | Shape::Host(_) | Shape::Set(_) | Shape::UnknownAutogroup | Shape::Other => {
                        let message = format!("groups[{:?}]: {:?} is not a user", name.value, text.value);
                        return Err(text.fault(message));
                    }
                }
            }
            self.policy.groups.insert(name.value.clone(), members);
        }
        nested.map_or(Ok(()), |(_, fault)| Err(fault))
    }

    fn sets(&mut self, sets: &[(Text, &Value<'_>)]) -> Result<(), Fault> {
        let mut entries = BTreeMap::new();
        for (name, value) in sets {
            check_prefix(name, "ipset:")?;
            entries.insert(name.value.clone(), syntax::strings("an IP set", value)?);
        }
        self.policy.sets = ipset::resolve(&entries, &self.policy.hosts)?;
        Ok(())
    }

    fn posture(&mut self, name: &Text, value: &Value<'_>) -> Result<(), Fault> {
        check_prefix(name, "posture:")?;
        let mut posture = Posture::default();
        for text in syntax::strings("a posture", value)? {
            let condition = Condition::parse(&text.value);
            posture.conditions.push(condition.map_err(|message| text.fault(format!("{}: {message}", name.value)))?);
        }
        self.policy.postures.insert(name.value.clone(), posture);
        Ok(())
    }

    /// Looks a text up: what it names must be defined.
    pub(super) fn selector(&self, text: &Text) -> Result<Selector, String> {
        check_seen(&text.value)?;
        let undefined = |kind: &str| Err(format!("{kind} not found: {:?}", text.value));
        match shape(&text.value) {
            Shape::Known(Selector::Group(name)) if !self.policy.groups.contains_key(&name) => undefined("group"),
            Shape::Known(Selector::Tag(name)) if !self.policy.tag_owners.contains_key(&name) => undefined("tag"),
            Shape::Set(name) if !self.policy.sets.contains_key(&name) => undefined("ipset"),
            Shape::Set(name) => Ok(Selector::Set(name)),
            Shape::Known(selector) => Ok(selector),
            Shape::Host(name) => match self.policy.hosts.get(&name) {
                Some(net) => Ok(Selector::Net(*net)),
                None => Err(format!("{name:?}: invalid address")),
            },
            Shape::UnknownAutogroup => match Autogroup::nearest(&text.value) {
                Some(group) => Err(format!("autogroup not found: {:?}; is {:?} meant?", text.value, group.name())),
                None => undefined("autogroup"),
            },
            Shape::Other => Err(format!("{:?}: invalid address", text.value)),
        }
    }

    /// Those who may own a tag or approve a route: users, groups, tags, and autogroups of users.
    pub(super) fn owners(&self, what: &str, value: &Value<'_>) -> Result<Vec<Selector>, Fault> {
        let owner = |text: Text| match self.selector(&text) {
            Ok(selector @ (Selector::User(_) | Selector::Domain(_) | Selector::Group(_) | Selector::Tag(_))) => {
                Ok(selector)
            }
            Ok(Selector::Auto(group)) if group.is_identity() => Ok(Selector::Auto(group)),
            Ok(_) => Err(text.fault(format!("{what} are users, groups and tags, not {:?}", text.value))),
            Err(message) => Err(text.fault(message)),
        };
        syntax::strings(what, value)?.into_iter().map(owner).collect()
    }

    /// `srcPosture`: postures by name, all of them defined.
    pub(super) fn postures(&self, value: &Value<'_>) -> Result<Vec<String>, Fault> {
        let mut postures = Vec::new();
        for text in syntax::strings("srcPosture", value)? {
            if !self.policy.postures.contains_key(&text.value) {
                return Err(text.fault(format!("posture not found: {:?}", text.value)));
            }
            postures.push(text.value);
        }
        Ok(postures)
    }
}

fn definitions<'v, 't>(section: &str, value: &'v Value<'t>) -> Result<Vec<(Text, &'v Value<'t>)>, Fault> {
    let members = syntax::members(section, value)?;
    limit::NAMES.check(members.len()).map_err(|error| Fault::new(syntax::span(value), error.to_string()))?;
    Ok(members)
}

/// Whoever reads a policy sees all of each name.
fn check_seen(name: &str) -> Result<(), String> {
    match name.chars().find(|c| is_unseen(*c)) {
        Some(c) => Err(format!("{name:?}: U+{:04X} in it is not seen", u32::from(c))),
        None => Ok(()),
    }
}

fn check_prefix(name: &Text, prefix: &str) -> Result<(), Fault> {
    let rest = name.value.strip_prefix(prefix).unwrap_or_default();
    if rest.is_empty() || rest.contains(|c: char| c.is_whitespace() || c == ':') {
        return Err(name.fault(format!("{:?} must be {prefix} and a name", name.value)));
    }
    Ok(())
}

fn check_tag(name: &Text) -> Result<(), Fault> {
    check_prefix(name, "tag:")?;
    if !name.value["tag:".len()..].starts_with(|c: char| c.is_ascii_alphabetic()) {
        let message = format!("tagOwners[{:?}]: tag names must start with a letter, after 'tag:'", name.value);
        return Err(name.fault(message));
    }
    // What no node can have.
    if name.value.len() > limit::TAG_LENGTH
        || name.value["tag:".len()..].contains(|c: char| !c.is_ascii_alphanumeric() && c != '-')
    {
        let most = limit::TAG_LENGTH;
        let message =
            format!("tagOwners[{:?}]: a tag is letters, digits and hyphens, at most {most} with 'tag:'", name.value);
        return Err(name.fault(message));
    }
    Ok(())
}
