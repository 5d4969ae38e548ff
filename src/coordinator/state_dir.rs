//! The state directory: which files belong together, and whether they are all there.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use super::store::KeptFile;

/// The Noise key's file. It lies beside the database, not in it: a stolen copy of the database cannot
/// stand in for the server.
pub(crate) const KEY_FILE: &str = "noise.key";
pub(crate) const DATABASE: &str = "coordinator.sqlite";
/// What a database has beside it while it is open.
const DATABASE_FILES: [&str; 3] = [DATABASE, "coordinator.sqlite-wal", "coordinator.sqlite-shm"];
/// A backup on its way to whoever asked for it.
const BACKUP_DRAFT: &str = "backup.draft";
/// What is to be restored, while it is written: nothing has changed yet.
const RESTORE_DRAFT: &str = "restore.draft";
/// There while files of the old state go aside and new ones take their names; where it stays, that did not come to its
/// end.
const HALF_RESTORED: &str = "restore.half";
/// Keys, certificates and the accounts that they come from.
const KEPT: [&str; 4] = ["key", "pem", "crt", "json"];
/// Bytes of one of them, far more than any has.
const KEPT_BYTES: u64 = 64 * 1024;
/// How many of them there may be.
const KEPT_FILES: usize = 64;

/// A state directory.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
}

impl StateDir {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// Whether there is one with anything in it. The library takes an empty file for a new database.
    pub(crate) fn has_database(&self) -> bool {
        fs::metadata(self.database()).is_ok_and(|file| file.len() > 0)
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.path.join(KEY_FILE)
    }

    pub(crate) fn restore_draft(&self) -> PathBuf {
        self.path.join(RESTORE_DRAFT)
    }

    pub(crate) fn half_restored(&self) -> PathBuf {
        self.path.join(HALF_RESTORED)
    }

    /// What to do about a restored state of which only a part is in its place.
    pub(crate) fn on_half_restored(&self) -> String {
        format!(
            "restoring a backup did not come to its end; type the `warren-coordinator restore` again, or give it up: move \
             the files of the newest `replaced-…` directory back into {} and remove {}",
            self.path.display(),
            self.half_restored().display()
        )
    }

    /// A place for a backup that is being made; what an earlier one left there is gone.
    pub(crate) fn backup_draft(&self) -> io::Result<PathBuf> {
        for name in [BACKUP_DRAFT.to_owned(), format!("{BACKUP_DRAFT}-journal")] {
            match fs::remove_file(self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(self.path.join(BACKUP_DRAFT))
    }

    /// What a server may not begin with: a part of a network's state. `has_records` is whether the database that is
    /// there knows anybody.
    pub(crate) fn check_before_start(&self) -> Result<(), String> {
        let directory = self.path.display();
        if self.half_restored().exists() {
            return Err(format!("{directory}: {}", self.on_half_restored()));
        }
        if self.key().exists() && !self.has_database() {
            return Err(format!(
                "{directory}: {KEY_FILE} is there and {DATABASE} is not, or is empty: the network's users, nodes and \
                 policies are missing. Restore them with `warren-coordinator restore FILE`, or put the file back; to \
                 begin an empty network with this key, type `warren-coordinator init --empty-network`"
            ));
        }
        Ok(())
    }

    /// The same, once the database is open: one that knows somebody has its key beside it.
    pub(crate) fn check_key(&self, has_records: bool) -> Result<(), String> {
        if self.key().exists() || !has_records {
            return Ok(());
        }
        Err(format!(
            "{}: {DATABASE} is there and {KEY_FILE} is not: nodes know this server by its key. Restore both with \
             `warren-coordinator restore FILE`, or put the key back; to go on with another key, which nodes may have to \
             be told of, type `warren-coordinator init --new-key`",
            self.path.display()
        ))
    }

    /// The files beside the database that a backup keeps.
    pub(crate) fn kept_files(&self) -> Result<Vec<KeptFile>, String> {
        let failed = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|error| failed(&self.path, error))? {
            let entry = entry.map_err(|error| failed(&self.path, error))?;
            let (path, name) = (entry.path(), entry.file_name());
            let Some(name) = name.to_str().filter(|name| is_kept(name)) else { continue };
            let metadata = entry.metadata().map_err(|error| failed(&path, error))?;
            if !metadata.is_file() || metadata.len() > KEPT_BYTES {
                continue;
            }
            let content = fs::read(&path).map_err(|error| failed(&path, error))?;
            files.push(KeptFile { name: name.to_owned(), content });
        }
        if files.len() > KEPT_FILES {
            return Err(format!("{}: more than {KEPT_FILES} keys", self.path.display()));
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// The names of everything that a restored state takes the place of.
    pub(crate) fn present(&self) -> Result<Vec<String>, String> {
        let databases =
            DATABASE_FILES.iter().filter(|name| self.path.join(name).exists()).map(|name| (*name).to_owned());
        Ok(databases.chain(self.kept_files()?.into_iter().map(|file| file.name)).collect())
    }

    /// Gives a file that we made as root to whom the directory belongs, as whom the server runs.
    pub(crate) fn hand_over(&self, file: &Path) -> io::Result<()> {
        let owner = fs::metadata(&self.path)?;
        let is = fs::metadata(file)?;
        if (owner.uid(), owner.gid()) == (is.uid(), is.gid()) || !nix::unistd::geteuid().is_root() {
            return Ok(());
        }
        chown(file, Some(owner.uid()), Some(owner.gid()))
    }
}

/// Whether a file of this name is kept in a backup, and may be made from one.
pub(crate) fn is_kept(name: &str) -> bool {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)) && !name.starts_with('.');
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    plain && extension.is_some_and(|extension| KEPT.contains(&extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_without_their_database_and_the_reverse_are_refused_in_words() {
        let directory = tempfile::tempdir().unwrap();
        let dir = StateDir::new(directory.path());
        dir.check_before_start().unwrap();
        dir.check_key(false).unwrap();
        assert!(dir.check_key(true).unwrap_err().contains("init --new-key"));
        fs::write(dir.key(), "x").unwrap();
        dir.check_key(true).unwrap();
        assert!(dir.check_before_start().unwrap_err().contains("init --empty-network"));
        fs::write(dir.database(), "").unwrap();
        assert!(dir.check_before_start().unwrap_err().contains("init --empty-network"));
        fs::write(dir.database(), "x").unwrap();
        dir.check_before_start().unwrap();
        fs::create_dir(dir.restore_draft()).unwrap();
        dir.check_before_start().unwrap();
        fs::create_dir(dir.half_restored()).unwrap();
        let error = dir.check_before_start().unwrap_err();
        assert!(error.contains("restore` again") && error.contains("give it up"), "{error}");
    }

    #[test]
    fn only_plain_names_of_keys_are_kept() {
        for (name, kept) in [
            ("noise.key", true),
            ("acme-account.json", true),
            ("a.pem", true),
            ("coordinator.sqlite", false),
            ("backup.db", false),
            ("../x.key", false),
            ("..key", false),
            ("admin.sock", false),
            ("key", false),
        ] {
            assert_eq!(is_kept(name), kept, "{name}");
        }
    }
}
