//! Files that only their owner may read.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Makes a directory, where it is missing, that its owner alone may enter.
pub fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Whole or not at all, and readable by its owner only from the first moment.
pub fn write_secret(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = file.with_extension("new");
    let mut writer = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    writer.write_all(bytes)?;
    writer.sync_all()?;
    fs::rename(&draft, file)?;
    file.parent().map_or(Ok(()), |directory| fs::File::open(directory)?.sync_all())
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
    let text = match fs::read_to_string(file) {
        Ok(text) => return read(text.trim()).map_err(|error| failed(&error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make().map_err(|error| failed(&error))?,
        Err(error) => return Err(failed(&error)),
    };
    write_secret(file, text.as_ref().as_bytes()).map_err(|error| failed(&error))?;
    read(text.as_ref()).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
        assert!(open(&file, "8").unwrap_err().starts_with(&file.display().to_string()));
        assert!(open(&directory.path().join("missing/key"), "8").is_err());
    }
}
