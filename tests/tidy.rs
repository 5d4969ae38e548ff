//! Checks of the source tree itself: which module may know which, and what the manual says.

#![allow(clippy::unwrap_used)]

#[path = "tidy/manual.rs"]
mod manual;
#[path = "tidy/outside_text.rs"]
mod outside_text;

use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the deciding half, and the only others it may name.
const MAY_USE: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("wire", &["types"]),
    ("netmap", &["types", "wire"]),
    ("dns", &["types", "wire"]),
    ("path", &["types", "wire"]),
    ("derp", &["types", "wire"]),
    ("control", &["types", "wire", "netmap"]),
    ("policy", &["types", "wire"]),
    ("registry", &["types", "wire", "policy"]),
    ("plan", &["types", "netmap"]),
];

/// Each member of the acting half, and what it may name of the deciding one. Which members it may name is its manifest's.
const MEMBERS: &[(&str, &[&str])] = &[
    ("shell", &["types", "wire"]),
    ("linux", &["types", "plan"]),
    ("relay", &["types", "wire", "derp"]),
    ("agent", &["types", "wire", "netmap", "control", "path", "derp", "dns", "plan"]),
    ("coordinator", &["types", "wire", "policy", "registry", "derp"]),
];

/// None of these may appear in what decides.
const EFFECTS: &[&str] = &[
    "tokio::",
    "std::net::UdpSocket",
    "std::net::TcpStream",
    "std::fs",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
    "rand::",
    "async fn",
];

#[test]
fn each_module_names_only_the_modules_below_it() {
    let mut errors = Vec::new();

    let modules = MAY_USE.iter().map(|(module, below)| (*module, format!("src/core/{module}"), "crate", below));
    let members = MEMBERS.iter().map(|(member, below)| (*member, format!("src/{member}"), "warren_core", below));
    for (name, folder, root, below) in modules.chain(members) {
        for file in rust_files(Path::new(&folder)) {
            let text = fs::read_to_string(&file).unwrap();
            for named in modules_named_in(&text, root) {
                if named != name && !below.contains(&named.as_str()) {
                    errors.push(format!("{}: `{name}` may not use `{root}::{named}`", file.display()));
                }
            }
        }
    }

    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn what_decides_holds_no_effects() {
    let mut errors = Vec::new();

    for file in rust_files(Path::new("src/core")) {
        let text = fs::read_to_string(&file).unwrap();
        // A unit test needs an origin for its clock; what it drives still gets the time as an argument.
        let deciding = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let deciding = if file.ends_with("tests.rs") { "" } else { deciding };
        for effect in EFFECTS.iter().filter(|effect| deciding.contains(**effect)) {
            errors.push(format!("{}: `{effect}` in what decides", file.display()));
        }
    }

    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

/// Past this a file is two files (about 500 lines, with some room for the one that is about to be split).
const MOST_LINES: usize = 550;

#[test]
fn each_file_says_what_it_is_and_is_short_enough_to_read_from_the_top() {
    let mut errors = Vec::new();

    for file in ["src", "tests"].iter().flat_map(|dir| rust_files(Path::new(dir))) {
        let text = fs::read_to_string(&file).unwrap();
        let lines = text.lines().count();
        if lines > MOST_LINES {
            errors.push(format!("{}: {lines} lines, at most {MOST_LINES}", file.display()));
        }
        let says = text.lines().any(|line| line.starts_with("//! "));
        if !says && !is_unit_tests(&file) {
            errors.push(format!("{}: no `//!` says what it is", file.display()));
        }
    }

    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

/// Unit tests are about the module that they stand beside.
fn is_unit_tests(file: &Path) -> bool {
    file.starts_with("src")
        && file.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
}

#[test]
fn grouped_imports_are_seen() {
    assert_eq!(modules_named_in("use crate::{linux::{Kernel, route}, wire as w};", "crate"), ["linux", "wire"],);
}

#[test]
fn every_module_has_a_place_in_the_layers() {
    for (folder, table) in [("src/core", MAY_USE), ("src", MEMBERS)] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() && name != "core" && name != "proptest-regressions" {
                assert!(table.iter().any(|(module, _)| *module == name), "`{name}` is in no table");
            }
        }
    }
}

/// `crate::wire::x` names `wire`; `crate::{netmap::Map, wire}` names both.
fn modules_named_in(text: &str, root: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for rest in text.split(&format!("{root}::")).skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            modules.push(leading_name(rest));
            continue;
        };
        let mut depth = 0;
        let mut names_module = true;
        for (index, c) in group.char_indices() {
            if names_module && depth == 0 && (c.is_alphabetic() || c == '_') {
                modules.push(leading_name(&group[index..]));
                names_module = false;
            }
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => names_module = true,
                _ => {}
            }
        }
    }
    modules
}

fn leading_name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
    files
}
