//! One program at a time on a state directory.
//!
//! The directory itself is locked (`flock`) and no file in it, so that nothing is left behind and a directory on a
//! read-only disk can be locked too. The kernel gives the lock back when its holder ends, however it ends.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

/// The lock, held until it is dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    /// None where the file system knows no locks.
    _held: Option<Flock<File>>,
}

/// The directory cannot be had.
#[derive(Debug, Error)]
pub enum DirectoryLockError {
    /// Another program works on it.
    #[error("state directory {} is in use by {holder}: each needs a directory of its own, or the other one has to end first", path.display())]
    Held {
        path: PathBuf,
        /// Who has it, in words.
        holder: String,
    },
    /// It cannot be opened.
    #[error("lock state directory {}: {reason}", path.display())]
    Failed {
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
}

impl DirectoryLock {
    /// Takes the lock, or says who has it.
    pub fn take(path: &Path) -> Result<Self, DirectoryLockError> {
        let failed = |reason: io::Error| DirectoryLockError::Failed { path: path.to_owned(), reason };
        let directory = File::open(path).map_err(failed)?;
        let inode = directory.metadata().map_err(failed)?.ino();
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(Self { _held: Some(held) }),
            Err((_, Errno::EWOULDBLOCK)) => {
                let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
                let holder = holder(&locks, inode).map_or_else(|| "another process".to_owned(), named);
                Err(DirectoryLockError::Held { path: path.to_owned(), holder })
            }
            // Some network file systems know no locks: an ability that is missing.
            Err((_, errno)) => {
                tracing::warn!(path = %path.display(), %errno, "the state directory cannot be locked");
                Ok(Self { _held: None })
            }
        }
    }
}

/// The process that holds a lock of this kind on an inode, by the kernel's list. The device is not compared: some file
/// systems show another there.
fn holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "FLOCK").skip(3);
        let (process, place) = (words.next()?, words.next()?);
        let is_it = place.rsplit(':').next()?.parse() == Ok(inode);
        is_it.then(|| process.parse().ok()).flatten()
    })
}

/// A process in words: its name and number.
fn named(process: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    match name.trim() {
        "" => format!("process {process}"),
        name => format!("{} (process {process})", name.escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_had_by_one_at_a_time_and_the_other_is_told_by_whom() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirectoryLock::take(dir.path()).unwrap();

        let error = DirectoryLock::take(dir.path()).unwrap_err();

        assert!(matches!(error, DirectoryLockError::Held { .. }));
        let text = error.to_string();
        assert!(
            text.contains(&format!("(process {}): each needs a directory of its own", std::process::id())),
            "{text}"
        );
        drop(lock);
        drop(DirectoryLock::take(dir.path()).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left in it");
    }

    #[test]
    fn the_kernels_list_names_the_holder_of_an_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:1a:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 12 00:1a:78 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 13 fd:01:77 0 EOF\n";
        assert_eq!(holder(locks, 77), Some(13));
        assert_eq!(holder(locks, 7), None);
        assert_eq!(holder("3: FLOCK  ADVISORY", 7), None);
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error_that_names_it() {
        let error = DirectoryLock::take(Path::new("/nowhere/at/all")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all"), "{error}");
    }
}
