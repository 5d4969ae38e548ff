//! Which file names which: paths from `crate` and `super`, single or in groups, however deep.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::rust_files;

/// A module as its path below the crate: `["plan", "diff"]`.
pub(crate) type Module = Vec<String>;

/// Files that may name each other: member, all of them, and the reason. `*` is any file of a module.
const CIRCLES: &[(&str, &[&str], &str)] = &[
    ("agent", &["relay_pump::hub", "relay_pump::link"], "a link tells the hub of its end, which makes it"),
    (
        "coordinator",
        &["face::node::machine", "face::node::machines", "face::node::map_body", "face::node::noise"],
        "a connection is counted by its machine, which ends it",
    ),
    ("coordinator", &["store::backup", "store::connection"], "a copy is a connection's, and opened as one"),
    ("coordinator", &["store::*"], "the statements of one transaction"),
    (
        "core",
        &["netcheck::portmap::attempt", "netcheck::portmap::upnp"],
        "a mapping is asked for and answered in one attempt",
    ),
    ("core", &["registry::broadcast::entry", "registry::broadcast::views"], "an entry is shown as a view has it"),
    ("core", &["registry::broadcast::flush", "registry::broadcast::full"], "a difference may be the whole"),
    ("core", &["registry::*"], "the state is the sum of its parts"),
    ("linux", &["nftables::*"], "the chains of one table"),
];

/// Each file of a crate, with the paths that it names.
pub(crate) fn files(root: &Path) -> BTreeMap<Module, BTreeSet<Module>> {
    let named = |file: &Path| {
        let text = fs::read_to_string(file).unwrap();
        let module = module_of(root, file);
        // What stands among the tests of a file is one level further down, and names what it tests.
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        (module.clone(), paths_in(text, &module))
    };
    rust_files(root).iter().map(|file| named(file)).collect()
}

fn module_of(root: &Path, file: &Path) -> Module {
    let path = file.strip_prefix(root).unwrap().with_extension("");
    let mut parts: Module = path.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if parts.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
        parts.pop();
    }
    parts
}

/// Every path from `crate` or `super` in a text of a module, from the crate's root on.
pub(crate) fn paths_in(text: &str, module: &[String]) -> BTreeSet<Module> {
    let mut paths = BTreeSet::new();
    let mut rest = text;
    while let Some(at) = ["crate::", "super::"].iter().filter_map(|start| rest.find(start)).min() {
        let is_a_start = !rest[..at].ends_with(|c: char| c.is_alphanumeric() || "_:$".contains(c));
        let mut base = module.to_vec();
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("crate::") {
            base.clear();
            rest = after;
        }
        while let Some(after) = rest.strip_prefix("super::") {
            base.pop();
            rest = after;
        }
        if is_a_start {
            tree(rest, &base, &mut paths);
        }
    }
    paths
}

/// The paths of an import tree that begins here; what follows it.
fn tree<'a>(text: &'a str, base: &[String], paths: &mut BTreeSet<Module>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = tree(rest, base, paths).trim_start();
            match rest.strip_prefix(',') {
                Some(after) => rest = after,
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let rest = &text[name.len()..];
    let mut path = base.to_vec();
    if !name.is_empty() {
        path.push(name);
    }
    if let Some(after) = rest.strip_prefix("::") {
        return tree(after, &path, paths);
    }
    paths.insert(path);
    // `a as b`
    &rest[rest.find([',', '}', ';']).filter(|_| rest.trim_start().starts_with("as ")).unwrap_or(0)..]
}

#[test]
fn paths_are_found_however_they_are_written() {
    let found = |text: &str| -> Vec<String> {
        let module = ["plan".to_owned(), "diff".to_owned()];
        paths_in(text, &module).iter().map(|path| path.join("::")).collect()
    };
    assert_eq!(found("use crate::{linux::{Kernel, route}, wire as w};"), ["linux::Kernel", "linux::route", "wire"]);
    assert_eq!(found("use super::super::netmap::Map;"), ["netmap::Map"]);
    assert_eq!(found("let own = super::own::LINK;"), ["plan::own::LINK"]);
    assert_eq!(found("warren_core::types::x; self::super::own::y"), Vec::<String>::new());
}

#[test]
fn files_name_each_other_in_one_direction() {
    let mut errors = Vec::new();
    let mut gone: Vec<usize> = (0..CIRCLES.len()).collect();

    for member in ["agent", "coordinator", "core", "linux", "relay", "shell"] {
        let files = files(&Path::new("src").join(member));
        let known: BTreeMap<&Module, BTreeSet<&Module>> = files
            .iter()
            .filter(|(file, _)| !file.iter().any(|part| part == "tests"))
            .map(|(file, paths)| (file, paths.iter().filter_map(|path| file_of(path, &files)).collect()))
            .collect();
        for circle in circles(&known) {
            let is = |file: &String, named: &str| match named.strip_suffix('*') {
                Some(module) => file.starts_with(module),
                None => file == named,
            };
            let is_all = |files: &[&str]| circle.iter().all(|file| files.iter().any(|named| is(file, named)));
            let stands = CIRCLES.iter().position(|(of, files, _)| *of == member && is_all(files));
            gone.retain(|place| Some(*place) != stands);
            if stands.is_none() {
                errors.push(format!("{member}: these name each other: {}", circle.join(", ")));
            }
        }
    }

    errors.extend(gone.into_iter().map(|place| format!("no circle any more: {:?}", CIRCLES[place])));
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

/// The file that a path leads into; none for what stands in the crate's root.
fn file_of<'a>(path: &[String], files: &'a BTreeMap<Module, BTreeSet<Module>>) -> Option<&'a Module> {
    let ends = (1..=path.len()).rev();
    ends.filter_map(|end| files.get_key_value(&path[..end])).map(|(file, _)| file).next()
}

/// Groups of files that reach each other.
fn circles(files: &BTreeMap<&Module, BTreeSet<&Module>>) -> Vec<Vec<String>> {
    let reached: BTreeMap<&Module, BTreeSet<&Module>> = files.keys().map(|file| (*file, reach(file, files))).collect();
    let mut groups = BTreeSet::new();
    for (file, theirs) in &reached {
        let others = theirs.iter().filter(|other| *other != file && reached[*other].contains(file));
        let mut group: Vec<String> = others.map(|other| other.join("::")).collect();
        if !group.is_empty() {
            group.push(file.join("::"));
            group.sort();
            groups.insert(group);
        }
    }
    groups.into_iter().collect()
}

fn reach<'a>(from: &Module, files: &BTreeMap<&'a Module, BTreeSet<&'a Module>>) -> BTreeSet<&'a Module> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&Module> = files[from].iter().copied().collect();
    while let Some(next) = open.pop() {
        if files.contains_key(next) && found.insert(next) {
            open.extend(files[next].iter().copied());
        }
    }
    found
}
