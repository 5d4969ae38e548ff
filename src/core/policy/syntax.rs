//! HuJSON: JSON with comments and trailing commas, every value with its place in the text.
//!
//! A text is measured before it is parsed, so that neither its size, nor its depth, nor the number of its
//! values can ask for more memory than [`limit`](super::limit) allows.

use std::borrow::Cow;

use jsonc_parser::ast::{Object, Value};
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, ParseOptions};

use super::error::{Fault, Span};
use super::limit;

/// JSON with what HuJSON adds, and nothing of what else a lenient parser would take.
const HUJSON: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_trailing_commas: true,
    allow_loose_object_property_names: false,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

/// What some editors write in front of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The bytes of a policy as text.
pub(super) fn decode(bytes: &[u8]) -> Result<&str, (Fault, Cow<'_, str>)> {
    let lossy = || String::from_utf8_lossy(&bytes[..bytes.len().min(limit::TEXT.most)]);
    if let Err(error) = limit::TEXT.check(bytes.len()) {
        let end = limit::TEXT.most;
        return Err((Fault::new(Span::new(end, end), error.to_string()), lossy()));
    }
    if bytes.starts_with(BYTE_ORDER_MARK) {
        let message =
            "the file begins with a byte-order mark, which is no part of HuJSON: save it as UTF-8 without one";
        return Err((Fault::new(Span::new(0, 0), message), lossy()));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        (Fault::new(Span::new(at, at + 1), "the policy is not UTF-8 text from here on"), lossy())
    })
}

/// Parses the text to one value.
pub(super) fn parse(text: &str) -> Result<Value<'_>, Fault> {
    measure(text)?;
    let result = jsonc_parser::parse_to_ast(text, &CollectOptions::default(), &HUJSON).map_err(|error| {
        let kind = error.kind().to_string();
        Fault::new(error.range().into(), format!("not HuJSON: {}", kind.to_lowercase()))
    })?;
    result.value.ok_or_else(|| Fault::new(Span::default(), "the policy is empty: the least policy is {}"))
}

/// Checks depth and number of values, looking at brackets and commas outside strings and comments.
fn measure(text: &str) -> Result<(), Fault> {
    let bytes = text.as_bytes();
    let (mut depth, mut values, mut at) = (0, 0, 0);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at = skip_string(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'/') => at = skip_past(text, at, "\n"),
            b'/' if bytes.get(at + 1) == Some(&b'*') => at = skip_past(text, at + 2, "*/"),
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = usize::saturating_sub(depth, 1),
            _ => {}
        }
        values += usize::from(matches!(byte, b'[' | b'{' | b','));
        for check in [limit::DEPTH.check(depth), limit::VALUES.check(values)] {
            check.map_err(|error| Fault::new(Span::new(at, at + 1), error.to_string()))?;
        }
        at += 1;
    }
    Ok(())
}

/// The place of the closing quote of the string that opens at `at`.
fn skip_string(bytes: &[u8], mut at: usize) -> usize {
    loop {
        at += 1;
        match bytes.get(at) {
            Some(b'\\') => at += 1,
            Some(b'"') | None => return at,
            Some(_) => {}
        }
    }
}

/// The last byte of the first `end` after `at`.
fn skip_past(text: &str, at: usize, end: &str) -> usize {
    text.as_bytes()[at..]
        .windows(end.len())
        .position(|window| window == end.as_bytes())
        .map_or(text.len(), |found| at + found + end.len() - 1)
}

/// A text from the policy, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) at: Span,
    pub(super) value: String,
}

impl Text {
    pub(super) fn fault(&self, message: impl Into<String>) -> Fault {
        Fault::new(self.at, message)
    }
}

/// Where a value stands.
pub(super) fn span(value: &Value<'_>) -> Span {
    value.range().into()
}

/// The members of an object, by name and without duplicates; `null` has none.
pub(super) fn members<'v, 't>(what: &str, value: &'v Value<'t>) -> Result<Vec<(Text, &'v Value<'t>)>, Fault> {
    let object = match value {
        Value::Object(object) => object,
        Value::NullKeyword(_) => return Ok(Vec::new()),
        other @ (Value::StringLit(_) | Value::NumberLit(_) | Value::BooleanLit(_) | Value::Array(_)) => {
            return Err(wrong_type(what, "an object", other));
        }
    };
    named(object)
}

fn named<'v, 't>(object: &'v Object<'t>) -> Result<Vec<(Text, &'v Value<'t>)>, Fault> {
    let mut seen = std::collections::BTreeSet::new();
    let mut members = Vec::with_capacity(object.properties.len());
    for property in &object.properties {
        let name = Text { at: property.name.range().into(), value: property.name.as_str().to_owned() };
        if !seen.insert(property.name.as_str()) {
            return Err(name.fault(duplicate(&name.value)));
        }
        members.push((name, &property.value));
    }
    Ok(members)
}

/// The elements of a list; `null` has none.
pub(super) fn elements<'v, 't>(what: &str, value: &'v Value<'t>) -> Result<&'v [Value<'t>], Fault> {
    match value {
        Value::Array(array) => Ok(&array.elements),
        Value::NullKeyword(_) => Ok(&[]),
        other @ (Value::StringLit(_) | Value::NumberLit(_) | Value::BooleanLit(_) | Value::Object(_)) => {
            Err(wrong_type(what, "a list", other))
        }
    }
}

/// A string.
pub(super) fn string(what: &str, value: &Value<'_>) -> Result<Text, Fault> {
    match value {
        Value::StringLit(text) => Ok(Text { at: span(value), value: text.value.clone().into_owned() }),
        other @ (Value::NumberLit(_)
        | Value::BooleanLit(_)
        | Value::Object(_)
        | Value::Array(_)
        | Value::NullKeyword(_)) => Err(wrong_type(what, "a string", other)),
    }
}

/// A list of strings, surrounding white space trimmed from each.
pub(super) fn strings(what: &str, value: &Value<'_>) -> Result<Vec<Text>, Fault> {
    let trimmed = |element| {
        let mut text = string(what, element)?;
        text.value = text.value.trim().to_owned();
        Ok(text)
    };
    elements(what, value)?.iter().map(trimmed).collect()
}

/// `true` or `false`.
pub(super) fn boolean(what: &str, value: &Value<'_>) -> Result<bool, Fault> {
    match value {
        Value::BooleanLit(literal) => Ok(literal.value),
        other @ (Value::StringLit(_)
        | Value::NumberLit(_)
        | Value::Object(_)
        | Value::Array(_)
        | Value::NullKeyword(_)) => Err(wrong_type(what, "true or false", other)),
    }
}

/// The members of an object whose names are known, whatever the case of their letters; each at most once.
pub(super) fn fields<'v, 't>(
    what: &str,
    known: &[&'static str],
    value: &'v Value<'t>,
) -> Result<Vec<(&'static str, &'v Value<'t>)>, Fault> {
    let mut fields: Vec<(&str, _)> = Vec::new();
    for (name, value) in members(what, value)? {
        let field = known.iter().find(|known| known.eq_ignore_ascii_case(&name.value)).ok_or_else(|| {
            name.fault(format!("unknown field {:?}: the fields here are {}", name.value, known.join(", ")))
        })?;
        if fields.iter().any(|(given, _)| given == field) {
            return Err(name.fault(duplicate(&name.value)));
        }
        fields.push((*field, value));
    }
    Ok(fields)
}

fn duplicate(name: &str) -> String {
    format!("duplicate key {name:?}: it is given twice in one object")
}

fn wrong_type(what: &str, wanted: &str, value: &Value<'_>) -> Fault {
    let found = match value {
        Value::StringLit(_) => "a string",
        Value::NumberLit(_) => "a number",
        Value::BooleanLit(_) => "true or false",
        Value::Object(_) => "an object",
        Value::Array(_) => "a list",
        Value::NullKeyword(_) => "null",
    };
    Fault::new(span(value), format!("{what} must be {wanted}, not {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_trailing_commas_are_taken_and_other_leniency_is_not() {
        assert!(parse("// a\n{\"a\": [1, /* , ] */ 2,],}").is_ok());
        for bad in ["{a: 1}", "{'a': 1}", "[1 2]", "[0x1]", "[+1]", "[.5]", "[NaN]", "{} {}", "[\"\\x41\"]", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn depth_size_and_number_are_bounded_before_parsing() {
        let deep = "[".repeat(limit::DEPTH.most + 1);
        assert!(parse(&deep).unwrap_err().message.contains("levels of nesting"));
        let many = format!("[{}]", "1,".repeat(limit::VALUES.most));
        assert!(parse(&many).unwrap_err().message.contains("values in a policy"));
        let large = vec![b' '; limit::TEXT.most + 1];
        assert!(decode(&large).unwrap_err().0.message.contains("bytes of policy"));
    }

    #[test]
    fn brackets_inside_strings_and_comments_do_not_count() {
        let inside = "[".repeat(limit::DEPTH.most + 1);
        assert!(parse(&format!("{{\"a\": \"\\\"{inside}\", /*{inside}*/ }} // {inside}")).is_ok());
    }

    #[test]
    fn bytes_that_are_not_utf8_are_refused_with_their_place() {
        let (fault, text) = decode(b"{\n \"a\": \"\xff\"}").unwrap_err();
        let error = fault.locate(&text);
        assert_eq!((error.line, error.column), (2, 8));
    }
}
