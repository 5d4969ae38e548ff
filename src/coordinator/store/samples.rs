//! Records for the tests of stores: with something in every field, and with nothing where nothing may be.

use std::time::Duration;

use warren_core::registry::{
    Attributes, BrowserSession, BrowserSessionId, ClientId, ClientRecord, Email, Identity, Invitation, KeyId,
    KeyRecord, NodeRecord, NodeStatus, Pending, PolicyRecord, Settings, TokenHolder, TokenId, TokenRecord, UserRecord,
    UserStatus, Who,
};
use warren_core::types::{
    CapabilityVersion, DiscoPublic, Lifetime, MachinePublic, NodeId, NodePublic, RegionId, Role, StableNodeId, Ticket,
    Timestamp, UserId,
};

pub(super) fn at(second: i64) -> Timestamp {
    // With a fraction that a store must not round.
    Timestamp::new(1_790_000_000 + second, 123_456_789).unwrap()
}

pub(super) fn user(id: u64, name: &str) -> UserRecord {
    UserRecord::new(UserId(id), name.parse().unwrap(), at(0))
}

/// A user with something in every field.
pub(super) fn whole_user(id: u64, name: &str) -> UserRecord {
    UserRecord {
        display_name: "Ada".to_owned(),
        picture: "https://example.org/a.png".to_owned(),
        role: Role::Owner,
        status: UserStatus::Suspended,
        identities: vec![identity("google", "https://accounts.google.com", "1"), identity("p", "https://p/", "a/../b")],
        invitation: Some(Invitation { provider: "p".parse().unwrap(), email: "ada@example.org".to_owned() }),
        key_lifetime: Some(Lifetime::Endless),
        ..user(id, name)
    }
}

pub(super) fn identity(provider: &str, issuer: &str, subject: &str) -> Identity {
    let email = Some(Email { address: "Ada@example.org".to_owned(), verified: subject == "1" });
    let (provider, issuer, subject) = (provider.parse().unwrap(), issuer.to_owned(), subject.to_owned());
    let invited = subject != "1";
    Identity { provider, issuer, subject, invited, email }
}

pub(super) fn session(id: u8, user: u64) -> BrowserSession {
    BrowserSession {
        id: BrowserSessionId([id; 32]),
        user: UserId(user),
        signed_in: at(1),
        seen: at(2),
        expires: at(700),
        address: "2001:db8::1".parse().unwrap(),
        agent: "Mozilla/5.0 (wéb)".to_owned(),
    }
}

pub(super) fn token(id: u64, holder: TokenHolder) -> TokenRecord {
    TokenRecord {
        id: TokenId(id),
        holder,
        secret_hash: [id as u8; 32],
        description: "ci".to_owned(),
        creator: Some(Who::User { id: UserId(1), name: "ada".to_owned() }),
        scopes: vec!["devices:core".parse().unwrap(), "policy_file:read".parse().unwrap()],
        tags: vec!["tag:a".parse().unwrap()],
        created: at(1),
        expires: at(80),
        revoked: None,
    }
}

pub(super) fn client(id: u64) -> ClientRecord {
    ClientRecord {
        id: ClientId(id),
        secret_hash: [77; 32],
        description: "operator".to_owned(),
        creator: None,
        scopes: vec!["all".parse().unwrap()],
        tags: vec!["tag:k8s".parse().unwrap()],
        created: at(1),
        revoked: None,
    }
}

pub(super) fn settings() -> Settings {
    let tag_lifetimes = [("tag:a".parse().unwrap(), Lifetime::For(Duration::from_secs(7_200)))].into();
    Settings { node_approval: true, user_approval: true, tag_lifetimes }
}

pub(super) fn in_order(mut pending: Vec<Pending>) -> Vec<Pending> {
    pending.sort_by(|one, other| one.code.cmp(&other.code));
    pending
}

pub(super) fn pending(id: u8) -> Pending {
    let ticket = Ticket::from_random([id; 16]);
    Pending {
        code: ticket.code(),
        ticket,
        machine: MachinePublic::from_bytes([id; 32]),
        key: NodePublic::from_bytes([id; 32]),
        hostname: "web".to_owned(),
        os: "linux".to_owned(),
        requested_tags: vec!["tag:a".to_owned()],
        status: node(id).status,
        since: at(1),
        expires: at(90),
        site: "192.0.2.1".parse().unwrap(),
    }
}

pub(super) fn policy(version: u64, text: &str) -> PolicyRecord {
    PolicyRecord { version, text: text.into(), by: "ada".to_owned(), at: at(7) }
}

pub(super) fn key(id: u64, reusable: bool) -> KeyRecord {
    KeyRecord {
        id: KeyId(id),
        user: UserId(1),
        secret_hash: [id as u8; 32],
        description: "build machines".to_owned(),
        creator: Some(Who::Account { uid: 0, name: "root".to_owned() }),
        reusable,
        ephemeral: true,
        pre_approved: reusable,
        tags: vec!["tag:a".parse().unwrap(), "tag:b".parse().unwrap()],
        readmits: reusable,
        created: at(1),
        expires: Some(at(100)),
        used: None,
        revoked: None,
    }
}

/// A node with something in every field.
pub(super) fn node(id: u8) -> NodeRecord {
    NodeRecord {
        key_expiry: Some(at(50)),
        expiry_disabled: true,
        logged_out: true,
        label_fixed: true,
        tags: vec!["tag:a".parse().unwrap()],
        ephemeral: true,
        last_seen: Some(at(3)),
        admitted_by: Some(KeyId(1)),
        approved: false,
        attributes: serde_json::from_str(r#"{"custom:tier":{"value":"gold"},"custom:n":{"value":1.5}}"#).unwrap(),
        approved_routes: vec!["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()],
        gateway: Some(NodeId(9)),
        version: 3,
        status: NodeStatus {
            disco: DiscoPublic::from_bytes([id; 32]),
            endpoints: vec!["192.0.2.1:41641".parse().unwrap(), "[2001:db8::1]:1".parse().unwrap()],
            home_derp: RegionId(900),
            cap: CapabilityVersion(145),
            routes: vec!["10.0.0.0/8".parse().unwrap()],
            hostinfo: r#"{"OS":"linux","Hostname":"wéb \"1\""}"#.into(),
        },
        ..bare_node(id)
    }
}

/// A node with nothing in every field that may be empty.
pub(super) fn bare_node(id: u8) -> NodeRecord {
    NodeRecord {
        id: NodeId(id.into()),
        stable_id: StableNodeId(format!("n{id}")),
        user: Some(UserId(1)),
        machine: MachinePublic::from_bytes([id; 32]),
        key: NodePublic::from_bytes([id; 32]),
        key_expiry: None,
        expiry_disabled: false,
        logged_out: false,
        ipv4: [100, 64, 0, id].into(),
        ipv6: format!("fd7a:115c:a1e0::{id:x}").parse().unwrap(),
        label: format!("web-{id}").parse().unwrap(),
        label_fixed: false,
        tags: Vec::new(),
        ephemeral: false,
        created: at(2),
        last_seen: None,
        admitted_by: None,
        approved: true,
        attributes: Attributes::new(),
        approved_routes: Vec::new(),
        gateway: None,
        version: 0,
        status: NodeStatus { hostinfo: "{}".into(), ..NodeStatus::default() },
    }
}

/// A node of which everything changed that may change.
pub(super) fn changed(node: NodeRecord) -> NodeRecord {
    NodeRecord {
        machine: MachinePublic::from_bytes([77; 32]),
        key: NodePublic::from_bytes([78; 32]),
        key_expiry: None,
        expiry_disabled: false,
        logged_out: false,
        label: "other".parse().unwrap(),
        label_fixed: false,
        tags: Vec::new(),
        ephemeral: false,
        last_seen: Some(at(99)),
        admitted_by: None,
        approved: true,
        attributes: Attributes::new(),
        approved_routes: Vec::new(),
        gateway: None,
        status: NodeStatus { hostinfo: r#"{"OS":"plan9"}"#.into(), ..NodeStatus::default() },
        ..node
    }
}
