//! The durable facts, one whole value per thing, and the changes that a command makes to them.
//!
//! A change carries the whole new value, never a difference: applying it twice is applying it once, and a
//! store need not understand it to keep it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cleanup::SPENT_KEPT;
use super::directory::TAGGED;
use super::presence::add;
use super::refusal::Refusal;
use crate::policy::{BAD_LOGIN, Role, canonical_login, limit};
use crate::types::{
    CapabilityVersion, DiscoPublic, Fingerprint, HostLabel, IpNet, Limit, MachinePublic, NodeId, NodePublic, RegionId,
    StableNodeId, Timestamp, UserId,
};
use crate::wire::control::Hostinfo;

/// Someone whom nodes belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UserRecord {
    pub id: UserId,
    /// The unique login name.
    pub name: UserName,
    /// The name for people; may be empty.
    pub display_name: String,
    /// What the policy's `autogroup:admin` and `autogroup:owner` make of the user. It gives no rights here.
    pub role: Role,
    /// When it was made.
    pub created: Timestamp,
}

/// A version of the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyRecord {
    /// Its number: one more than that of the version before.
    pub version: u64,
    /// The text, as it was written.
    pub text: Arc<str>,
    /// Who set it, as far as the coordinator knows.
    pub by: String,
    pub at: Timestamp,
}

/// A pre-authentication key: admits nodes without a person present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyRecord {
    /// The number; also the readable part of the key's text.
    pub id: KeyId,
    /// Whose nodes it admits.
    pub user: UserId,
    /// SHA-256 of the secret.
    ///
    /// The secret is 256 random bits, so it cannot be guessed from its hash and a slow hash would only
    /// slow down the coordinator.
    #[serde(skip)]
    pub secret_hash: [u8; 32],
    /// Admits more than one node.
    pub reusable: bool,
    /// Its nodes are deleted some time after they go offline.
    pub ephemeral: bool,
    /// Its nodes are owned by these tags.
    pub tags: Vec<Tag>,
    /// Lets nodes in again whose node key ended after it was made; without this a reusable key does not.
    pub readmits: bool,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it admits nobody.
    pub expires: Option<Timestamp>,
    /// When it last admitted a node.
    pub used: Option<Timestamp>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeRecord {
    pub id: NodeId,
    /// The public text identifier.
    pub stable_id: StableNodeId,
    /// Who registered it. Tags, where present, own it in this user's place; a node with tags goes on where the user is
    /// gone. Never absent without tags.
    pub user: Option<UserId>,
    /// Who the machine is to us.
    pub machine: MachinePublic,
    /// Who the node is to its peers.
    pub key: NodePublic,
    /// When the node key ceases to be good.
    pub key_expiry: Option<Timestamp>,
    /// The machine itself ended the key: it logged out, and may come back as any machine may.
    pub logged_out: bool,
    /// The overlay IPv4 address.
    pub ipv4: Ipv4Addr,
    /// The overlay IPv6 address.
    pub ipv6: Ipv6Addr,
    /// The first part of its DNS name, unique.
    pub label: HostLabel,
    /// An administrator chose the label, so that it does not follow the host name.
    pub label_fixed: bool,
    pub tags: Vec<Tag>,
    /// Deleted some time after it goes offline.
    pub ephemeral: bool,
    /// When it first registered.
    pub created: Timestamp,
    /// When it was last seen to go offline.
    pub last_seen: Option<Timestamp>,
    /// The pre-authentication key that admitted it; `None` for an approval by hand.
    pub admitted_by: Option<KeyId>,
    /// Which of its offered routes are good; may name routes that it does not offer yet.
    pub approved_routes: Vec<IpNet>,
    /// How often somebody decided about it: whoever decides on an older one decides again.
    #[serde(skip)]
    pub version: u64,
    /// What it last said of itself.
    pub status: NodeStatus,
}

/// The fields of a node that somebody decided to be others, and nothing else of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFields {
    pub user: Option<Option<UserId>>,
    pub key: Option<NodePublic>,
    pub key_expiry: Option<Option<Timestamp>>,
    pub logged_out: Option<bool>,
    pub label: Option<HostLabel>,
    pub label_fixed: Option<bool>,
    pub tags: Option<Vec<Tag>>,
    pub ephemeral: Option<bool>,
    pub admitted_by: Option<Option<KeyId>>,
    pub approved_routes: Option<Vec<IpNet>>,
}

/// What a node reported while it runs: nobody but the node knows it, and nothing else is saved with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    pub id: NodeId,
    pub status: NodeStatus,
    /// When it was last seen to go offline.
    pub last_seen: Option<Timestamp>,
    /// What it is called after its host name; counts where nobody chose a name for it.
    pub label: HostLabel,
}

impl NodeRecord {
    /// Whom the node belongs to.
    pub(super) fn owner(&self) -> UserId {
        self.user.filter(|_| self.tags.is_empty()).unwrap_or(TAGGED)
    }

    /// What it says of itself, structured.
    pub fn hostinfo(&self) -> Hostinfo {
        let info: Hostinfo = serde_json::from_str(&self.status.hostinfo).unwrap_or_default();
        Hostinfo { routable_ips: self.status.routes.clone(), ..info }
    }

    /// Whether its key is past its time.
    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        self.key_expiry.is_some_and(|expiry| expiry <= now)
    }

    /// The routes that are both offered and approved by hand.
    pub(super) fn served_routes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.approved_routes.iter().copied().filter(|route| self.status.routes.contains(route))
    }
}

impl KeyRecord {
    /// When it is forgotten: some time after it admits nobody any more; `None` while nothing ends it.
    pub(super) fn forgotten_at(&self) -> Option<Timestamp> {
        let used = self.used.filter(|_| !self.reusable);
        used.into_iter().chain(self.expires).min().map(|at| add(at, SPENT_KEPT))
    }
}

/// What a node says of itself while it runs. Saved lazily.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// The key that seals path probes to it.
    pub disco: DiscoPublic,
    /// Where it may be reached.
    pub endpoints: Vec<SocketAddr>,
    /// Its home relay; 0 for none.
    pub home_derp: RegionId,
    /// How new its client is.
    pub cap: CapabilityVersion,
    /// The routes it offers.
    pub routes: Vec<IpNet>,
    /// The rest of its host information as JSON, network report left out. Text, because it is large as a
    /// structure, compared often and read seldom.
    pub hostinfo: Arc<str>,
}

/// Numbers that only rise, so that no number is given twice, even after deletion, and no address soon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// The last user number given.
    pub user: u64,
    /// The last key number given.
    pub key: u64,
    /// The last node number given.
    pub node: u64,
    /// How many host numbers (places in the address ranges) were passed on the way to the last one given. Past the end of
    /// the ranges it goes on from their beginning.
    pub host: u32,
}

/// A machine that waits for someone to approve it. Held in memory: anyone can cause one, and after a
/// restart the client asks again by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pending {
    /// What the page shows and the administrator types.
    pub code: PendingCode,
    /// Who the machine is.
    pub machine: MachinePublic,
    /// The node key it wants to use.
    pub key: NodePublic,
    /// Its host name, as it says.
    pub hostname: String,
    /// Its operating system, as it says.
    pub os: String,
    /// The tags it asks for.
    pub requested_tags: Vec<String>,
    /// What it says of itself.
    #[serde(skip)]
    pub status: NodeStatus,
    /// When it stops waiting.
    pub expires: Timestamp,
    /// Where it asked from: an IPv4 address or an IPv6 /64.
    pub site: IpAddr,
}

/// One change to the facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The counters stand here.
    Counters(Counters),
    /// A user is, from here on, this.
    User(UserRecord),
    /// A user is gone.
    UserGone(UserId),
    /// A key is, from here on, this.
    Key(KeyRecord),
    /// A key admits a node. A one-off key that was used already is a conflict: the store refuses the whole
    /// transaction, so that even two coordinators on one database cannot both use it.
    KeyUsed(KeyId, Timestamp),
    /// A key is gone.
    KeyGone(KeyId),
    /// A node is, from here on, this.
    Node(Arc<NodeRecord>),
    /// These fields of a node are, from here on, these, if its version is still this one.
    NodeFields(NodeId, u64, NodeFields),
    /// A node reported this.
    NodeReport(Box<NodeReport>),
    /// A node is gone.
    NodeGone(NodeId),
    /// A host number is nobody's any more, since then.
    HostFreed(u32, Timestamp),
    /// A host number may be given again.
    HostReady(u32),
    /// The policy is, from here on, this version.
    Policy(Arc<PolicyRecord>),
    /// A version is kept no longer.
    PolicyGone(u64),
    /// The server went by the former keys and goes by the latter. Kept beside the store, which keeps that it happened.
    ServerKeys(ServerKeyNames, ServerKeyNames),
    /// A machine waits. Not kept by a store.
    Pending(Pending),
    /// A machine waits no longer. Not kept by a store.
    PendingGone(PendingCode),
    /// A machine waits no longer and is refused until then, if it asks without a key. Not kept by a store.
    Rejected(PendingCode, Timestamp),
}

/// The keys that nodes know the server by, in their short forms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerKeyNames {
    /// The one that it goes by.
    pub present: Fingerprint,
    /// Those that it went by before and still serves, the latest first.
    pub former: Vec<Fingerprint>,
}

impl NodeFields {
    /// The fields in which a node that was decided about differs from what it was.
    fn between(before: &NodeRecord, after: &NodeRecord) -> Self {
        fn other<T: Clone + PartialEq>(before: &T, after: &T) -> Option<T> {
            (before != after).then(|| after.clone())
        }
        Self {
            user: other(&before.user, &after.user),
            key: other(&before.key, &after.key),
            key_expiry: other(&before.key_expiry, &after.key_expiry),
            logged_out: other(&before.logged_out, &after.logged_out),
            label: other(&before.label, &after.label),
            label_fixed: other(&before.label_fixed, &after.label_fixed),
            tags: other(&before.tags, &after.tags),
            ephemeral: other(&before.ephemeral, &after.ephemeral),
            admitted_by: other(&before.admitted_by, &after.admitted_by),
            approved_routes: other(&before.approved_routes, &after.approved_routes),
        }
    }

    /// The node with these fields.
    pub(super) fn applied_to(&self, node: &NodeRecord) -> NodeRecord {
        let mut node = node.clone();
        fn set<T: Clone>(field: &mut T, to: &Option<T>) {
            if let Some(to) = to {
                *field = to.clone();
            }
        }
        set(&mut node.user, &self.user);
        set(&mut node.key, &self.key);
        set(&mut node.key_expiry, &self.key_expiry);
        set(&mut node.logged_out, &self.logged_out);
        set(&mut node.label, &self.label);
        set(&mut node.label_fixed, &self.label_fixed);
        set(&mut node.tags, &self.tags);
        set(&mut node.ephemeral, &self.ephemeral);
        set(&mut node.admitted_by, &self.admitted_by);
        set(&mut node.approved_routes, &self.approved_routes);
        node.version += 1;
        node
    }
}

impl Change {
    /// What makes one node of another, as far as it is decided about.
    pub(super) fn of_node(before: &NodeRecord, after: &NodeRecord) -> Self {
        Self::NodeFields(before.id, before.version, NodeFields::between(before, after))
    }

    /// Whether a store keeps this.
    pub const fn is_durable(&self) -> bool {
        !matches!(self, Self::Pending(_) | Self::PendingGone(_) | Self::Rejected(..))
    }
}

/// Everything a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// The number of the last entry of the journal.
    pub revision: u64,
    /// Where the counters stand.
    pub counters: Counters,
    pub users: Vec<UserRecord>,
    pub keys: Vec<KeyRecord>,
    pub nodes: Vec<NodeRecord>,
    /// Host numbers that may not be given again yet, each with when it was freed.
    pub freed: Vec<(u32, Timestamp)>,
    /// The versions of the policy that are kept, the oldest first.
    pub policies: Vec<PolicyRecord>,
}

/// A pre-authentication key's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub u64);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The code of a machine that waits: eight letters and digits in two groups.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct PendingCode(String);

impl PendingCode {
    /// Makes a code of five random bytes.
    pub fn from_random(bytes: [u8; 5]) -> Self {
        let text = data_encoding::BASE32_NOPAD.encode(&bytes);
        let (left, right) = text.split_at(4);
        Self(format!("{left}-{right}"))
    }

    /// As people type it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PendingCode {
    type Err = Refusal;

    /// Takes what a person types: any case, with or without the hyphen.
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let compact: String = text.chars().filter(|c| *c != '-').take(9).collect();
        data_encoding::BASE32_NOPAD
            .decode(compact.to_ascii_uppercase().as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self::from_random)
            .ok_or_else(|| Refusal::invalid("a code is eight letters and digits, as in `MFRG-GZDF`"))
    }
}

impl fmt::Display for PendingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user's login name, in its one form: `me` for `me@` and `Me` too. At most 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

impl UserName {
    const MAX: Limit = Limit::new("characters in a user name", 255);

    /// A name as an older release kept it; [`settled_names`](super::settled_names) gives it its one form.
    pub fn kept(text: String) -> Self {
        Self(text)
    }

    /// As people type it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserName {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        Self::MAX.check(text.len())?;
        let name = canonical_login(text).ok_or_else(|| Refusal::invalid(BAD_LOGIN))?;
        Self::MAX.check(name.len())?;
        Ok(Self(name))
    }
}

impl TryFrom<String> for UserName {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

impl From<UserName> for String {
    fn from(name: UserName) -> Self {
        name.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tag, prefix included, in its one form: `tag:web` for `tag:Web` too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

impl Tag {
    const MAX: Limit = Limit::new("characters in a tag", limit::TAG_LENGTH);

    /// The text, prefix included.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        Self::MAX.check(text.len())?;
        let text = text.to_ascii_lowercase();
        let name = text.strip_prefix("tag:").unwrap_or_default();
        let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase());
        if !starts_well || name.contains(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            return Err(Refusal::invalid(
                "a tag is `tag:`, a letter, then letters, digits and hyphens, as in `tag:web`",
            ));
        }
        Ok(Self(text))
    }
}

impl TryFrom<String> for Tag {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> Self {
        tag.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_as_a_person_types_it() {
        let code = PendingCode::from_random(*b"abcde");
        assert_eq!(code.as_str(), "MFRG-GZDF");
        for typed in ["MFRG-GZDF", "mfrggzdf", "mfrg-gzdf"] {
            assert_eq!(typed.parse::<PendingCode>().as_ref(), Ok(&code), "{typed}");
        }
        for bad in ["", "MFRG", "MFRG-GZDFA", "MFRG-GZD!", "日本"] {
            assert!(bad.parse::<PendingCode>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_and_tags_are_parsed_strictly() {
        assert!("ada@example.org".parse::<UserName>().is_ok());
        assert_eq!("Me@".parse::<UserName>(), "me".parse());
        for bad in ["", "7", "a b", "a\n", "tag:web", "*", "group:ops", &"x".repeat(256)] {
            assert!(bad.parse::<UserName>().is_err(), "{bad:?}");
        }
        assert!("tag:web-1".parse::<Tag>().is_ok());
        assert_eq!("tag:Web".parse::<Tag>(), "tag:web".parse());
        for bad in ["", "web", "tag:", "tag:1", "tag:a b"] {
            assert!(bad.parse::<Tag>().is_err(), "{bad:?}");
        }
    }
}
