//! Requests that are not the registry's alone.
//!
//! The server's own keys and state are told here. What takes long is done besides the registry's task, so that no node
//! waits for it: a policy is compiled against the network as it was when the request came, and the task brings the outcome
//! up to date.

use std::collections::BTreeMap;

use super::policy::difference;
use super::{Outcome, PolicyRequest, Refused, Reply, Request, ServerKeyView, StatusView};
use crate::hub::{Busy, Health, Hub};
use crate::server_key::ServerKeys;
use warren_core::types::MachinePublic;

/// Carries out a request.
pub(crate) async fn carry_out(hub: &Hub, keys: &ServerKeys, request: Request) -> Result<Outcome, Busy> {
    match request {
        Request::Status => status(hub, keys).await.map(Ok),
        Request::ServerKeyRotate => {
            let nodes = nodes(hub).await?;
            let rotated = keys.rotate().map_err(unchanged);
            Ok(rotated.map(|()| Reply::ServerKey(ServerKeyView::of(keys, &nodes))))
        }
        Request::ServerKeyRetire { key, force } => {
            let nodes = nodes(hub).await?;
            let retired = keys.retire(key, &nodes, force).map_err(unchanged);
            Ok(retired.map(|_| Reply::ServerKey(ServerKeyView::of(keys, &nodes))))
        }
        request => {
            let mut outcome = of_registry(hub, request).await?;
            if let Ok(Reply::NewKey(new)) = &mut outcome {
                new.coordinator_key = Some(keys.fingerprint());
            }
            Ok(outcome)
        }
    }
}

async fn status(hub: &Hub, keys: &ServerKeys) -> Result<Reply, Busy> {
    let Health { nodes, fault, warnings, held_back: _ } = hub.health().await?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let server_key = ServerKeyView::of(keys, &self::nodes(hub).await?);
    Ok(Reply::Status(StatusView { version, nodes, fault, warnings, server_key }))
}

/// The names of the nodes, by machine.
async fn nodes(hub: &Hub) -> Result<BTreeMap<MachinePublic, String>, Busy> {
    let reply = hub.admin(Request::NodeList, None).await?;
    let Ok(Reply::Nodes(nodes)) = reply else { return Ok(BTreeMap::new()) };
    Ok(nodes.into_iter().map(|node| (node.machine_key, node.name)).collect())
}

fn unchanged(message: String) -> Refused {
    Refused { status: 409, message }
}

async fn of_registry(hub: &Hub, request: Request) -> Result<Outcome, Busy> {
    let text = match &request {
        Request::Policy { request: PolicyRequest::Set { text, .. } | PolicyRequest::Diff { text } } => text.clone(),
        Request::Policy { request: PolicyRequest::Restore { version, .. } } => {
            let version = Some(*version);
            match hub.admin(Request::Policy { request: PolicyRequest::Get { version } }, None).await? {
                Ok(Reply::Policy(view)) => view.text.unwrap_or_default(),
                other => return Ok(other),
            }
        }
        _ => return hub.admin(request, None).await,
    };
    let outlook = hub.outlook().await?;
    if let Request::Policy { request: PolicyRequest::Diff { .. } } = request {
        return Ok(besides(move || difference(&outlook, &text)).await);
    }
    match besides(move || Ok(outlook.compile(&text)?)).await {
        Ok(ready) => hub.admin(request, Some(ready)).await,
        Err(refused) => Ok(Err(refused)),
    }
}

/// Does some work in a thread of its own.
async fn besides<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refused> + Send + 'static) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Refused { status: 500, message: format!("compiling the policy: {error}") }))
}
