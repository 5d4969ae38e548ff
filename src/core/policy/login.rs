//! What a user is called: one form of each name, the same to the registry and to policies.
//!
//! Policies write a name without a domain as `me@`, so `me@` and `me` are one user, as are `Me` and `me`. What a policy
//! reads as something else than a user (`tag:web`, `*`, `group:ops`, an address, a number) can be nobody's name.

use unicode_normalization::UnicodeNormalization;
use unicode_security::skeleton;

/// Why nobody can be called so.
pub const BAD_LOGIN: &str = "a user is called by a name, as `ada`, or an address, as `ada@example.org`: without spaces, \
                             colons, slashes, commas, quotes and asterisks, and neither a number nor an IP address";

/// The one form of a user's name; nothing where it can be nobody's.
pub fn canonical_login(text: &str) -> Option<String> {
    let name = fold(text);
    let name = name.strip_suffix('@').unwrap_or(&name);
    let at_signs = name.matches('@').count();
    let is_number = name.bytes().all(|b| b.is_ascii_digit());
    let is_address = name.parse::<std::net::IpAddr>().is_ok();
    let is_good = !is_number && !is_address && at_signs <= 1 && !name.starts_with('@') && !name.ends_with('@');
    (is_good && !name.contains(is_never_part)).then(|| name.to_owned())
}

/// A name that can be somebody's and is like one that cannot.
pub fn nearest_login(text: &str) -> String {
    let name: String = fold(text).chars().map(|c| if is_never_part(c) { '-' } else { c }).collect();
    let name = name.trim_matches(['-', '@']).replace('@', "-");
    canonical_login(&name).unwrap_or_else(|| format!("user-{name}").trim_end_matches('-').to_owned())
}

/// One form for all that look alike: `ＭＥ` is `me`.
fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    text.nfkc().collect::<String>().to_lowercase().nfkc().collect()
}

/// Whether a person would take one name for the other (UTS 39): a Cyrillic `е` for a Latin one. In plain ASCII, where
/// `m` and `rn` are told apart, no two names are.
pub fn looks_like(one: &str, other: &str) -> bool {
    !(one.is_ascii() && other.is_ascii()) && skeleton(one).eq(skeleton(other))
}

/// What a reader does not see, or what changes how the rest is shown.
pub(super) fn is_unseen(c: char) -> bool {
    let is_invisible = matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180b}'..='\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'
    );
    c.is_control() || is_invisible
}

/// What policies, lists or terminals read as something else than part of a name.
fn is_never_part(c: char) -> bool {
    c.is_whitespace() || is_unseen(c) || matches!(c, ':' | '*' | '/' | ',' | '"' | '\'' | '`' | '\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_name_is_one() {
        for (spelling, name) in [
            ("me", "me"),
            ("me@", "me"),
            ("Me", "me"),
            ("ＭＥ＠", "me"),
            ("Ada@Example.ORG", "ada@example.org"),
            ("ju\u{308}rgen", "jürgen"),
            ("JÜRGEN@", "jürgen"),
        ] {
            assert_eq!(canonical_login(spelling).as_deref(), Some(name), "{spelling}");
        }
    }

    #[test]
    fn names_that_a_person_cannot_tell_apart_are_known() {
        for (one, other, alike) in [
            ("me", "m\u{435}", true),
            ("ada@example.org", "\u{430}da@example.org", true),
            ("jürgen", "jurgen", false),
            ("barn", "bam", false),
            ("иван", "ivan", false),
        ] {
            assert_eq!(looks_like(one, other), alike, "{one} {other}");
        }
    }

    #[test]
    fn what_a_policy_reads_as_something_else_is_nobodys_name() {
        for text in [
            "",
            "@",
            "7",
            "a b",
            "a\n",
            "*",
            "tag:web",
            "group:ops",
            "autogroup:member",
            "autogroup:*",
            "user:*@example.org",
            "ipset:x",
            "host:x",
            "id:3",
            "name:x",
            "10.0.0.1",
            "10.0.0.0/8",
            "fd7a::1",
            "a@@",
            "a@b@c",
            "@example.org",
            "a,b",
            "a\u{200b}b",
            "\u{202e}eda",
            "a\"b",
        ] {
            assert_eq!(canonical_login(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_has_one_near_it_that_can() {
        for (text, near) in [
            ("tag:web", "tag-web"),
            ("*", "user"),
            ("group:Ops", "group-ops"),
            ("", "user"),
            ("a@b@c", "a-b-c"),
            ("7", "user-7"),
        ] {
            assert_eq!(nearest_login(text), near);
            assert!(canonical_login(near).is_some());
        }
    }
}
