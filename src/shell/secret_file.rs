//! Files that only their owner may read.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Makes a directory, where it is missing, that its owner alone may enter.
pub fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Whole or not at all, and readable by its owner only from the first moment.
pub fn write_secret(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = file.with_extension("new");
    let written = || {
        let mut writer = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        writer.write_all(bytes)?;
        writer.sync_all()?;
        fs::rename(&draft, file)
    };
    written().inspect_err(|_| {
        // Best effort: where a disk is full, half a key is the last thing that it is needed for.
        let _ = fs::remove_file(&draft);
    })?;
    file.parent().map_or(Ok(()), |directory| fs::File::open(directory)?.sync_all())
}

/// Makes a secret that is there its owner's alone. One that others could have read is said; so is one that cannot be
/// changed, which may be in the care of another program. One that others could write is refused: they would decide who
/// this server is. The error is a sentence.
pub fn keep_private(file: &Path) -> Result<(), String> {
    let Ok(metadata) = fs::metadata(file) else { return Ok(()) };
    let (name, mode) = (file.display(), metadata.mode() & 0o777);
    if mode & 0o077 == 0 {
        return Ok(());
    }
    match fs::set_permissions(file, fs::Permissions::from_mode(mode & 0o700)) {
        Ok(()) => tracing::warn!("{name}: its mode was {mode:o}: others may have read it. It is its owner's alone now"),
        Err(error) if mode & 0o022 != 0 => {
            return Err(format!("{name}: mode {mode:o} lets others write to it ({error}); `chmod 600 {name}`"));
        }
        Err(error) => tracing::warn!("{name}: mode {mode:o} lets others read it ({error}); `chmod 600 {name}`"),
    }
    Ok(())
}

/// What a key's file holds; the first start makes it. The error is a sentence that names the file.
pub fn kept_key<K, T, E>(
    file: &Path,
    read: impl FnOnce(&str) -> Result<K, E>,
    make: impl FnOnce() -> Result<T, E>,
) -> Result<K, String>
where
    T: AsRef<str>,
    E: Display,
{
    let failed = |error: &dyn Display| format!("{}: {error}", file.display());
    keep_private(file)?;
    let text = match fs::read_to_string(file) {
        Ok(text) => return read(text.trim()).map_err(|error| format!("{}; restore it from a backup", failed(&error))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make().map_err(|error| failed(&error))?,
        Err(error) => return Err(failed(&error)),
    };
    write_secret(file, text.as_ref().as_bytes()).map_err(|error| failed(&error))?;
    read(text.as_ref()).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(file: &Path, made: &str) -> Result<u16, String> {
        kept_key(file, |text| text.parse::<u16>().map_err(|error| error.to_string()), || Ok(made.to_owned()))
    }

    #[test]
    fn a_key_is_made_once_and_read_from_then_on() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        assert_eq!(open(&file, "7"), Ok(7));
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(open(&file, "8"), Ok(7));
        fs::write(&file, "12\n").unwrap();
        assert_eq!(open(&file, "8"), Ok(12));
        fs::write(&file, "none").unwrap();
        let error = open(&file, "8").unwrap_err();
        assert!(error.starts_with(&file.display().to_string()) && error.contains("restore it"), "{error}");
        assert!(open(&directory.path().join("missing/key"), "8").is_err());
    }

    #[test]
    fn a_key_that_others_could_read_becomes_its_owners_alone_and_serves_on() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        let mode = || file.metadata().unwrap().permissions().mode() & 0o777;
        for (was, is) in [(0o644, 0o600), (0o666, 0o600), (0o440, 0o400), (0o600, 0o600)] {
            let _ = fs::remove_file(&file);
            fs::write(&file, "7").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(was)).unwrap();
            assert_eq!(open(&file, "8"), Ok(7));
            assert_eq!(mode(), is, "{was:o}");
        }
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_key_and_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        // A directory, which no file takes the place of.
        let file = directory.path().join("key");
        fs::create_dir_all(file.join("in-the-way")).unwrap();
        write_secret(&file, b"7").unwrap_err();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
