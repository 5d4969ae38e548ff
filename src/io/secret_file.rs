//! Files that only their owner may read.

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
