//! What every store must do. An implementation's tests give it to [`all`].

use std::sync::Arc;

use super::samples::{
    at, bare_node, changed, client, identity, in_order, key, node, pending, policy, session, settings, token, user,
    whole_user,
};
use super::{Batch, Store, StoreError};
use warren_core::registry::{
    Action, Actor, Audit, BrowserSession, Change, ClientId, ClientRecord, Command, Counters, Entry, Identity, KeyId,
    KeyRecord, NodeFields, NodeRecord, NodeReport, NodeStatus, Object, ObjectKind, Pending, Records, Settings,
    TokenHolder, TokenId, TokenRecord, UserRecord,
};
use warren_core::types::{MachinePublic, NodeId, UserId};
use warren_core::wire::admin::{JournalQuery, Selector};

/// A place where stores can be opened, closed and opened again; empty at first.
pub(super) trait Backend {
    type Store: Store;

    async fn open(&self) -> Self::Store;
    async fn close(&self, store: Self::Store);
}

/// Runs every test, each in a fresh place.
pub(super) async fn all<P: Backend>(fresh: impl Fn() -> P) {
    a_new_store_is_empty(&fresh()).await;
    everything_committed_is_there_after_reopening(&fresh()).await;
    the_last_value_counts_and_the_deleted_is_gone(&fresh()).await;
    a_transaction_that_fails_leaves_no_trace(&fresh()).await;
    a_one_off_key_is_used_once_and_a_reusable_one_often(&fresh()).await;
    counters_never_fall(&fresh()).await;
    two_nodes_cannot_have_one_address_key_or_name(&fresh()).await;
    a_version_of_the_policy_is_written_once(&fresh()).await;
    the_journal_is_numbered_without_gaps_and_says_who_did_what(&fresh()).await;
    whoever_decided_on_an_older_journal_changes_nothing(&fresh()).await;
    a_page_of_the_journal_is_what_was_asked_for(&fresh()).await;
    a_decision_and_a_report_about_one_node_leave_each_other_alone(&fresh()).await;
    whom_a_provider_names_is_one_user_and_is_compared_byte_by_byte(&fresh()).await;
    who_waits_who_is_signed_in_and_what_programs_show_comes_and_goes(&fresh()).await;
}

async fn a_new_store_is_empty(place: &impl Backend) {
    let mut store = place.open().await;
    assert_eq!(store.load().await.unwrap(), Records::default());
    place.close(store).await;
}

async fn everything_committed_is_there_after_reopening(place: &impl Backend) {
    let records = Records {
        revision: 0,
        counters: Counters { user: 2, key: 2, node: 2, host: 7, token: 2, client: 3 },
        users: vec![whole_user(1, "ada"), user(2, "bob@example.org")],
        keys: vec![
            key(1, false),
            KeyRecord { used: Some(at(5)), expires: None, creator: None, revoked: Some(at(6)), ..key(2, true) },
        ],
        nodes: vec![NodeRecord { user: None, ..node(1) }, bare_node(2)],
        freed: vec![(5, at(4)), (9, at(3))],
        policies: vec![policy(3, "{}"), policy(4, "{\"acls\": []} // wéb\n")],
        pending: in_order(vec![pending(1), pending(2)]),
        rejected: vec![(MachinePublic::from_bytes([9; 32]), at(60))],
        tokens: vec![token(1, TokenHolder::User(UserId(1))), token(2, TokenHolder::Client(ClientId(3)))],
        clients: vec![client(3)],
        sessions: vec![session(1, 1), session(2, 2)],
        settings: settings(),
    };
    let mut store = place.open().await;
    keep(&mut store, &changes_of(&records)).await.unwrap();
    assert_eq!(store.load().await.unwrap(), records);
    place.close(store).await;

    let mut store = place.open().await;
    assert_eq!(store.load().await.unwrap(), records);
    place.close(store).await;
}

async fn the_last_value_counts_and_the_deleted_is_gone(place: &impl Backend) {
    let mut store = place.open().await;
    let renamed = UserRecord { display_name: "Ada".to_owned(), ..user(1, "countess") };
    let moved = NodeRecord { id: NodeId(1), stable_id: node(1).stable_id, ..changed(node(1)) };
    let ended = KeyRecord { expires: Some(at(9)), ..key(1, false) };
    let first = [Change::User(user(1, "ada")), Change::Key(key(1, false)), Change::Node(Arc::new(node(1)))];
    keep(&mut store, &first).await.unwrap();
    let next = [Change::User(renamed.clone()), Change::Key(ended.clone()), Change::Node(Arc::new(moved.clone()))];
    keep(&mut store, &next).await.unwrap();
    let kept = store.load().await.unwrap();
    assert_eq!((kept.users, kept.keys, kept.nodes), (vec![renamed], vec![ended], vec![moved]));

    keep(&mut store, &[Change::HostFreed(7, at(1)), Change::HostFreed(7, at(2))]).await.unwrap();
    assert_eq!(store.load().await.unwrap().freed, [(7, at(1))], "from the first time on");
    let gone =
        [Change::HostReady(7), Change::NodeGone(NodeId(1)), Change::KeyGone(KeyId(1)), Change::UserGone(UserId(1))];
    keep(&mut store, &gone).await.unwrap();
    // What is gone already may go again.
    keep(&mut store, &gone).await.unwrap();
    assert_eq!(store.load().await.unwrap(), Records::default());
    place.close(store).await;
}

async fn a_transaction_that_fails_leaves_no_trace(place: &impl Backend) {
    let mut store = place.open().await;
    let no_such_key = Change::KeyUsed(KeyId(9), at(1));
    let result = keep(&mut store, &[Change::User(user(1, "ada")), no_such_key]).await;
    assert!(matches!(result, Err(StoreError::Conflict(_))), "{result:?}");
    assert_eq!(store.load().await.unwrap(), Records::default());
    keep(&mut store, &[Change::User(user(1, "ada"))]).await.unwrap();
    assert_eq!(store.load().await.unwrap().users.len(), 1, "and the store goes on");
    place.close(store).await;
}

async fn a_one_off_key_is_used_once_and_a_reusable_one_often(place: &impl Backend) {
    let mut store = place.open().await;
    let keys = [Change::User(user(1, "ada")), Change::Key(key(1, false)), Change::Key(key(2, true))];
    keep(&mut store, &keys).await.unwrap();
    keep(&mut store, &[Change::KeyUsed(KeyId(1), at(1))]).await.unwrap();
    let again = keep(&mut store, &[Change::KeyUsed(KeyId(1), at(2)), Change::Node(Arc::new(node(1)))]).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    keep(&mut store, &[Change::KeyUsed(KeyId(2), at(1))]).await.unwrap();
    keep(&mut store, &[Change::KeyUsed(KeyId(2), at(3))]).await.unwrap();
    let kept = store.load().await.unwrap();
    assert_eq!(kept.keys.iter().map(|key| key.used).collect::<Vec<_>>(), [Some(at(1)), Some(at(3))]);
    assert!(kept.nodes.is_empty(), "nor is the node that it would have admitted there");
    place.close(store).await;
}

async fn counters_never_fall(place: &impl Backend) {
    let mut store = place.open().await;
    let high = Counters { user: 5, key: 6, node: 7, host: 8, token: 9, client: 10 };
    keep(&mut store, &[Change::Counters(high)]).await.unwrap();
    keep(&mut store, &[Change::Counters(Counters { user: 9, ..Counters::default() })]).await.unwrap();
    assert_eq!(store.load().await.unwrap().counters, Counters { user: 9, ..high });
    place.close(store).await;
}

async fn two_nodes_cannot_have_one_address_key_or_name(place: &impl Backend) {
    let mut store = place.open().await;
    keep(&mut store, &[Change::User(user(1, "ada")), Change::Node(Arc::new(node(1)))]).await.unwrap();
    for double in [NodeRecord { key: node(1).key, ..node(2) }, NodeRecord { ipv4: node(1).ipv4, ..node(2) }] {
        let result = keep(&mut store, &[Change::Node(Arc::new(double))]).await;
        assert!(matches!(result, Err(StoreError::Conflict(_))), "{result:?}");
    }
    let taken = NodeRecord { label: node(1).label, ..node(2) };
    let result = keep(&mut store, &[Change::Node(Arc::new(taken))]).await;
    assert!(matches!(result, Err(StoreError::Conflict(_))), "{result:?}");
    assert_eq!(store.load().await.unwrap().nodes, [node(1)]);
    place.close(store).await;
}

async fn a_version_of_the_policy_is_written_once(place: &impl Backend) {
    let mut store = place.open().await;
    let first = Change::Policy(Arc::new(policy(1, "{}")));
    keep(&mut store, std::slice::from_ref(&first)).await.unwrap();
    keep(&mut store, &[first]).await.unwrap();
    let other = keep(&mut store, &[Change::Policy(Arc::new(policy(1, "{\"acls\": []}")))]).await;
    assert!(matches!(other, Err(StoreError::Conflict(_))), "{other:?}");
    let second = Change::Policy(Arc::new(policy(2, "{\"acls\": []}")));
    keep(&mut store, &[second, Change::PolicyGone(1)]).await.unwrap();
    assert_eq!(store.load().await.unwrap().policies, [policy(2, "{\"acls\": []}")]);
    place.close(store).await;
}

async fn the_journal_is_numbered_without_gaps_and_says_who_did_what(place: &impl Backend) {
    let mut store = place.open().await;
    store.commit(&batch(0, vec![audit("ada", 2)], &[Change::User(user(1, "ada"))])).await.unwrap();
    // What does not arrive leaves no number behind.
    let failing = batch(2, vec![audit("bob", 1)], &[Change::User(user(2, "bob")), Change::KeyUsed(KeyId(9), at(1))]);
    assert!(store.commit(&failing).await.is_err());
    store.commit(&batch(2, vec![audit("bob", 1), audit("ada", 1)], &[])).await.unwrap();
    place.close(store).await;

    let mut store = place.open().await;
    assert_eq!(store.load().await.unwrap().revision, 4);
    let all = store.read_journal(&JournalQuery { limit: 100, ..JournalQuery::default() }).await.unwrap();
    let told: Vec<_> = all.iter().map(|record| (record.n, record.decision, record.object.name.as_str())).collect();
    assert_eq!(told, [(1, 1, "ada"), (2, 1, "ada"), (3, 3, "bob"), (4, 4, "ada")]);
    let first = &all[0];
    assert_eq!(
        (first.at, first.door.as_str(), first.command.as_str(), first.action.as_str()),
        (at(1), "socket", "rename-user", "update")
    );
    assert_eq!((first.actor.to_string().as_str(), first.address), ("account root", Some([192, 0, 2, 1].into())));
    assert_eq!((first.before.get("name"), first.after.get("name")), (Some(&"x".into()), Some(&"ada".into())));
    place.close(store).await;
}

async fn whoever_decided_on_an_older_journal_changes_nothing(place: &impl Backend) {
    let mut store = place.open().await;
    store.commit(&batch(0, vec![audit("ada", 1)], &[Change::User(user(1, "ada"))])).await.unwrap();
    for revision in [0, 2] {
        let late = batch(revision, vec![audit("bob", 1)], &[Change::User(user(2, "bob"))]);
        let result = store.commit(&late).await;
        assert!(matches!(result, Err(StoreError::Conflict(_))), "{result:?}");
    }
    let kept = store.load().await.unwrap();
    assert_eq!((kept.revision, kept.users.len()), (1, 1));
    store.commit(&batch(1, vec![audit("bob", 1)], &[Change::User(user(2, "bob"))])).await.unwrap();
    assert_eq!(store.load().await.unwrap().revision, 2, "and decided again it is there");
    place.close(store).await;
}

async fn a_decision_and_a_report_about_one_node_leave_each_other_alone(place: &impl Backend) {
    let mut store = place.open().await;
    let (one, mut two) = (NodeRecord { label_fixed: false, ..node(1) }, bare_node(2));
    let made = [&one, &two].map(|node| Change::Node(Arc::new(node.clone())));
    keep(&mut store, &[Change::User(user(1, "ada"))]).await.unwrap();
    keep(&mut store, &made).await.unwrap();
    let fields =
        NodeFields { tags: Some(vec!["tag:b".parse().unwrap()]), key_expiry: Some(None), ..NodeFields::default() };
    keep(&mut store, &[Change::NodeFields(one.id, 3, fields.clone())]).await.unwrap();
    // Whoever reports knows nothing of tags, and calls it what the machine is called.
    let report = |node: &NodeRecord, label: &str| {
        let status = NodeStatus { routes: vec!["10.9.0.0/16".parse().unwrap()], ..node.status.clone() };
        Box::new(NodeReport { id: node.id, status, last_seen: Some(at(77)), label: label.parse().unwrap() })
    };
    let reported = report(&one, "called");
    keep(&mut store, &[Change::NodeReport(reported.clone())]).await.unwrap();
    let tags = vec!["tag:b".parse().unwrap()];
    let (last_seen, status) = (reported.last_seen, reported.status);
    let changed = NodeRecord { tags, key_expiry: None, last_seen, status, label: reported.label, version: 4, ..one };
    assert_eq!(store.load().await.unwrap().nodes[0], changed);

    let late = keep(&mut store, &[Change::NodeFields(changed.id, 3, fields)]).await;
    assert!(matches!(late, Err(StoreError::Conflict(_))), "{late:?}");
    let named = NodeFields { label: Some("door".parse().unwrap()), label_fixed: Some(true), ..NodeFields::default() };
    keep(&mut store, &[Change::NodeFields(two.id, 0, named), Change::NodeReport(report(&two, "web"))]).await.unwrap();
    two.label = "door".parse().unwrap();
    assert_eq!(store.load().await.unwrap().nodes[1].label, two.label, "a name that somebody chose stays");
    // Of one that is gone there is nothing to keep.
    keep(&mut store, &[Change::NodeGone(two.id), Change::NodeReport(report(&two, "web"))]).await.unwrap();
    assert_eq!(store.load().await.unwrap().nodes, [changed]);
    place.close(store).await;
}

async fn a_page_of_the_journal_is_what_was_asked_for(place: &impl Backend) {
    let mut store = place.open().await;
    let late = Audit { at: at(100), actor: Actor::COORDINATOR, ..audit("bob", 1) };
    store.commit(&batch(0, vec![audit("ada", 3), late], &[])).await.unwrap();
    let all = JournalQuery { limit: 100, ..JournalQuery::default() };
    let read = |of: &str| Some(of.parse::<Selector>().unwrap());
    let cases: [(JournalQuery, &[u64]); 10] = [
        (JournalQuery { limit: 2, ..all.clone() }, &[3, 4]),
        (JournalQuery { limit: 2, before: Some(3), ..all.clone() }, &[1, 2]),
        (JournalQuery { limit: 2, after: Some(1), ..all.clone() }, &[2, 3]),
        (JournalQuery { since: Some(at(50)), ..all.clone() }, &[4]),
        (JournalQuery { until: Some(at(50)), ..all.clone() }, &[1, 2, 3]),
        (JournalQuery { actor: read("account"), ..all.clone() }, &[1, 2, 3]),
        (JournalQuery { actor: read("root"), ..all.clone() }, &[1, 2, 3]),
        (JournalQuery { actor: read("coordinator"), ..all.clone() }, &[4]),
        (JournalQuery { object: read("user:bob"), ..all.clone() }, &[4]),
        (JournalQuery { object: read("node"), ..all }, &[]),
    ];
    for (query, numbers) in cases {
        let found: Vec<u64> = store.read_journal(&query).await.unwrap().iter().map(|record| record.n).collect();
        assert_eq!(found, numbers, "{query:?}");
    }
    place.close(store).await;
}

async fn whom_a_provider_names_is_one_user_and_is_compared_byte_by_byte(place: &impl Backend) {
    let mut store = place.open().await;
    let with = |id: u64, identities: &[Identity]| UserRecord {
        identities: identities.to_vec(),
        ..user(id, &format!("user-{id}"))
    };
    // Texts that a path, a case or a trimmed end would make one.
    let alike = [
        ("https://a", "b/c"),
        ("https://a/b", "c"),
        ("https://a/", "b/c"),
        ("https://a", "B/c"),
        ("https://a", "b/c "),
    ];
    let alike = alike.map(|(issuer, subject)| identity("p", issuer, subject));
    for (id, identity) in (1..).zip(&alike) {
        keep(&mut store, &[Change::User(with(id, std::slice::from_ref(identity)))]).await.unwrap();
    }
    keep(&mut store, &[Change::User(with(6, &[identity("q", "https://a", "b/c")]))]).await.unwrap();
    let taken = keep(&mut store, &[Change::User(with(7, &alike[..1]))]).await;
    assert!(matches!(taken, Err(StoreError::Conflict(_))), "{taken:?}");
    assert_eq!(store.load().await.unwrap().users.len(), 6);
    // Who has none any more leaves it to others, as does who is gone.
    let both = [alike[0].clone(), alike[1].clone()];
    keep(&mut store, &[Change::User(with(1, &[])), Change::UserGone(UserId(2))]).await.unwrap();
    keep(&mut store, &[Change::User(with(7, &both))]).await.unwrap();
    assert_eq!(store.load().await.unwrap().users.last(), Some(&with(7, &both)));
    place.close(store).await;
}

async fn who_waits_who_is_signed_in_and_what_programs_show_comes_and_goes(place: &impl Backend) {
    let mut store = place.open().await;
    keep(&mut store, &[Change::User(user(1, "ada")), Change::Client(client(3))]).await.unwrap();
    let (seen, revoked) = (at(70), Some(at(71)));
    let changes = [
        Change::Pending(Box::new(pending(1))),
        Change::Pending(Box::new(pending(2))),
        Change::Session(session(1, 1)),
        Change::Session(BrowserSession { seen, ..session(1, 1) }),
        Change::Token(token(1, TokenHolder::Client(ClientId(3)))),
        Change::Token(TokenRecord { revoked, ..token(1, TokenHolder::Client(ClientId(3))) }),
        Change::Client(ClientRecord { revoked, ..client(3) }),
        Change::Settings(settings()),
        Change::Settings(Settings::default()),
        Change::Rejected(pending(1).code, at(60)),
    ];
    keep(&mut store, &changes).await.unwrap();
    let kept = store.load().await.unwrap();
    assert_eq!((kept.pending, kept.rejected), (vec![pending(2)], vec![(pending(1).machine, at(60))]));
    assert_eq!(kept.sessions, [BrowserSession { seen, ..session(1, 1) }]);
    assert_eq!(
        (kept.tokens[0].revoked, kept.clients[0].revoked, kept.settings),
        (revoked, revoked, Settings::default())
    );
    // One machine waits once, whatever code it has.
    let twice = Pending { code: pending(4).code, ticket: pending(4).ticket, ..pending(2) };
    let twice = keep(&mut store, &[Change::Pending(Box::new(twice))]).await;
    assert!(matches!(twice, Err(StoreError::Conflict(_))), "{twice:?}");

    let gone = [
        Change::PendingGone(pending(2).code),
        Change::Forgiven(pending(1).machine),
        Change::SessionGone(session(1, 1).id),
        Change::TokenGone(TokenId(1)),
        Change::ClientGone(ClientId(3)),
        Change::UserGone(UserId(1)),
    ];
    keep(&mut store, &gone).await.unwrap();
    keep(&mut store, &gone).await.unwrap();
    assert_eq!(store.load().await.unwrap(), Records::default());
    place.close(store).await;
}

// ---- records ----

/// Keeps these changes, whoever made them.
pub(super) async fn keep(store: &mut impl Store, changes: &[Change]) -> Result<(), StoreError> {
    store.commit(&batch(0, Vec::new(), changes)).await
}

fn batch(revision: u64, audits: Vec<Audit>, changes: &[Change]) -> Batch {
    Batch { revision, audits, changes: changes.to_vec() }
}

/// A user of this name gets it so many times.
fn audit(name: &str, entries: usize) -> Audit {
    let fields = |name: &str| [("name".to_owned(), name.into())].into_iter().collect();
    let object = Object { kind: ObjectKind::User, id: "7".to_owned(), name: name.to_owned() };
    let entry = Entry { object, action: Action::Update, before: fields("x"), after: fields(name) };
    let actor = Actor { from: Some([192, 0, 2, 1].into()), ..Actor::account(0, "root".to_owned()) };
    Audit { at: at(1), actor, command: Command::RenameUser, entries: vec![entry; entries] }
}

/// The changes that make these records out of nothing.
fn changes_of(records: &Records) -> Vec<Change> {
    let users = records.users.iter().cloned().map(Change::User);
    let keys = records.keys.iter().cloned().map(Change::Key);
    let nodes = records.nodes.iter().cloned().map(|node| Change::Node(Arc::new(node)));
    let policies = records.policies.iter().cloned().map(|policy| Change::Policy(Arc::new(policy)));
    let freed = records.freed.iter().map(|(host, at)| Change::HostFreed(*host, *at));
    let waiting = records.pending.iter().cloned().map(|pending| Change::Pending(Box::new(pending)));
    // Whoever is turned away waited before.
    let rejected = records.rejected.iter().flat_map(|(machine, until)| {
        let waited = Pending { machine: *machine, ..pending(3) };
        [Change::Rejected(waited.code.clone(), *until), Change::Pending(Box::new(waited))]
    });
    let rejected: Vec<Change> = rejected.collect();
    let clients = records.clients.iter().cloned().map(Change::Client);
    let tokens = records.tokens.iter().cloned().map(Change::Token);
    let sessions = records.sessions.iter().cloned().map(Change::Session);
    let whole = [Change::Counters(records.counters), Change::Settings(records.settings.clone())];
    let first = users.chain(keys).chain(nodes).chain(freed).chain(policies);
    let then = rejected.into_iter().rev().chain(waiting).chain(clients).chain(tokens).chain(sessions);
    first.chain(then).chain(whole).collect()
}
