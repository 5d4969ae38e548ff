//! Postures: conditions on what a source node reports of itself, such as `node:os == 'linux'`.
//!
//! A condition on an attribute that the node does not report fails, whatever it asks, save `NOT SET`.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// What a node reports under one name.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// `'linux'`, `'6.1.0'`.
    Text(String),
    /// `85`.
    Number(f64),
    /// `true`.
    Bool(bool),
}

/// Conditions that must all hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Posture {
    pub(super) conditions: Vec<Condition>,
}

impl Posture {
    /// Whether a node that reports these attributes meets every condition.
    pub fn holds(&self, attributes: &BTreeMap<String, Attribute>) -> bool {
        self.conditions.iter().all(|condition| condition.holds(attributes))
    }
}

/// One condition.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Condition {
    attribute: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Set,
    NotSet,
    Equal(Attribute),
    NotEqual(Attribute),
    /// The orderings that satisfy `<`, `<=`, `>` or `>=`.
    Order(&'static [Ordering], Attribute),
    In(Vec<Attribute>),
    NotIn(Vec<Attribute>),
}

/// Longer operators first, so that `>=` is not read as `>`.
const OPERATORS: &[&str] = &["==", "!=", ">=", "<=", ">", "<", "NOT IN", "IN", "IS SET", "NOT SET"];

impl Condition {
    /// Reads `ATTRIBUTE OPERATOR VALUE`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let expected = || format!("expected ATTRIBUTE OPERATOR VALUE, the operator one of {}", OPERATORS.join(", "));
        let (attribute, rest) = text.trim().split_once(char::is_whitespace).ok_or_else(expected)?;
        let known = ["node:", "ip:", "custom:"].iter().any(|space| attribute.starts_with(space));
        if !known {
            return Err(format!("unknown attribute {attribute:?}: its name begins with node:, ip: or custom:"));
        }
        let rest = rest.trim_start();
        let operator = OPERATORS.iter().find(|operator| starts_with(rest, operator)).ok_or_else(expected)?;
        let operand = rest[operator.len()..].trim();
        let test = match *operator {
            "IS SET" | "NOT SET" if !operand.is_empty() => return Err(expected()),
            "IS SET" => Test::Set,
            "NOT SET" => Test::NotSet,
            "==" => Test::Equal(value(operand)?),
            "!=" => Test::NotEqual(value(operand)?),
            ">=" => Test::Order(&[Ordering::Greater, Ordering::Equal], value(operand)?),
            "<=" => Test::Order(&[Ordering::Less, Ordering::Equal], value(operand)?),
            ">" => Test::Order(&[Ordering::Greater], value(operand)?),
            "<" => Test::Order(&[Ordering::Less], value(operand)?),
            "IN" => Test::In(values(operand)?),
            _ => Test::NotIn(values(operand)?),
        };
        Ok(Self { attribute: attribute.to_owned(), test })
    }

    fn holds(&self, attributes: &BTreeMap<String, Attribute>) -> bool {
        let Some(found) = attributes.get(&self.attribute) else {
            return self.test == Test::NotSet;
        };
        match &self.test {
            Test::Set => true,
            Test::NotSet => false,
            Test::Equal(value) => found == value,
            Test::NotEqual(value) => found != value,
            Test::Order(wanted, value) => compare(found, value).is_some_and(|order| wanted.contains(&order)),
            Test::In(values) => values.contains(found),
            Test::NotIn(values) => !values.contains(found),
        }
    }
}

/// Whether `text` begins with the operator as a word of its own, in any case.
fn starts_with(text: &str, operator: &str) -> bool {
    let Some((head, tail)) = text.split_at_checked(operator.len()) else { return false };
    let is_word = operator.ends_with(char::is_alphabetic);
    head.eq_ignore_ascii_case(operator) && (!is_word || !tail.starts_with(char::is_alphanumeric))
}

fn value(text: &str) -> Result<Attribute, String> {
    let quoted = |quote| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    if let Some(text) = quoted('\'').or_else(|| quoted('"')) {
        return Ok(Attribute::Text(text.to_owned()));
    }
    match text {
        "true" => Ok(Attribute::Bool(true)),
        "false" => Ok(Attribute::Bool(false)),
        _ => text
            .parse()
            .map(Attribute::Number)
            .map_err(|_| format!("{text:?} is not a value: expected 'text', a number, true or false")),
    }
}

fn values(text: &str) -> Result<Vec<Attribute>, String> {
    let list = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let list = list.ok_or_else(|| format!("{text:?} is not a list: expected ['a', 'b']"))?;
    list.split(',').map(|item| value(item.trim())).collect()
}

/// Numbers by size; texts as versions, part by part, numeric parts by size.
fn compare(a: &Attribute, b: &Attribute) -> Option<Ordering> {
    match (a, b) {
        (Attribute::Number(a), Attribute::Number(b)) => a.partial_cmp(b),
        (Attribute::Text(a), Attribute::Text(b)) => Some(compare_versions(a, b)),
        _ => None,
    }
}

fn compare_versions(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| -> Vec<(u64, String)> {
        let part = |part: &str| {
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            (part[..digits].parse().unwrap_or(0), part[digits..].to_owned())
        };
        text.split(['.', '-', '+', '_']).map(part).collect()
    };
    let (a, b) = (parts(a), parts(b));
    let zero = (0, String::new());
    (0..a.len().max(b.len()))
        .map(|index| a.get(index).unwrap_or(&zero).cmp(b.get(index).unwrap_or(&zero)))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(condition: &str) -> bool {
        let text = |text: &str| Attribute::Text(text.to_owned());
        let reported = BTreeMap::from([
            ("node:os".to_owned(), text("linux")),
            ("node:tsVersion".to_owned(), text("1.9.2")),
            ("custom:score".to_owned(), Attribute::Number(85.0)),
            ("node:tsAutoUpdate".to_owned(), Attribute::Bool(true)),
        ]);
        Posture { conditions: vec![Condition::parse(condition).unwrap()] }.holds(&reported)
    }

    #[test]
    fn a_condition_compares_what_the_node_reports() {
        for met in [
            "node:os == 'linux'",
            "node:os != \"macos\"",
            "node:os IN ['macos', 'linux']",
            "node:os not in ['macos']",
            "node:os IS SET",
            "node:tsVersion >= '1.9'",
            "node:tsVersion < '1.10'",
            "custom:score > 84.5",
            "custom:score <= 85",
            "node:tsAutoUpdate == true",
            "custom:other NOT SET",
        ] {
            assert!(holds(met), "{met}");
        }
    }

    #[test]
    fn an_attribute_that_is_missing_or_of_another_kind_meets_nothing() {
        for unmet in ["custom:other != 'x'", "custom:other NOT IN ['x']", "custom:other == 'x'", "node:os > 5"] {
            assert!(!holds(unmet), "{unmet}");
        }
    }

    #[test]
    fn a_condition_that_cannot_be_read_says_what_was_expected() {
        for bad in ["", "node:os", "node:os linux", "os == 'x'", "node:os == linux", "node:os IN 'x'", "node:os INX"] {
            assert!(Condition::parse(bad).is_err(), "{bad}");
        }
    }
}
