//! Administration requests, carried out on the registry.

use std::time::Duration;

use super::policy;
use super::{
    GoneView, KeyView, NewKeyView, NodeView, Outcome, PendingView, Refused, Reply, Request, RouteView, UserView,
};
use crate::coordinator::store::{CommandError, Ledger, Store};
use crate::policy::Role;
use crate::registry::{
    self, KeyId, KeyRecord, NewKey, NodeRecord, PendingCode, Refusal, RefusalKind, State, Tag, UserName, UserRecord,
};
use crate::types::{EXIT_ROUTES, HostLabel, IpNet, NodeId, Timestamp, UserId, is_default_route};
use crate::wire::control::Hostinfo;

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
        | Request::UserList
        | Request::UserRename { .. }
        | Request::UserDelete { .. }
        | Request::UserRole { .. } => user(ledger, request, now).await,
        Request::Policy { request } => policy::execute(ledger, request, now).await,
        Request::Why { from, to, protocol, port } => policy::why(ledger.state(), &from, &to, protocol.as_deref(), port),
        Request::KeyCreate { .. } | Request::KeyList | Request::KeyExpire { .. } | Request::KeyDelete { .. } => {
            key(ledger, request, now).await
        }
        Request::RouteList | Request::RouteApprove { .. } | Request::RouteUnapprove { .. } => {
            route(ledger, request, now).await
        }
        _ => node(ledger, request, now).await,
    }
}

async fn user<S: Store>(ledger: &mut Ledger<S>, request: Request, now: Timestamp) -> Outcome {
    match request {
        Request::UserCreate { name, display_name } => {
            let name: UserName = name.parse()?;
            let user = ledger.try_run(now, |state| state.create_user(name, display_name, now)).await?;
            Ok(Reply::User(user_view(ledger.state(), &user)))
        }
        Request::UserRename { user, name } => {
            let name: UserName = name.parse()?;
            let renamed = ledger.try_run(now, |state| state.rename_user(state.find_user(&user)?.id, name)).await?;
            Ok(Reply::User(user_view(ledger.state(), &renamed)))
        }
        Request::UserRole { user, role } => {
            let role = Role::named(&role).ok_or_else(|| invalid("a role is member, admin or owner"))?;
            let changed = ledger.try_run(now, |state| state.set_role(state.find_user(&user)?.id, role)).await?;
            Ok(Reply::User(user_view(ledger.state(), &changed)))
        }
        Request::UserDelete { user } => {
            let gone = ledger.try_run(now, |state| state.delete_user(state.find_user(&user)?.id)).await?;
            Ok(Reply::Gone(GoneView { gone: format!("user {}", gone.name) }))
        }
        _ => Ok(Reply::Users(ledger.state().users().map(|user| user_view(ledger.state(), user)).collect())),
    }
}

async fn key<S: Store>(ledger: &mut Ledger<S>, request: Request, now: Timestamp) -> Outcome {
    match request {
        Request::KeyCreate { user, reusable, ephemeral, tags, lifetime_seconds } => {
            // Checked before a user is made for a key that cannot be.
            let tags = parse_tags(&tags)?;
            let (user, user_created) = user_or_new(ledger, &user, now).await?;
            let lifetime = lifetime_seconds.map(Duration::from_secs);
            let new = NewKey { user, reusable, ephemeral, tags, lifetime };
            let made = ledger.try_run(now, |state| state.create_key(new, now, rand::random())).await?;
            let record = key_view(ledger.state(), &made.record, now);
            Ok(Reply::NewKey(NewKeyView { key: made.text.expose().to_owned(), user_created, record }))
        }
        Request::KeyExpire { id } => {
            let key = ledger.try_run(now, |state| state.expire_key(KeyId(id), now)).await?;
            Ok(Reply::Key(key_view(ledger.state(), &key, now)))
        }
        Request::KeyDelete { id } => {
            let gone = ledger.try_run(now, |state| state.delete_key(KeyId(id))).await?;
            Ok(Reply::Gone(GoneView { gone: format!("key {}", gone.id) }))
        }
        _ => Ok(Reply::Keys(ledger.state().keys().map(|key| key_view(ledger.state(), key, now)).collect())),
    }
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
    if ledger.state().pending(&code).is_none() {
        return Err(Refused { status: 404, message: format!("no machine waits with the code {code}") });
    }
    let user = match user {
        Some(user) => user_or_new(ledger, user, now).await?.0,
        None => only_user(ledger.state())?,
    };
    let node = ledger.try_run(now, |state| state.approve(&code, user, &tags, now, rand::random())).await?;
    show(ledger.state(), node.id)
}

async fn node<S: Store>(ledger: &mut Ledger<S>, request: Request, now: Timestamp) -> Outcome {
    let changed = match request {
        Request::NodeShow { node } => return show(ledger.state(), node_named(ledger.state(), &node)?),
        Request::NodePending => return Ok(Reply::Pending(ledger.state().pending_list().map(pending_view).collect())),
        Request::NodeApprove { code, user, tags } => return approve(ledger, &code, user.as_deref(), &tags, now).await,
        Request::NodeRename { node, name } => {
            let label: HostLabel = name.parse().map_err(|error| invalid(format!("{name:?}: {error}")))?;
            ledger.try_run(now, |state| state.rename_node(node_named(state, &node)?, label)).await?
        }
        Request::NodeExpire { node } => {
            ledger.try_run(now, |state| state.expire_node(node_named(state, &node)?, now)).await?
        }
        Request::NodeTag { node, tags } => {
            let tags = parse_tags(&tags)?;
            ledger.try_run(now, |state| state.set_tags(node_named(state, &node)?, &tags)).await?
        }
        Request::NodeDelete { node } => {
            let gone = ledger.try_run(now, |state| state.delete_node(node_named(state, &node)?)).await?;
            return Ok(Reply::Gone(GoneView { gone: format!("node {} ({})", gone.label, gone.id) }));
        }
        _ => {
            let state = ledger.state();
            return Ok(Reply::Nodes(state.nodes().map(|node| node_view(state, node)).collect()));
        }
    };
    show(ledger.state(), changed.id)
}

async fn route<S: Store>(ledger: &mut Ledger<S>, request: Request, now: Timestamp) -> Outcome {
    let (node, prefixes, approve) = match request {
        Request::RouteApprove { node, prefixes } => (node, prefixes, true),
        Request::RouteUnapprove { node, prefixes } => (node, prefixes, false),
        _ => return Ok(Reply::Routes(routes(ledger.state(), |_| true))),
    };
    let prefixes = with_whole_exits(prefixes);
    let changed = ledger.try_run(now, |state| {
        let node = state.find_node(&node)?.record;
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

fn show(state: &State, id: NodeId) -> Outcome {
    let node = state.node(id).map(|node| node_view(state, node));
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
        nodes: state.nodes().filter(|node| node.record.user == user.id).count(),
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
        created: key.created,
        expires: key.expires,
        used: key.used,
        valid: !spent && key.expires.is_none_or(|expires| expires > now),
    }
}

fn node_view(state: &State, node: registry::NodeView<'_>) -> NodeView {
    let record: &NodeRecord = node.record;
    let info: Hostinfo = record.hostinfo();
    NodeView {
        id: record.id,
        stable_id: record.stable_id.clone(),
        name: record.label.to_string(),
        user: user_name(state, record.user),
        tags: record.tags.iter().map(ToString::to_string).collect(),
        addresses: vec![record.ipv4.into(), record.ipv6.into()],
        online: node.online,
        expired: node.expired,
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
