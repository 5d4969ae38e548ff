//! How this host resolves names, read from its files and asked of its bus.

use std::fs::{self, File};
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use warren_core::dns::host::{Facts, FileFact, FileKind, Gatherer, Obstacle, Original, Resolvconf, Seen};

use super::bus::Bus;

/// As much of a file as is read.
const MOST: u64 = 64 << 10;
/// How names of links begin that containers are behind: those of Docker, Podman, LXC and what Kubernetes uses.
const CONTAINERS: [&str; 11] =
    ["cali", "cilium", "cni", "docker", "flannel", "incusbr", "kube", "lxcbr", "lxdbr", "podman", "weave"];
/// Where a program of this name is looked for.
pub(super) const RESOLVCONF: [&str; 3] = ["usr/sbin/resolvconf", "sbin/resolvconf", "usr/bin/resolvconf"];

/// Everything that is known. `seen` is what the file is, and was; `gathered`, whom resolvconf was told of.
pub(super) async fn facts(root: &Path, seen: &Seen, bus: &mut Bus, gathered: Vec<IpAddr>) -> Facts {
    // Asking it may start it, and then it writes its file.
    let resolved = bus.resolv_conf_mode().await;
    let network_manager = bus.network_manager().await;
    Facts {
        file: file(root, seen),
        hosts: hosts(&text(&root.join("etc/nsswitch.conf"))),
        resolved,
        network_manager,
        resolvconf: RESOLVCONF
            .iter()
            .map(|path| resolvconf(&root.join(path)))
            .find(|found| *found != Resolvconf::Absent)
            .unwrap_or_default(),
        gathered,
        containers: containers(root),
    }
}

/// The file as it is, or as it was before it was ours.
fn file(root: &Path, seen: &Seen) -> FileFact {
    use warren_core::dns::host::Current;

    let path = root.join("etc/resolv.conf");
    let is_mount = is_mounted_over(&path);
    let before = if seen.is_ours() { seen.record.as_ref() } else { None };
    let original = before.map_or_else(|| Original::from(&seen.current), |record| record.original.clone());
    let (kind, text) = match original.current() {
        Some(Current::Link(target)) => {
            let text = text(&in_root(root, &target));
            (FileKind::Link(target), text)
        }
        Some(Current::Plain { bytes, .. }) => (FileKind::Plain, String::from_utf8_lossy(&bytes).into_owned()),
        Some(Current::Missing) | None => (FileKind::Missing, String::new()),
    };
    let is_plain = matches!(seen.current, Current::Plain { .. });
    FileFact { kind, text, is_mount, obstacle: obstacle(&path, is_plain, is_mount) }
}

/// Where a link in `/etc` leads.
fn in_root(root: &Path, target: &str) -> PathBuf {
    match target.strip_prefix('/') {
        Some(absolute) => root.join(absolute),
        None => root.join("etc").join(target),
    }
}

/// Why the file cannot be written; nothing of it is touched.
fn obstacle(file: &Path, is_plain: bool, is_mount: bool) -> Option<Obstacle> {
    let folder = file.parent().filter(|_| !is_mount).map_or(Ok(()), |folder| access(folder, AccessFlags::W_OK));
    let opened = match is_plain {
        true => fs::OpenOptions::new().write(true).open(file).map(drop),
        false => Ok(()),
    };
    let error = match (folder, opened) {
        (Err(error), _) => error,
        (Ok(()), Err(error)) => error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
        (Ok(()), Ok(())) => return None,
    };
    Some(if error == Errno::EROFS {
        Obstacle::ReadOnly
    } else if error == Errno::EPERM {
        // Root may write everything else.
        Obstacle::Immutable
    } else {
        Obstacle::Other(error.desc().to_owned())
    })
}

/// The first link that containers are behind.
fn containers(root: &Path) -> Option<String> {
    let links = fs::read_dir(root.join("sys/class/net")).into_iter().flatten().flatten();
    let names = links.filter_map(|link| link.file_name().into_string().ok());
    // Networks that people make with Docker are called after the beginning of their number.
    let is_network = |name: &str| {
        let number = name.strip_prefix("br-");
        number.is_some_and(|number| number.len() == 12 && number.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    names.filter(|name| is_network(name) || CONTAINERS.iter().any(|begin| name.starts_with(begin))).min()
}

fn is_mounted_over(file: &Path) -> bool {
    let mounts = text(Path::new("/proc/self/mountinfo"));
    let file = file.to_string_lossy();
    mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| *point == *file))
}

/// The sources of `hosts`, without what is done after each.
fn hosts(nsswitch: &str) -> Vec<String> {
    let lines = nsswitch.lines().filter_map(|line| line.trim().strip_prefix("hosts:"));
    let words = lines.flat_map(str::split_whitespace);
    words.filter(|word| !word.contains(['[', ']', '='])).map(str::to_owned).collect()
}

pub(super) fn resolvconf(path: &Path) -> Resolvconf {
    if fs::read_link(path).is_ok_and(|target| target.ends_with("resolvectl")) {
        return Resolvconf::Resolvectl;
    }
    match text(path) {
        none if none.is_empty() => Resolvconf::Absent,
        script if script.contains("openresolv") => Resolvconf::Gathers(Gatherer::Openresolv),
        _ => Resolvconf::Gathers(Gatherer::Debian),
    }
}

/// A file's text, or nothing. Whatever is no file is not opened.
pub(super) fn text(path: &Path) -> String {
    let is_file = fs::metadata(path).is_ok_and(|metadata| !metadata.file_type().is_fifo() && !metadata.is_dir());
    let mut bytes = Vec::new();
    if is_file && let Ok(file) = File::open(path) {
        let _ = file.take(MOST).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use warren_core::dns::host::Current;

    use super::*;
    use crate::dns_helper::disk::Disk;

    #[test]
    fn the_file_is_read_through_its_link_and_as_it_was_before_it_was_ours() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("etc")).unwrap();
        fs::create_dir_all(at("run/nm")).unwrap();
        fs::write(at("run/nm/resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
        std::os::unix::fs::symlink("../run/nm/resolv.conf", at("etc/resolv.conf")).unwrap();
        let disk = Disk::new(root.path(), root.path());
        let before = file(root.path(), &disk.see().unwrap());
        assert_eq!(before.kind, FileKind::Link("../run/nm/resolv.conf".to_owned()));
        assert_eq!(before.text, "nameserver 192.0.2.1\n");
        let ours = "# By warrend(8), while this host is in a Warren network: warren-dns(7).\n";
        for step in warren_core::dns::host::hold(&disk.see().unwrap(), ours, false, "boot") {
            disk.apply(&step).unwrap();
        }
        let seen = disk.see().unwrap();
        assert!(seen.is_ours() && matches!(seen.current, Current::Plain { .. }));
        assert_eq!(file(root.path(), &seen), before);
    }

    #[test]
    fn a_link_of_containers_is_found_by_its_name() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(containers(root.path()), None);
        for link in ["eth0", "lo", "warren0", "virbr0", "br-lan"] {
            fs::create_dir_all(root.path().join("sys/class/net").join(link)).unwrap();
        }
        assert_eq!(containers(root.path()), None);
        for link in ["docker0", "br-0123456789ab"] {
            fs::create_dir_all(root.path().join("sys/class/net").join(link)).unwrap();
            assert_eq!(containers(root.path()).as_deref(), Some(link));
        }
    }

    #[test]
    fn the_sources_of_hosts_are_read_in_order() {
        let text = "passwd: files\n hosts:\tmymachines resolve [!UNAVAIL=return] files dns\n";
        assert_eq!(hosts(text), ["mymachines", "resolve", "files", "dns"]);
        assert!(hosts("").is_empty());
    }

    #[test]
    fn each_program_named_resolvconf_is_told_from_the_others() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("resolvconf");
        assert_eq!(resolvconf(&path), Resolvconf::Absent);
        fs::write(&path, "#!/bin/sh\n# part of openresolv\n").unwrap();
        assert_eq!(resolvconf(&path), Resolvconf::Gathers(Gatherer::Openresolv));
        fs::write(&path, "#!/bin/sh\n").unwrap();
        assert_eq!(resolvconf(&path), Resolvconf::Gathers(Gatherer::Debian));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/usr/bin/resolvectl", &path).unwrap();
        assert_eq!(resolvconf(&path), Resolvconf::Resolvectl);
    }
}
