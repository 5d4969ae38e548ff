//! The keys that nodes know this server by: the one it goes by, and those it went by before.
//!
//! A key is changed without a node noticing: handshakes under the former one are served until the operator retires it, and
//! whoever comes under it is told the present one within the channel, where nobody else could say so. An agent of ours
//! asks for it on each connection; official clients ask for the key when they start. A connection on which it was asked
//! ends once its key is a former one, so that the node comes back, learns, and comes under the present one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::state_dir::KEY_FILE;
use warren_core::registry::ServerKeyNames;
use warren_core::types::{Fingerprint, MachinePrivate, MachinePublic, Timestamp};
use warren_core::wire::noise::{Ephemeral, INITIATION_LEN, NoiseError, ServerHandshake};
use warren_shell::{keep_private, kept_key, write_secret};

/// The former keys, a line each, the latest first.
pub(crate) const FORMER_KEYS: &str = "noise-former.key";
/// Former keys that are served at once: each handshake tries one after the other.
const MOST_FORMER: usize = 4;
/// Machines that are away and came last under a former key: those that are remembered, of some hundred bytes each.
const MOST_AWAY: usize = 65_536;
/// A connection that ends for a change of the key does so this much later, for what is under way on it.
const EARLIEST_END: Duration = Duration::from_millis(500);
/// How far apart such endings are: each makes a handshake and a full map.
const BETWEEN_ENDS: Duration = Duration::from_millis(20);
/// Nodes that a refusal names.
const NAMED: usize = 10;
/// The most that an ending is put off.
const LATEST_END: Duration = Duration::from_secs(600);

/// All of them.
pub(crate) struct ServerKeys {
    state_dir: PathBuf,
    /// Locked for a handshake's first step or a change, never across an `await`.
    held: Mutex<Held>,
    /// The present key, for whoever waits for its change.
    announced: watch::Sender<MachinePublic>,
}

struct Held {
    present: MachinePrivate,
    former: Vec<Former>,
    /// The nodes' machines that are connected, and those that are away and came last under a former key.
    machines: BTreeMap<MachinePublic, Came>,
}

/// How a machine came.
struct Came {
    /// Under which key; one that came under the present key has learnt it, whatever else it has open.
    under: MachinePublic,
    connections: usize,
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
    /// Nodes that are connected under it.
    pub(crate) connected: usize,
    /// Nodes that are away, came under it since it is a former one or were connected then, and have not come since.
    pub(crate) away: usize,
}

/// A connection under one of the keys.
pub(crate) struct KeyUse {
    keys: Arc<ServerKeys>,
    key: MachinePublic,
    /// Whose it is, once that is known to be a node of ours: a stranger keeps no key from being retired.
    node: OnceLock<MachinePublic>,
    /// The present key was asked for on it: who asks comes back at once, and learns.
    asked: watch::Sender<bool>,
}

impl ServerKeys {
    /// Those of a state directory; the first start makes one. The error is a sentence that names the file.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, String> {
        let present: MachinePrivate = kept_key(&state_dir.join(KEY_FILE), str::parse, || Ok(new_key().expose_text()))?;
        let file = state_dir.join(FORMER_KEYS);
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        keep_private(&file)?;
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
        let announced = watch::Sender::new(present.public());
        let held = Mutex::new(Held { present, former, machines: BTreeMap::new() });
        Ok(Self { state_dir: state_dir.to_owned(), held, announced })
    }

    /// The key that this server goes by.
    pub(crate) fn public(&self) -> MachinePublic {
        self.held().present.public()
    }

    /// Its short form.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.public())
    }

    /// The former keys, the latest first, with how many of these nodes need them.
    pub(crate) fn former(&self, nodes: &BTreeMap<MachinePublic, String>) -> Vec<FormerKey> {
        let held = self.held();
        let view = |former: &Former| {
            let key = former.key.public();
            let connected = held.under(&key, nodes, true).count();
            let away = held.under(&key, nodes, false).count();
            FormerKey { key: Fingerprint::of(&key), used: former.used, connected, away }
        };
        held.former.iter().map(view).collect()
    }

    /// Reads a client's first message, under whichever key it is for.
    pub(crate) fn handshake(
        self: &Arc<Self>,
        initiation: &[u8; INITIATION_LEN],
        now: Timestamp,
    ) -> Result<(ServerHandshake, KeyUse), NoiseError> {
        let under = |key: &MachinePrivate| KeyUse {
            keys: Arc::clone(self),
            key: key.public(),
            node: OnceLock::new(),
            asked: watch::Sender::new(false),
        };
        let mut held = self.held();
        let read =
            |key: &MachinePrivate| ServerHandshake::read(key, initiation, Ephemeral::from_random(rand::random()));
        let refusal = match read(&held.present) {
            Ok(handshake) => return Ok((handshake, under(&held.present))),
            Err(refusal) => refusal,
        };
        for former in &mut held.former {
            if let Ok(handshake) = read(&former.key) {
                former.used = Some(now);
                return Ok((handshake, under(&former.key)));
            }
        }
        Err(refusal)
    }

    /// Goes by a new key from here on; gives the keys before and after. The error is a sentence; then nothing has changed.
    pub(crate) fn rotate(&self) -> Result<(ServerKeyNames, ServerKeyNames), String> {
        let mut held = self.held();
        let before = held.names();
        if held.former.len() == MOST_FORMER {
            return Err(format!("{MOST_FORMER} former keys are served already; retire one first"));
        }
        let next = new_key();
        let former = std::iter::once(&held.present).chain(held.former.iter().map(|former| &former.key));
        // In this order: at no moment a key is lost that nodes know.
        self.write(FORMER_KEYS, &lines(former))?;
        self.write(KEY_FILE, next.expose_text().as_bytes())?;
        let key = std::mem::replace(&mut held.present, next);
        held.former.insert(0, Former { key, used: None });
        self.announced.send_replace(held.present.public());
        Ok((before, held.names()))
    }

    /// Serves nobody any more under this former key, or under any; unless forced, only if none of these nodes needs it.
    /// Gives the keys before and after. The error is a sentence.
    pub(crate) fn retire(
        &self,
        key: Option<Fingerprint>,
        nodes: &BTreeMap<MachinePublic, String>,
        force: bool,
    ) -> Result<(ServerKeyNames, ServerKeyNames), String> {
        let mut held = self.held();
        let before = held.names();
        let goes = |former: &Former| key.is_none_or(|key| key == Fingerprint::of(&former.key.public()));
        let gone = held.former.iter().filter(|former| goes(former));
        let keys: Vec<MachinePublic> = gone.map(|former| former.key.public()).collect();
        if keys.is_empty() {
            return Err(key.map_or_else(
                || "there is no former key".to_owned(),
                |key| format!("{key} is no former key; the present one is changed by `server-key rotate`"),
            ));
        }
        let need = |is_connected| keys.iter().flat_map(|key| held.under(key, nodes, is_connected)).collect();
        let (connected, away): (Vec<&str>, Vec<&str>) = (need(true), need(false));
        let is_needed = !connected.is_empty() || !away.is_empty();
        if is_needed && !force {
            return Err(still_needed(&connected, &away));
        }
        let stay = held.former.iter().filter(|former| !goes(former)).map(|former| &former.key);
        self.write(FORMER_KEYS, &lines(stay))?;
        held.former.retain(|former| !goes(former));
        held.machines.retain(|_, came| came.connections > 0 || !keys.contains(&came.under));
        Ok((before, held.names()))
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), String> {
        let file = self.state_dir.join(name);
        write_secret(&file, content).map_err(|error| format!("{}: {error}; nothing was changed", file.display()))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn names(&self) -> ServerKeyNames {
        let former = self.former.iter().map(|former| Fingerprint::of(&former.key.public()));
        ServerKeyNames { present: Fingerprint::of(&self.present.public()), former: former.collect() }
    }

    /// Which of these nodes came under a key and not under the present one since: the connected ones, or those away.
    fn under<'a>(
        &'a self,
        key: &'a MachinePublic,
        nodes: &'a BTreeMap<MachinePublic, String>,
        is_connected: bool,
    ) -> impl Iterator<Item = &'a str> {
        let came = self.machines.iter();
        came.filter(move |(_, came)| came.under == *key && (came.connections > 0) == is_connected)
            .filter_map(|(machine, _)| nodes.get(machine).map(String::as_str))
    }

    /// A machine that is away and needs no former key is forgotten.
    fn left(&mut self, machine: &MachinePublic) {
        let Some(came) = self.machines.get_mut(machine) else { return };
        came.connections = came.connections.saturating_sub(1);
        let is_former = self.former.iter().any(|former| former.key.public() == came.under);
        if came.connections == 0 && (!is_former || self.machines.len() > MOST_AWAY) {
            self.machines.remove(machine);
        }
    }
}

impl KeyUse {
    /// It is the connection of a node's machine.
    pub(crate) fn belongs(&self, machine: MachinePublic) {
        self.node.get_or_init(|| {
            let mut held = self.keys.held();
            let present = held.present.public();
            let came = held.machines.entry(machine).or_insert(Came { under: self.key, connections: 0 });
            came.connections += 1;
            if came.under != present {
                came.under = self.key;
            }
            machine
        });
    }

    /// The key that the server goes by, for the machine at the other end.
    pub(crate) fn tell(&self) -> MachinePublic {
        self.asked.send_replace(true);
        self.keys.public()
    }

    /// Resolves when the connection should end so that its node comes again and learns the present key.
    pub(crate) async fn outdated(&self) {
        let (mut asked, mut announced) = (self.asked.subscribe(), self.keys.announced.subscribe());
        // Neither sender goes before this does.
        let _ = asked.wait_for(|asked| *asked).await;
        let _ = announced.wait_for(|present| *present != self.key).await;
        let machines = u32::try_from(self.keys.held().machines.len()).unwrap_or(u32::MAX);
        let spread = BETWEEN_ENDS.saturating_mul(machines).min(LATEST_END);
        tokio::time::sleep(EARLIEST_END + spread.mul_f64(rand::random())).await;
    }
}

impl Drop for KeyUse {
    fn drop(&mut self) {
        if let Some(machine) = self.node.get() {
            self.keys.held().left(machine);
        }
    }
}

fn still_needed(connected: &[&str], away: &[&str]) -> String {
    let mut who = Vec::new();
    for (nodes, how) in [(connected, "connected under it"), (away, "away, and came only under it")] {
        if !nodes.is_empty() {
            let named = nodes.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
            let more = if nodes.len() > NAMED { ", and others" } else { "" };
            who.push(format!("{} {how}: {named}{more}", nodes.len()));
        }
    }
    format!(
        "nodes still need this key ({}); they would refuse the new one until a person there confirms it. Agents of Warren \
         come under the new one by themselves, official clients when they are started again; --force retires it all the same",
        who.join("; ")
    )
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
    use warren_core::types::CapabilityVersion;
    use warren_core::wire::noise::ClientHandshake;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    /// The first message of a client that knows the server by this key.
    fn knock(key: &MachinePublic) -> [u8; INITIATION_LEN] {
        let ephemeral = Ephemeral::from_random([3; 32]);
        ClientHandshake::start(&new_key(), key, CapabilityVersion::CURRENT, ephemeral).unwrap().1
    }

    #[test]
    fn a_former_key_is_served_also_after_a_restart_until_it_is_retired() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Arc::new(ServerKeys::open(directory.path()).unwrap());
        let first = keys.public();
        assert!(keys.former(&BTreeMap::new()).is_empty());

        keys.rotate().unwrap();
        let second = keys.public();
        assert_ne!(first, second);
        assert_eq!(
            keys.former(&BTreeMap::new()),
            [FormerKey { key: Fingerprint::of(&first), used: None, connected: 0, away: 0 }]
        );
        drop(keys);
        let keys = Arc::new(ServerKeys::open(directory.path()).unwrap());
        assert_eq!(keys.public(), second);
        assert!(keys.handshake(&knock(&second), NOW).is_ok());
        assert_eq!(keys.former(&BTreeMap::new())[0].used, None);
        assert!(keys.handshake(&knock(&first), NOW).is_ok());
        assert_eq!(keys.former(&BTreeMap::new())[0].used, Some(NOW));

        assert!(
            keys.retire(Some(Fingerprint::of(&second)), &BTreeMap::new(), false).unwrap_err().contains("no former key")
        );
        let names = |former: &[MachinePublic]| ServerKeyNames {
            present: Fingerprint::of(&second),
            former: former.iter().map(Fingerprint::of).collect(),
        };
        assert_eq!(keys.retire(None, &BTreeMap::new(), false), Ok((names(&[first]), names(&[]))));
        assert!(keys.handshake(&knock(&first), NOW).is_err());
        assert!(keys.retire(None, &BTreeMap::new(), false).is_err());
        let keys = Arc::new(ServerKeys::open(directory.path()).unwrap());
        assert!(keys.former(&BTreeMap::new()).is_empty() && keys.public() == second);
    }

    #[test]
    fn a_key_is_kept_while_a_node_needs_it_and_strangers_need_none() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Arc::new(ServerKeys::open(directory.path()).unwrap());
        let machine = MachinePublic::from_bytes([1; 32]);
        let nodes = BTreeMap::from([(machine, "web".to_owned())]);
        let come = |whose: MachinePublic, key: &MachinePublic| {
            let (_, under) = keys.handshake(&knock(key), NOW).unwrap();
            under.belongs(whose);
            under
        };
        let count = || keys.former(&nodes).iter().map(|former| (former.connected, former.away)).collect::<Vec<_>>();
        let first = keys.public();
        let open = come(machine, &first);
        let _deleted_since = come(MachinePublic::from_bytes([2; 32]), &first);
        keys.rotate().unwrap();
        assert_eq!(count(), [(1, 0)]);
        assert!(keys.retire(None, &nodes, false).unwrap_err().contains("1 connected under it: web"));
        drop(open);
        assert_eq!(count(), [(0, 1)]);
        assert!(keys.retire(None, &nodes, false).unwrap_err().contains("came only under it: web"));

        let again = come(machine, &first);
        let told = come(machine, &keys.public());
        assert_eq!(count(), [(0, 0)], "it knows the new one, whatever else it has open");
        drop((again, told));
        let (before, after) = keys.retire(None, &nodes, false).unwrap();
        assert_eq!((before.former, after.former), (vec![Fingerprint::of(&first)], Vec::new()));
    }

    #[test]
    fn a_change_that_was_cut_short_loses_no_key() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Arc::new(ServerKeys::open(directory.path()).unwrap());
        let first = keys.public();
        // As far as the first of the two files.
        let text = fs::read_to_string(directory.path().join(KEY_FILE)).unwrap();
        fs::write(directory.path().join(FORMER_KEYS), format!("{text}\n")).unwrap();
        let keys = Arc::new(ServerKeys::open(directory.path()).unwrap());
        assert!(keys.public() == first && keys.former(&BTreeMap::new()).is_empty());

        fs::create_dir(directory.path().join("noise-former.new")).unwrap();
        assert!(keys.rotate().unwrap_err().contains("nothing was changed"));
        assert!(keys.public() == first && keys.former(&BTreeMap::new()).is_empty());
    }

    #[test]
    fn former_keys_are_bounded_and_a_broken_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Arc::new(ServerKeys::open(directory.path()).unwrap());
        for _ in 0..MOST_FORMER {
            keys.rotate().unwrap();
        }
        assert!(keys.rotate().unwrap_err().contains("retire one first"));
        fs::write(directory.path().join(FORMER_KEYS), "nonsense\n").unwrap();
        assert!(ServerKeys::open(directory.path()).err().unwrap().contains(FORMER_KEYS));
    }
}
