//! What the agent keeps on disk: keys, preferences, the last map.
//!
//! Each file is replaced as a whole: written beside the old one, flushed, renamed over it, and the directory flushed,
//! so that a crash or a full disk leaves either the old content or the new. Only our user may read them, and on load a
//! file that others could have read or written is refused: whoever could write it could let anybody into this machine.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use thiserror::Error;

use warren_core::node::{Aside, FileContent, FoundFile, Machine, StateFile, Stored};

/// How the files are laid out. What older versions would misread gets a higher number, which is written into
/// [`FORMAT_FILE`] with it; without that file it is 1.
const FORMAT: u32 = 1;
const FORMAT_FILE: &str = "format";

/// An operation on a state file failed.
#[derive(Debug, Error)]
#[error("{operation} {}: {reason}", path.display())]
pub struct StateError {
    operation: &'static str,
    path: PathBuf,
    reason: String,
}

impl StateError {
    /// The disk is too slow for all that is to be written.
    pub fn busy(file: StateFile) -> Self {
        Self { operation: "write", path: file.name().into(), reason: "the disk does not keep up".to_owned() }
    }
}

/// A directory that holds state files.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Opens the directory; makes it where there is none. One that a newer version wrote is refused.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |reason: String| StateError { operation: "open state directory", path: path.to_owned(), reason };
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error.to_string())),
            _ => {}
        }
        if !fs::metadata(path).map_err(|error| failed(error.to_string()))?.is_dir() {
            return Err(failed("not a directory".to_owned()));
        }
        Self::check_format(path)?;
        Ok(Self { path: path.to_owned() })
    }

    /// Whether this version can read what a directory holds, where there is one.
    pub fn check_format(path: &Path) -> Result<(), StateError> {
        let Ok(file) = File::open(path.join(FORMAT_FILE)) else { return Ok(()) };
        let mut text = String::new();
        let found = file.take(64).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
        if found.is_some_and(|found: u32| found <= FORMAT) {
            return Ok(());
        }
        let found = found.map_or_else(|| "unknown".to_owned(), |found| found.to_string());
        let reason = format!(
            "a newer version of warrend wrote it (format {found}, this one knows {FORMAT}): install that version again, or \
             move the directory away and sign in anew"
        );
        Err(StateError { operation: "open state directory", path: path.to_owned(), reason })
    }

    /// Everything that is there, for this machine; what cannot be used is put aside. A key, or any other file but the map,
    /// that others could have read or written is an error.
    pub fn load_all(&self, machine: &Machine) -> Result<Stored, StateError> {
        let mut files = BTreeMap::new();
        for file in StateFile::ALL {
            let content = match self.load(file) {
                Ok(None) => continue,
                Ok(Some(content)) => Ok(content),
                // The coordinator sends another one.
                Err(error) if file == StateFile::Map => Err(error.reason),
                Err(error) => return Err(error),
            };
            files.insert(file, FoundFile { path: self.path.join(file.name()).display().to_string(), content });
        }
        let mut stored = Stored::read(files, machine);
        while let Some((file, why)) = stored.poll_aside() {
            match (why, self.put_aside(file, why.suffix())) {
                (Aside::OtherMachine, Err(error)) => return Err(error),
                (_, outcome) => {
                    let outcome = outcome.map(|aside| aside.display().to_string());
                    stored.handle_aside(file, outcome.map_err(|error| error.to_string()));
                }
            }
        }
        Ok(stored)
    }

    /// A file's content, `None` where there is no such file.
    pub fn load(&self, file: StateFile) -> Result<Option<FileContent>, StateError> {
        self.load_named(file.name(), file.limit())
    }

    /// The same of a file that the engine does not know.
    pub(super) fn load_named(&self, name: &str, limit: u64) -> Result<Option<FileContent>, StateError> {
        let path = self.path.join(name);
        let failed = |reason: String| StateError { operation: "read", path: path.clone(), reason };
        let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(&path);
        let open = match opened {
            Ok(open) => open,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error.to_string())),
        };
        let metadata = open.metadata().map_err(|error| failed(error.to_string()))?;
        check_owner(&metadata).map_err(failed)?;
        if metadata.len() > limit {
            return Err(failed(format!("{} bytes, at most {limit} are read", metadata.len())));
        }
        // Large enough from the start, so that no copy of a key is left behind as it grows.
        let mut content = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default() + 1);
        let read = open.take(limit).read_to_end(&mut content);
        let content = FileContent::new(content);
        read.map_err(|error| failed(error.to_string()))?;
        Ok(Some(content))
    }

    /// Replaces a file's content, for good when this returns.
    pub fn save(&self, file: StateFile, content: &[u8]) -> Result<(), StateError> {
        self.save_named(file.name(), content)
    }

    /// The same of a file that the engine does not know.
    pub(super) fn save_named(&self, name: &str, content: &[u8]) -> Result<(), StateError> {
        let path = self.path.join(name);
        let beside = self.path.join(format!("{name}.new"));
        let written = write_private(&beside, content)
            .and_then(|()| fs::rename(&beside, &path))
            .and_then(|()| File::open(&self.path)?.sync_all());
        written.map_err(|error| {
            // Best effort: on a full disk the half-written file is the first thing to give back.
            let _ = fs::remove_file(&beside);
            StateError { operation: "write", path, reason: error.to_string() }
        })
    }

    /// Gives a file another name, beside the others, under which nobody looks for it. An older one of that name goes.
    pub fn put_aside(&self, file: StateFile, why: &str) -> Result<PathBuf, StateError> {
        let path = self.path.join(file.name());
        let aside = self.path.join(format!("{}.{why}", file.name()));
        let renamed = fs::rename(&path, &aside).and_then(|()| File::open(&self.path)?.sync_all());
        match renamed {
            Ok(()) => Ok(aside),
            Err(error) => Err(StateError { operation: "put aside", path, reason: error.to_string() }),
        }
    }

    /// Removes a file; one that is not there is no error.
    pub fn remove(&self, file: StateFile) -> Result<(), StateError> {
        let path = self.path.join(file.name());
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed.and_then(|()| File::open(&self.path)?.sync_all()),
        };
        removed.map_err(|error| StateError { operation: "remove", path, reason: error.to_string() })
    }
}

fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Whether nobody but us could have read or written a file.
fn check_owner(metadata: &fs::Metadata) -> Result<(), String> {
    let us = nix::unistd::geteuid().as_raw();
    if !metadata.is_file() {
        return Err("not a plain file".to_owned());
    }
    if metadata.uid() != us {
        return Err(format!("belongs to user {}, not to ours ({us})", metadata.uid()));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(format!("mode {:o} lets others in; `chmod 600` it if it can be trusted", metadata.mode() & 0o777));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("state")).unwrap();
        (dir, state)
    }

    #[test]
    fn a_file_reads_back_what_was_written_and_only_we_may_read_it() {
        let (dir, state) = state();
        state.save(StateFile::Prefs, b"one").unwrap();
        state.save(StateFile::Prefs, b"two").unwrap();

        assert_eq!(state.load(StateFile::Prefs).unwrap().unwrap().expose_bytes(), b"two");
        let file = dir.path().join("state/prefs.json");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(dir.path().join("state")).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(dir.path().join("state")).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_a_newer_version_wrote_is_refused_in_words() {
        let (dir, _) = state();
        let path = dir.path().join("state");
        for (format, is_read) in [("1\n", true), ("2\n", false), ("a new world", false)] {
            fs::write(path.join(FORMAT_FILE), format).unwrap();
            let opened = StateDir::open(&path);
            assert_eq!(opened.is_ok(), is_read, "{format}");
            assert_eq!(StateDir::check_format(&path).is_ok(), is_read, "{format}");
        }
        let error = StateDir::open(&path).unwrap_err().to_string();
        assert!(error.contains("a newer version of warrend wrote it (format unknown, this one knows 1)"), "{error}");

        StateDir::check_format(&dir.path().join("none")).unwrap();
    }

    #[test]
    fn a_file_that_is_not_there_is_none_and_removing_it_is_no_error() {
        let (_dir, state) = state();
        assert!(state.load(StateFile::NodeKey).unwrap().is_none());
        state.remove(StateFile::NodeKey).unwrap();
    }

    #[test]
    fn a_half_written_file_of_a_crash_does_not_stand_in_the_way() {
        let (dir, state) = state();
        fs::write(dir.path().join("state/map.json.new"), b"{\"half").unwrap();

        state.save(StateFile::Map, b"{}").unwrap();

        assert_eq!(state.load(StateFile::Map).unwrap().unwrap().expose_bytes(), b"{}");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let (dir, state) = state();
        state.save(StateFile::NodeKey, b"privkey:00").unwrap();
        let file = dir.path().join("state/node.key");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();

        let error = state.load(StateFile::NodeKey).unwrap_err().to_string();

        assert!(error.contains("node.key: mode 644 lets others in"), "{error}");
    }

    #[test]
    fn a_link_and_a_file_past_its_limit_are_refused() {
        let (dir, state) = state();
        symlink("/etc/hostname", dir.path().join("state/prefs.json")).unwrap();
        assert!(state.load(StateFile::Prefs).is_err());

        state.save(StateFile::MachineKey, &[b'x'; 257]).unwrap();
        let error = state.load(StateFile::MachineKey).unwrap_err().to_string();
        assert!(error.contains("257 bytes, at most 256 are read"), "{error}");
    }

    #[test]
    fn a_failed_write_names_the_file_and_keeps_the_old_content() {
        let (dir, state) = state();
        state.save(StateFile::Map, b"old").unwrap();
        fs::create_dir_all(dir.path().join("state/map.json.new/in-the-way")).unwrap();

        let error = state.save(StateFile::Map, b"new").unwrap_err().to_string();

        assert!(error.contains("map.json"), "{error}");
        assert_eq!(state.load(StateFile::Map).unwrap().unwrap().expose_bytes(), b"old");
    }
}
