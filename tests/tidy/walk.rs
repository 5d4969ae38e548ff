//! The walk that `src/lib.rs` leads its readers on, from a `MapResponse` to a netlink message.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The rows of the walk: a file, and what it says of it.
fn rows() -> Vec<(String, String)> {
    let map = fs::read_to_string("src/lib.rs").unwrap();
    let row = |line: &str| {
        let (file, what) = line.strip_prefix("//! | `")?.split_once("` | ")?;
        file.ends_with(".rs").then(|| (file.to_owned(), what.to_owned()))
    };
    map.lines().filter_map(row).collect()
}

#[test]
fn the_walk_visits_files_that_are_there_each_of_them_once() {
    let rows = rows();
    assert!(rows.len() > 20, "the walk is a table of files");

    let mut errors = Vec::new();
    let mut visited = BTreeSet::new();
    for (file, what) in &rows {
        if !visited.insert(file) {
            errors.push(format!("{file} is visited twice"));
        }
        let Ok(text) = fs::read_to_string(Path::new(file)) else {
            errors.push(format!("{file} is not there"));
            continue;
        };
        // What stands in code before the colon is in the file.
        let named = what.split_once(": ").map_or("", |(named, _)| named);
        for name in named.split('`').skip(1).step_by(2) {
            let function = name.rsplit("::").next().unwrap().split('(').next().unwrap();
            if !text.contains(&format!("fn {function}")) && !text.contains(&format!("struct {function}")) {
                errors.push(format!("{file} has no `{function}`"));
            }
        }
    }

    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn each_member_and_module_stands_in_the_table_of_its_crate() {
    for (folder, map) in [("src", "src/lib.rs"), ("src/core", "src/core/lib.rs")] {
        let text = fs::read_to_string(map).unwrap();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let named = if folder == "src" { format!("| `src/{name}` |") } else { format!("| `{name}` |") };
            if path.is_dir() && name != "proptest-regressions" {
                assert!(text.contains(&named), "{map} does not say what `{name}` is");
            }
        }
    }
}
