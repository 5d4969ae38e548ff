//! `warren-coordinator policy check|test` on a file: no server is needed.

use assert_cmd::Command;

use crate::program::program_path;

const POLICY: &str = r#"{
    "tagOwners": {"tag:web": ["ada@example.com"]},
    "acls": [{"action": "accept", "src": ["ada@example.com"], "dst": ["tag:web:443"]}],
    "tests": [{"src": "ada@example.com", "accept": ["tag:web:443"]}],
}"#;

fn policy(arguments: &[&str], text: String) -> assert_cmd::assert::Assert {
    let mut program = Command::new(program_path("warren-coordinator"));
    program.args(arguments).arg("-").write_stdin(text).assert()
}

#[test]
fn a_good_policy_passes_both() {
    policy(&["policy", "check"], POLICY.to_owned()).success().stdout("-: ok\n");
    policy(&["policy", "test"], POLICY.to_owned()).success().stdout("-: ok\n");
}

#[test]
fn a_mistake_is_shown_where_it_stands() {
    let refused = policy(
        &["policy", "check"],
        POLICY.replace("tag:web:443\"]}],\n    \"tests", "tag:wob:443\"]}],\n    \"tests"),
    );
    let shown = String::from_utf8(refused.code(1).get_output().stderr.clone()).unwrap();
    assert!(shown.contains("line 3, column 71: dst=\"tag:wob\": tag not found: \"tag:wob\""), "{shown}");
    assert!(shown.contains("^^^^^^^^^^^^^"), "{shown}");
}

#[test]
fn a_policy_that_fails_its_tests_passes_check_and_not_test() {
    let failing = POLICY.replace("\"accept\": [\"tag", "\"deny\": [\"tag");
    policy(&["policy", "check"], failing.clone()).success();
    let refused = policy(&["--json", "policy", "test"], failing).code(1);
    let listed: serde_json::Value = serde_json::from_slice(&refused.get_output().stdout).unwrap();
    assert_eq!(listed["errors"][0]["message"], "test(s) failed");
}

#[test]
fn the_policy_of_the_manual_passes_its_own_tests() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/man/warren-policy.7");
    let page = std::fs::read_to_string(page).unwrap();
    let chapter = page.split(".SH EXAMPLE").nth(1).unwrap();
    let example = chapter.split(".EX\n").nth(1).unwrap().split(".EE").next().unwrap();
    assert!(example.contains("tag:db:5432"), "{example}");
    policy(&["policy", "check"], example.to_owned()).success();
    policy(&["policy", "test"], example.to_owned()).success();
}
