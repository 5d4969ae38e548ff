//! `/health`: what is wrong, for whoever watches. It says nothing secret and changes nothing.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use serde::Serialize;

use super::answer::later;
use super::connection::{Connection, PublicUrl, SiteRate};
use crate::limits;
use crate::service::Service;

/// What this face uses.
pub(crate) struct HealthFace {
    pub(crate) service: Service,
    pub(crate) url: Arc<PublicUrl>,
    pub(crate) questions: Arc<SiteRate>,
}

pub(crate) fn routes(face: HealthFace) -> Router {
    let robots = get(async || "User-agent: *\nDisallow: /\n");
    Router::new().route("/health", get(health)).route("/robots.txt", robots).with_state(Arc::new(face))
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    /// What is not as it should be, and stops nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

async fn health(State(face): State<Arc<HealthFace>>, Extension(connection): Extension<Connection>) -> Response {
    if let Err(after) = face.questions.take(&connection.place) {
        return later(after);
    }
    let (output, mut warnings) = match tokio::time::timeout(limits::HUB_PATIENCE, face.service.health()).await {
        Ok(Ok(health)) => (health.fault, health.warnings),
        _ => (Some("the registry does not answer".to_owned()), Vec::new()),
    };
    warnings.extend(face.url.warning().map(str::to_owned));
    let (code, status) = match output {
        None => (StatusCode::OK, "pass"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "fail"),
    };
    (code, axum::Json(Health { status, output, warnings })).into_response()
}
