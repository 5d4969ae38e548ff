//! The configuration file, and the names that options had before there were sections.

use std::fs;
use std::io;
use std::path::Path;

use confique::meta::{FieldKind, Meta};
use confique::{Config as _, Layer};
use toml::{Table, Value};

use super::{Config, ConfigError, DEFAULT_FILE, Options};

/// The old names, which stood at the top of the file, and where the options are now. A section of the same name is no
/// old name: their values were never tables.
const OLD_NAMES: &[(&str, [&str; 2])] = &[
    ("tls_cert", ["tls", "cert"]),
    ("tls_key", ["tls", "key"]),
    ("acme_domains", ["acme", "domains"]),
    ("acme_directory", ["acme", "directory"]),
    ("acme_root", ["acme", "root"]),
    ("relay", ["relay", "enabled"]),
    ("relay_region", ["relay", "region"]),
    ("relay_name", ["relay", "name"]),
    ("relay_host", ["relay", "host"]),
    ("relay_ipv4", ["relay", "ipv4"]),
    ("relay_ipv6", ["relay", "ipv6"]),
    ("relay_listen", ["relay", "listen"]),
    ("stun_listen", ["relay", "stun_listen"]),
    ("domain", ["dns", "domain"]),
    ("offline_grace", ["nodes", "offline_grace"]),
    ("ephemeral_grace", ["nodes", "ephemeral_grace"]),
    ("node_key_lifetime", ["nodes", "key_lifetime"]),
    ("max_connections", ["limits", "connections"]),
    ("handshake_rate", ["limits", "handshake_rate"]),
    ("log", ["log", "filter"]),
    ("metrics", ["metrics", "listen"]),
];

/// Reads the named file, or the usual one where it exists.
pub(super) fn read(named: Option<&Path>) -> Result<Options, ConfigError> {
    let file = named.unwrap_or(Path::new(DEFAULT_FILE));
    match fs::read_to_string(file) {
        Ok(text) => parse(file, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(Options::empty()),
        // An administrator who may not read the service's file can still use the socket.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && named.is_none() => Ok(Options::empty()),
        Err(source) => Err(ConfigError::Read { file: file.to_owned(), source }),
    }
}

/// Reads a file's text. An error names the option as the file does.
pub(super) fn parse(file: &Path, text: &str) -> Result<Options, ConfigError> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        file: file.to_owned(),
        line: line_of(text, error.span().map_or(0, |span| span.start)),
        reason: on_one_line(error.message()),
    })?;
    let wrong = |key: String, reason: &str| ConfigError::Key {
        place: file.display().to_string(),
        key,
        reason: on_one_line(reason),
    };
    let (table, old) = with_new_names(table).map_err(|(key, reason)| wrong(key, &reason))?;
    if let Some((key, reason)) = unknown(&Config::META, &table, "") {
        return Err(wrong(key, &reason));
    }
    serde_path_to_error::deserialize(Value::Table(table)).map_err(|error| {
        let path = error.path().to_string();
        let as_written = old.iter().find(|(_, new)| *new == path).map(|(old, _)| (*old).to_owned());
        wrong(as_written.unwrap_or(path), &error.into_inner().to_string())
    })
}

/// The old names that a file uses, and what they are now.
type OldNames = Vec<(&'static str, String)>;

/// Moves what has an old name to where it is now.
fn with_new_names(mut table: Table) -> Result<(Table, OldNames), (String, String)> {
    let mut used = Vec::new();
    for (old, path) in OLD_NAMES {
        let Some(value) = table.remove(*old) else { continue };
        if value.is_table() {
            table.insert((*old).to_owned(), value);
            continue;
        }
        let [section, name] = *path;
        let new = path.join(".");
        let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(section) = section else {
            return Err((new, "its section is there under another name too".to_owned()));
        };
        if section.contains_key(name) {
            return Err(((*old).to_owned(), format!("it is the old name of {new}, which is there too")));
        }
        section.insert(name.to_owned(), value);
        used.push((*old, new));
    }
    Ok((table, used))
}

/// The first option that there is not, and which ones there are.
fn unknown(meta: &Meta, table: &Table, within: &str) -> Option<(String, String)> {
    table.iter().find_map(|(key, value)| {
        let name = format!("{within}{key}");
        let Some(field) = meta.fields.iter().find(|field| field.name == key) else {
            let known: Vec<String> = meta.fields.iter().map(|field| format!("`{}`", field.name)).collect();
            return Some((name, format!("unknown field `{key}`, expected one of {}", known.join(", "))));
        };
        match (&field.kind, value) {
            (FieldKind::Nested { meta }, Value::Table(section)) => unknown(meta, section, &format!("{name}.")),
            (FieldKind::Nested { .. }, _) => Some((name, "it is a section, and has options of its own".to_owned())),
            (FieldKind::Leaf { .. }, _) => None,
        }
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

fn on_one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn read(text: &str) -> Result<Options, String> {
        parse(Path::new("c.toml"), text).map_err(|error| error.to_string())
    }

    /// Every option, as `section.name`.
    fn names(meta: &Meta, within: &str) -> BTreeSet<String> {
        let fields = meta.fields.iter();
        let names = fields.flat_map(|field| match &field.kind {
            FieldKind::Nested { meta } => names(meta, &format!("{within}{}.", field.name)),
            FieldKind::Leaf { .. } => BTreeSet::from([format!("{within}{}", field.name)]),
        });
        names.collect()
    }

    fn names_in(table: &Table, within: &str) -> BTreeSet<String> {
        let names = table.iter().flat_map(|(key, value)| match value {
            // Below it are the operator's names, or suffixes, and no options.
            Value::Table(section) if !["oidc", "split"].contains(&key.as_str()) => {
                names_in(section, &format!("{within}{key}."))
            }
            _ => BTreeSet::from([format!("{within}{key}")]),
        });
        names.collect()
    }

    /// The file that the package installs: every option, commented out, with its default.
    #[test]
    fn the_sample_file_names_every_key_with_a_value_that_is_taken() {
        let sample = include_str!("../../../packaging/coordinator.toml");
        let is_option = |line: &&str| line.contains(" = ") || line.starts_with('[');
        let lines = sample.lines().map(|line| line.strip_prefix('#').unwrap_or(line)).filter(is_option);
        let text = lines.fold(String::new(), |text, line| text + line + "\n");
        assert_eq!(names_in(&text.parse().unwrap(), ""), names(&Config::META, ""));
        read(&text).unwrap();
    }

    #[test]
    fn an_error_in_a_file_is_one_line_with_file_key_and_reason() {
        for (text, begins) in [
            ("listen = 5", "c.toml: listen: "),
            ("listen = \"nowhere\"", "c.toml: listen: "),
            ("offline_grace = -1", "c.toml: offline_grace: "),
            ("[nodes]\noffline_grace = -1", "c.toml: nodes.offline_grace: "),
            ("lisen = \"[::]:1\"", "c.toml: lisen: unknown field `lisen`, expected one of"),
            ("[relay]\nnam = 1", "c.toml: relay.nam: unknown field `nam`, expected one of `enabled`, "),
            ("[[relay]]\nname = \"a\"", "c.toml: "),
            ("tls = 1", "c.toml: tls: it is a section"),
            ("domain = \"a\"\n\n= 3", "c.toml: line 3: "),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(begins) && !error.contains('\n'), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn an_old_name_is_the_option_that_it_became_and_the_same_thing_is_not_said_twice() {
        let every = OLD_NAMES.iter().map(|(_, new)| new.join(".")).collect::<BTreeSet<_>>();
        assert!(every.is_subset(&names(&Config::META, "")), "{every:?}");
        let old = read("tls_cert = \"c\"\nrelay = false\nmetrics = \"127.0.0.1:1\"\nlog = \"debug\"\ndomain = \"a.b\"");
        let new = "[tls]\ncert = \"c\"\n[relay]\nenabled = false\n[metrics]\nlisten = \"127.0.0.1:1\"\n\
                   [log]\nfilter = \"debug\"\n[dns]\ndomain = \"a.b\"";
        assert_eq!(format!("{:?}", old.unwrap()), format!("{:?}", read(new).unwrap()));
        let both = read("tls_cert = \"c\"\n[tls]\ncert = \"d\"").unwrap_err();
        assert_eq!(both, "c.toml: tls_cert: it is the old name of tls.cert, which is there too");
        let mixed = read("relay_region = 901\n[relay]\nname = \"a\"").unwrap();
        assert!(mixed.relay.region.is_some() && mixed.relay.name.is_some());
    }
}
