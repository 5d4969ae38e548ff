//! Checks of the source tree itself: which module may know which, and what the manual says.

#![allow(clippy::unwrap_used)]

#[path = "tidy/manual.rs"]
mod manual;
#[path = "tidy/modules.rs"]
mod modules;
#[path = "tidy/outside_text.rs"]
mod outside_text;
#[path = "tidy/walk.rs"]
mod walk;

use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the deciding half, and the only others it may name.
const MAY_USE: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("wire", &["types"]),
    ("netmap", &["types", "wire"]),
    ("dns", &["types", "wire", "netmap"]),
    ("netcheck", &["types", "wire"]),
    ("path", &["types", "wire", "netcheck"]),
    ("derp", &["types", "wire"]),
    ("control", &["types", "wire", "netmap"]),
    ("policy", &["types", "wire"]),
    ("registry", &["types", "wire", "policy"]),
    ("plan", &["types", "netmap"]),
    ("hostfirewall", &["types", "plan"]),
    ("node", &["types", "wire", "netmap", "control", "path", "netcheck", "dns", "plan"]),
];

/// Each member of the acting half, and what it may name of the deciding one. Which members it may name is its manifest's.
const MEMBERS: &[(&str, &[&str])] = &[
    ("shell", &["types", "wire"]),
    ("linux", &["types", "plan", "hostfirewall"]),
    ("relay", &["types", "wire", "derp"]),
    ("agent", &["types", "wire", "netmap", "control", "path", "netcheck", "derp", "dns", "plan", "node"]),
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

    for (file, paths) in modules::files(Path::new("src/core")) {
        let Some((module, below)) = MAY_USE.iter().find(|(module, _)| file.first().is_some_and(|name| name == module))
        else {
            continue;
        };
        for named in paths.iter().filter_map(|path| path.first()) {
            if named != module && !below.contains(&named.as_str()) {
                errors.push(format!("core/{}: `{module}` may not use `{named}`", file.join("/")));
            }
        }
    }
    for (member, below) in MEMBERS {
        for file in rust_files(&Path::new("src").join(member)) {
            // Seen as the core's root, what it names of the core is.
            let text = fs::read_to_string(&file).unwrap().replace("crate::", "").replace("super::", "");
            for path in modules::paths_in(&text.replace("warren_core::", " crate::"), &[]) {
                if !below.contains(&path[0].as_str()) {
                    errors.push(format!("{}: `{member}` may not use `warren_core::{}`", file.display(), path[0]));
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

/// What repeats the protocol's own names says what it is by them.
const MIRRORS: &[&str] = &["src/core/wire/control", "src/core/wire/local", "src/core/wire/admin"];

#[test]
fn what_is_public_says_what_it_is_and_a_field_only_what_its_name_does_not() {
    let mut errors = Vec::new();

    for file in rust_files(Path::new("src")).into_iter().filter(|file| !is_unit_tests(file)) {
        let mirrors = MIRRORS.iter().any(|folder| file.starts_with(folder));
        let text = fs::read_to_string(&file).unwrap();
        let mut is_said = false;
        for (number, line) in text.split("#[cfg(test)]\nmod tests").next().unwrap().lines().enumerate() {
            let code = line.trim();
            let item =
                code.strip_prefix("pub ").map(|item| item.trim_start_matches("const ").trim_start_matches("async "));
            let kind = item.and_then(|item| item.split(' ').next()).unwrap_or_default();
            let is_type = ["struct", "enum", "trait", "type"].contains(&kind);
            if !is_said && (kind == "fn" || is_type && !mirrors) {
                errors.push(format!("{}:{}: `{code}` says not what it is", file.display(), number + 1));
            }
            if HOLLOW.contains(&code) {
                errors.push(format!("{}:{}: `{code}` says nothing", file.display(), number + 1));
            }
            // Attributes stand between a sentence and its item; a macro's are said where it is called.
            let goes_on = is_said && !code.is_empty() && !code.ends_with([',', ';', '{', '}']);
            is_said = code.starts_with("///") || code.starts_with("$(#[") || goes_on;
        }
    }

    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

/// Sentences that only repeat the name below them.
const HOLLOW: &[&str] = &[
    "/// Who.",
    "/// What.",
    "/// Which.",
    "/// How.",
    "/// Why.",
    "/// When.",
    "/// Where.",
    "/// To whom.",
    "/// From whom.",
    "/// Its name.",
    "/// The name.",
    "/// Its number.",
    "/// The number.",
    "/// Its path.",
    "/// The path.",
    "/// Its key.",
    "/// The key.",
    "/// Its address.",
    "/// The text.",
    "/// The value.",
    "/// Its body.",
];

/// Unit tests are about the module that they stand beside.
fn is_unit_tests(file: &Path) -> bool {
    file.starts_with("src")
        && file.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
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
