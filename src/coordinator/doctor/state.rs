//! Files, their rights, the database, the clock.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use super::Finding;
use crate::clock;
use crate::config::{Certificate, Settings};
use crate::relay::TLS_KEY_FILE;
use crate::service::FORMER_KEYS;
use crate::state_dir::{KEY_FILE, StateDir};
use crate::store::read_backup;
use warren_core::types::{MachinePrivate, NodePrivate, Timestamp};
use warren_shell::open_to_all;

/// With less than this left, a database that grows or a log that fills the disk is an outage soon.
const LITTLE_ROOM: u64 = 256 << 20;
/// With less than this, nothing can be written.
const NO_ROOM: u64 = 4 << 20;
/// No clock that is right is before this: this program is newer.
const OLDEST_NOW: i64 = 1_780_000_000;

pub(super) async fn look(settings: &Settings, is_running: bool) -> Vec<Finding> {
    let dir = StateDir::new(&settings.state_dir);
    let mut findings = vec![directory(dir.path())];
    if !dir.path().is_dir() {
        return findings;
    }
    findings.extend(room(dir.path()));
    findings.extend(belongs_together(&dir));
    findings.extend(keys(&dir));
    if let Certificate::Files { key, .. } = &settings.certificate {
        findings.extend(open_to_all(key).map(|said| Finding::failed("tls.key", said)));
    }
    findings.push(rights(&dir.database()));
    let latest = database(&dir, is_running, &mut findings).await;
    findings.push(clock(latest));
    findings
}

/// The keys that a start reads.
fn keys(dir: &StateDir) -> Vec<Finding> {
    type Read = fn(&str) -> Result<(), String>;
    let machine_key: Read = |text| text.parse::<MachinePrivate>().map(drop).map_err(|error| error.to_string());
    let files: [(&str, Read); 4] = [
        (KEY_FILE, machine_key),
        (FORMER_KEYS, |text| {
            let mut keys = text.lines().map(str::trim).filter(|line| !line.is_empty());
            keys.try_for_each(|line| line.parse::<MachinePrivate>().map(drop).map_err(|error| error.to_string()))
        }),
        ("relay.key", |text| text.parse::<NodePrivate>().map(drop).map_err(|error| error.to_string())),
        (TLS_KEY_FILE, |text| {
            let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| error.to_string())?;
            any_supported_type(&key).map(drop).map_err(|error| error.to_string())
        }),
    ];
    let missing = |name| !dir.path().join(name).exists();
    let mut found = Vec::new();
    if missing(KEY_FILE) && dir.has_database() {
        let text = "there is none, and nodes know this server by it; restore it from a backup";
        found.push(Finding::failed(KEY_FILE, text));
    }
    let first_start = |name| name == KEY_FILE && !dir.has_database();
    let looked = files.into_iter().filter(|(name, _)| !missing(name) || first_start(*name));
    found.extend(looked.map(|(name, read)| key_file(&dir.path().join(name), read)));
    found
}

fn directory(path: &Path) -> Finding {
    let name = "state directory";
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::warning(name, format!("{}: there is none yet; the first start makes it", path.display()))
        }
        Err(error) => {
            Finding::failed(name, format!("{}: {error}; run this as root or as the server's user", path.display()))
        }
        Ok(metadata) if !metadata.is_dir() => Finding::failed(name, format!("{}: it is no directory", path.display())),
        Ok(metadata) if metadata.mode() & 0o022 != 0 => {
            let mode = metadata.mode() & 0o777;
            Finding::failed(name, format!("{}: mode {mode:o} lets others write to it; `chmod 700` it", path.display()))
        }
        Ok(_) => Finding::ok(name, path.display().to_string()),
    }
}

fn room(path: &Path) -> Option<Finding> {
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    let bytes = found.blocks_available().saturating_mul(found.fragment_size());
    let text = format!("{} MiB are free", bytes >> 20);
    Some(match bytes {
        0..NO_ROOM => Finding::failed("disk", format!("{text}: nothing can be written; make room")),
        NO_ROOM..LITTLE_ROOM => Finding::warning("disk", format!("{text}; make room")),
        LITTLE_ROOM.. => Finding::ok("disk", text),
    })
}

fn belongs_together(dir: &StateDir) -> Option<Finding> {
    dir.check_before_start().err().map(|error| Finding::failed("state", error))
}

/// A key that is there, for its owner alone, and can be read.
fn key_file(path: &Path, read: impl FnOnce(&str) -> Result<(), String>) -> Finding {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::warning(name, "there is none; a first start makes it")
        }
        Err(error) => Finding::failed(name, format!("{}: {error}", path.display())),
        Ok(text) => match read(text.trim()) {
            Err(error) => Finding::failed(name, format!("{}: {error}; restore it from a backup", path.display())),
            Ok(()) => rights(path),
        },
    }
}

fn rights(path: &Path) -> Finding {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (Ok(file), Some(Ok(directory))) = (fs::metadata(path), path.parent().map(fs::metadata)) else {
        return Finding::warning(name, "there is none; a first start makes it");
    };
    let mode = file.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Finding::failed(name, format!("mode {mode:o} lets others in; `chmod 600 {}`", path.display()));
    }
    if file.uid() != directory.uid() {
        let (of, to) = (file.uid(), directory.uid());
        return Finding::failed(
            name,
            format!("it belongs to user {of}, the directory to {to}; `chown {to} {}`", path.display()),
        );
    }
    Finding::ok(name, format!("mode {mode:o}"))
}

/// What the database holds; the latest time in it comes back.
async fn database(dir: &StateDir, is_running: bool, findings: &mut Vec<Finding>) -> Option<Timestamp> {
    if !dir.database().exists() {
        return None;
    }
    if is_running {
        findings.push(Finding::ok("database", "the server has it open; its health is asked for below"));
        return None;
    }
    match read_backup(&dir.database()).await {
        Err(error) => {
            findings.push(Finding::failed("database", format!("{error}; `warren-coordinator restore` a backup")));
            None
        }
        Ok(contents) => {
            findings.extend(
                dir.check_key(contents.nodes + contents.users > 0).err().map(|error| Finding::failed("state", error)),
            );
            let text = format!(
                "whole; {} users, {} nodes, policy version {}",
                contents.users, contents.nodes, contents.policy
            );
            findings.push(Finding::ok("database", text));
            contents.latest.and_then(|at| at.parse().ok())
        }
    }
}

fn clock(latest: Option<Timestamp>) -> Finding {
    let now = clock::now();
    let is_before = latest.is_some_and(|latest| now < latest);
    if now.as_second() < OLDEST_NOW || is_before {
        let than =
            latest.filter(|_| is_before).map_or_else(|| "this program".to_owned(), |at| format!("the database ({at})"));
        return Finding::failed(
            "clock",
            format!("{now} is earlier than {than}: set it, and let NTP keep it (`timedatectl`)"),
        );
    }
    // systemd-timesyncd leaves a word; who uses another program has none, which says nothing.
    let synchronized = Path::new("/run/systemd/timesync/synchronized").exists();
    let how = if synchronized { ", kept by systemd-timesyncd" } else { "" };
    Finding::ok("clock", format!("{now}{how}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn files_that_let_others_in_or_hold_no_key_are_told_of_with_the_command_that_mends_them() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("noise.key");
        let look =
            || key_file(&file, |text| text.parse::<MachinePrivate>().map(drop).map_err(|error| error.to_string()));
        assert_eq!(look().verdict, Verdict::Warning);
        fs::write(&file, "nonsense").unwrap();
        assert!(look().verdict == Verdict::Failed && look().text.contains("restore it"));
        fs::write(&file, MachinePrivate::from_random([1; 32]).expose_text().as_bytes()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(look().verdict == Verdict::Failed && look().text.contains("chmod 600"), "{:?}", look());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(look().verdict, Verdict::Ok);
    }

    #[test]
    fn a_clock_before_what_the_database_tells_of_is_wrong() {
        let later = clock::now().checked_add(std::time::Duration::from_secs(3600)).unwrap();
        assert_eq!(clock(Some(later)).verdict, Verdict::Failed);
        assert_eq!(clock(None).verdict, Verdict::Ok);
    }
}
