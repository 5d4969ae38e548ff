//! What every store must do. An implementation's tests give it to [`all`].

use std::sync::Arc;

use super::{Store, StoreError};
use warren_core::policy::Role;
use warren_core::registry::{Change, Counters, KeyId, KeyRecord, NodeRecord, PolicyRecord, Records, Said, UserRecord};
use warren_core::types::{
    CapabilityVersion, DiscoPublic, MachinePublic, NodeId, NodePublic, RegionId, StableNodeId, Timestamp, UserId,
};

/// A place where stores can be opened, closed and opened again; empty at first.
pub(super) trait Place {
    type Store: Store;

    async fn open(&self) -> Self::Store;
    async fn close(&self, store: Self::Store);
}

/// Runs every test, each in a fresh place.
pub(super) async fn all<P: Place>(fresh: impl Fn() -> P) {
    a_new_store_is_empty(&fresh()).await;
    everything_committed_is_there_after_reopening(&fresh()).await;
    the_last_value_counts_and_the_deleted_is_gone(&fresh()).await;
    a_transaction_that_fails_leaves_no_trace(&fresh()).await;
    a_one_off_key_is_used_once_and_a_reusable_one_often(&fresh()).await;
    counters_never_fall(&fresh()).await;
    two_nodes_cannot_have_one_address_or_key(&fresh()).await;
    a_version_of_the_policy_is_written_once(&fresh()).await;
}

async fn a_new_store_is_empty(place: &impl Place) {
    let mut store = place.open().await;
    assert_eq!(store.load().await.unwrap(), Records::default());
    place.close(store).await;
}

async fn everything_committed_is_there_after_reopening(place: &impl Place) {
    let records = Records {
        counters: Counters { user: 2, key: 2, node: 2, host: 7 },
        users: vec![UserRecord { role: Role::Owner, ..user(1, "ada") }, user(2, "bob@example.org")],
        keys: vec![key(1, false), KeyRecord { used: Some(at(5)), expires: None, tags: Vec::new(), ..key(2, true) }],
        nodes: vec![NodeRecord { user: None, ..node(1) }, bare_node(2)],
        freed: vec![(5, at(4)), (9, at(3))],
        policies: vec![policy(3, "{}"), policy(4, "{\"acls\": []} // wéb\n")],
    };
    let mut store = place.open().await;
    store.commit(&changes_of(&records)).await.unwrap();
    assert_eq!(store.load().await.unwrap(), records);
    place.close(store).await;

    let mut store = place.open().await;
    assert_eq!(store.load().await.unwrap(), records);
    place.close(store).await;
}

async fn the_last_value_counts_and_the_deleted_is_gone(place: &impl Place) {
    let mut store = place.open().await;
    let renamed = UserRecord { display_name: "Ada".to_owned(), ..user(1, "countess") };
    let moved = NodeRecord { id: NodeId(1), stable_id: node(1).stable_id, ..changed(node(1)) };
    let ended = KeyRecord { expires: Some(at(9)), ..key(1, false) };
    let first = [Change::User(user(1, "ada")), Change::Key(key(1, false)), Change::Node(Arc::new(node(1)))];
    store.commit(&first).await.unwrap();
    let next = [Change::User(renamed.clone()), Change::Key(ended.clone()), Change::Node(Arc::new(moved.clone()))];
    store.commit(&next).await.unwrap();
    let kept = store.load().await.unwrap();
    assert_eq!((kept.users, kept.keys, kept.nodes), (vec![renamed], vec![ended], vec![moved]));

    store.commit(&[Change::HostFreed(7, at(1)), Change::HostFreed(7, at(2))]).await.unwrap();
    assert_eq!(store.load().await.unwrap().freed, [(7, at(1))], "from the first time on");
    let gone =
        [Change::HostReady(7), Change::NodeGone(NodeId(1)), Change::KeyGone(KeyId(1)), Change::UserGone(UserId(1))];
    store.commit(&gone).await.unwrap();
    // What is gone already may go again.
    store.commit(&gone).await.unwrap();
    assert_eq!(store.load().await.unwrap(), Records::default());
    place.close(store).await;
}

async fn a_transaction_that_fails_leaves_no_trace(place: &impl Place) {
    let mut store = place.open().await;
    let no_such_key = Change::KeyUsed(KeyId(9), at(1));
    let result = store.commit(&[Change::User(user(1, "ada")), no_such_key]).await;
    assert!(matches!(result, Err(StoreError::Conflict(_))), "{result:?}");
    assert_eq!(store.load().await.unwrap(), Records::default());
    store.commit(&[Change::User(user(1, "ada"))]).await.unwrap();
    assert_eq!(store.load().await.unwrap().users.len(), 1, "and the store goes on");
    place.close(store).await;
}

async fn a_one_off_key_is_used_once_and_a_reusable_one_often(place: &impl Place) {
    let mut store = place.open().await;
    let keys = [Change::User(user(1, "ada")), Change::Key(key(1, false)), Change::Key(key(2, true))];
    store.commit(&keys).await.unwrap();
    store.commit(&[Change::KeyUsed(KeyId(1), at(1))]).await.unwrap();
    let again = store.commit(&[Change::KeyUsed(KeyId(1), at(2)), Change::Node(Arc::new(node(1)))]).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    store.commit(&[Change::KeyUsed(KeyId(2), at(1))]).await.unwrap();
    store.commit(&[Change::KeyUsed(KeyId(2), at(3))]).await.unwrap();
    let kept = store.load().await.unwrap();
    assert_eq!(kept.keys.iter().map(|key| key.used).collect::<Vec<_>>(), [Some(at(1)), Some(at(3))]);
    assert!(kept.nodes.is_empty(), "nor is the node that it would have admitted there");
    place.close(store).await;
}

async fn counters_never_fall(place: &impl Place) {
    let mut store = place.open().await;
    let high = Counters { user: 5, key: 6, node: 7, host: 8 };
    store.commit(&[Change::Counters(high)]).await.unwrap();
    store.commit(&[Change::Counters(Counters { user: 9, ..Counters::default() })]).await.unwrap();
    assert_eq!(store.load().await.unwrap().counters, Counters { user: 9, ..high });
    place.close(store).await;
}

async fn two_nodes_cannot_have_one_address_or_key(place: &impl Place) {
    let mut store = place.open().await;
    store.commit(&[Change::User(user(1, "ada")), Change::Node(Arc::new(node(1)))]).await.unwrap();
    for double in [NodeRecord { key: node(1).key, ..node(2) }, NodeRecord { ipv4: node(1).ipv4, ..node(2) }] {
        let result = store.commit(&[Change::Node(Arc::new(double))]).await;
        assert!(matches!(result, Err(StoreError::Failed { .. })), "{result:?}");
    }
    assert_eq!(store.load().await.unwrap().nodes, [node(1)]);
    place.close(store).await;
}

async fn a_version_of_the_policy_is_written_once(place: &impl Place) {
    let mut store = place.open().await;
    let first = Change::Policy(Arc::new(policy(1, "{}")));
    store.commit(std::slice::from_ref(&first)).await.unwrap();
    store.commit(&[first]).await.unwrap();
    let other = store.commit(&[Change::Policy(Arc::new(policy(1, "{\"acls\": []}")))]).await;
    assert!(matches!(other, Err(StoreError::Conflict(_))), "{other:?}");
    let second = Change::Policy(Arc::new(policy(2, "{\"acls\": []}")));
    store.commit(&[second, Change::PolicyGone(1)]).await.unwrap();
    assert_eq!(store.load().await.unwrap().policies, [policy(2, "{\"acls\": []}")]);
    place.close(store).await;
}

// ---- records ----

/// The changes that make these records out of nothing.
fn changes_of(records: &Records) -> Vec<Change> {
    let users = records.users.iter().cloned().map(Change::User);
    let keys = records.keys.iter().cloned().map(Change::Key);
    let nodes = records.nodes.iter().cloned().map(|node| Change::Node(Arc::new(node)));
    let policies = records.policies.iter().cloned().map(|policy| Change::Policy(Arc::new(policy)));
    let freed = records.freed.iter().map(|(host, at)| Change::HostFreed(*host, *at));
    users.chain(keys).chain(nodes).chain(freed).chain(policies).chain([Change::Counters(records.counters)]).collect()
}

pub(super) fn at(second: i64) -> Timestamp {
    // With a fraction that a store must not round.
    Timestamp::new(1_790_000_000 + second, 123_456_789).unwrap()
}

pub(super) fn user(id: u64, name: &str) -> UserRecord {
    let role = Role::Member;
    UserRecord { id: UserId(id), name: name.parse().unwrap(), display_name: String::new(), role, created: at(0) }
}

fn policy(version: u64, text: &str) -> PolicyRecord {
    PolicyRecord { version, text: text.into(), by: "ada".to_owned(), at: at(7) }
}

fn key(id: u64, reusable: bool) -> KeyRecord {
    KeyRecord {
        id: KeyId(id),
        user: UserId(1),
        secret_hash: [id as u8; 32],
        reusable,
        ephemeral: true,
        tags: vec!["tag:a".parse().unwrap(), "tag:b".parse().unwrap()],
        readmits: reusable,
        created: at(1),
        expires: Some(at(100)),
        used: None,
    }
}

/// A node with something in every field.
fn node(id: u8) -> NodeRecord {
    NodeRecord {
        key_expiry: Some(at(50)),
        logged_out: true,
        label_fixed: true,
        tags: vec!["tag:a".parse().unwrap()],
        ephemeral: true,
        last_seen: Some(at(3)),
        admitted_by: Some(KeyId(1)),
        approved_routes: vec!["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()],
        said: Said {
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
        approved_routes: Vec::new(),
        said: Said { hostinfo: "{}".into(), ..Said::default() },
    }
}

/// A node of which everything changed that may change.
fn changed(node: NodeRecord) -> NodeRecord {
    NodeRecord {
        machine: MachinePublic::from_bytes([77; 32]),
        key: NodePublic::from_bytes([78; 32]),
        key_expiry: None,
        logged_out: false,
        label: "other".parse().unwrap(),
        label_fixed: false,
        tags: Vec::new(),
        ephemeral: false,
        last_seen: Some(at(99)),
        admitted_by: None,
        approved_routes: Vec::new(),
        said: Said { hostinfo: r#"{"OS":"plan9"}"#.into(), ..Said::default() },
        ..node
    }
}
