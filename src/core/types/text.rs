//! Text of others, and what of it may come before a person's eyes.
//!
//! A machine chooses its own name; it must not choose what a terminal does, how a line reads, or which row of a table
//! is whose. [`clean`] is the one function for that. It is called where text comes in ([`clean_text`]), and again at each
//! of the doors it goes out by: the terminal ([`Screen`], [`Line`], [`Lines`]), the log, a page.

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::io::{self, Write};

use serde::Deserialize;
use serde::de::Deserializer;

use super::bounded_vec;

/// Bytes of a line that goes to a terminal or a log: the longest of ours is a tenth of it.
pub const LINE_BYTES: usize = 4 * 1024;
/// What stands where something was that cannot be shown.
const INSTEAD: char = char::REPLACEMENT_CHARACTER;
/// What ends a text that was too long.
const CUT: &str = "…";

/// Characters that are not seen themselves but change how others are read: joiners and spaces without width, marks of
/// direction, separators of lines, tags, fillers, and selectors of another shape.
const UNSEEN: &[(char, char)] = &[
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{110bd}', '\u{110cd}'),
    ('\u{13430}', '\u{1345f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
];

/// Whether a character is seen as itself, or is a plain blank.
pub fn is_seen(c: char) -> bool {
    !c.is_control() && !UNSEEN.iter().any(|(first, last)| (*first..=*last).contains(&c))
}

/// A text on one line: what is not seen is replaced, each run of blanks is one blank (columns of a table are further
/// apart), and past `most` bytes it is cut.
pub fn clean(text: &str, most: usize) -> Cow<'_, str> {
    if is_clean(text, most) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len().min(most));
    let mut blank = false;
    for c in text.chars() {
        let seen = is_seen(c);
        if seen && c.is_whitespace() {
            blank = !cleaned.is_empty();
            continue;
        }
        let c = if seen { c } else { INSTEAD };
        if cleaned.len() + usize::from(blank) + c.len_utf8() > most {
            cut(&mut cleaned, most);
            break;
        }
        if std::mem::take(&mut blank) {
            cleaned.push(' ');
        }
        cleaned.push(c);
    }
    Cow::Owned(cleaned)
}

/// The common case, told without a copy.
fn is_clean(text: &str, most: usize) -> bool {
    let graphic = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    graphic && text.len() <= most && !text.contains("  ") && !text.starts_with(' ') && !text.ends_with(' ')
}

fn cut(cleaned: &mut String, most: usize) {
    while cleaned.len() + CUT.len() > most && cleaned.pop().is_some() {}
    if cleaned.len() + CUT.len() <= most {
        cleaned.push_str(CUT);
    }
}

/// Shows a value on one line, whatever it holds.
#[derive(Clone, Copy, Debug)]
pub struct Line<T>(pub T);

impl<T: Display> Display for Line<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&clean(&self.0.to_string(), LINE_BYTES))
    }
}

/// Shows a value of several lines, each of them clean: for an error of ours that quotes what it is about.
#[derive(Clone, Copy, Debug)]
pub struct Lines<T>(pub T);

impl<T: Display> Display for Lines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.to_string().chars().try_for_each(|c| fmt::Write::write_char(f, layout(c)))
    }
}

/// What we lay out by lines and tabs stays so.
fn layout(c: char) -> char {
    if is_seen(c) || matches!(c, '\n' | '\t') { c } else { INSTEAD }
}

/// The way to a terminal: everything that a program prints passes it.
#[derive(Debug)]
pub struct Screen<W> {
    to: W,
    /// JSON keeps its meaning: what is not seen is escaped. It stands in strings only.
    json: bool,
    /// The beginning of a character whose end was not written yet.
    begun: Vec<u8>,
}

impl<W: Write> Screen<W> {
    /// Everything written here goes to `to`, with nothing in it that a terminal would obey.
    pub fn new(to: W, json: bool) -> Self {
        Self { to, json, begun: Vec::new() }
    }

    fn show(&self, text: &str, shown: &mut String) {
        for c in text.chars() {
            if self.json && layout(c) != c {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    shown.push_str(&format!("\\u{unit:04x}"));
                }
            } else {
                shown.push(layout(c));
            }
        }
    }
}

impl<W: Write> Write for Screen<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut all = std::mem::take(&mut self.begun);
        all.extend(bytes);
        let mut shown = String::with_capacity(all.len());
        let mut rest = &all[..];
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.show(text, &mut shown);
                    break;
                }
                Err(error) => {
                    let (text, unread) = rest.split_at(error.valid_up_to());
                    self.show(std::str::from_utf8(text).unwrap_or_default(), &mut shown);
                    let Some(bad) = error.error_len() else {
                        self.begun = unread.to_vec();
                        break;
                    };
                    shown.push(INSTEAD);
                    rest = &unread[bad..];
                }
            }
        }
        self.to.write_all(shown.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// For `#[serde(deserialize_with = "…")]`: a text of others, clean and of at most `MOST` bytes.
pub fn clean_text<'de, D: Deserializer<'de>, const MOST: usize>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(cleaned::<MOST>)
}

/// The same for a list of at most `ITEMS`.
pub fn clean_texts<'de, D, const ITEMS: usize, const MOST: usize>(deserializer: D) -> Result<Vec<String>, D::Error>
where
    D: Deserializer<'de>,
{
    let texts = bounded_vec::<_, String, ITEMS>(deserializer)?;
    Ok(texts.into_iter().map(cleaned::<MOST>).collect())
}

/// The same for a list that may be absent.
pub fn clean_maybe_texts<'de, D, const ITEMS: usize, const MOST: usize>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error>
where
    D: Deserializer<'de>,
{
    struct Texts<const ITEMS: usize, const MOST: usize>(Vec<String>);

    impl<'de, const ITEMS: usize, const MOST: usize> Deserialize<'de> for Texts<ITEMS, MOST> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            clean_texts::<_, ITEMS, MOST>(deserializer).map(Self)
        }
    }

    let texts = Option::<Texts<ITEMS, MOST>>::deserialize(deserializer)?;
    Ok(texts.map(|texts| texts.0))
}

fn cleaned<const MOST: usize>(text: String) -> String {
    match clean(&text, MOST) {
        Cow::Borrowed(_) => text,
        Cow::Owned(cleaned) => cleaned,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_replaced() {
        for (given, shown) in [
            ("linux", "linux"),
            ("a\u{1b}[31m", "a\u{fffd}[31m"),
            ("linux\n100.64.0.9  db  ada", "linux\u{fffd}100.64.0.9 db ada"),
            ("\u{9b}2J\u{7f}", "\u{fffd}2J\u{fffd}"),
            ("moc\u{202e}.elpmaxe", "moc\u{fffd}.elpmaxe"),
            ("web\u{200b}\u{feff}", "web\u{fffd}\u{fffd}"),
            ("a\u{2028}b\u{e0041}", "a\u{fffd}b\u{fffd}"),
            ("linux   active;\u{a0}\u{3000}direct ", "linux active; direct"),
            ("日本 Größe", "日本 Größe"),
        ] {
            assert_eq!(clean(given, 100), shown, "{given:?}");
        }
    }

    #[test]
    fn a_text_past_its_limit_is_cut_where_a_character_ends() {
        assert_eq!(clean("abcdef", 6), "abcdef");
        assert_eq!(clean("abcdefg", 6), "abc…");
        assert_eq!(clean("äöüß", 7), "äö…");
        assert_eq!(clean("abc", 2), "");
    }

    #[test]
    fn json_says_the_same_with_what_is_not_seen_escaped() {
        let text = "a\u{9b}b\u{202e}c\u{e0041}\u{1b}";
        let mut out = Vec::new();
        serde_json::to_writer(Screen::new(&mut out, true), text).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out, r#""a\u009bb\u202ec\udb40\udc41\u001b""#);
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
    }

    #[test]
    fn an_error_of_several_lines_keeps_them() {
        assert_eq!(Lines("line 1\n\t^\u{1b}[0m").to_string(), "line 1\n\t^\u{fffd}[0m");
        assert_eq!(Line("line 1\n\t^").to_string(), "line 1\u{fffd}\u{fffd}^");
    }

    proptest! {
        #[test]
        fn nothing_unseen_leaves_and_nothing_longer_than_allowed(text in ".{0,60}|\\PC{0,60}|[\\x00-\\x20a\u{200b}-\u{202f}]{0,60}", most in 0_usize..80) {
            let cleaned = clean(&text, most);
            prop_assert!(cleaned.chars().all(is_seen), "{cleaned:?}");
            prop_assert!(cleaned.len() <= most && !cleaned.contains("  ") && cleaned.trim() == cleaned);
            prop_assert_eq!(clean(&cleaned, most), &*cleaned);
        }

        /// Bytes of any kind, in pieces of any size.
        #[test]
        fn a_screen_shows_text_alone(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..9), json: bool) {
            let mut out = Vec::new();
            let mut screen = Screen::new(&mut out, json);
            for piece in &pieces {
                screen.write_all(piece).unwrap();
            }
            let out = String::from_utf8(out).unwrap();
            prop_assert!(out.chars().all(|c| is_seen(c) || matches!(c, '\n' | '\t')), "{out:?}");
            let whole = pieces.concat();
            if !json && whole.iter().all(|byte| (0x20..0x7f).contains(byte)) {
                prop_assert_eq!(out.as_bytes(), &whole[..]);
            }
        }

        #[test]
        fn characters_in_pieces_are_put_together(text: String, size in 1_usize..5) {
            let mut out = Vec::new();
            let mut screen = Screen::new(&mut out, false);
            for piece in text.as_bytes().chunks(size) {
                screen.write_all(piece).unwrap();
            }
            prop_assert_eq!(String::from_utf8(out).unwrap(), Lines(&text).to_string());
        }
    }
}
