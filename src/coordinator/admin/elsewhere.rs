//! Requests that are not the registry's alone.
//!
//! The server's own keys and state are told here. What takes long is done besides the registry's task, so that no node
//! waits for it: a policy is compiled against the network as it was when the request came, and the task brings the outcome
//! up to date.

use std::collections::BTreeMap;

use super::policy::{self, difference};
use super::{Outcome, PolicyRequest, Refused, Reply, Request, ServerKeyView, StatusView, execute};
use crate::hub::{Health, Hub};
use crate::server_key::ServerKeys;
use warren_core::registry::Actor;
use warren_core::types::MachinePublic;

/// Carries out a request.
pub(crate) async fn carry_out(hub: &Hub, keys: &ServerKeys, actor: &Actor, request: Request) -> Outcome {
    match request {
        Request::Status => status(hub, keys).await,
        Request::ServerKeyRotate => {
            let nodes = nodes(hub).await?;
            keys.rotate().map_err(unchanged)?;
            Ok(Reply::ServerKey(ServerKeyView::of(keys, &nodes)))
        }
        Request::ServerKeyRetire { key, force } => {
            let nodes = nodes(hub).await?;
            keys.retire(key, &nodes, force).map_err(unchanged)?;
            Ok(Reply::ServerKey(ServerKeyView::of(keys, &nodes)))
        }
        request => {
            let mut reply = of_registry(hub, actor, request).await?;
            if let Reply::NewKey(new) = &mut reply {
                new.coordinator_key = Some(keys.fingerprint());
            }
            reply.notes().iter().for_each(|note| tracing::info!("{note}"));
            Ok(reply)
        }
    }
}

async fn status(hub: &Hub, keys: &ServerKeys) -> Outcome {
    let Health { nodes, fault, warnings, held_back: _ } = hub.health().await?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let server_key = ServerKeyView::of(keys, &self::nodes(hub).await?);
    Ok(Reply::Status(StatusView { version, nodes, fault, warnings, server_key }))
}

/// The names of the nodes, by machine.
async fn nodes(hub: &Hub) -> Result<BTreeMap<MachinePublic, String>, Refused> {
    let nodes = hub.look(|state| {
        let nodes = state.nodes().map(|node| node.record);
        nodes.map(|record| (record.machine, record.label.to_string())).collect()
    });
    Ok(nodes.await?)
}

fn unchanged(message: String) -> Refused {
    Refused { status: 409, message }
}

async fn of_registry(hub: &Hub, actor: &Actor, request: Request) -> Outcome {
    let (text, by, if_version) = match request {
        Request::Policy { request: PolicyRequest::Diff { text } } => {
            let outlook = hub.outlook().await?;
            return besides(move || difference(&outlook, &text)).await;
        }
        Request::Policy { request: PolicyRequest::Set { text, by, if_version } } => (text, by, if_version),
        Request::Policy { request: PolicyRequest::Restore { version, by, if_version } } => {
            let text = hub.look(move |state| state.policy_version(version).map(|record| record.text.to_string()));
            (text.await??, by, if_version)
        }
        request => return execute(hub, actor, request).await,
    };
    let outlook = hub.outlook().await?;
    let ready = besides(move || Ok(outlook.compile(&text)?)).await?;
    let (set, notes) = hub.set_policy(actor.clone(), ready, by, if_version).await?;
    Ok(hub.look(move |state| policy::set(state, &set, notes)).await?)
}

/// Does some work in a thread of its own.
async fn besides<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refused> + Send + 'static) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Refused { status: 500, message: format!("compiling the policy: {error}") }))
}
