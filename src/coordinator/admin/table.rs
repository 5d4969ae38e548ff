//! Replies as text: a table for a list, lines of name and value for one thing.

use std::fmt::{Display, Write};
use std::time::Duration;

use super::cells::{printable, table, time};
use super::{audit, policy_text};
use warren_core::types::Lifetime;
use warren_core::wire::admin::{
    IdentityView, InvitationView, KeyView, NodeView, PendingView, Reply, RouteView, ServerKeyView, StatusView, UserView,
};

/// The text, with a final newline.
pub(super) fn text(reply: &Reply) -> String {
    match reply {
        Reply::Status(status) => self::status(status),
        Reply::ServerKey(keys) => server_key(keys),
        Reply::User(user) => users(std::slice::from_ref(user)) + &who_they_are(user),
        Reply::Users(list) => users(list),
        // Alone on the line, so that a script can take it.
        Reply::NewKey(new) => format!("{}\n", new.key),
        Reply::Key(key) => keys(std::slice::from_ref(key)) + &admitted(key),
        Reply::Keys(list) => keys(list),
        Reply::Node(one) => node(one),
        Reply::Nodes(list) => nodes(list),
        // Alone, so that it can go into a file.
        Reply::Device(device) => device.config.clone(),
        Reply::Pending(list) => pending(list),
        Reply::Routes(list) => routes(list),
        Reply::Policy(policy) => policy_text::policy(policy),
        Reply::PolicySet(policy) => policy_text::set(policy),
        Reply::Policies(list) => policy_text::versions(list),
        Reply::PolicyDiff(diff) => policy_text::diff(diff),
        Reply::Why(why) => policy_text::why(why),
        Reply::Audit(records) => audit::text(records),
        Reply::Gone(gone) => format!("{} is gone\n", gone.gone),
    }
}

fn status(status: &StatusView) -> String {
    let StatusView { version, nodes, fault, warnings, server_key: keys } = status;
    let health = fault.as_deref().map_or("in order".into(), printable);
    let mut text = server_key(keys);
    let _ = writeln!(text, "nodes:           {nodes}\nhealth:          {health}");
    for warning in warnings {
        let _ = writeln!(text, "                 {}", printable(warning));
    }
    let _ = writeln!(text, "version:         {version}");
    text
}

fn server_key(keys: &ServerKeyView) -> String {
    let mut text = format!("key:             {}\n                 {}\n", keys.key, keys.public_key);
    for former in &keys.former {
        let mut used = match (former.connected, former.used) {
            (0, None) => "not used since the start".to_owned(),
            (0, Some(at)) => format!("used {}", time(at)),
            (connected, _) => format!("nodes connected under it: {connected}"),
        };
        if former.away > 0 {
            let _ = write!(used, ", away and not under the new one yet: {}", former.away);
        }
        let _ = writeln!(text, "former key:      {}, {used}", former.key);
    }
    text
}

fn users(users: &[UserView]) -> String {
    let rows = users.iter().map(|user| {
        let UserView { id, name, display_name, role, status, created, nodes, .. } = user;
        let (id, nodes) = (id.to_string(), nodes.to_string());
        [id, name.clone(), display_name.clone(), role.to_string(), status.to_string(), time(*created), nodes]
    });
    table(["ID", "NAME", "DISPLAY NAME", "ROLE", "STATUS", "CREATED", "NODES"], rows)
}

/// Whom providers say that a user is, and what else is not everybody's.
fn who_they_are(user: &UserView) -> String {
    let mut text = String::new();
    if let Some(lifetime) = &user.key_lifetime {
        let _ = match lifetime.parse() {
            Ok(Lifetime::For(span)) => writeln!(text, "keys of nodes last {}", in_large_units(span)),
            Ok(Lifetime::Endless) => writeln!(text, "keys of nodes do not end"),
            Err(_) => writeln!(text, "keys of nodes last {}", printable(lifetime)),
        };
    }
    for identity in &user.identities {
        let IdentityView { provider, issuer, subject, email, email_verified, .. } = identity;
        let vouched = if *email_verified { "" } else { ", not vouched for" };
        let email = email.as_ref().map(|email| format!(" ({email}{vouched})")).unwrap_or_default();
        let _ = writeln!(text, "signs in by {}", printable(&format!("{provider}: {subject} of {issuer}{email}")));
    }
    if let Some(InvitationView { provider, email }) = &user.invitation {
        let _ = writeln!(text, "waits for {} by {provider}", printable(email));
    }
    text
}

/// A span as people type it, in the largest unit that it is a whole number of.
fn in_large_units(span: Duration) -> String {
    match span.as_secs() {
        seconds if seconds % 86_400 == 0 => format!("{}d", seconds / 86_400),
        seconds if seconds % 3_600 == 0 => format!("{}h", seconds / 3_600),
        seconds => format!("{seconds}s"),
    }
}

fn keys(keys: &[KeyView]) -> String {
    let rows = keys.iter().map(|key| {
        let kind = match (key.reusable, key.ephemeral) {
            (false, false) => "one-off",
            (true, false) => "reusable",
            (false, true) => "one-off, ephemeral",
            (true, true) => "reusable, ephemeral",
        };
        [
            key.id.to_string(),
            key.user.clone(),
            if key.valid { "valid" } else { "spent" }.to_owned(),
            kind.to_owned(),
            list(&key.tags),
            key.expires.map_or_else(|| "never".to_owned(), time),
            key.used.map_or_else(|| "never".to_owned(), time),
        ]
    });
    table(["ID", "USER", "STATE", "KIND", "TAGS", "EXPIRES", "USED"], rows)
}

fn admitted(key: &KeyView) -> String {
    let readmits = if key.readmits { "lets nodes in again whose key ended since it was made\n" } else { "" };
    match key.nodes.as_slice() {
        [] => readmits.to_owned(),
        nodes => format!("{readmits}admitted {}\n", printable(&nodes.join(", "))),
    }
}

fn nodes(nodes: &[NodeView]) -> String {
    let rows = nodes.iter().map(|node| {
        [
            node.id.to_string(),
            node.name.clone(),
            user(node),
            list(&node.addresses),
            state(node).to_owned(),
            last_seen(node),
            key_expires(node),
            list(&node.tags),
        ]
    });
    table(["ID", "NAME", "USER", "ADDRESSES", "STATE", "LAST SEEN", "KEY EXPIRES", "TAGS"], rows)
}

fn state(node: &NodeView) -> &'static str {
    if node.two_machines {
        return "on two machines";
    }
    if node.gateway.is_some() && !node.expired {
        return "wireguard device";
    }
    match (node.expired, node.logged_out, node.online) {
        (true, true, _) => "logged out",
        (true, false, _) => "expired",
        (false, _, true) => "online",
        (false, _, false) => "offline",
    }
}

fn user(node: &NodeView) -> String {
    node.user.clone().unwrap_or_else(|| "-".to_owned())
}

fn admitted_by(node: &NodeView) -> String {
    match (&node.gateway, node.admitted_by) {
        (Some(gateway), _) => format!("an administrator, as a WireGuard device behind {gateway}"),
        (None, Some(key)) => format!("key {key}"),
        (None, None) => "approval by hand".to_owned(),
    }
}

fn key_expires(node: &NodeView) -> String {
    node.key_expiry.map_or_else(|| "never".to_owned(), time)
}

/// The record tells when it last left; while it is there that is of no use to anybody.
fn last_seen(node: &NodeView) -> String {
    if node.online { "now".to_owned() } else { node.last_seen.map_or_else(String::new, time) }
}

fn node(node: &NodeView) -> String {
    let client = format!("{} (capability version {})", node.client_version, node.capability_version);
    let lines = [
        ("id", format!("{} ({})", node.id, node.stable_id)),
        ("name", node.name.clone()),
        ("user", user(node)),
        ("tags", list(&node.tags)),
        ("admitted by", admitted_by(node)),
        ("addresses", list(&node.addresses)),
        ("state", state(node).to_owned()),
        ("ephemeral", if node.ephemeral { "yes" } else { "no" }.to_owned()),
        ("created", time(node.created)),
        ("last seen", last_seen(node)),
        ("key expires", key_expires(node)),
        ("host name", node.hostname.clone()),
        ("system", node.os.clone()),
        ("client", client),
        ("endpoints", list(&node.endpoints)),
        ("routes offered", list(&node.offered_routes)),
        ("routes approved", list(&node.approved_routes)),
        ("machine key", node.machine_key.to_string()),
        ("node key", node.node_key.to_string()),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{}", format!("{:16} {}", format!("{name}:"), printable(&value)).trim_end());
    }
    text
}

fn pending(machines: &[PendingView]) -> String {
    let rows = machines.iter().map(|machine| {
        let tags = list(&machine.requested_tags);
        [machine.code.clone(), machine.hostname.clone(), machine.os.clone(), tags, time(machine.expires)]
    });
    table(["CODE", "HOST NAME", "SYSTEM", "ASKS FOR", "WAITS UNTIL"], rows)
}

fn routes(routes: &[RouteView]) -> String {
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let rows = routes.iter().map(|route| {
        let prefix = route.prefix.to_string();
        [prefix, route.node.clone(), yes(route.offered), yes(route.approved), yes(route.primary)]
    });
    table(["PREFIX", "NODE", "OFFERED", "APPROVED", "IN USE"], rows)
}

fn list<T: Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
