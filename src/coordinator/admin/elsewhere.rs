//! Requests that are not the registry's alone.
//!
//! The server's own keys and state are told here. What takes long is done besides the registry's task, so that no node
//! waits for it: a policy is compiled against the network as it was when the request came, and the task brings the outcome
//! up to date.

use super::policy::difference;
use super::{Outcome, PolicyRequest, Refused, Reply, Request, StatusView};
use crate::coordinator::hub::{Busy, Health, Hub};
use crate::coordinator::server_key::ServerKeys;

/// Carries out a request.
pub(crate) async fn carry_out(hub: &Hub, keys: &ServerKeys, request: Request) -> Result<Outcome, Busy> {
    match request {
        Request::Status => status(hub, keys).await.map(Ok),
        Request::ServerKeyRotate => Ok(keys.rotate().map(|()| Reply::ServerKey(keys.into())).map_err(unchanged)),
        Request::ServerKeyRetire { key } => {
            Ok(keys.retire(key).map(|_| Reply::ServerKey(keys.into())).map_err(unchanged))
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
    Ok(Reply::Status(StatusView { version, nodes, fault, warnings, server_key: keys.into() }))
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
