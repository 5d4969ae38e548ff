//! What this machine says of itself to the coordinator, and what tells it from another.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::VERSION;
use warren_core::types::{IpNet, in_overlay};
use warren_core::wire::control::Hostinfo;

/// What tells a machine from another. Written beside the keys, so that a disk which was copied is noticed.
///
/// Neither fact alone will do: machine IDs are made anew on a machine that stays (images without one, containers, whoever
/// runs `systemd-machine-id-setup`), network cards are replaced, disks move. Where both are others than before, the disk
/// is in another machine *and* that was set up as one of its own, which is what cloning a server comes to. A copy that
/// kept its machine ID is for the coordinator to notice: two machines with one key take each other's place there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Machine {
    /// A hash of the machine ID, which is nobody else's to know; empty where there is none that lasts.
    id: String,
    /// The hardware addresses of its network cards.
    cards: BTreeSet<String>,
}

impl Machine {
    /// This one. A container has nothing that lasts longer than it does, so nothing is known of one.
    pub fn here() -> Self {
        Self::below(Path::new("/"))
    }

    fn below(root: &Path) -> Self {
        let is_container = ["run/systemd/container", ".dockerenv", "run/.containerenv"];
        if is_container.iter().any(|mark| root.join(mark).exists()) {
            return Self::default();
        }
        let id = fs::read_to_string(root.join("etc/machine-id")).unwrap_or_default();
        // An image without one reads `uninitialized`, or is empty.
        let id = Some(id.trim()).filter(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let hash = |id: &str| {
            let digest = Sha256::new().chain_update(b"warren machine").chain_update(id).finalize();
            data_encoding::HEXLOWER.encode(&digest)
        };
        let interfaces = fs::read_dir(root.join("sys/class/net")).into_iter().flatten().flatten();
        // What has a device behind it is a card, and no bridge or tunnel that programs make.
        let cards = interfaces.map(|interface| interface.path()).filter(|path| path.join("device").exists());
        let addresses = cards.filter_map(|path| fs::read_to_string(path.join("address")).ok());
        let addresses =
            addresses.map(|text| text.trim().to_owned()).filter(|text| !text.trim_matches(['0', ':']).is_empty());
        Self { id: id.map(hash).unwrap_or_default(), cards: addresses.collect() }
    }

    /// Whether enough is known to tell it from another.
    pub(super) fn is_known(&self) -> bool {
        !self.id.is_empty() && !self.cards.is_empty()
    }

    /// Whether this is certainly not that one.
    pub(super) fn is_other_than(&self, stored: &Self) -> bool {
        let both = self.is_known() && stored.is_known();
        both && self.id != stored.id && self.cards.is_disjoint(&stored.cards)
    }
}

/// Reads what the kernel and the distribution say. What cannot be read is left out.
pub(super) fn facts() -> Hostinfo {
    let uname = nix::sys::utsname::uname().ok();
    let text = |text: Option<&std::ffi::OsStr>| text.map(|t| t.to_string_lossy().into_owned()).unwrap_or_default();
    let hardware = text(uname.as_ref().map(nix::sys::utsname::UtsName::machine));
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    Hostinfo {
        ipn_version: VERSION.to_owned(),
        os: "linux".to_owned(),
        os_version: text(uname.as_ref().map(nix::sys::utsname::UtsName::release)),
        distro: field(&release, "ID"),
        distro_version: field(&release, "VERSION_ID"),
        distro_code_name: field(&release, "VERSION_CODENAME"),
        hostname: text(uname.as_ref().map(nix::sys::utsname::UtsName::nodename)),
        go_arch: go_arch(&hardware).to_owned(),
        machine: hardware,
        userspace: Some(false),
        userspace_router: Some(false),
        ..Hostinfo::default()
    }
}

/// The name servers that this host asks, where they lie in the overlay's ranges: some clouds have theirs there, behind
/// the default route.
pub(super) fn resolvers_in_overlay() -> impl Iterator<Item = IpNet> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    resolvers(&text).into_iter().filter(|address| in_overlay(*address)).map(IpNet::from)
}

pub(super) fn resolvers(text: &str) -> Vec<IpAddr> {
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.filter_map(|server| server.split_whitespace().next()?.parse().ok()).collect()
}

/// A field of `/etc/os-release`, without its quotes.
fn field(release: &str, name: &str) -> String {
    let lines = release.lines().filter_map(|line| line.split_once('='));
    let value = lines.filter(|(key, _)| *key == name).map(|(_, value)| value).next().unwrap_or_default();
    value.trim_matches(['"', '\'']).to_owned()
}

/// The protocol names processors as Go does.
fn go_arch(hardware: &str) -> &str {
    match hardware {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "i686" | "i386" => "386",
        other if other.starts_with("arm") => "arm",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_the_distributions_file_is_read_without_its_quotes() {
        let release = "NAME=\"Debian GNU/Linux\"\nID=debian\nVERSION_ID=\"12\"\n";
        assert_eq!((field(release, "ID"), field(release, "VERSION_ID")), ("debian".to_owned(), "12".to_owned()));
        assert_eq!(field(release, "VERSION_CODENAME"), "");
    }

    /// A root directory with this machine ID and these cards.
    fn root(id: &str, cards: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/machine-id"), format!("{id}\n")).unwrap();
        for (number, address) in cards.iter().enumerate() {
            let card = root.path().join(format!("sys/class/net/eth{number}"));
            fs::create_dir_all(card.join("device")).unwrap();
            fs::write(card.join("address"), format!("{address}\n")).unwrap();
        }
        let bridge = root.path().join("sys/class/net/br0");
        fs::create_dir_all(&bridge).unwrap();
        fs::write(bridge.join("address"), "02:00:00:00:00:99\n").unwrap();
        root
    }

    #[test]
    fn a_machine_is_another_one_where_both_its_id_and_all_its_cards_are_others() {
        let (one, two) = ("0123456789abcdef0123456789abcdef", "ffffffffffffffffffffffffffffffff");
        let machine = |id: &str, cards: &[&str]| Machine::below(root(id, cards).path());
        let here = machine(one, &["02:00:00:00:00:01", "02:00:00:00:00:02"]);
        assert!(here.is_known() && !here.id.contains(one));
        for (other, is_other) in [
            (machine(two, &["02:00:00:00:00:03"]), true),
            // The ID was made anew, or a card was added or replaced, or the disk moved.
            (machine(two, &["02:00:00:00:00:02"]), false),
            (machine(one, &["02:00:00:00:00:03"]), false),
            // Nothing is known of one side.
            (machine("uninitialized", &["02:00:00:00:00:03"]), false),
            (machine("", &["02:00:00:00:00:03"]), false),
            (machine(two, &[]), false),
            (Machine::default(), false),
        ] {
            assert_eq!((other.is_other_than(&here), here.is_other_than(&other)), (is_other, is_other), "{other:?}");
        }
    }

    #[test]
    fn of_a_container_nothing_is_known() {
        let root = root("0123456789abcdef0123456789abcdef", &["02:00:00:00:00:01"]);
        fs::write(root.path().join(".dockerenv"), "").unwrap();
        assert_eq!(Machine::below(root.path()), Machine::default());
    }

    #[test]
    fn this_machine_says_that_it_is_linux_and_how_it_is_called() {
        let facts = facts();
        assert_eq!(facts.os, "linux");
        assert!(!facts.hostname.is_empty());
    }
}
