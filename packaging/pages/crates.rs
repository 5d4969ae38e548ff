//! The crates that are linked, as cargo knows them, and what their authors ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Each package, and the member whose program it has.
const PACKAGES: &[(&str, &str)] =
    &[("warren", "warren-agent"), ("warren-coordinator", "warren-coordinator"), ("warren-relay", "warren-relay")];

/// How the file of a licence may begin. Crates name them as they like.
const LICENCE_FILES: &[&str] = &["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"];

/// Where a crate comes without the text of its licence, though that is to be passed on: the text by the licence's name.
const TEXTS: &[(&str, &str)] = &[("MIT", include_str!("licences/MIT.txt"))];

/// A crate that a program links.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Linked {
    name: String,
    version: String,
    licence: String,
    authors: Vec<String>,
    texts: BTreeSet<String>,
}

/// Writes `third-party-licences.txt` and `sbom.json` for each package, of the crates that are linked on this platform.
pub(crate) fn write(folder: &Path, platform: &str) -> Result<(), Box<dyn Error>> {
    let metadata = metadata(platform)?;
    for (package, member) in PACKAGES {
        let linked = linked(&metadata, member)?;
        fs::write(folder.join(package).join("third-party-licences.txt"), licences(&linked))?;
        let bill = serde_json::to_string_pretty(&bill(package, &linked))?;
        fs::write(folder.join(package).join("sbom.json"), bill + "\n")?;
    }
    Ok(())
}

fn metadata(platform: &str) -> Result<Value, Box<dyn Error>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let output = cargo.args(["metadata", "--locked", "--format-version=1", "--filter-platform", platform]).output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What a member links: its dependencies, and theirs, but for those of build scripts and tests.
fn linked(metadata: &Value, member: &str) -> Result<BTreeSet<Linked>, Box<dyn Error>> {
    let crates = list(&metadata["packages"]);
    let by_id: BTreeMap<&str, &Value> = crates.iter().map(|one| (text(&one["id"]), one)).collect();
    let needs: BTreeMap<&str, &Value> =
        list(&metadata["resolve"]["nodes"]).iter().map(|node| (text(&node["id"]), &node["deps"])).collect();
    let root = crates.iter().find(|one| one["name"] == member).ok_or("a member is missing")?;
    let (mut seen, mut open) = (BTreeSet::new(), vec![text(&root["id"])]);
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            let needs = needs.get(id).ok_or("a crate is not in the graph")?;
            open.extend(list(needs).iter().filter(|need| is_linked(need)).map(|need| text(&need["pkg"])));
        }
    }
    let foreign = seen.iter().filter_map(|id| by_id.get(id)).filter(|one| !one["source"].is_null());
    foreign.map(|one| read(one)).collect()
}

fn is_linked(need: &Value) -> bool {
    list(&need["dep_kinds"]).iter().any(|kind| kind["kind"].is_null())
}

fn read(one: &Value) -> Result<Linked, Box<dyn Error>> {
    let mut linked = Linked {
        name: text(&one["name"]).to_owned(),
        version: text(&one["version"]).to_owned(),
        licence: text(&one["license"]).replace('/', " OR "),
        authors: list(&one["authors"]).iter().map(|author| text(author).to_owned()).collect(),
        texts: BTreeSet::new(),
    };
    let folder = Path::new(text(&one["manifest_path"])).parent().ok_or("a manifest is in no folder")?;
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_uppercase();
        if path.is_file() && LICENCE_FILES.iter().any(|begin| name.starts_with(begin)) {
            linked.texts.insert(fs::read_to_string(&path)?.replace('\r', "").trim().to_owned());
        }
    }
    if linked.texts.is_empty() {
        let known = TEXTS.iter().find(|(name, _)| linked.licence.split(" OR ").any(|one| one == *name));
        let (_, known) = known.ok_or_else(|| format!("{}: no text of its licence", linked.name))?;
        linked.texts.insert(format!("Copyright (c) {}\n\n{}", linked.authors.join(", "), known.trim()));
    }
    Ok(linked)
}

/// Each crate with its licence, then each text once with the crates that have it.
fn licences(linked: &BTreeSet<Linked>) -> String {
    let mut written = "Crates that the programs of this package link, and their licences.\n\n".to_owned();
    let mut by_text: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for one in linked {
        written += &format!("{} {}: {}\n", one.name, one.version, one.licence);
        for text in &one.texts {
            by_text.entry(text).or_default().push(&one.name);
        }
    }
    for (text, names) in by_text {
        written += &format!("\n{}\nOf {}:\n\n{text}\n", "-".repeat(78), names.join(", "));
    }
    written
}

fn bill(package: &str, linked: &BTreeSet<Linked>) -> Value {
    let component = |one: &Linked| {
        json!({
            "type": "library",
            "name": one.name,
            "version": one.version,
            "purl": format!("pkg:cargo/{}@{}", one.name, one.version),
            "licenses": [{ "expression": one.licence }],
        })
    };
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": { "type": "application", "name": package, "version": env!("CARGO_PKG_VERSION") } },
        "components": linked.iter().map(component).collect::<Vec<_>>(),
    })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
