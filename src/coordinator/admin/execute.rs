//! Administration requests, carried out on the registry.

use std::time::Duration;

use super::policy;
use super::{
    GoneView, KeyView, Lifetime, NewKeyView, NodeView, Outcome, PendingView, Refused, Reply, Request, RouteView,
    UserView,
};
use crate::store::{CommandError, Ledger, Store};
use warren_core::policy::Role;
use warren_core::registry::{
    self, KeyId, KeyRecord, Life, NewKey, NodeRecord, PendingCode, Refusal, RefusalKind, State, Tag, UserName,
    UserRecord, WithNodes,
};
use warren_core::types::{EXIT_ROUTES, HostLabel, IpNet, NodeId, Timestamp, UserId, is_default_route};
use warren_core::wire::control::Hostinfo;

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.kind() {
            RefusalKind::NotFound => 404,
            RefusalKind::Conflict => 409,
            RefusalKind::Invalid => 400,
            RefusalKind::Full => 507,
        };
        Self { status, message: refusal.to_string() }
    }
}

impl From<CommandError> for Refused {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Refused(refusal) => refusal.into(),
            CommandError::Store(error) => Self { status: 500, message: format!("nothing was changed: {error}") },
        }
    }
}

pub(super) fn invalid(message: impl Into<String>) -> Refused {
    Refused { status: 400, message: message.into() }
}

/// Carries out one request. What the reply tells is on disk.
pub(crate) async fn execute<S: Store>(ledger: &mut Ledger<S>, request: Request, now: Timestamp) -> Outcome {
    match request {
        Request::UserCreate { .. }
        | Request::UserRename { .. }
        | Request::UserRole { .. }
        | Request::UserDelete { .. } => user(ledger, request, now).await,
        Request::KeyCreate { .. } | Request::KeyExpire { .. } | Request::KeyDelete { .. } => {
            key(ledger, request, now).await
        }
        Request::NodeApprove { code, user, tags } => approve(ledger, &code, user.as_deref(), &tags, now).await,
        Request::NodeReject { code } => reject(ledger, &code, now).await,
        Request::NodeRename { .. }
        | Request::NodeExpire { .. }
        | Request::NodeExtend { .. }
        | Request::NodeMove { .. }
        | Request::NodeTag { .. } => change_node(ledger, request, now).await,
        Request::NodeDelete { node } => delete_node(ledger, &node, now).await,
        Request::RouteApprove { node, prefixes } => route(ledger, &node, prefixes, true, now).await,
        Request::RouteUnapprove { node, prefixes } => route(ledger, &node, prefixes, false, now).await,
        Request::Policy { request } => policy::execute(ledger, request, now).await,
        look => looked_at(ledger.state(), look, now),
    }
}

/// What changes nothing.
fn looked_at(state: &State, request: Request, now: Timestamp) -> Outcome {
    Ok(match request {
        Request::UserList => Reply::Users(state.users().map(|user| user_view(state, user)).collect()),
        Request::UserShow { user } => Reply::User(user_view(state, state.find_user(&user)?)),
        Request::KeyList => Reply::Keys(state.keys().map(|key| key_view(state, key, now)).collect()),
        Request::KeyShow { id } => Reply::Key(key_view(state, state.key(KeyId(id))?, now)),
        Request::NodeList => Reply::Nodes(state.nodes().map(|node| node_view(state, node)).collect()),
        Request::NodeShow { node } => return show(state, node_named(state, &node)?, Vec::new()),
        Request::NodePending => Reply::Pending(state.pending_list().map(pending_view).collect()),
        Request::RouteList => Reply::Routes(routes(state, |_| true)),
        Request::Why { from, to, protocol, port } => return policy::why(state, &from, &to, protocol.as_deref(), port),
        // Said and not passed over: a request that is forgotten above must not look like one that was carried out.
        other => return Err(Refused { status: 501, message: format!("this coordinator does not serve {other:?}") }),
    })
}

async fn user<S: Store>(ledger: &mut Ledger<S>, request: Request, now: Timestamp) -> Outcome {
    let user = match request {
        Request::UserCreate { name, display_name } => {
            let name: UserName = name.parse()?;
            ledger.try_run(now, |state| state.create_user(name, display_name, now)).await?
        }
        Request::UserRename { user, name } => {
            let name: UserName = name.parse()?;
            ledger.try_run(now, |state| state.rename_user(state.find_user(&user)?.id, name)).await?
        }
        Request::UserRole { user, role } => {
            let role = Role::named(&role).ok_or_else(|| invalid("a role is member, admin or owner"))?;
            ledger.try_run(now, |state| state.set_role(state.find_user(&user)?.id, role)).await?
        }
        Request::UserDelete { user } => {
            let notes = of_the_users(ledger.state(), &user);
            let gone = ledger.try_run(now, |state| state.delete_user(state.find_user(&user)?.id)).await?;
            return Ok(Reply::Gone(GoneView { gone: format!("user {}", gone.name), notes }));
        }
        look => return looked_at(ledger.state(), look, now),
    };
    Ok(Reply::User(user_view(ledger.state(), &user)))
}

/// What becomes of what a user who goes had, in words.
fn of_the_users(state: &State, user: &str) -> Vec<String> {
    let Ok(user) = state.find_user(user) else { return Vec::new() };
    let mut notes = Vec::new();
    let nodes: Vec<String> = state.nodes_of_user(user.id).map(|record| record.label.to_string()).collect();
    if !nodes.is_empty() {
        notes.push(format!("nodes with tags go on, and belong to their tags alone: {}", nodes.join(", ")));
    }
    let keys: Vec<String> = state.keys().filter(|key| key.user == user.id).map(|key| key.id.to_string()).collect();
    if !keys.is_empty() {
        notes.push(format!("keys that went too, with tags or without: {}", keys.join(", ")));
    }
    notes
}

async fn key<S: Store>(ledger: &mut Ledger<S>, request: Request, now: Timestamp) -> Outcome {
    match request {
        Request::KeyCreate { user, reusable, ephemeral, tags, readmits, lifetime_seconds } => {
            // Checked before a user is made for a key that cannot be.
            let tags = parse_tags(&tags)?;
            let (user, user_created) = user_or_new(ledger, &user, now).await?;
            let lifetime = lifetime_seconds.map(Duration::from_secs);
            let new = NewKey { user, reusable, ephemeral, tags, readmits, lifetime };
            let made = ledger.try_run(now, |state| state.create_key(new, now, rand::random())).await?;
            let notes = ledger.state().advice_on_tags(&made.record.tags);
            let record = KeyView { notes, ..key_view(ledger.state(), &made.record, now) };
            let key = made.text.expose().to_owned();
            Ok(Reply::NewKey(NewKeyView { key, user_created, coordinator_key: None, record }))
        }
        Request::KeyExpire { id, nodes } => {
            let notes = of_its_nodes(ledger.state(), KeyId(id), nodes);
            let key = ledger.try_run(now, |state| state.expire_key(KeyId(id), nodes, now)).await?;
            Ok(Reply::Key(KeyView { notes, ..key_view(ledger.state(), &key, now) }))
        }
        Request::KeyDelete { id, nodes } => {
            let notes = of_its_nodes(ledger.state(), KeyId(id), nodes);
            let gone = ledger.try_run(now, |state| state.delete_key(KeyId(id), nodes, now)).await?;
            Ok(Reply::Gone(GoneView { gone: format!("key {}", gone.id), notes }))
        }
        look => looked_at(ledger.state(), look, now),
    }
}

/// What becomes of the nodes of a key that goes, in words.
fn of_its_nodes(state: &State, id: KeyId, nodes: WithNodes) -> Vec<String> {
    let names: Vec<String> = state.admitted_by(id).map(|record| record.label.to_string()).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let names = names.join(", ");
    vec![match nodes {
        WithNodes::Stay => format!(
            "the nodes that it admitted stay as they are: {names}; --log-out-nodes or --delete-nodes ends them with it"
        ),
        WithNodes::LogOut => format!("the nodes that it admitted must log in again: {names}"),
        WithNodes::Delete => format!("the nodes that it admitted are gone: {names}"),
    }]
}

async fn approve<S: Store>(
    ledger: &mut Ledger<S>,
    code: &str,
    user: Option<&str>,
    tags: &[String],
    now: Timestamp,
) -> Outcome {
    let code: PendingCode = code.parse()?;
    let tags = parse_tags(tags)?;
    // Checked before a user is made for a machine that does not wait.
    let Some(pending) = ledger.state().pending(&code) else {
        return Err(Refused { status: 404, message: format!("no machine waits with the code {code}") });
    };
    let before: Vec<_> = ledger.state().nodes_of_machine(pending.machine).cloned().collect();
    let (user, user_created) = match user {
        Some(user) => user_or_new(ledger, user, now).await?,
        None => (only_user(ledger.state())?, false),
    };
    let node = ledger.try_run(now, |state| state.approve(&code, user, &tags, now, rand::random())).await?;
    let before = before.iter().find(|record| record.id == node.id);
    let mut notes = before.map(|before| ledger.state().rights_changed(before, &node)).unwrap_or_default();
    if let (true, Some(user)) = (user_created, ledger.state().users().find(|made| made.id == user)) {
        notes.insert(0, format!("user {} was made", user.name));
    }
    notes.extend(ledger.state().advice_on_node(node.id));
    show(ledger.state(), node.id, notes)
}

async fn reject<S: Store>(ledger: &mut Ledger<S>, code: &str, now: Timestamp) -> Outcome {
    let code: PendingCode = code.parse()?;
    let rejected = ledger.try_run(now, |state| state.reject(&code, now)).await?;
    Ok(Reply::Gone(GoneView { gone: format!("the request of {} ({code})", rejected.hostname), notes: Vec::new() }))
}

/// Changes a node, and says what it means for its rights.
async fn change_node<S: Store>(ledger: &mut Ledger<S>, request: Request, now: Timestamp) -> Outcome {
    let before: Vec<_> = ledger.state().nodes().map(|node| std::sync::Arc::clone(node.record)).collect();
    let mut notes = Vec::new();
    let said_of_owner = matches!(request, Request::NodeTag { .. } | Request::NodeMove { .. });
    let changed = match request {
        Request::NodeRename { node, name } => {
            let label: HostLabel = name.parse().map_err(|error| invalid(format!("{name:?}: {error}")))?;
            ledger.try_run(now, |state| state.rename_node(node_named(state, &node)?, label)).await?
        }
        Request::NodeExpire { node } => {
            let expired = ledger.try_run(now, |state| state.expire_node(node_named(state, &node)?, now)).await?;
            notes.extend(who_lets_it_in(ledger.state(), &expired, now, false));
            expired
        }
        Request::NodeExtend { node, lifetime } => {
            let life = match lifetime {
                None => Life::Usual,
                Some(Lifetime(Some(lifetime))) => Life::For(lifetime),
                Some(Lifetime(None)) => Life::Endless,
            };
            ledger.try_run(now, |state| state.extend_node(node_named(state, &node)?, life, now)).await?
        }
        Request::NodeMove { node, user } => {
            let moved = |state: &State| state.move_node(node_named(state, &node)?, state.find_user(&user)?.id);
            ledger.try_run(now, moved).await?
        }
        Request::NodeTag { node, tags } => {
            let tags = parse_tags(&tags)?;
            ledger.try_run(now, |state| state.set_tags(node_named(state, &node)?, &tags, now)).await?
        }
        look => return looked_at(ledger.state(), look, now),
    };
    if let Some(before) = before.iter().find(|record| record.id == changed.id) {
        notes.splice(0..0, ledger.state().rights_changed(before, &changed));
    }
    if said_of_owner {
        notes.extend(ledger.state().advice_on_node(changed.id));
    }
    show(ledger.state(), changed.id, notes)
}

async fn delete_node<S: Store>(ledger: &mut Ledger<S>, node: &str, now: Timestamp) -> Outcome {
    let gone = ledger.try_run(now, |state| state.delete_node(node_named(state, node)?, now)).await?;
    let notes = who_lets_it_in(ledger.state(), &gone, now, true).into_iter().collect();
    Ok(Reply::Gone(GoneView { gone: format!("node {} ({})", gone.label, gone.id), notes }))
}

/// The key by which a machine that was shut out comes in again by itself, if it still holds it.
fn who_lets_it_in(state: &State, record: &NodeRecord, now: Timestamp, deleted: bool) -> Option<String> {
    let key = state.key(record.admitted_by?).ok()?;
    let admits = key.reusable && key.expires.is_none_or(|expires| expires > now) && (deleted || key.readmits);
    admits.then(|| {
        let id = key.id;
        format!(
            "whoever holds key {id}, which admitted it, can join again: `warren-coordinator key expire {id}` ends that"
        )
    })
}

async fn route<S: Store>(
    ledger: &mut Ledger<S>,
    node: &str,
    prefixes: Vec<IpNet>,
    approve: bool,
    now: Timestamp,
) -> Outcome {
    let prefixes = with_whole_exits(prefixes);
    let changed = ledger.try_run(now, |state| {
        let node = state.find_node(node)?.record;
        let mut approved = node.approved_routes.clone();
        if approve {
            approved.extend(prefixes);
        } else {
            approved.retain(|prefix| !prefixes.contains(prefix));
        }
        state.approve_routes(node.id, &approved)
    });
    let id = changed.await?.id;
    Ok(Reply::Routes(routes(ledger.state(), |node| node == id)))
}

/// An exit node is one for both families: clients offer no other to their users.
fn with_whole_exits(mut prefixes: Vec<IpNet>) -> Vec<IpNet> {
    if prefixes.iter().any(is_default_route) {
        prefixes.retain(|prefix| !is_default_route(prefix));
        prefixes.extend(EXIT_ROUTES);
    }
    prefixes
}

// ---- names to numbers ----

fn node_named(state: &State, text: &str) -> Result<NodeId, Refusal> {
    Ok(state.find_node(text)?.record.id)
}

/// The user of this name or number; made where a name is new, so that one command makes a first key.
async fn user_or_new<S: Store>(ledger: &mut Ledger<S>, text: &str, now: Timestamp) -> Result<(UserId, bool), Refused> {
    if let Ok(user) = ledger.state().find_user(text) {
        return Ok((user.id, false));
    }
    let name: UserName = text.parse()?;
    let user = ledger.try_run(now, |state| state.create_user(name, String::new(), now)).await?;
    Ok((user.id, true))
}

fn only_user(state: &State) -> Result<UserId, Refused> {
    let mut users = state.users();
    match (users.next(), users.next()) {
        (Some(only), None) => Ok(only.id),
        (None, _) => Err(invalid("there is no user yet; say whose machine it is with --user NAME")),
        _ => Err(invalid("there are several users; say whose machine it is with --user NAME")),
    }
}

fn parse_tags(tags: &[String]) -> Result<Vec<Tag>, Refused> {
    tags.iter().map(|tag| tag.parse::<Tag>().map_err(Refused::from)).collect()
}

// ---- views ----

fn show(state: &State, id: NodeId, notes: Vec<String>) -> Outcome {
    let node = state.node(id).map(|node| NodeView { notes, ..node_view(state, node) });
    let gone = || Refused { status: 404, message: format!("node {id} is gone") };
    node.map(|node| Reply::Node(Box::new(node))).ok_or_else(gone)
}

fn user_view(state: &State, user: &UserRecord) -> UserView {
    UserView {
        id: user.id,
        name: user.name.to_string(),
        display_name: user.display_name.clone(),
        role: user.role.name().to_owned(),
        created: user.created,
        nodes: state.nodes_of_user(user.id).count(),
    }
}

fn user_name(state: &State, id: UserId) -> String {
    state.find_user(&id.to_string()).map_or_else(|_| format!("user {id}"), |user| user.name.to_string())
}

fn key_view(state: &State, key: &KeyRecord, now: Timestamp) -> KeyView {
    let spent = !key.reusable && key.used.is_some();
    KeyView {
        id: key.id.0,
        user: user_name(state, key.user),
        reusable: key.reusable,
        ephemeral: key.ephemeral,
        tags: key.tags.iter().map(ToString::to_string).collect(),
        readmits: key.readmits,
        created: key.created,
        expires: key.expires,
        used: key.used,
        valid: !spent && key.expires.is_none_or(|expires| expires > now),
        nodes: state.admitted_by(key.id).map(|record| record.label.to_string()).collect(),
        notes: Vec::new(),
    }
}

fn node_view(state: &State, node: registry::NodeView<'_>) -> NodeView {
    let record: &NodeRecord = node.record;
    let info: Hostinfo = record.hostinfo();
    NodeView {
        id: record.id,
        stable_id: record.stable_id.clone(),
        name: record.label.to_string(),
        user: record.user.map(|user| user_name(state, user)),
        tags: record.tags.iter().map(ToString::to_string).collect(),
        addresses: vec![record.ipv4.into(), record.ipv6.into()],
        online: node.online,
        two_machines: node.two_machines,
        expired: node.expired,
        logged_out: record.logged_out,
        admitted_by: record.admitted_by.map(|key| key.0),
        ephemeral: record.ephemeral,
        created: record.created,
        last_seen: record.last_seen,
        key_expiry: record.key_expiry,
        hostname: info.hostname,
        os: info.os,
        client_version: info.ipn_version,
        capability_version: record.said.cap,
        endpoints: record.said.endpoints.clone(),
        offered_routes: record.said.routes.clone(),
        approved_routes: record.approved_routes.clone(),
        machine_key: record.machine,
        node_key: record.key,
        notes: Vec::new(),
    }
}

fn pending_view(pending: &registry::Pending) -> PendingView {
    PendingView {
        code: pending.code.to_string(),
        hostname: pending.hostname.clone(),
        os: pending.os.clone(),
        requested_tags: pending.requested_tags.clone(),
        expires: pending.expires,
    }
}

fn routes(state: &State, of: impl Fn(NodeId) -> bool) -> Vec<RouteView> {
    let name = |id| state.node(id).map_or_else(|| format!("node {id}"), |node| node.record.label.to_string());
    let views = state.routes().filter(|route| of(route.node)).map(|route| RouteView {
        prefix: route.prefix,
        node: name(route.node),
        node_id: route.node,
        offered: route.offered,
        approved: route.approved,
        primary: route.primary,
    });
    views.collect()
}
