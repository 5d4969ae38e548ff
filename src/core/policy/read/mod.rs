//! From a parsed text to a [`Policy`]: fields and types, then names, then what may stand where.
//!
//! The sections that define names are read before those that use them, wherever they stand in the text.
//! A fault in one rule does not hide those in the next.

mod names;
mod origin;
mod rules;
mod ssh;
mod tests;

use std::collections::BTreeMap;

use jsonc_parser::ast::Value;
use serde_json::value::RawValue;

use super::document::{Approvers, NodeAttributes, Policy, PolicyErrors};
use super::error::{Fault, Span};
use super::limit;
use super::selector::{Autogroup, Selector, parse_net};
use super::syntax::{self, Text};
use crate::wire::control::CapMap;

const SECTIONS: &[&str] = &[
    "acls",
    "grants",
    "groups",
    "hosts",
    "tagOwners",
    "autoApprovers",
    "nodeAttrs",
    "ssh",
    "tests",
    "sshTests",
    "ipsets",
    "postures",
    "defaultSrcPosture",
    "randomizeClientPort",
    "disableIPv4",
    "OneCGNATRoute",
];

impl Policy {
    /// Reads a policy; what is wrong with it is listed, first things first.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyErrors> {
        let text = syntax::decode(bytes).map_err(|(fault, text)| PolicyErrors(vec![fault.locate(&text)]))?;
        policy(text).map_err(|faults| PolicyErrors::locate(faults, text))
    }
}

fn policy(text: &str) -> Result<Policy, Vec<Fault>> {
    let root = syntax::parse(text).map_err(|fault| vec![fault])?;
    let mut reader = Reader { policy: Policy::of_text(text), faults: Vec::new() };
    let result = reader.sections(&root);
    reader.keep(result);
    if reader.faults.is_empty() { Ok(reader.policy) } else { Err(reader.faults) }
}

/// The policy so far, and what is wrong with it so far.
struct Reader {
    policy: Policy,
    faults: Vec<Fault>,
}

impl Reader {
    fn sections(&mut self, root: &Value<'_>) -> Result<(), Fault> {
        let sections: BTreeMap<_, _> = syntax::fields("a policy", SECTIONS, root)?.into_iter().collect();
        self.names(&sections)?;
        if !self.faults.is_empty() {
            return Ok(());
        }
        self.rules(&sections);
        if let Some(value) = sections.get("autoApprovers") {
            let approvers = self.approvers(value);
            self.policy.approvers = self.keep(approvers).unwrap_or_default();
        }
        self.node_attributes(&sections)?;
        self.each(&sections, "ssh", |reader, value| {
            let rule = reader.ssh_rule(value)?;
            reader.policy.ssh.push(rule);
            Ok(())
        });
        self.each(&sections, "tests", |reader, value| {
            let test = reader.test(value)?;
            reader.policy.tests.push(test);
            Ok(())
        });
        self.each(&sections, "sshTests", |reader, value| {
            let test = reader.ssh_test(value)?;
            reader.policy.ssh_tests.push(test);
            Ok(())
        });
        Ok(())
    }

    /// Reads every element of a section, and goes on after a fault.
    fn each(
        &mut self,
        sections: &BTreeMap<&str, &Value<'_>>,
        name: &str,
        mut read: impl FnMut(&mut Self, &Value<'_>) -> Result<(), Fault>,
    ) {
        let Some(value) = sections.get(name) else { return };
        let elements = syntax::elements(name, value);
        for element in self.keep(elements).unwrap_or_default() {
            let result = match limit::ERRORS.checked_sub(self.faults.len()) {
                Some(1..) => read(self, element),
                _ => return,
            };
            self.keep(result);
        }
    }

    fn keep<T>(&mut self, result: Result<T, Fault>) -> Option<T> {
        result.map_err(|fault| self.faults.push(fault)).ok()
    }

    fn approvers(&self, value: &Value<'_>) -> Result<Approvers, Fault> {
        let mut approvers = Approvers::default();
        for (field, value) in syntax::fields("autoApprovers", &["routes", "exitNode"], value)? {
            match field {
                "routes" => {
                    for (route, owners) in syntax::members("routes", value)? {
                        let net = parse_net(&route.value);
                        let net = net.ok_or_else(|| route.fault(format!("{:?}: invalid prefix", route.value)))?;
                        approvers.routes.push((net, self.owners("approvers", owners)?));
                    }
                }
                _ => approvers.exit = self.owners("approvers", value)?,
            }
        }
        Ok(approvers)
    }

    fn node_attributes(&mut self, sections: &BTreeMap<&str, &Value<'_>>) -> Result<(), Fault> {
        for (section, attribute) in [("randomizeClientPort", "randomize-client-port"), ("disableIPv4", "disable-ipv4")]
        {
            let value = sections.get(section).map(|value| syntax::boolean(section, value)).transpose()?;
            self.give_all(attribute, value == Some(true));
        }
        if let Some(value) = sections.get("OneCGNATRoute") {
            let choice = syntax::string("OneCGNATRoute", value)?;
            match choice.value.as_str() {
                "" => {}
                "mac-always" => self.give_all("one-cgnat?v=true", true),
                "mac-never" => self.give_all("one-cgnat?v=false", true),
                _ => return Err(choice.fault("OneCGNATRoute is \"\", \"mac-always\" or \"mac-never\"")),
            }
        }
        self.each(sections, "nodeAttrs", |reader, value| {
            let entry = reader.node_attribute(value)?;
            reader.policy.node_attributes.push(entry);
            Ok(())
        });
        Ok(())
    }

    /// Gives an attribute to every node.
    fn give_all(&mut self, attribute: &str, given: bool) {
        if given {
            self.policy.node_attributes.push(NodeAttributes {
                targets: vec![Selector::Any],
                attributes: CapMap::from([(attribute.to_owned(), None)]),
                ip_pool: Vec::new(),
            });
        }
    }

    fn node_attribute(&self, value: &Value<'_>) -> Result<NodeAttributes, Fault> {
        let mut entry = NodeAttributes { targets: Vec::new(), attributes: CapMap::new(), ip_pool: Vec::new() };
        for (field, value) in syntax::fields("an entry of nodeAttrs", &["target", "attr", "app", "ipPool"], value)? {
            match field {
                "target" => {
                    for text in syntax::strings("target", value)? {
                        entry.targets.push(self.attribute_target(&text)?);
                    }
                }
                "attr" => {
                    let names = syntax::strings("attr", value)?;
                    entry.attributes.extend(names.into_iter().map(|name| (name.value, None)));
                }
                "app" => entry
                    .attributes
                    .extend(capabilities("app", value)?.into_iter().map(|(name, args)| (name.value, args))),
                _ => {
                    for text in syntax::strings("ipPool", value)? {
                        entry.ip_pool.push(pool(&text)?);
                    }
                }
            }
        }
        Ok(entry)
    }

    fn attribute_target(&self, text: &Text) -> Result<Selector, Fault> {
        let selector = self.selector(text).map_err(|message| text.fault(message))?;
        match selector {
            Selector::Auto(group) if !group.is_identity() => {
                Err(text.fault(format!("{:?} cannot be a target of nodeAttrs", group.name())))
            }
            Selector::Any
            | Selector::Net(_)
            | Selector::Set(_)
            | Selector::User(_)
            | Selector::Domain(_)
            | Selector::Group(_)
            | Selector::Tag(_)
            | Selector::Auto(_) => Ok(selector),
        }
    }
}

/// A pool that node addresses may be drawn from: inside the overlay range, outside what is reserved.
fn pool(text: &Text) -> Result<crate::types::IpNet, Fault> {
    const RESERVED: [&str; 2] = ["100.100.100.0/24", "100.115.92.0/23"];
    let net = parse_net(&text.value).ok_or_else(|| text.fault(format!("IPPool({}): invalid prefix", text.value)))?;
    let reserved = RESERVED.iter().filter_map(|reserved| parse_net(reserved));
    if reserved.into_iter().any(|reserved| super::topology::overlaps(&reserved, &net)) {
        return Err(text.fault(format!("IPPool({net}): network within reserved range")));
    }
    if !crate::types::IpNet::V4(crate::types::OVERLAY_V4).contains(&net) {
        return Err(text.fault(format!("IPPool({net}): network outside {}", crate::types::OVERLAY_V4)));
    }
    Ok(net)
}

/// Capabilities by name, each with its arguments.
type Capabilities = Vec<(Text, Option<Vec<Box<RawValue>>>)>;

fn capabilities(what: &str, value: &Value<'_>) -> Result<Capabilities, Fault> {
    let mut capabilities = Vec::new();
    for (name, arguments) in syntax::members(what, value)? {
        let arguments = match arguments {
            Value::NullKeyword(_) => None,
            list @ (Value::StringLit(_)
            | Value::NumberLit(_)
            | Value::BooleanLit(_)
            | Value::Object(_)
            | Value::Array(_)) => Some(syntax::elements(what, list)?.iter().map(raw).collect::<Result<_, _>>()?),
        };
        capabilities.push((name, arguments));
    }
    Ok(capabilities)
}

/// The value as plain JSON, comments and trailing commas dropped.
fn raw(value: &Value<'_>) -> Result<Box<RawValue>, Fault> {
    let mut json = String::new();
    write_json(value, &mut json);
    RawValue::from_string(json).map_err(|error| Fault::new(syntax::span(value), format!("not JSON: {error}")))
}

fn write_json(value: &Value<'_>, json: &mut String) {
    match value {
        Value::NullKeyword(_) => json.push_str("null"),
        Value::BooleanLit(literal) => json.push_str(if literal.value { "true" } else { "false" }),
        Value::NumberLit(literal) => json.push_str(literal.value),
        Value::StringLit(literal) => json.push_str(&serde_json::Value::from(&*literal.value).to_string()),
        Value::Array(array) => {
            json.push('[');
            for (index, element) in array.elements.iter().enumerate() {
                json.push_str(if index == 0 { "" } else { "," });
                write_json(element, json);
            }
            json.push(']');
        }
        Value::Object(object) => {
            json.push('{');
            for (index, property) in object.properties.iter().enumerate() {
                json.push_str(if index == 0 { "" } else { "," });
                json.push_str(&serde_json::Value::from(property.name.as_str()).to_string());
                json.push(':');
                write_json(&property.value, json);
            }
            json.push('}');
        }
    }
}

/// Where an autogroup may stand as a source.
fn is_source(group: Autogroup) -> bool {
    group.is_identity() || group == Autogroup::DangerAll
}

/// Where an autogroup may stand as a destination.
fn is_target(group: Autogroup) -> bool {
    group.is_identity() || matches!(group, Autogroup::SelfNodes | Autogroup::Internet)
}

/// The place of a rule as a whole.
fn place(value: &Value<'_>) -> Span {
    syntax::span(value)
}
