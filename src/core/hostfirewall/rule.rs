//! What a rule means to a sample, as far as that is simple.
//!
//! Statements are read one by one, in the words of the crate `nftables`: it does not know all that a host may have, and what
//! it does not know is no more than not understood.

#![allow(clippy::wildcard_enum_match_arm, reason = "of the crate's dozens of words few are understood")]

use std::net::IpAddr;

use nftables::expr::{self, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, SetItem};
use nftables::stmt::{self, Operator};
use serde_json::Value;

use crate::plan::own;
use crate::types::IpNet;

use super::sample::Sample;

/// The bit of a connection's state that says that it is new.
const STATE_NEW: u32 = 8;
/// `NFPROTO_IPV4`.
const IPV4: u32 = 2;

/// A rule's statements.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    statements: Vec<Statement>,
}

#[derive(Clone, Debug)]
enum Statement {
    Known(Box<stmt::Statement<'static>>),
    /// Whether packets pass it is not understood.
    UnknownMatch,
    /// Whatever it does, packets pass it.
    Other,
}

/// What is known of a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    Yes,
    /// Yes, and it names our link or port.
    Us,
    No,
    Unknown,
}

/// What a rule decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

impl Rule {
    /// The rule of which this is the list of statements.
    pub(super) fn read(statements: &Value) -> Self {
        let statements = statements.as_array().map(Vec::as_slice).unwrap_or_default();
        Self { statements: statements.iter().map(Statement::read).collect() }
    }

    fn known(&self) -> impl Iterator<Item = &stmt::Statement<'static>> {
        self.statements.iter().filter_map(|statement| match statement {
            Statement::Known(known) => Some(known.as_ref()),
            Statement::UnknownMatch | Statement::Other => None,
        })
    }

    /// What is known of each of its matches.
    pub(super) fn matches(&self, sample: &Sample) -> Vec<Match> {
        let judge = |statement: &Statement| match statement {
            Statement::Known(known) => judge(known, sample),
            Statement::UnknownMatch => Some(Match::Unknown),
            Statement::Other => None,
        };
        self.statements.iter().filter_map(judge).collect()
    }

    /// What it decides of a sample that passes its matches.
    pub(super) fn verdicts(&self, sample: &Sample) -> impl Iterator<Item = Verdict> {
        self.known().filter_map(|statement| decision(statement, sample))
    }

    /// The chains that it may lead to.
    pub(super) fn targets(&self) -> Vec<String> {
        let verdicts = self.known().flat_map(|statement| match statement {
            stmt::Statement::VerdictMap(map) => mapped(&map.data).into_iter().map(|(_, verdict)| verdict).collect(),
            statement => plain_decision(statement).into_iter().collect::<Vec<_>>(),
        });
        let targets = verdicts.filter_map(|verdict| match verdict {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            Verdict::Accept | Verdict::Drop | Verdict::Return => None,
        });
        targets.collect()
    }
}

impl Statement {
    fn read(statement: &Value) -> Self {
        let kind = statement.as_object().and_then(|fields| fields.keys().next());
        // What it rejects with is nothing to us.
        match serde_json::from_value(statement.clone()) {
            Ok(known) => Self::Known(Box::new(known)),
            Err(_) => match kind.map(String::as_str) {
                Some("reject") => Self::Known(Box::new(stmt::Statement::Reject(None))),
                Some("match" | "xt" | "limit" | "quota" | "ct count") => Self::UnknownMatch,
                _ => Self::Other,
            },
        }
    }
}

/// Whether a statement lets the sample on; `None` where it is no match.
fn judge(statement: &stmt::Statement<'_>, sample: &Sample) -> Option<Match> {
    match statement {
        stmt::Statement::Match(sides) => Some(compare(&sides.op, &sides.left, &sides.right, sample)),
        stmt::Statement::XT(Some(xt)) if xt["name"] == "comment" => Some(Match::Yes),
        stmt::Statement::XT(_)
        | stmt::Statement::Limit(_)
        | stmt::Statement::Quota(_)
        | stmt::Statement::CTCount(_) => Some(Match::Unknown),
        _ => None,
    }
}

fn decision(statement: &stmt::Statement<'_>, sample: &Sample) -> Option<Verdict> {
    match statement {
        // The one element of an inline map that holds the sample.
        stmt::Statement::VerdictMap(map) => {
            let holds =
                |key: &Expression<'_>| matches!(compare(&Operator::EQ, &map.key, key, sample), Match::Yes | Match::Us);
            mapped(&map.data).into_iter().find(|(key, _)| holds(key)).map(|(_, verdict)| verdict)
        }
        statement => plain_decision(statement),
    }
}

fn plain_decision(statement: &stmt::Statement<'_>) -> Option<Verdict> {
    match statement {
        stmt::Statement::Accept(_) => Some(Verdict::Accept),
        stmt::Statement::Drop(_) | stmt::Statement::Reject(_) => Some(Verdict::Drop),
        stmt::Statement::Return(_) => Some(Verdict::Return),
        stmt::Statement::Jump(to) => Some(Verdict::Jump(to.target.to_string())),
        stmt::Statement::Goto(to) => Some(Verdict::Goto(to.target.to_string())),
        _ => None,
    }
}

/// The elements of an inline map that decide. The crate reads a pair as whichever of its types comes first.
fn mapped<'a>(data: &'a Expression<'a>) -> Vec<(&'a Expression<'a>, Verdict)> {
    let Expression::Named(NamedExpression::Set(items)) = data else { return Vec::new() };
    let pair = |item: &'a SetItem<'a>| match item {
        SetItem::Element(Expression::List(pair)) => match pair.as_slice() {
            [key, Expression::Verdict(verdict)] => Some((key, mapped_decision(verdict)?)),
            _ => None,
        },
        SetItem::Mapping(key, Expression::Verdict(verdict)) => Some((key, mapped_decision(verdict)?)),
        SetItem::MappingStatement(key, statement) => Some((key, plain_decision(statement)?)),
        SetItem::Element(_) | SetItem::Mapping(..) => None,
    };
    items.iter().filter_map(pair).collect()
}

fn mapped_decision(verdict: &expr::Verdict<'_>) -> Option<Verdict> {
    match verdict {
        expr::Verdict::Accept => Some(Verdict::Accept),
        expr::Verdict::Drop => Some(Verdict::Drop),
        expr::Verdict::Return => Some(Verdict::Return),
        expr::Verdict::Jump(to) => Some(Verdict::Jump(to.target.to_string())),
        expr::Verdict::Goto(to) => Some(Verdict::Goto(to.target.to_string())),
        expr::Verdict::Continue => None,
    }
}

fn compare(op: &Operator, left: &Expression<'_>, right: &Expression<'_>, sample: &Sample) -> Match {
    let found = match left {
        Expression::Named(NamedExpression::Meta(Meta { key })) => compare_meta(key, right, sample),
        Expression::Named(NamedExpression::CT(ct)) if ct.key == "state" => one_of(right, |item| match item {
            Expression::Number(bits) => Some(bits & STATE_NEW != 0),
            Expression::String(name) => Some(name == "new"),
            _ => Some(false),
        }),
        Expression::Named(NamedExpression::Payload(Payload::PayloadField(field))) => {
            compare_field(field, right, sample)
        }
        _ => Match::Unknown,
    };
    match (op, found) {
        (Operator::NEQ, Match::Yes | Match::Us) => Match::No,
        (Operator::NEQ, Match::No) => Match::Yes,
        (Operator::EQ | Operator::IN | Operator::NEQ, found) => found,
        _ => Match::Unknown,
    }
}

fn compare_meta(key: &MetaKey, right: &Expression<'_>, sample: &Sample) -> Match {
    match key {
        MetaKey::Iif | MetaKey::Iifname => compare_link(right, sample.iif),
        MetaKey::Oif | MetaKey::Oifname => compare_link(right, sample.oif),
        MetaKey::L4proto => compare_protocol(right, sample),
        MetaKey::Nfproto => one_of(right, |item| match item {
            Expression::Number(family) => Some(*family == IPV4),
            Expression::String(family) => Some(family == "ipv4"),
            _ => None,
        }),
        _ => Match::Unknown,
    }
}

fn compare_field(
    PayloadField { protocol, field }: &PayloadField<'_>,
    right: &Expression<'_>,
    sample: &Sample,
) -> Match {
    match (protocol.as_ref(), field.as_ref()) {
        ("ip", "protocol") => compare_protocol(right, sample),
        ("ip", "saddr") => match sample.source {
            Some(source) => one_of(right, |item| Some(net_of(item)?.contains(&source))),
            None => Match::Unknown,
        },
        (protocol @ ("tcp" | "udp"), _) if protocol != sample.protocol => Match::No,
        ("tcp" | "udp" | "th", "dport") if sample.hook != "output" => {
            match one_of(right, |item| holds_port(item, sample.port)) {
                Match::Yes if sample.protocol == "udp" => Match::Us,
                found => found,
            }
        }
        ("icmp" | "icmpv6" | "ip6", _) => Match::No,
        _ => Match::Unknown,
    }
}

fn compare_link(right: &Expression<'_>, link: Option<&str>) -> Match {
    let name = |item: &Expression<'_>| match item {
        Expression::String(name) => Some(name.to_string()),
        _ => None,
    };
    let Some(link) = link else {
        // It is some link of the host, and neither of these.
        return one_of(right, |item| name(item).filter(|name| name == "lo" || name == own::LINK).map(|_| false));
    };
    let found = one_of(right, |item| {
        let name = name(item)?;
        Some(name.strip_suffix('*').map_or(name == link, |start| link.starts_with(start)))
    });
    if found == Match::Yes { Match::Us } else { found }
}

fn compare_protocol(right: &Expression<'_>, sample: &Sample) -> Match {
    let number = if sample.protocol == "udp" { 17 } else { 6 };
    one_of(right, |item| match item {
        Expression::Number(protocol) => Some(*protocol == number),
        Expression::String(protocol) => Some(protocol == sample.protocol),
        _ => Some(false),
    })
}

/// Whether one of the items, or the one, is as asked; `None` is for what cannot be told.
fn one_of(right: &Expression<'_>, is: impl Fn(&Expression<'_>) -> Option<bool>) -> Match {
    let answers: Vec<Option<bool>> = match right {
        Expression::Named(NamedExpression::Set(items)) => {
            let item = |item: &SetItem<'_>| if let SetItem::Element(item) = item { is(item) } else { None };
            items.iter().map(item).collect()
        }
        Expression::List(items) => items.iter().map(is).collect(),
        single => vec![is(single)],
    };
    match answers {
        answers if answers.contains(&Some(true)) => Match::Yes,
        answers if answers.contains(&None) => Match::Unknown,
        _ => Match::No,
    }
}

fn holds_port(item: &Expression<'_>, port: u16) -> Option<bool> {
    let number = |end: &Expression<'_>| if let Expression::Number(number) = end { Some(*number) } else { None };
    match item {
        Expression::Range(ends) => {
            let [first, last] = &ends.range;
            Some((number(first)?..=number(last)?).contains(&port.into()))
        }
        single => Some(number(single)? == u32::from(port)),
    }
}

fn net_of(item: &Expression<'_>) -> Option<IpNet> {
    let address = |item: &Expression<'_>| match item {
        Expression::String(text) => text.parse::<IpAddr>().ok(),
        _ => None,
    };
    match item {
        Expression::Named(NamedExpression::Prefix(prefix)) => {
            IpNet::new(address(&prefix.addr)?, u8::try_from(prefix.len).ok()?).ok()
        }
        single => address(single).map(IpNet::from),
    }
}
