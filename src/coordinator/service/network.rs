//! Requests about the network that the server keeps, carried out on the registry.

use std::sync::Arc;
use std::time::Duration;

use super::devices::Wanted;
use super::policy;
use super::refused::{Refused, ServiceResult};
use crate::clock;
use crate::hub::Hub;
use warren_core::registry::{
    self, Actor, Commands, Decision, Identity, KeyId, KeyRecord, NewDevice, NewKey, NodeRecord, PendingCode,
    ProviderName, Refusal, State, Tag, UserName, UserRecord, canonical_email,
};
use warren_core::types::{
    EXIT_ROUTES, HostLabel, IpNet, Lifetime, NodeId, TicketError, Timestamp, UserId, is_default_route,
};
use warren_core::wire::admin::{
    DeviceView, GoneView, IdentityView, InvitationView, KeyRequest, KeyView, Life, NetworkRequest, NewKeyView,
    NodeRequest, NodeView, PendingView, Reply, RouteRequest, RouteView, UserRequest, UserView, WithNodes,
};
use warren_core::wire::control::Hostinfo;

/// Carries out one request. What the reply tells is on disk.
pub(super) async fn execute(hub: &Hub, actor: &Actor, request: NetworkRequest) -> ServiceResult {
    match request {
        NetworkRequest::User(request) => user(hub, actor, request).await,
        NetworkRequest::Key(request) => key(hub, actor, request).await,
        NetworkRequest::Node(request) => node(hub, actor, request).await,
        NetworkRequest::Route(request) => route(hub, actor, request).await,
        NetworkRequest::Policy(request) => policy::execute(hub, actor, request).await,
        NetworkRequest::Why { from, to, traffic } => {
            hub.look(move |state| policy::why(state, &from, &to, &traffic)).await?
        }
    }
}

async fn user(hub: &Hub, by: &Actor, request: UserRequest) -> ServiceResult {
    let actor = by.clone();
    let user = match request {
        UserRequest::List => {
            let list = |state: &State| Reply::Users(state.users().map(|user| user_view(state, user)).collect());
            return Ok(hub.look(list).await?);
        }
        UserRequest::Show { user } => {
            let show = move |state: &State| Ok(Reply::User(user_view(state, state.find_user(&user)?)));
            return hub.look(show).await?;
        }
        UserRequest::Create { name, display_name } => {
            let name: UserName = name.parse()?;
            let create = move |by: &Commands<'_>| by.create_user(name.clone(), display_name.clone());
            hub.command(actor, create).await?
        }
        UserRequest::Rename { user, name } => {
            let name: UserName = name.parse()?;
            hub.command(actor, move |by| by.rename_user(by.find_user(&user)?.id, name.clone())).await?
        }
        UserRequest::Role { user, role } => {
            hub.command(actor, move |by| by.set_role(by.find_user(&user)?.id, role)).await?
        }
        UserRequest::KeyLifetime { user, lifetime } => {
            let lifetime = match lifetime {
                Life::Usual => None,
                Life::For(lifetime) => Some(Lifetime::For(lifetime)),
                Life::Endless => Some(Lifetime::Endless),
            };
            hub.command(actor, move |by| by.set_key_lifetime(by.find_user(&user)?.id, lifetime)).await?
        }
        UserRequest::Suspend { user } => hub.command(actor, move |by| by.suspend_user(by.find_user(&user)?.id)).await?,
        UserRequest::Restore { user } => hub.command(actor, move |by| by.restore_user(by.find_user(&user)?.id)).await?,
        UserRequest::Invite { user, provider, email } => return invite(hub, by, user, &provider, email).await,
        UserRequest::Approve { user } => hub.command(actor, move |by| by.approve_user(by.find_user(&user)?.id)).await?,
        UserRequest::Delete { user } => return delete_user(hub, by, user).await,
    };
    Ok(hub.look(move |state| Reply::User(user_view(state, &user))).await?)
}

async fn invite(hub: &Hub, actor: &Actor, user: String, provider: &str, email: String) -> ServiceResult {
    // Checked before a user is made for nobody.
    let provider: ProviderName = provider.parse()?;
    if canonical_email(&email).is_none() {
        return Err(Refused::invalid(format!("{email:?} is no address")));
    }
    let (id, made) = user_or_new(hub, actor, user).await?;
    let invite = move |by: &Commands<'_>| by.invite_user(id, provider.clone(), &email);
    let user = hub.command(actor.clone(), invite).await?;
    let notes = made.then(|| format!("user {} was made", user.name)).into_iter().collect();
    Ok(hub.look(move |state| Reply::User(UserView { notes, ..user_view(state, &user) })).await?)
}

async fn delete_user(hub: &Hub, actor: &Actor, user: String) -> ServiceResult {
    let delete = move |by: &Commands<'_>| {
        let notes = of_the_users(by, &user);
        Ok(by.delete_user(by.find_user(&user)?.id)?.map(|gone| (gone, notes)))
    };
    let (gone, notes) = hub.command(actor.clone(), delete).await?;
    Ok(Reply::Gone(GoneView { gone: format!("user {}", gone.name), notes }))
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

async fn key(hub: &Hub, actor: &Actor, request: KeyRequest) -> ServiceResult {
    match request {
        KeyRequest::List => {
            let list = |state: &State| {
                let now = clock::now();
                Reply::Keys(state.keys().map(|key| key_view(state, key, now)).collect())
            };
            Ok(hub.look(list).await?)
        }
        KeyRequest::Show { id } => {
            let show = move |state: &State| Ok(Reply::Key(key_view(state, state.key(KeyId(id))?, clock::now())));
            hub.look(show).await?
        }
        KeyRequest::Create { user, reusable, ephemeral, tags, readmits, lifetime_seconds } => {
            // Checked before a user is made for a key that cannot be.
            let tags = parse_tags(&tags)?;
            let (user, user_created) = user_or_new(hub, actor, user).await?;
            let lifetime = lifetime_seconds.map(Duration::from_secs);
            let new = NewKey { user, reusable, ephemeral, tags, readmits, lifetime };
            let made = hub.command(actor.clone(), move |by| by.create_key(new.clone(), rand::random())).await?;
            let view = move |state: &State| {
                let notes = state.advice_on_tags(&made.record.tags);
                let record = KeyView { notes, ..key_view(state, &made.record, clock::now()) };
                let key = made.text.expose().to_owned();
                Reply::NewKey(NewKeyView { key, user_created, coordinator_key: None, record })
            };
            Ok(hub.look(view).await?)
        }
        KeyRequest::Expire { id, nodes } => {
            let expire = move |by: &Commands<'_>| {
                let notes = of_its_nodes(by, KeyId(id), nodes);
                Ok(by.expire_key(KeyId(id), nodes)?.map(|key| (key, notes)))
            };
            let (key, notes) = hub.command(actor.clone(), expire).await?;
            let view = move |state: &State| Reply::Key(KeyView { notes, ..key_view(state, &key, clock::now()) });
            Ok(hub.look(view).await?)
        }
        KeyRequest::Delete { id, nodes } => {
            let delete = move |by: &Commands<'_>| {
                let notes = of_its_nodes(by, KeyId(id), nodes);
                Ok(by.delete_key(KeyId(id), nodes)?.map(|gone| (gone, notes)))
            };
            let (gone, notes) = hub.command(actor.clone(), delete).await?;
            Ok(Reply::Gone(GoneView { gone: format!("key {}", gone.id), notes }))
        }
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

async fn node(hub: &Hub, actor: &Actor, request: NodeRequest) -> ServiceResult {
    match request {
        NodeRequest::List => {
            let list = |state: &State| Reply::Nodes(state.nodes().map(|node| node_view(state, node)).collect());
            Ok(hub.look(list).await?)
        }
        NodeRequest::Show { node } => hub.look(move |state| show(state, node_named(state, &node)?, Vec::new())).await?,
        NodeRequest::Pending => {
            Ok(hub.look(|state| Reply::Pending(state.pending_list().map(pending_view).collect())).await?)
        }
        NodeRequest::Approve { code, user, tags } => approve(hub, actor, &code, user, &tags).await,
        NodeRequest::AddWireguard { name, key, user, tags, via, endpoint } => {
            let wanted = Wanted::look(hub, &name, &key, via, endpoint).await?;
            add_device(hub, actor, wanted, user, &tags).await
        }
        NodeRequest::Reject { code } => reject(hub, actor, &code).await,
        NodeRequest::Delete { node } => delete_node(hub, actor, node).await,
        NodeRequest::Rename { node, name } => {
            let label: HostLabel = name.parse().map_err(|error| Refused::invalid(format!("{name:?}: {error}")))?;
            let rename = move |by: &Commands<'_>, id| by.rename_node(id, label.clone());
            change_node(hub, actor, node, rename, |_, _| Vec::new()).await
        }
        NodeRequest::Expire { node } => {
            let who_returns = |state: &State, changed: &NodeRecord| {
                who_lets_it_in(state, changed, clock::now(), false).into_iter().collect()
            };
            change_node(hub, actor, node, |by, id| by.expire_node(id), who_returns).await
        }
        NodeRequest::Extend { node, life } => {
            change_node(hub, actor, node, move |by, id| by.extend_node(id, life), |_, _| Vec::new()).await
        }
        NodeRequest::Move { node, user } => {
            let give = move |by: &Commands<'_>, id| by.move_node(id, by.find_user(&user)?.id);
            change_node(hub, actor, node, give, |state, changed| state.advice_on_node(changed.id)).await
        }
        NodeRequest::Tag { node, tags } => {
            let tags = parse_tags(&tags)?;
            let tag = move |by: &Commands<'_>, id| by.set_tags(id, &tags);
            change_node(hub, actor, node, tag, |state, changed| state.advice_on_node(changed.id)).await
        }
    }
}

async fn approve(hub: &Hub, actor: &Actor, code: &str, user: Option<String>, tags: &[String]) -> ServiceResult {
    let code: PendingCode = code.parse().map_err(|error: TicketError| Refused::invalid(error.to_string()))?;
    let tags = parse_tags(tags)?;
    // Checked before a user is made for a machine that does not wait.
    let asked = code.clone();
    if hub.look(move |state| state.pending(&asked).is_none()).await? {
        return Err(Refused::not_found(format!("no machine waits with the code {code}")));
    }
    let (user, user_created) = match user {
        Some(user) => user_or_new(hub, actor, user).await?,
        None => (hub.look(only_user).await??, false),
    };
    let approve = move |by: &Commands<'_>| {
        let machine = by.pending(&code).map(|pending| pending.machine);
        let before = machine.into_iter().flat_map(|machine| by.nodes_of_machine(machine)).cloned().collect::<Vec<_>>();
        Ok(by.approve(&code, user, &tags, rand::random())?.map(|node| (node, before)))
    };
    let (node, before) = hub.command(actor.clone(), approve).await?;
    let view = move |state: &State| {
        let before = before.iter().find(|record| record.id == node.id);
        let mut notes = before.map(|before| state.rights_changed(before, &node)).unwrap_or_default();
        if let (true, Some(user)) = (user_created, state.users().find(|made| made.id == user)) {
            notes.insert(0, format!("user {} was made", user.name));
        }
        notes.extend(state.advice_on_node(node.id));
        show(state, node.id, notes)
    };
    hub.look(view).await?
}

/// Makes a device that speaks nothing but WireGuard a node; the reply has the file for it.
async fn add_device(hub: &Hub, actor: &Actor, wanted: Wanted, user: Option<String>, tags: &[String]) -> ServiceResult {
    // All of it is looked at before a user is made for a device that cannot be.
    let tags = parse_tags(tags)?;
    let (user, made) = match user {
        Some(user) => user_or_new(hub, actor, user).await?,
        None => (hub.look(only_user).await??, false),
    };
    let new = NewDevice { label: wanted.label.clone(), key: wanted.key, user, tags, gateway: wanted.gateway };
    let add = move |by: &Commands<'_>| by.add_device(new.clone(), rand::random());
    let device = hub.command(actor.clone(), add).await?;
    let view = move |state: &State| {
        let config = wanted.file(state, device.id)?;
        let node = state.node(device.id).ok_or_else(|| Refused::not_found(format!("node {} is gone", device.id)))?;
        let mut notes = state.advice_on_node(device.id);
        if let (true, Some(user)) = (made, state.users().find(|made| made.id == user)) {
            notes.insert(0, format!("user {} was made", user.name));
        }
        let node = NodeView { notes, ..node_view(state, node) };
        Ok(Reply::Device(Box::new(DeviceView { config, node })))
    };
    hub.look(view).await?
}

async fn reject(hub: &Hub, actor: &Actor, code: &str) -> ServiceResult {
    let code: PendingCode = code.parse().map_err(|error: TicketError| Refused::invalid(error.to_string()))?;
    let asked = code.clone();
    let rejected = hub.command(actor.clone(), move |by| by.reject(&asked)).await?;
    Ok(Reply::Gone(GoneView { gone: format!("the request of {} ({code})", rejected.hostname), notes: Vec::new() }))
}

/// Changes a node, and says what it means for its rights, and what else there is to say of it.
async fn change_node(
    hub: &Hub,
    actor: &Actor,
    name: String,
    change: impl Fn(&Commands<'_>, NodeId) -> Result<Decision<Arc<NodeRecord>>, Refusal> + Send + 'static,
    besides: impl FnOnce(&State, &NodeRecord) -> Vec<String> + Send + 'static,
) -> ServiceResult {
    let change = move |by: &Commands<'_>| {
        let before = Arc::clone(by.find_node(&name)?.record);
        Ok(change(by, before.id)?.map(|changed| (changed, before)))
    };
    let (changed, before) = hub.command(actor.clone(), change).await?;
    let view = move |state: &State| {
        let mut notes = state.rights_changed(&before, &changed);
        notes.extend(besides(state, &changed));
        show(state, changed.id, notes)
    };
    hub.look(view).await?
}

async fn delete_node(hub: &Hub, actor: &Actor, node: String) -> ServiceResult {
    let gone = hub.command(actor.clone(), move |by| by.delete_node(node_named(by, &node)?)).await?;
    let view = move |state: &State| {
        let notes = who_lets_it_in(state, &gone, clock::now(), true).into_iter().collect();
        Reply::Gone(GoneView { gone: format!("node {} ({})", gone.label, gone.id), notes })
    };
    Ok(hub.look(view).await?)
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

async fn route(hub: &Hub, actor: &Actor, request: RouteRequest) -> ServiceResult {
    let (node, prefixes, approve) = match request {
        RouteRequest::List => return Ok(hub.look(|state| Reply::Routes(routes(state, |_| true))).await?),
        RouteRequest::Approve { node, prefixes } => (node, prefixes, true),
        RouteRequest::Unapprove { node, prefixes } => (node, prefixes, false),
    };
    let named = node.clone();
    let record = hub.look(move |state| state.find_node(&named).map(|node| Arc::clone(node.record))).await??;
    check_prefixes(&record, &prefixes, approve)?;
    let prefixes = with_whole_exits(prefixes);
    let change = move |by: &Commands<'_>| {
        let node = by.find_node(&node)?.record;
        let mut approved = node.approved_routes.clone();
        if approve {
            approved.extend(&prefixes);
        } else {
            approved.retain(|prefix| !prefixes.contains(prefix));
        }
        by.approve_routes(node.id, &approved)
    };
    let id = hub.command(actor.clone(), change).await?.id;
    Ok(hub.look(move |state| Reply::Routes(routes(state, |node| node == id))).await?)
}

/// What was typed means what is done: no prefix is cut to another, and what is taken away was there.
fn check_prefixes(node: &NodeRecord, prefixes: &[IpNet], approve: bool) -> Result<(), Refused> {
    for prefix in prefixes {
        let meant = prefix.trunc();
        if *prefix != meant {
            return Err(Refused::invalid(format!("{prefix} has host bits; is {meant} meant? Nothing was changed")));
        }
        let of_it = with_whole_exits(vec![*prefix]);
        if !approve && !node.approved_routes.iter().any(|route| of_it.contains(route)) {
            let message = format!(
                "{prefix} is not approved for {} by an administrator, so nothing was changed; what a policy's \
                 autoApprovers approve is the policy's to change",
                node.label
            );
            return Err(Refused::not_found(message));
        }
    }
    Ok(())
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
async fn user_or_new(hub: &Hub, actor: &Actor, text: String) -> Result<(UserId, bool), Refused> {
    let asked = text.clone();
    if let Some(id) = hub.look(move |state| state.find_user(&asked).map(|user| user.id).ok()).await? {
        return Ok((id, false));
    }
    let name: UserName = text.parse()?;
    let user = hub.command(actor.clone(), move |by| by.create_user(name.clone(), String::new())).await?;
    Ok((user.id, true))
}

fn only_user(state: &State) -> Result<UserId, Refused> {
    let mut users = state.users();
    match (users.next(), users.next()) {
        (Some(only), None) => Ok(only.id),
        (None, _) => Err(Refused::invalid("there is no user yet; say whose machine it is with --user NAME")),
        _ => Err(Refused::invalid("there are several users; say whose machine it is with --user NAME")),
    }
}

fn parse_tags(tags: &[String]) -> Result<Vec<Tag>, Refused> {
    tags.iter().map(|tag| tag.parse::<Tag>().map_err(Refused::from)).collect()
}

// ---- views ----

fn show(state: &State, id: NodeId, notes: Vec<String>) -> ServiceResult {
    let node = state.node(id).map(|node| NodeView { notes, ..node_view(state, node) });
    let gone = || Refused::not_found(format!("node {id} is gone"));
    node.map(|node| Reply::Node(Box::new(node))).ok_or_else(gone)
}

fn user_view(state: &State, user: &UserRecord) -> UserView {
    UserView {
        id: user.id,
        name: user.name.to_string(),
        display_name: user.display_name.clone(),
        role: user.role,
        status: user.status,
        created: user.created,
        nodes: state.nodes_of_user(user.id).count(),
        key_lifetime: user.key_lifetime.map(|lifetime| lifetime.to_string()),
        identities: user.identities.iter().map(identity_view).collect(),
        invitation: user.invitation.as_ref().map(|invitation| InvitationView {
            provider: invitation.provider.to_string(),
            email: invitation.email.clone(),
        }),
        notes: Vec::new(),
    }
}

fn identity_view(identity: &Identity) -> IdentityView {
    IdentityView {
        provider: identity.provider.to_string(),
        issuer: identity.issuer.clone(),
        subject: identity.subject.clone(),
        email: identity.email.as_ref().map(|email| email.address.clone()),
        email_verified: identity.email.as_ref().is_some_and(|email| email.verified),
        invited: identity.invited,
    }
}

fn user_name(state: &State, id: UserId) -> String {
    state.find_user(&id.to_string()).map_or_else(|_| format!("user {id}"), |user| user.name.to_string())
}

fn node_name(state: &State, id: NodeId) -> String {
    state.node(id).map_or_else(|| format!("node {id}, which is gone"), |node| node.record.label.to_string())
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
        capability_version: record.status.cap,
        endpoints: record.status.endpoints.clone(),
        offered_routes: record.status.routes.clone(),
        approved_routes: record.approved_routes.clone(),
        gateway: record.gateway.map(|id| node_name(state, id)),
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
    let views = state.routes().filter(|route| of(route.node)).map(|route| RouteView {
        prefix: route.prefix,
        node: node_name(state, route.node),
        node_id: route.node,
        offered: route.offered,
        approved: route.approved,
        primary: route.primary,
    });
    views.collect()
}
