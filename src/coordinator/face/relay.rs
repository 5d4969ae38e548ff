//! The embedded relay's side of the port, and what other relays ask about their clients.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use warren_core::types::NodePublic;
use warren_relay::Relay;

use super::answer::{later, refuse};
use super::connection::{Connection, SiteRate};
use crate::limits;
use crate::service::Service;

/// What this face uses.
pub(crate) struct RelayFace {
    pub(crate) service: Service,
    /// The embedded relay, where there is one.
    pub(crate) relay: Option<Arc<Relay>>,
    pub(crate) questions: Arc<SiteRate>,
}

pub(crate) fn routes(face: RelayFace) -> Router {
    Router::new()
        .route("/derp", any(embedded))
        .route("/derp/probe", any(embedded))
        .route("/derp/latency-check", any(embedded))
        .route("/generate_204", any(embedded))
        .route("/verify", post(verify))
        .route("/bootstrap-dns", get(bootstrap_dns))
        .with_state(Arc::new(face))
}

/// What is asked of the embedded relay.
async fn embedded(
    State(face): State<Arc<RelayFace>>,
    Extension(connection): Extension<Connection>,
    request: Request,
) -> Response {
    let Some(relay) = &face.relay else {
        return refuse(StatusCode::NOT_FOUND, "this coordinator runs no relay");
    };
    let from = connection.from;
    warren_relay::answer(request, relay, from, connection.place).map(Body::new)
}

/// A relay asks whether it should serve a client.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AdmitRequest {
    node_public: NodePublic,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AdmitResponse {
    allow: bool,
}

async fn verify(
    State(face): State<Arc<RelayFace>>,
    Extension(connection): Extension<Connection>,
    body: Body,
) -> Response {
    if let Err(after) = face.questions.take(&connection.place) {
        return later(after);
    }
    let body = axum::body::to_bytes(body, limits::PLAIN_BODY_BYTES);
    let Ok(Ok(body)) = tokio::time::timeout(limits::BODY_TIME, body).await else {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large or took too long to arrive");
    };
    // Relays do not set a content type, so the body is read as what it has to be.
    let Ok(request) = serde_json::from_slice::<AdmitRequest>(&body) else {
        return refuse(StatusCode::BAD_REQUEST, "the body is not a DERPAdmitClientRequest in JSON");
    };
    match face.service.knows(request.node_public).await {
        Ok(allow) => axum::Json(AdmitResponse { allow }).into_response(),
        Err(busy) => busy.into_response(),
    }
}

/// Addresses of servers a client could not look up by itself. A client asks this of the relays it knows from
/// its map, where they already stand with their addresses.
async fn bootstrap_dns() -> Response {
    axum::Json(serde_json::Map::new()).into_response()
}
