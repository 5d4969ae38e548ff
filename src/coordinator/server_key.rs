//! The keys that nodes know this server by: the one it goes by, and those it went by before.
//!
//! A key is changed without a node noticing: handshakes under the former one are served until the operator retires it, and
//! whoever comes under it is told the present one within the channel, where nobody else could say so. An agent of ours
//! asks for it on each connection; official clients ask for the key when they start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::state_dir::KEY_FILE;
use crate::io::{kept_key, write_secret};
use crate::types::{Fingerprint, MachinePrivate, MachinePublic, Timestamp};
use crate::wire::noise::{Ephemeral, INITIATION_LEN, NoiseError, ServerHandshake};

/// The former keys, a line each, the latest first.
const FORMER: &str = "noise-former.key";
/// Former keys that are served at once: each handshake tries one after the other.
const MOST_FORMER: usize = 4;

/// All of them.
pub(crate) struct ServerKeys {
    state_dir: PathBuf,
    /// Locked for a handshake's first step or a change, never across an `await`.
    held: Mutex<Held>,
}

struct Held {
    present: MachinePrivate,
    former: Vec<Former>,
}

struct Former {
    key: MachinePrivate,
    /// When a node last came under it, since the start.
    used: Option<Timestamp>,
}

/// What an operator sees of a former key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FormerKey {
    pub(crate) key: Fingerprint,
    pub(crate) used: Option<Timestamp>,
}

impl ServerKeys {
    /// Those of a state directory; the first start makes one. The error is a sentence that names the file.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, String> {
        let present: MachinePrivate = kept_key(&state_dir.join(KEY_FILE), str::parse, || Ok(new_key().expose_text()))?;
        let file = state_dir.join(FORMER);
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed(&error)),
        };
        let mut former = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let key: MachinePrivate = line.trim().parse().map_err(|error| failed(&error))?;
            // A change that was cut short leaves the present key here too.
            if key != present {
                former.push(Former { key, used: None });
            }
        }
        former.truncate(MOST_FORMER);
        Ok(Self { state_dir: state_dir.to_owned(), held: Mutex::new(Held { present, former }) })
    }

    /// The key that this server goes by.
    pub(crate) fn public(&self) -> MachinePublic {
        self.held().present.public()
    }

    /// Its short form.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.public())
    }

    /// The former keys, the latest first.
    pub(crate) fn former(&self) -> Vec<FormerKey> {
        let view = |former: &Former| FormerKey { key: Fingerprint::of(&former.key.public()), used: former.used };
        self.held().former.iter().map(view).collect()
    }

    /// Reads a client's first message, under whichever key it is for.
    pub(crate) fn handshake(
        &self,
        initiation: &[u8; INITIATION_LEN],
        now: Timestamp,
    ) -> Result<ServerHandshake, NoiseError> {
        let mut held = self.held();
        let read =
            |key: &MachinePrivate| ServerHandshake::read(key, initiation, Ephemeral::from_random(rand::random()));
        let refusal = match read(&held.present) {
            Ok(handshake) => return Ok(handshake),
            Err(refusal) => refusal,
        };
        for former in &mut held.former {
            if let Ok(handshake) = read(&former.key) {
                former.used = Some(now);
                return Ok(handshake);
            }
        }
        Err(refusal)
    }

    /// Goes by a new key from here on. The error is a sentence; then nothing has changed.
    pub(crate) fn rotate(&self) -> Result<(), String> {
        let mut held = self.held();
        if held.former.len() == MOST_FORMER {
            return Err(format!("{MOST_FORMER} former keys are served already; retire one first"));
        }
        let next = new_key();
        let former = std::iter::once(&held.present).chain(held.former.iter().map(|former| &former.key));
        // In this order: at no moment a key is lost that nodes know.
        self.write(FORMER, &lines(former))?;
        self.write(KEY_FILE, next.expose_text().as_bytes())?;
        let key = std::mem::replace(&mut held.present, next);
        held.former.insert(0, Former { key, used: None });
        Ok(())
    }

    /// Serves nobody any more under this former key, or under any. Which ones that were. The error is a sentence.
    pub(crate) fn retire(&self, key: Option<Fingerprint>) -> Result<Vec<Fingerprint>, String> {
        let mut held = self.held();
        let goes = |former: &Former| key.is_none_or(|key| key == Fingerprint::of(&former.key.public()));
        let gone: Vec<_> = held.former.iter().filter(|former| goes(former)).collect();
        let gone: Vec<Fingerprint> = gone.iter().map(|former| Fingerprint::of(&former.key.public())).collect();
        if gone.is_empty() {
            return Err(key.map_or_else(
                || "there is no former key".to_owned(),
                |key| format!("{key} is no former key; the present one is changed by `server-key rotate`"),
            ));
        }
        let stay = held.former.iter().filter(|former| !goes(former)).map(|former| &former.key);
        self.write(FORMER, &lines(stay))?;
        held.former.retain(|former| !goes(former));
        Ok(gone)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), String> {
        let file = self.state_dir.join(name);
        write_secret(&file, content).map_err(|error| format!("{}: {error}; nothing was changed", file.display()))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_key() -> MachinePrivate {
    MachinePrivate::from_random(rand::random())
}

/// For a file that only we may read.
fn lines<'a>(keys: impl Iterator<Item = &'a MachinePrivate>) -> zeroize::Zeroizing<Vec<u8>> {
    let mut text = zeroize::Zeroizing::new(Vec::new());
    for key in keys {
        text.extend_from_slice(key.expose_text().as_bytes());
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::CapabilityVersion;
    use crate::wire::noise::ClientHandshake;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    /// The first message of a client that knows the server by this key.
    fn knock(key: &MachinePublic) -> [u8; INITIATION_LEN] {
        let ephemeral = Ephemeral::from_random([3; 32]);
        ClientHandshake::start(&new_key(), key, CapabilityVersion::CURRENT, ephemeral).unwrap().1
    }

    #[test]
    fn a_former_key_is_served_also_after_a_restart_until_it_is_retired() {
        let directory = tempfile::tempdir().unwrap();
        let keys = ServerKeys::open(directory.path()).unwrap();
        let first = keys.public();
        assert!(keys.former().is_empty());

        keys.rotate().unwrap();
        let second = keys.public();
        assert_ne!(first, second);
        assert_eq!(keys.former(), [FormerKey { key: Fingerprint::of(&first), used: None }]);
        drop(keys);
        let keys = ServerKeys::open(directory.path()).unwrap();
        assert_eq!(keys.public(), second);
        assert!(keys.handshake(&knock(&second), NOW).is_ok());
        assert_eq!(keys.former()[0].used, None);
        assert!(keys.handshake(&knock(&first), NOW).is_ok());
        assert_eq!(keys.former()[0].used, Some(NOW));

        assert!(keys.retire(Some(Fingerprint::of(&second))).unwrap_err().contains("no former key"));
        assert_eq!(keys.retire(None), Ok(vec![Fingerprint::of(&first)]));
        assert!(keys.handshake(&knock(&first), NOW).is_err());
        assert!(keys.retire(None).is_err());
        let keys = ServerKeys::open(directory.path()).unwrap();
        assert!(keys.former().is_empty() && keys.public() == second);
    }

    #[test]
    fn a_change_that_was_cut_short_loses_no_key() {
        let directory = tempfile::tempdir().unwrap();
        let keys = ServerKeys::open(directory.path()).unwrap();
        let first = keys.public();
        // As far as the first of the two files.
        let text = fs::read_to_string(directory.path().join(KEY_FILE)).unwrap();
        fs::write(directory.path().join(FORMER), format!("{text}\n")).unwrap();
        let keys = ServerKeys::open(directory.path()).unwrap();
        assert!(keys.public() == first && keys.former().is_empty());

        fs::create_dir(directory.path().join("noise-former.new")).unwrap();
        assert!(keys.rotate().unwrap_err().contains("nothing was changed"));
        assert!(keys.public() == first && keys.former().is_empty());
    }

    #[test]
    fn former_keys_are_bounded_and_a_broken_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let keys = ServerKeys::open(directory.path()).unwrap();
        for _ in 0..MOST_FORMER {
            keys.rotate().unwrap();
        }
        assert!(keys.rotate().unwrap_err().contains("retire one first"));
        fs::write(directory.path().join(FORMER), "nonsense\n").unwrap();
        assert!(ServerKeys::open(directory.path()).err().unwrap().contains(FORMER));
    }
}
