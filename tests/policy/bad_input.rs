//! Policies that are refused: with the place, in bounded time, and never with a panic.
//!
//! `refused/` holds one small policy per mistake. Its first line says what is expected:
//! `// LINE:COLUMN message`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use warren_core::policy::{Compiled, Policy, Topology, limit};

/// A policy that uses every section.
pub(crate) const EVERYTHING: &str = include_str!("everything.hujson");

fn refusal(policy: &[u8]) -> String {
    let errors = Policy::parse(policy).expect_err("the policy is refused");
    let first = errors.0.first().expect("there is a reason");
    format!("{}:{} {}", first.line, first.column, first.message)
}

#[test]
fn each_mistake_is_named_at_its_place() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/policy/refused");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 30, "the corpus is there");
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let expected = text.lines().next().unwrap().trim_start_matches("// ");
        let found = refusal(text.as_bytes());
        if found != expected {
            wrong.push(format!(
                "{}:\n  expected {expected}\n  found    {found}",
                file.file_name().unwrap().to_string_lossy()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_byte_order_mark_is_called_by_its_name() {
    let refused = refusal(b"\xef\xbb\xbf{}");
    assert!(refused.starts_with("1:1 the file begins with a byte-order mark"), "{refused}");
}

#[test]
fn a_policy_that_uses_every_section_is_accepted() {
    let policy = Policy::parse(EVERYTHING.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(policy.text(), EVERYTHING);
}

#[test]
fn ten_mebibytes_are_refused_where_the_limit_is_passed() {
    let mut text = vec![b' '; 10 << 20];
    text[0] = b'{';
    assert_eq!(refusal(&text), "1:4194305 10485760 bytes of policy, at most 4194304 are taken");
}

#[test]
fn a_hundred_thousand_rules_are_refused_at_the_first_one_too_many() {
    let rule = "{\"action\":\"accept\",\"src\":[],\"dst\":[]},\n";
    let text = format!("{{\"acls\":[\n{}]}}", rule.repeat(100_000));
    assert_eq!(refusal(text.as_bytes()), "20002:1 20001 rules in a policy, at most 20000 are taken");
}

#[test]
fn deep_nesting_is_refused_at_the_first_bracket_too_many() {
    for bracket in ["[", "{\"a\":"] {
        let found = refusal(bracket.repeat(1_000_000 / bracket.len()).as_bytes());
        assert!(found.ends_with("65 levels of nesting, at most 64 are taken"), "{found}");
    }
    assert_eq!(limit::DEPTH.most, 64);
}

#[test]
fn bytes_that_are_not_utf8_are_refused_where_they_stand() {
    assert_eq!(
        refusal(b"{\n  \"hosts\": {\"a\xff\": \"10.0.0.1\"}\n}"),
        "2:15 the policy is not UTF-8 text from here on"
    );
}

#[test]
fn several_mistakes_are_reported_together_up_to_a_limit() {
    let rule = "{\"action\": \"deny\"},\n";
    let errors = Policy::parse(format!("{{\"acls\": [\n{}]}}", rule.repeat(500)).as_bytes()).unwrap_err();
    assert_eq!(errors.0.len(), limit::ERRORS);
    assert_eq!(errors.0[1].line, 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_accepted_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        take(&bytes);
    }

    #[test]
    fn any_text_of_the_language_is_accepted_or_refused(
        tokens in prop::collection::vec(prop::sample::select(TOKENS), 0..80),
    ) {
        take(tokens.concat().as_bytes());
    }

    #[test]
    fn a_damaged_policy_is_accepted_or_refused(
        start in 0..EVERYTHING.len(),
        length in 0usize..40,
        token in prop::sample::select(TOKENS),
    ) {
        let mut bytes = EVERYTHING.as_bytes().to_vec();
        let end = (start + length).min(bytes.len());
        bytes.splice(start..end, token.bytes());
        take(&bytes);
    }
}

const TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "//",
    "/*",
    "*/",
    "\n",
    " ",
    "null",
    "true",
    "-1",
    "1e999",
    "\"acls\":",
    "\"src\":",
    "\"dst\":",
    "\"*\"",
    "\"*:*\"",
    "\"autogroup:self:*\"",
    "\"tag:web\"",
    "\"group:ops\"",
    "\"groups\":",
    "\"app\":",
    "\"ipsets\":",
    "\"ipset:lan\"",
    "\"posture:fit\"",
    "\"\\ud800\"",
    "\"é\"",
    "\"1-\"",
    "\"tcp:80\"",
    "\"fd00::/8\"",
];

/// Whatever comes of it, the error can be shown and the policy compiled.
fn take(bytes: &[u8]) {
    match Policy::parse(bytes) {
        Ok(policy) => {
            let compiled = Compiled::new(Arc::new(policy), Topology::default());
            let _ = compiled.check().map_err(|errors| errors.to_string());
        }
        Err(errors) => {
            assert!(!errors.0.is_empty());
            assert!(errors.to_string().contains('^'));
        }
    }
}
