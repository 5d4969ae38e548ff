//! `backup`, `restore` and `init`: a network's whole state in one file, and back.
//!
//! While a server runs it makes the copy, since nobody else may open its database, and hands it to whoever asked through
//! the administration socket; otherwise the command makes it itself. Restoring never mixes two states: what was there
//! goes aside first, the keys come before the database, and a server refuses to start on a half.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::admin::fetch_backup;
use super::clock;
use super::service::Service;
use super::state_dir::{DATABASE, KEY_FILE, StateDir, is_kept};
use super::store::{Contents, SqliteStore, copy_closed, is_free, read_backup, seal, unseal};
use warren_core::types::MachinePrivate;
use warren_shell::{make_directory, write_secret};

/// Bytes of a backup that are in memory at a time.
const PIECE: usize = 64 * 1024;

/// The server's side: a backup whose name is gone already, so that it goes with whoever reads it. Where the state's own disk has no room for it,
/// which is when it is wanted most, it is made among the temporary files.
pub(crate) async fn draft(service: &Service, dir: &StateDir) -> Result<tokio::fs::File, String> {
    let at_home = match dir.backup_draft() {
        Ok(path) => draft_at(path, service, dir).await,
        Err(error) => Err(format!("{}: {error}", dir.path().display())),
    };
    let _ = dir.backup_draft();
    let Err(reason) = at_home else { return at_home };
    let elsewhere = std::env::temp_dir().join(format!("warren-coordinator-{:016x}", rand::random::<u64>()));
    let made = match fs::DirBuilder::new().mode(0o700).create(&elsewhere) {
        Ok(()) => draft_at(elsewhere.join("backup"), service, dir).await,
        Err(error) => Err(format!("{}: {error}", elsewhere.display())),
    };
    let _ = fs::remove_dir_all(&elsewhere);
    made.map_err(|error| format!("{reason}; and {error}"))
}

async fn draft_at(path: PathBuf, service: &Service, dir: &StateDir) -> Result<tokio::fs::File, String> {
    let sealed = match service.copy(path.clone()).await {
        Ok(Ok(())) => sealed(&path, dir).await,
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the registry is busy, try again later".to_owned()),
    };
    sealed?;
    tokio::fs::File::open(&path).await.map_err(|error| format!("{}: {error}", path.display()))
}

async fn sealed(copy: &Path, dir: &StateDir) -> Result<(), String> {
    seal(copy, &dir.kept_files()?).await.map_err(|error| error.to_string())
}

pub(crate) fn pieces(file: tokio::fs::File) -> impl futures_util::Stream<Item = io::Result<Bytes>> {
    futures_util::stream::try_unfold(file, async |mut file| {
        let mut piece = vec![0; PIECE];
        let count = file.read(&mut piece).await?;
        piece.truncate(count);
        Ok((count > 0).then(|| (Bytes::from(piece), file)))
    })
}

/// `backup FILE`. The sentence says what is in it, or what went wrong.
pub(crate) async fn backup(dir: &StateDir, socket: &Path, file: &Path, force: bool) -> Result<String, String> {
    may_be_placed(file, force)?;
    let draft = beside(file);
    let made = make(dir, socket, &draft).await;
    let placed = match made {
        Ok(contents) => place(&draft, file, force).map(|()| contents),
        Err(error) => Err(error),
    };
    if placed.is_err() {
        let _ = fs::remove_file(&draft);
    }
    placed.map(|contents| {
        format!("{}: {}; whoever has it can stand in for this server", file.display(), describe(&contents))
    })
}

async fn make(dir: &StateDir, socket: &Path, draft: &Path) -> Result<Contents, String> {
    let failed = |error: io::Error| format!("{}: {error}", draft.display());
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    match tokio::net::UnixStream::connect(socket).await {
        Ok(stream) => {
            let made = OpenOptions::new().create_new(true).write(true).mode(0o600).open(draft);
            let mut target = tokio::fs::File::from_std(made.map_err(failed)?);
            fetch_backup(stream, &mut target).await.map_err(|error| format!("{}: {error}", socket.display()))?;
            target.flush().await.map_err(failed)?;
            target.sync_all().await.map_err(failed)?;
        }
        Err(error) if is_nobody(&error) => {
            if !dir.has_database() {
                return Err(format!("{}: there is no {DATABASE}; is this the state directory?", dir.path().display()));
            }
            copy_closed(&dir.database(), draft).await.map_err(|error| error.to_string())?;
            sealed(draft, dir).await?;
        }
        Err(error) => return Err(format!("{}: {error}", socket.display())),
    }
    // What cannot be read back is no backup.
    let contents = read_backup(draft).await.map_err(|error| error.to_string())?;
    if !contents.files.iter().any(|file| file.name == KEY_FILE) {
        return Err(format!("{}: there is no {KEY_FILE}, without which nothing can be restored", dir.path().display()));
    }
    Ok(contents)
}

/// Nobody serves there.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    file.with_file_name(name)
}

/// Whether a backup may take this name: a device or a link is nothing that a file may stand in for.
fn may_be_placed(file: &Path, force: bool) -> Result<(), String> {
    match fs::symlink_metadata(file) {
        Ok(there) if !there.is_file() => {
            Err(format!("{}: it is no regular file, and is left as it is; name a file", file.display()))
        }
        Ok(_) if !force => Err(format!("{}: it exists; --force replaces it", file.display())),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{}: {error}", file.display())),
    }
}

fn place(draft: &Path, file: &Path, force: bool) -> Result<(), String> {
    // Once more: making the backup took its time.
    may_be_placed(file, force)?;
    let placed = || -> io::Result<()> {
        fs::File::open(draft)?.sync_all()?;
        fs::rename(draft, file)?;
        let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(directory)?.sync_all()
    };
    placed().map_err(|error| format!("{}: {error}", file.display()))
}

fn describe(contents: &Contents) -> String {
    let Contents { files, users, nodes, policy, .. } = contents;
    let policy = if *policy == 0 { "no policy".to_owned() } else { format!("policy version {policy}") };
    let files: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    format!("{users} users, {nodes} nodes, {policy}, {}", files.join(", "))
}

/// `restore FILE`.
pub(crate) async fn restore(dir: &StateDir, socket: &Path, file: &Path, force: bool) -> Result<String, String> {
    let contents = read_backup(file).await.map_err(|error| error.to_string())?;
    if !contents.files.iter().any(|file| file.name == KEY_FILE) {
        return Err(format!(
            "{}: it has no server key in it: this is a database, and no backup that `warren-coordinator backup` made",
            file.display()
        ));
    }
    if let Some(bad) = contents.files.iter().find(|file| !is_kept(&file.name)) {
        return Err(format!("{}: it has a file {:?} in it, which is no key", file.display(), bad.name));
    }
    nobody_serves(dir, socket).await?;
    let directory = dir.path().display();
    make_directory(dir.path()).map_err(|error| format!("{directory}: {error}"))?;
    let present = dir.present()?;
    let is_unfinished = dir.half_restored().exists();
    if !present.is_empty() && !force && !is_unfinished {
        return Err(format!(
            "{directory}: there is a coordinator's state already ({}); --force moves it aside and restores",
            present.join(", ")
        ));
    }
    let aside = put_in_place(dir, file, &contents, &present).await?;
    let kept = aside.map_or_else(String::new, |aside| format!("; what was there is in {}", aside.display()));
    Ok(format!("{directory}: {} restored{kept}", describe(&contents)))
}

/// Everything new is written beside what is there before anything is moved; what fails until then has changed nothing.
async fn put_in_place(
    dir: &StateDir,
    file: &Path,
    contents: &Contents,
    present: &[String],
) -> Result<Option<PathBuf>, String> {
    if let Err(error) = write_draft(dir, file, contents).await {
        let _ = fs::remove_dir_all(dir.restore_draft());
        return Err(format!("{error}; nothing was changed"));
    }
    let aside = (!present.is_empty()).then(|| dir.path().join(format!("replaced-{}", clock::now().as_second())));
    let names = contents.files.iter().map(|file| file.name.as_str()).chain([DATABASE]);
    match move_in(dir, names, present, aside.as_deref()) {
        Ok(()) => Ok(aside),
        Err(error) => Err(format!("{}: {error}: {}", dir.path().display(), dir.on_half_restored())),
    }
}

async fn write_draft(dir: &StateDir, file: &Path, contents: &Contents) -> Result<(), String> {
    let draft = dir.restore_draft();
    let failed = |error: io::Error| format!("{}: {error}", draft.display());
    match fs::remove_dir_all(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    make_directory(&draft).map_err(failed)?;
    for key in &contents.files {
        write_secret(&draft.join(&key.name), &key.content).map_err(failed)?;
    }
    unseal(file, &draft.join(DATABASE)).await.map_err(|error| error.to_string())?;
    make_directory(&dir.half_restored()).map_err(failed)
}

fn move_in<'a>(
    dir: &StateDir,
    names: impl Iterator<Item = &'a str>,
    present: &[String],
    aside: Option<&Path>,
) -> io::Result<()> {
    let draft = dir.restore_draft();
    fs::File::open(dir.path())?.sync_all()?;
    if let Some(aside) = aside {
        make_directory(aside)?;
        for name in present {
            fs::rename(dir.path().join(name), aside.join(name))?;
        }
    }
    for name in names {
        let target = dir.path().join(name);
        fs::rename(draft.join(name), &target)?;
        dir.hand_over(&target)?;
    }
    fs::File::open(dir.path())?.sync_all()?;
    fs::remove_dir_all(&draft)?;
    fs::remove_dir(dir.half_restored())?;
    fs::File::open(dir.path())?.sync_all()
}

async fn nobody_serves(dir: &StateDir, socket: &Path) -> Result<(), String> {
    let busy = || format!("{}: a coordinator runs on this state; stop it first", dir.path().display());
    match tokio::net::UnixStream::connect(socket).await {
        Ok(_) => return Err(busy()),
        Err(error) if is_nobody(&error) => {}
        Err(error) => return Err(format!("{}: {error}", socket.display())),
    }
    match dir.database().exists() {
        // A database that cannot even be opened is one to restore.
        true => match is_free(&dir.database()).await {
            Err(super::store::StoreError::InUse(_)) => Err(busy()),
            _ => Ok(()),
        },
        false => Ok(()),
    }
}

/// `init`: makes what is missing, on purpose.
pub(crate) async fn init(dir: &StateDir, socket: &Path, network: bool, key: bool) -> Result<String, String> {
    nobody_serves(dir, socket).await?;
    let directory = dir.path().display();
    let mut made = Vec::new();
    for (wanted, is_there, path) in
        [(network, dir.has_database(), dir.database()), (key, dir.key().exists(), dir.key())]
    {
        if wanted && is_there {
            return Err(format!("{}: it is there already; nothing was made", path.display()));
        }
    }
    if key && !network && !dir.has_database() {
        return Err(format!(
            "{directory}: there is no network here that a new key could be for; nothing was made. A first `serve` makes \
             both, and so do `--empty-network --new-key` together"
        ));
    }
    make_directory(dir.path()).map_err(|error| format!("{directory}: {error}"))?;
    if network {
        let store = SqliteStore::open(&dir.database()).await.map_err(|error| error.to_string())?;
        store.close().await;
        dir.hand_over(&dir.database()).map_err(|error| format!("{directory}: {error}"))?;
        made.push("an empty network");
    }
    if key {
        let text = MachinePrivate::from_random(rand::random()).expose_text();
        let written = write_secret(&dir.key(), text.as_bytes()).and_then(|()| dir.hand_over(&dir.key()));
        written.map_err(|error| format!("{}: {error}", dir.key().display()))?;
        made.push("a new server key");
    }
    Ok(format!("{directory}: {} made", made.join(" and ")))
}
