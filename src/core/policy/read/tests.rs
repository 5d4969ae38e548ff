//! `tests`: read leniently, because a test that cannot be understood has failed and is reported as such.

use std::collections::BTreeMap;

use jsonc_parser::ast::Value;

use super::{Reader, place};
use crate::policy::document::{Named, Probe, Test};
use crate::policy::error::Fault;
use crate::policy::ports::{parse_ports, parse_protocol};
use crate::policy::posture::Attribute;
use crate::policy::selector::{Autogroup, Selector, split_ports};
use crate::policy::syntax::{self, Text};

impl Reader {
    pub(super) fn test(&self, value: &Value<'_>) -> Result<Test, Fault> {
        const FIELDS: &[&str] = &["src", "srcPostureAttrs", "proto", "accept", "deny"];
        let mut test = Test {
            at: place(value),
            source: Named { text: String::new(), selector: Err("src is missing".to_owned()) },
            attributes: None,
            protocol: Ok(None),
            accept: Vec::new(),
            deny: Vec::new(),
        };
        for (field, value) in syntax::fields("a test", FIELDS, value)? {
            match field {
                "src" => test.source = self.named(trimmed("src", value)?),
                "srcPostureAttrs" => test.attributes = Some(attributes(value)?),
                "proto" => test.protocol = parse_protocol(&trimmed("proto", value)?.value),
                "accept" => test.accept = self.probes("accept", value)?,
                _ => test.deny = self.probes("deny", value)?,
            }
        }
        Ok(test)
    }

    pub(super) fn named(&self, text: Text) -> Named {
        Named { selector: self.selector(&text), text: text.value }
    }

    fn probes(&self, what: &str, value: &Value<'_>) -> Result<Vec<Probe>, Fault> {
        let texts = syntax::strings(what, value)?.into_iter();
        Ok(texts.map(|text| Probe { target: self.probe(&text), text: text.value }).collect())
    }

    /// One connection goes to one place and one port.
    fn probe(&self, text: &Text) -> Result<(Selector, u16), String> {
        let (host, ports) = split_ports(&text.value).ok_or("a destination is HOST:PORT")?;
        let port = match parse_ports(ports)?.as_slice() {
            [run] if run.first == run.last => run.first,
            _ => return Err("a test names a single port".to_owned()),
        };
        if host.contains('/') {
            return Err("a test names a single host, not a network: an address without a prefix length".to_owned());
        }
        match self.selector(&Text { at: text.at, value: host })? {
            Selector::Net(net) if net.prefix_len() < net.max_prefix_len() => {
                Err("a test names a single host, not a network".to_owned())
            }
            Selector::Any | Selector::Set(_) => Err("a test names a single host, not a network".to_owned()),
            Selector::Auto(group @ (Autogroup::Internet | Autogroup::SelfNodes | Autogroup::DangerAll)) => {
                Err(format!("{} cannot be the destination of a test", group.name()))
            }
            selector @ (Selector::Net(_)
            | Selector::User(_)
            | Selector::Domain(_)
            | Selector::Group(_)
            | Selector::Tag(_)
            | Selector::Auto(_)) => Ok((selector, port)),
        }
    }
}

/// A string without the white space around it.
pub(super) fn trimmed(what: &str, value: &Value<'_>) -> Result<Text, Fault> {
    let mut text = syntax::string(what, value)?;
    text.value = text.value.trim().to_owned();
    Ok(text)
}

fn attributes(value: &Value<'_>) -> Result<BTreeMap<String, Attribute>, Fault> {
    let mut attributes = BTreeMap::new();
    for (name, value) in syntax::members("srcPostureAttrs", value)? {
        let attribute = match value {
            Value::StringLit(literal) => Attribute::Text(literal.value.clone().into_owned()),
            Value::BooleanLit(literal) => Attribute::Bool(literal.value),
            Value::NumberLit(literal) => Attribute::Number(literal.value.parse().unwrap_or(f64::NAN)),
            Value::Object(_) | Value::Array(_) | Value::NullKeyword(_) => {
                return Err(Fault::new(syntax::span(value), "a posture attribute is a string, a number or a boolean"));
            }
        };
        attributes.insert(name.value, attribute);
    }
    Ok(attributes)
}
