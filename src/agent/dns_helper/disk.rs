//! `/etc/resolv.conf`, the copy beside it, and the record of what it was, below a root directory.
//!
//! Each thing that is written is whole or not there: a new file is renamed into its place. Only what something is
//! mounted over, as in containers, is written over.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use warren_core::dns::host::{Current, FileStep, Record, Seen};

/// As much of a file as is kept: hundreds of times what one holds.
const MOST: u64 = 64 << 10;

/// See the module.
pub(super) struct Disk {
    file: PathBuf,
    copy: PathBuf,
    record: PathBuf,
    /// What the next steps may do before this process is as good as killed.
    #[cfg(test)]
    pub(super) fuel: std::cell::Cell<usize>,
}

impl Disk {
    pub(super) fn new(root: &Path, state: &Path) -> Self {
        Self {
            file: root.join("etc/resolv.conf"),
            copy: root.join("etc/resolv.conf.before-warren"),
            record: state.join("resolv.conf.json"),
            #[cfg(test)]
            fuel: std::cell::Cell::new(usize::MAX),
        }
    }

    /// What is there.
    pub(super) fn see(&self) -> io::Result<Seen> {
        let record = match whole(&self.record) {
            // One that cannot be read is as good as none: the copy stands beside the file.
            Ok(bytes) => serde_json::from_slice::<Record>(&bytes).ok().filter(|it| it.original.current().is_some()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let copy = match whole(&self.copy) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Seen { current: self.current()?, record, copy })
    }

    fn current(&self) -> io::Result<Current> {
        let metadata = match fs::symlink_metadata(&self.file) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Current::Missing),
            Err(error) => return Err(error),
        };
        if metadata.is_symlink() {
            let target = fs::read_link(&self.file)?.into_os_string().into_string();
            return target.map(Current::Link).map_err(|_| io::Error::other("its link is no text"));
        }
        if !metadata.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        Ok(Current::Plain { bytes: whole(&self.file)?, mode: metadata.permissions().mode() & 0o777 })
    }

    /// Does one thing.
    pub(super) fn apply(&self, step: &FileStep) -> io::Result<()> {
        match step {
            FileStep::SaveRecord(record) => {
                let bytes = serde_json::to_vec(record).map_err(io::Error::other)?;
                self.replace(&self.record, &Current::Plain { bytes, mode: 0o600 })
            }
            FileStep::SaveCopy(bytes) => {
                self.replace(&self.copy, &Current::Plain { bytes: bytes.clone(), mode: 0o644 })
            }
            FileStep::Write { to: Current::Plain { bytes, .. }, in_place: true } => self.write_over(bytes),
            FileStep::Write { to, .. } => self.replace(&self.file, to),
            FileStep::RemoveCopy => self.remove(&self.copy),
            FileStep::RemoveRecord => self.remove(&self.record),
        }
    }

    fn replace(&self, file: &Path, to: &Current) -> io::Result<()> {
        let mut new = file.as_os_str().to_owned();
        new.push(".warren-new");
        let new = PathBuf::from(new);
        self.burn()?;
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        match to {
            Current::Missing => return self.remove(file),
            Current::Link(target) => {
                self.burn()?;
                symlink(target, &new)?;
            }
            Current::Plain { bytes, mode } => {
                self.burn()?;
                let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
                self.burn()?;
                written.write_all(bytes)?;
                self.burn()?;
                // Whatever the umask.
                written.set_permissions(Permissions::from_mode(*mode))?;
                written.sync_all()?;
            }
        }
        self.burn()?;
        fs::rename(&new, file)?;
        sync_folder(file)
    }

    /// Where the new text is shorter, the rest of the old one stands behind it for a moment: a text of ours ends with
    /// the beginning of a comment, and further lines still name servers.
    fn write_over(&self, bytes: &[u8]) -> io::Result<()> {
        self.burn()?;
        let file = OpenOptions::new().write(true).open(&self.file)?;
        file.write_all_at(bytes, 0)?;
        self.burn()?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        self.burn()?;
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => sync_folder(file),
        }
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests end the process here")]
    const fn burn(&self) -> io::Result<()> {
        Ok(())
    }

    /// Fails for ever once there is none left.
    #[cfg(test)]
    fn burn(&self) -> io::Result<()> {
        let fuel = self.fuel.get();
        self.fuel.set(fuel.saturating_sub(1));
        if fuel == 0 { Err(io::Error::other("killed")) } else { Ok(()) }
    }
}

/// A file that is not larger than any should be.
fn whole(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(io::Error::other(format!("it is larger than {MOST} bytes")));
    }
    Ok(bytes)
}

fn sync_folder(file: &Path) -> io::Result<()> {
    file.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use warren_core::dns::host::{hold, is_ours, release};

    use super::*;

    const OURS: &str =
        "# By warrend(8), while this host is in a Warren network: warren-dns(7).\nnameserver 100.100.100.100\n#\n";

    struct Host {
        root: tempfile::TempDir,
        disk: Disk,
    }

    impl Host {
        fn new(original: &Current) -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("etc")).unwrap();
            fs::create_dir_all(root.path().join("state")).unwrap();
            let disk = Disk::new(root.path(), &root.path().join("state"));
            disk.replace(&disk.file, original).unwrap();
            Self { root, disk }
        }

        /// What the next process finds.
        fn again(&self) -> Disk {
            Disk::new(self.root.path(), &self.root.path().join("state"))
        }

        /// A process that takes so many steps and is killed; whether it came to its end.
        fn run(&self, fuel: usize, plan: impl Fn(&Seen) -> Vec<FileStep>) -> bool {
            let disk = self.again();
            disk.fuel.set(fuel);
            let steps = plan(&disk.see().unwrap());
            steps.iter().try_for_each(|step| disk.apply(step)).is_ok()
        }
    }

    fn originals() -> [Current; 5] {
        let plain = |text: &str, mode| Current::Plain { bytes: text.as_bytes().to_vec(), mode };
        [
            Current::Missing,
            Current::Link("../run/systemd/resolve/stub-resolv.conf".to_owned()),
            plain("", 0o644),
            plain("# mine\nnameserver 192.0.2.1\n", 0o600),
            plain(&"nameserver 192.0.2.1\n# \u{e4} without an end".repeat(20), 0o644),
        ]
    }

    #[test]
    fn whoever_is_killed_at_any_write_leaves_a_host_that_resolves_and_goes_back_to_what_it_was() {
        for original in originals() {
            let mut killed = 0;
            for fuel in 0.. {
                let host = Host::new(&original);
                let came_to_its_end = host.run(fuel, |seen| hold(seen, OURS, false, "boot"));
                check(&host, &original);
                // Whoever puts it back may be killed as well, however often.
                for of_release in 0..20 {
                    host.run(of_release, release);
                    check(&host, &original);
                }
                let seen = host.again().see().unwrap();
                assert_eq!(seen, Seen { current: original.clone(), record: None, copy: None }, "{fuel}");
                assert!(!host.disk.copy.exists() && !host.disk.record.exists());
                if came_to_its_end {
                    break;
                }
                killed += 1;
            }
            assert!(killed > 8, "{killed}");
        }
    }

    /// The file is what it was, or ours and whole.
    fn check(host: &Host, original: &Current) {
        let seen = host.again().see().unwrap();
        let is_whole = matches!(&seen.current, Current::Plain { bytes, mode: 0o644 } if bytes == OURS.as_bytes());
        assert!(seen.current == *original || is_whole, "{seen:?}");
        assert!(!is_whole || seen.record.is_some(), "ours without a record: {seen:?}");
    }

    #[test]
    fn a_file_that_is_written_over_names_somebody_at_every_moment_and_keeps_its_inode() {
        use std::os::unix::fs::MetadataExt;

        let text = "nameserver 192.0.2.1\n# a long line\nnameserver 192.0.2.2\nsearch lan and much more of the same\noptions ndots:5\n";
        let original = Current::Plain { bytes: text.as_bytes().to_vec(), mode: 0o644 };
        for fuel in 0..20 {
            let host = Host::new(&original);
            let inode = fs::metadata(&host.disk.file).unwrap().ino();
            let named =
                || fs::read_to_string(&host.disk.file).unwrap().lines().any(|line| line.starts_with("nameserver "));
            host.run(fuel, |seen| hold(seen, OURS, true, "boot"));
            assert!(named(), "{fuel}");
            for of_release in 0..10 {
                host.run(of_release, release);
                assert!(named(), "{fuel} {of_release}");
            }
            assert_eq!(host.again().see().unwrap(), Seen { current: original.clone(), record: None, copy: None });
            assert_eq!(fs::metadata(&host.disk.file).unwrap().ino(), inode);
        }
    }

    #[test]
    fn what_is_broken_on_disk_is_no_record_and_a_file_without_end_is_none() {
        let host = Host::new(&originals()[3]);
        host.run(usize::MAX, |seen| hold(seen, OURS, false, "boot"));
        fs::write(&host.disk.record, "{").unwrap();
        assert!(is_ours(&fs::read(&host.disk.file).unwrap()));
        host.run(usize::MAX, release);
        assert_eq!(fs::read_to_string(&host.disk.file).unwrap(), "# mine\nnameserver 192.0.2.1\n");
        fs::write(&host.disk.file, vec![b'#'; 70_000]).unwrap();
        assert!(host.disk.see().unwrap_err().to_string().contains("larger than"));
    }
}
