//! What is wrong with a policy, and where: a message, a line, a column, and the line itself with a caret.

use std::fmt;

use thiserror::Error;

/// A piece of the policy text, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The first byte, counted from 0.
    pub start: u32,
    /// The byte after the last.
    pub end: u32,
}

impl Span {
    /// From byte offsets; texts are far smaller than 4 GiB (see [`limit::TEXT`](super::limit::TEXT)).
    pub(super) fn new(start: usize, end: usize) -> Self {
        let clamp = |offset: usize| u32::try_from(offset).unwrap_or(u32::MAX);
        Self { start: clamp(start), end: clamp(end) }
    }
}

impl From<jsonc_parser::common::Range> for Span {
    fn from(range: jsonc_parser::common::Range) -> Self {
        Self::new(range.start, range.end)
    }
}

/// A complaint about a span, before the text is at hand to show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: Span,
    pub(super) message: String,
    pub(super) details: Vec<String>,
}

impl Fault {
    pub(super) fn new(at: Span, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), details: Vec::new() }
    }

    /// Finds the place in the text.
    pub(super) fn locate(self, text: &str) -> PolicyError {
        let start = floor_char_boundary(text, self.at.start as usize);
        let end = floor_char_boundary(text, self.at.end as usize).max(start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let before = &text[line_start..start];
        let marked = &text[start..end.min(line_end)];
        PolicyError {
            message: self.message,
            details: self.details,
            line: 1 + text[..line_start].matches('\n').count(),
            column: 1 + before.chars().count(),
            excerpt: Excerpt::new(before, marked, &text[start + marked.len()..line_end]),
        }
    }
}

/// Why a policy is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct PolicyError {
    /// What is wrong, in one line.
    pub message: String,
    /// More of it, a line each: which tests failed, and how.
    pub details: Vec<String>,
    /// Counted from 1.
    pub line: usize,
    /// Counted in characters from 1.
    pub column: usize,
    excerpt: Excerpt,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "line {}, column {}: {}", self.line, self.column, self.message)?;
        let number = self.line.to_string();
        let gutter = " ".repeat(number.len());
        writeln!(f, "{gutter} |")?;
        writeln!(f, "{number} | {}", self.excerpt.line)?;
        write!(f, "{gutter} | {}{}", " ".repeat(self.excerpt.indent), "^".repeat(self.excerpt.width))?;
        for detail in &self.details {
            write!(f, "\n{gutter} = {detail}")?;
        }
        Ok(())
    }
}

/// The part of a line that fits a terminal, and where in it the carets go.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Excerpt {
    line: String,
    indent: usize,
    width: usize,
}

impl Excerpt {
    /// How much of a line is shown on either side of the place; a minified policy is one long line.
    const CONTEXT: usize = 60;

    fn new(before: &str, marked: &str, after: &str) -> Self {
        let shown = |c: char| if c.is_control() { ' ' } else { c };
        let skipped = before.chars().count().saturating_sub(Self::CONTEXT);
        let before: String = before.chars().skip(skipped).map(shown).collect();
        let marked: String = marked.chars().take(Self::CONTEXT).map(shown).collect();
        let after: String = after.chars().take(Self::CONTEXT - marked.chars().count()).map(shown).collect();
        Self {
            indent: before.chars().count(),
            width: marked.chars().count().max(1),
            line: format!("{before}{marked}{after}").trim_end().to_owned(),
        }
    }
}

fn floor_char_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_its_line_with_a_caret_under_the_place() {
        let text = "{\n  \"acls\": [42],\n}";
        let error = Fault::new(Span::new(13, 15), "expected an object").locate(text);
        assert_eq!((error.line, error.column), (2, 12));
        assert_eq!(
            error.to_string(),
            "line 2, column 12: expected an object\n  |\n2 |   \"acls\": [42],\n  |            ^^"
        );
    }

    #[test]
    fn a_place_past_the_end_or_inside_a_character_is_moved_not_a_panic() {
        for at in [Span::new(1, 2), Span::new(2, 1), Span::new(900, 901)] {
            assert!(Fault::new(at, "x").locate("é\n").to_string().contains('^'));
        }
    }

    #[test]
    fn only_the_neighbourhood_of_a_long_line_is_shown() {
        let error = Fault::new(Span::new(5_000, 5_001), "x").locate(&"a".repeat(10_000));
        assert!(error.to_string().lines().all(|line| line.len() < 140));
    }
}
