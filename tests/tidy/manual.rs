//! The README and the manual pages: that they are there, can be read, and name each other rightly.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PAGES: &str = "packaging/man";
/// What the pages are written with. Whoever reads their source knows these at once.
const REQUESTS: &[&str] = &[
    ".\\\"", ".TH", ".if", ".nh", ".ad", ".br", ".SH", ".SS", ".PP", ".TP", ".IP", ".RS", ".RE", ".EX", ".EE", ".TS",
    ".TE",
];
/// Past this the README is a manual.
const README_LINES: usize = 120;

#[test]
fn the_readme_is_short_and_every_page_it_names_exists() {
    let readme = fs::read_to_string("README.md").unwrap();

    let lines = readme.lines().count();
    assert!(lines <= README_LINES, "{lines} lines, at most {README_LINES}: move a chapter to {PAGES}");
    assert!(readme.contains("make test "), "the README no longer says how to run the tests");
    let links: Vec<&str> = readme.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    for link in links.iter().filter(|link| !link.contains("://")) {
        assert!(Path::new(link).exists(), "the README names {link}, which is not there");
    }
    for page in pages() {
        assert!(links.contains(&page.to_str().unwrap()), "the README does not name {}", page.display());
    }
}

#[test]
fn every_page_has_its_parts_and_names_pages_that_exist() {
    for page in pages() {
        let name = page.file_stem().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&page).unwrap();

        assert!(text.starts_with(&format!(".TH {} 7 ", name.to_uppercase())), "{name}: another name in its head");
        for part in ["NAME", "DESCRIPTION", "SEE ALSO"] {
            assert!(text.contains(&format!("\n.SH {part}\n")), "{name}: no part {part}");
        }
        for (index, line) in text.lines().enumerate() {
            let request = line.split(' ').next().unwrap();
            let known = !request.starts_with(['.', '\'']) || REQUESTS.contains(&request);
            assert!(known, "{name}, line {}: `{request}` is not used in these pages", index + 1);
            assert!(line.is_ascii(), "{name}, line {}: not ASCII", index + 1);
        }
        let others = text.split("\\fR(7)").map(|before| before.rsplit("\\fB").next().unwrap());
        for other in others.take(text.matches("\\fR(7)").count()) {
            assert!(Path::new(PAGES).join(other).with_extension("7").exists(), "{name}: no page {other}");
        }
    }
}

/// Who is trusted with what, and what may be relied on, is worth as much as the tests that hold it.
#[test]
fn every_promise_is_held_by_tests_that_exist() {
    let sources = ["src", "tests"].iter().flat_map(|dir| super::rust_files(Path::new(dir)));
    let mut functions: BTreeSet<String> = sources
        .flat_map(|file| fs::read_to_string(file).unwrap().split("fn ").skip(1).map(name_at).collect::<Vec<_>>())
        .collect();
    for script in ["life.sh", "traffic.sh"] {
        let text = fs::read_to_string(Path::new("tests/package").join(script)).unwrap();
        functions.extend(text.lines().filter_map(|line| line.strip_suffix("() {")).map(ToOwned::to_owned));
    }

    for (page, least) in [("warren-security.7", 30), ("warren-promises.7", 8)] {
        let page = fs::read_to_string(Path::new(PAGES).join(page)).unwrap();
        let lines: Vec<&str> = page.split("\n.TP\n").skip(1).map(|line| line.split("\n.SH").next().unwrap()).collect();
        assert!(lines.len() >= least, "only {} lines", lines.len());
        for line in lines {
            let held = line.split("\nHeld by\n").nth(1).unwrap_or_else(|| panic!("no test holds:\n{line}"));
            for test in held.lines() {
                let name = name_at(test.trim_start_matches("\\fI"));
                assert!(functions.contains(&name), "no test is called `{name}`, which should hold:\n{line}");
            }
        }
    }
}

#[test]
fn every_limit_in_the_manual_is_that_of_the_source() {
    let page = fs::read_to_string(Path::new(PAGES).join("warren-limits.7")).unwrap();
    let source: String =
        super::rust_files(Path::new("src")).into_iter().map(|file| fs::read_to_string(file).unwrap()).collect();

    let limits: Vec<&str> = page.split("\n.TP\n").skip(1).collect();
    assert!(limits.len() > 12, "only {} limits", limits.len());
    for limit in limits {
        let mut lines = limit.lines();
        let (name, most) = (lines.next().unwrap(), lines.next().unwrap().replace(',', "_"));
        let said = format!("Limit::new(\"{name}\", {most})");
        assert!(source.contains(&said), "the manual says {name}: {most}, and the source does not");
    }
}

fn name_at(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

/// By the formatter that `man` uses.
#[test]
fn every_page_is_formatted_without_a_warning() {
    for page in pages() {
        let output = Command::new("groff").args(["-t", "-man", "-ww", "-Wbreak", "-Tutf8"]).arg(&page).output();
        let output = output.expect("run groff, which tests/vm/setup.sh installs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{}: {said}", page.display());
        assert!(output.stdout.len() > 500, "{}: nothing came out", page.display());
    }
}

fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = fs::read_dir(PAGES).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    assert!(pages.iter().all(|page| page.extension().is_some_and(|extension| extension == "7")), "{pages:?}");
    pages
}
