//! The unix socket on which administration is served.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tracing::{debug, warn};

use super::refuse;
use crate::backup;
use crate::ending::Ending;
use crate::limits;
use crate::service::{RefusedKind, Service};
use crate::state_dir::StateDir;
use warren_core::registry::Actor;
use warren_core::wire::admin::{BACKUP_PATH, PATH, Request};

/// Where backups are made, and whose turn it is.
type Backups = (StateDir, Mutex<()>);

/// Opens the socket for its owner alone. What a dead server left behind is replaced; a living one is not.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another coordinator serves here")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until `ending` turns true.
pub(crate) async fn serve(listener: UnixListener, service: Service, dir: StateDir, mut ending: Ending) {
    // One at a time: it is written beside the database.
    let backups = Arc::new((dir, Mutex::new(())));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ending.wait() => return,
        };
        match accepted {
            Ok((stream, _)) => match admitted(&stream) {
                Some(actor) => {
                    tokio::spawn(connection(stream, actor, service.clone(), Arc::clone(&backups)));
                }
                None => warn!("an administration connection of another user was closed"),
            },
            Err(error) => {
                warn!(%error, "accepting an administration connection");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Who is at the other end, if they may be: root, or the user that the server runs as. The mode of the socket says the
/// same; this holds also where someone changed it.
fn admitted(stream: &UnixStream) -> Option<Actor> {
    let own = nix::unistd::geteuid().as_raw();
    let uid = stream.peer_cred().ok()?.uid();
    let account = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    let name = account.map_or_else(|| format!("uid {uid}"), |account| account.name);
    (uid == 0 || uid == own).then(|| Actor::account(uid, name))
}

async fn connection(stream: UnixStream, actor: Actor, service: Service, backups: Arc<Backups>) {
    let service = service_fn(move |request| {
        let (actor, service, backups) = (actor.clone(), service.clone(), Arc::clone(&backups));
        async move {
            let answer = answer(&actor, &service, &backups, request).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(|refusal| refusal))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIME)
        .max_buf_size(limits::HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "administration connection");
    }
}

async fn answer(
    actor: &Actor,
    service: &Service,
    backups: &Backups,
    request: http::Request<Incoming>,
) -> Result<Response, Response> {
    if request.uri().path() == BACKUP_PATH && request.method() == Method::POST {
        let _one = backups.1.lock().await;
        let file = backup::draft(service, &backups.0).await;
        let failed = |error| refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("no backup was made: {error}"));
        return file.map(|file| Body::from_stream(backup::pieces(file)).into_response()).map_err(failed);
    }
    if request.uri().path() != PATH || request.method() != Method::POST {
        return Err(refuse(StatusCode::NOT_FOUND, "administration is POST /admin"));
    }
    let body = Limited::new(request.into_body(), limits::ADMIN_BODY_BYTES).collect();
    let body = tokio::time::timeout(limits::BODY_TIME, body)
        .await
        .map_err(|_| refuse(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive"))?
        .map_err(|error| refuse(StatusCode::BAD_REQUEST, format!("the body: {error}")))?;
    let request: Request = serde_json::from_slice(&body.to_bytes())
        .map_err(|error| refuse(StatusCode::BAD_REQUEST, format!("the body: {error}")))?;
    let reply =
        service.administer(actor, request).await.map_err(|refused| refuse(status(refused.kind), refused.message))?;
    Ok(axum::Json(reply).into_response())
}

const fn status(kind: RefusedKind) -> StatusCode {
    match kind {
        RefusedKind::Invalid => StatusCode::BAD_REQUEST,
        RefusedKind::Forbidden => StatusCode::FORBIDDEN,
        RefusedKind::NotFound => StatusCode::NOT_FOUND,
        RefusedKind::Conflict => StatusCode::CONFLICT,
        RefusedKind::Busy => StatusCode::TOO_MANY_REQUESTS,
        RefusedKind::Full => StatusCode::INSUFFICIENT_STORAGE,
        RefusedKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
