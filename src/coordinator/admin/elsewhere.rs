//! What takes long in a request is done besides the registry's task, so that no node waits for it: a policy is compiled
//! against the network as it was when the request came, and the task brings the outcome up to date.

use super::policy::difference;
use super::{Outcome, PolicyRequest, Refused, Reply, Request};
use crate::coordinator::hub::{Busy, Hub};

/// Carries out a request.
pub(crate) async fn carry_out(hub: &Hub, request: Request) -> Result<Outcome, Busy> {
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
