//! What this machine says of itself to the coordinator, and what tells it from another.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use crate::VERSION;
use warren_core::node::Machine;
use warren_core::types::{IpNet, in_overlay};
use warren_core::wire::control::Hostinfo;

/// This machine. A container has nothing that lasts longer than it does, so nothing is known of one.
pub(super) fn machine() -> Machine {
    machine_below(Path::new("/"))
}

fn machine_below(root: &Path) -> Machine {
    let is_container = ["run/systemd/container", ".dockerenv", "run/.containerenv"];
    if is_container.iter().any(|mark| root.join(mark).exists()) {
        return Machine::default();
    }
    let id = fs::read_to_string(root.join("etc/machine-id")).unwrap_or_default();
    // An image without one reads `uninitialized`, or is empty.
    let id = Some(id.trim()).filter(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let interfaces = fs::read_dir(root.join("sys/class/net")).into_iter().flatten().flatten();
    // What has a device behind it is a card, and no bridge or tunnel that programs make.
    let cards = interfaces.map(|interface| interface.path()).filter(|path| path.join("device").exists());
    let addresses = cards.filter_map(|path| fs::read_to_string(path.join("address")).ok());
    let addresses =
        addresses.map(|text| text.trim().to_owned()).filter(|text| !text.trim_matches(['0', ':']).is_empty());
    Machine::new(id, addresses.collect())
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
    fn a_machine_has_the_id_of_its_file_and_the_addresses_of_its_cards() {
        let (one, card) = ("0123456789abcdef0123456789abcdef", "02:00:00:00:00:01");
        let cards = || [card.to_owned()].into();
        let found = |id: &str, cards: &[&str]| machine_below(root(id, cards).path());
        assert_eq!(found(one, &[card]), Machine::new(Some(one), cards()));
        assert_eq!(found("uninitialized", &[card]), Machine::new(None, cards()));
        assert_eq!(found("", &[card, "00:00:00:00:00:00"]), Machine::new(None, cards()));
        assert_eq!(found(one, &[]), Machine::new(Some(one), [].into()));
    }

    #[test]
    fn of_a_container_nothing_is_known() {
        let root = root("0123456789abcdef0123456789abcdef", &["02:00:00:00:00:01"]);
        fs::write(root.path().join(".dockerenv"), "").unwrap();
        assert_eq!(machine_below(root.path()), Machine::default());
    }

    #[test]
    fn this_machine_says_that_it_is_linux_and_how_it_is_called() {
        let facts = facts();
        assert_eq!(facts.os, "linux");
        assert!(!facts.hostname.is_empty());
    }
}
