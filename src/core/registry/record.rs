//! The durable facts, one whole value per thing, and the changes that a command makes to them.
//!
//! A change carries the whole new value, never a difference: applying it twice is applying it once, and a
//! store need not understand it to keep it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::directory::TAGGED;
use super::refusal::Refusal;
use crate::policy::limit;
use crate::types::{
    CapabilityVersion, DiscoPublic, Fingerprint, HostLabel, IpNet, Limit, MachinePublic, NodeId, NodePublic,
    PendingCode, RegionId, StableNodeId, Timestamp, UserId,
};
use crate::wire::control::Hostinfo;

pub(super) use super::attributes::Attributes;
pub(super) use super::credential::{ClientId, ClientRecord, KeyId, KeyRecord, TokenId, TokenRecord};
pub(super) use super::people::{BrowserSession, BrowserSessionId, UserName, UserRecord};
pub(super) use super::settings::Settings;
pub(super) use super::waiting::Pending;

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
    /// When the node key ceases to be good, unless somebody said that it does not.
    pub key_expiry: Option<Timestamp>,
    /// Somebody said that the key does not end; when it would is kept, for the day that they take it back.
    pub expiry_disabled: bool,
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
    /// Somebody, or the key that admitted it, said that it may be in the network. Until then it sees nobody.
    pub approved: bool,
    /// What programs know of it.
    pub attributes: Attributes,
    /// Which of its offered routes are good; may name routes that it does not offer yet.
    pub approved_routes: Vec<IpNet>,
    /// The node that passes on what comes and goes, where this one speaks nothing but WireGuard: then it has no machine
    /// that could log in.
    pub gateway: Option<NodeId>,
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
    pub expiry_disabled: Option<bool>,
    pub logged_out: Option<bool>,
    pub label: Option<HostLabel>,
    pub label_fixed: Option<bool>,
    pub tags: Option<Vec<Tag>>,
    pub ephemeral: Option<bool>,
    pub admitted_by: Option<Option<KeyId>>,
    pub approved: Option<bool>,
    pub attributes: Option<Attributes>,
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

    /// Whether it speaks nothing but WireGuard.
    pub const fn is_device(&self) -> bool {
        self.gateway.is_some()
    }

    /// What it says of itself, structured.
    pub fn hostinfo(&self) -> Hostinfo {
        let info: Hostinfo = serde_json::from_str(&self.status.hostinfo).unwrap_or_default();
        Hostinfo { routable_ips: self.status.routes.clone(), ..info }
    }

    /// The same with a key that ended then.
    pub(super) fn ended(&self, at: Timestamp) -> Self {
        Self { key_expiry: Some(at), expiry_disabled: false, ..self.clone() }
    }

    /// When its key ceases to be good.
    pub fn ends_at(&self) -> Option<Timestamp> {
        self.key_expiry.filter(|_| !self.expiry_disabled)
    }

    /// Whether its key is past its time.
    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        self.ends_at().is_some_and(|expiry| expiry <= now)
    }

    /// The routes that are both offered and approved by hand.
    pub(super) fn served_routes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.approved_routes.iter().copied().filter(|route| self.status.routes.contains(route))
    }
}

/// What a node says of itself while it runs. Saved lazily.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The last token number given.
    pub token: u64,
    /// The last client number given.
    pub client: u64,
    /// How many host numbers (places in the address ranges) were passed on the way to the last one given. Past the end of
    /// the ranges it goes on from their beginning.
    pub host: u32,
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
    /// A machine waits.
    Pending(Box<Pending>),
    /// A machine waits no longer.
    PendingGone(PendingCode),
    /// A machine waits no longer and is refused until then, if it asks without a key.
    Rejected(PendingCode, Timestamp),
    /// A machine that was turned away may ask again.
    Forgiven(MachinePublic),
    /// A token is, from here on, this.
    Token(TokenRecord),
    /// A token is gone.
    TokenGone(TokenId),
    /// A client is, from here on, this.
    Client(ClientRecord),
    /// A client is gone.
    ClientGone(ClientId),
    /// A browser is signed in, from here on, like this.
    Session(BrowserSession),
    /// A browser is signed in no longer.
    SessionGone(BrowserSessionId),
    /// What holds for the whole network is, from here on, this.
    Settings(Settings),
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
            expiry_disabled: other(&before.expiry_disabled, &after.expiry_disabled),
            logged_out: other(&before.logged_out, &after.logged_out),
            label: other(&before.label, &after.label),
            label_fixed: other(&before.label_fixed, &after.label_fixed),
            tags: other(&before.tags, &after.tags),
            ephemeral: other(&before.ephemeral, &after.ephemeral),
            admitted_by: other(&before.admitted_by, &after.admitted_by),
            approved: other(&before.approved, &after.approved),
            attributes: other(&before.attributes, &after.attributes),
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
        set(&mut node.expiry_disabled, &self.expiry_disabled);
        set(&mut node.logged_out, &self.logged_out);
        set(&mut node.label, &self.label);
        set(&mut node.label_fixed, &self.label_fixed);
        set(&mut node.tags, &self.tags);
        set(&mut node.ephemeral, &self.ephemeral);
        set(&mut node.admitted_by, &self.admitted_by);
        set(&mut node.approved, &self.approved);
        set(&mut node.attributes, &self.attributes);
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
    /// Machines that wait, by code.
    pub pending: Vec<Pending>,
    /// Machines that were turned away, each with until when.
    pub rejected: Vec<(MachinePublic, Timestamp)>,
    pub tokens: Vec<TokenRecord>,
    pub clients: Vec<ClientRecord>,
    pub sessions: Vec<BrowserSession>,
    pub settings: Settings,
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
