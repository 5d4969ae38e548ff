//! What this machine says of itself to the coordinator.

use std::fs;

use crate::agent::VERSION;
use crate::types::MachinePublic;
use crate::wire::control::Hostinfo;

/// Reads what the kernel and the distribution say. What cannot be read is left out.
pub(super) fn hostinfo(machine: &MachinePublic) -> Hostinfo {
    let uname = nix::sys::utsname::uname().ok();
    let text = |text: Option<&std::ffi::OsStr>| text.map(|t| t.to_string_lossy().into_owned()).unwrap_or_default();
    let hardware = text(uname.as_ref().map(nix::sys::utsname::UtsName::machine));
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    Hostinfo {
        ipn_version: VERSION.to_owned(),
        // Official coordinators want one; the machine key names us well enough.
        backend_log_id: machine.to_string().trim_start_matches("mkey:").to_owned(),
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

    #[test]
    fn this_machine_says_that_it_is_linux_and_how_it_is_called() {
        let hostinfo = hostinfo(&MachinePublic::from_bytes([7; 32]));
        assert_eq!(hostinfo.os, "linux");
        assert!(!hostinfo.hostname.is_empty() && !hostinfo.backend_log_id.starts_with("mkey:"));
    }
}
