//! The name servers that this host asks.
//!
//! They stand in files: the one that programs read, and those in which systemd-resolved and NetworkManager say whom
//! they ask themselves where that file names only them. A change comes with a change of the network nearly always,
//! and is seen a little later where it does not.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;

/// Where name servers are named.
const FILES: [&str; 7] = [
    "etc/resolv.conf",
    // What that one was, while it names us: a file, or a link to one of the others.
    "etc/resolv.conf.before-warren",
    "run/systemd/resolve/resolv.conf",
    "run/NetworkManager/resolv.conf",
    "run/NetworkManager/no-stub-resolv.conf",
    "run/resolvconf/resolv.conf",
    "run/netconfig/resolv.conf",
];
/// Where resolvconf and openresolv keep what they are told, by version.
const RECORDS: [&str; 3] = ["run/resolvconf/interface", "run/resolvconf/interfaces", "run/resolvconf/keys"];
/// Their records that are read.
const MOST_RECORDS: usize = 256;
/// As much of a file as is read: a thousand lines.
const MOST: u64 = 64 << 10;
/// Name servers that are taken note of. Programs ask three.
const SERVERS: usize = 32;
/// How often is looked.
const PACE: Duration = Duration::from_secs(15);

/// Passes on the name servers, at first and whenever they change.
pub(super) fn watch() -> mpsc::Receiver<BTreeSet<IpAddr>> {
    let (out, servers) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut told: Option<BTreeSet<IpAddr>> = None;
        let mut pace = tokio::time::interval(PACE);
        loop {
            pace.tick().await;
            let found = tokio::task::spawn_blocking(|| all(Path::new("/"))).await.unwrap_or_default();
            let found = found.into_iter().collect();
            if told.as_ref() != Some(&found) {
                told = Some(found.clone());
                if out.send(found).await.is_err() {
                    return;
                }
            }
        }
    });
    servers
}

/// All of them, below a root directory, in the order in which they are named.
pub(super) fn all(root: &Path) -> Vec<IpAddr> {
    read(FILES.iter().map(|file| root.join(file)).chain(records(root)))
}

/// What resolvconf and openresolv were told, each record in a file.
pub(super) fn records(root: &Path) -> Vec<PathBuf> {
    let folders = RECORDS.iter().filter_map(|folder| std::fs::read_dir(root.join(folder)).ok());
    let mut files: Vec<PathBuf> = folders.flatten().flatten().take(MOST_RECORDS).map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// The name servers that these files name, each once. A file that is not there names none.
fn read(files: impl Iterator<Item = PathBuf>) -> Vec<IpAddr> {
    let text = |path: PathBuf| {
        let mut text = Vec::new();
        File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut text)).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    };
    let mut found = Vec::new();
    for server in files.filter_map(text).flat_map(|text| servers(&text)) {
        if found.len() < SERVERS && !found.contains(&server) {
            found.push(server);
        }
    }
    found
}

/// The `nameserver` lines (resolv.conf(5)). A link-local address has its link behind it.
pub(super) fn servers(text: &str) -> Vec<IpAddr> {
    let value = |line: &str| {
        let (key, value) = line.trim_start().split_once(char::is_whitespace)?;
        let address = value.split_whitespace().next()?.split('%').next()?;
        (key == "nameserver").then(|| address.parse().ok()).flatten()
    };
    text.lines().filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_server_of_every_file_is_found_once() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two, none] = ["one", "two", "none"].map(|name| dir.path().join(name));
        std::fs::write(&one, "# nameserver 192.0.2.9\nnameserver 10.0.0.53\n  nameserver\tfe80::1%eth0 # x\n").unwrap();
        std::fs::write(&two, "search example.com\nnameserver 10.0.0.53\nnameserver nowhere\nnameserver 2001:db8::53")
            .unwrap();
        let found: Vec<String> = read([one, two, none].into_iter()).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.53", "fe80::1", "2001:db8::53"]);
    }

    #[test]
    fn a_file_without_end_is_read_to_its_limit() {
        let found = read([PathBuf::from("/dev/zero")].into_iter());
        assert!(found.is_empty());
        let many: String = (0..300).map(|n| format!("nameserver 10.0.{}.{}\n", n / 200, n % 200)).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), many).unwrap();
        assert_eq!(read([file.path().to_owned()].into_iter()).len(), SERVERS);
    }
}
