//! The face to machines: the server's key, then HTTP/2 inside a Noise channel, where they register and follow the map.
//!
//! ```text
//! /ts2021 ──> noise (upgrade, handshake, HTTP/2) ──> machine (register, map) ──> service
//!                                                        │ machines: what one machine has of us at once
//!                     node <── map_body (zstd, keep-alives) <── a bounded queue per stream
//! ```

mod machine;
mod machines;
mod map_body;
mod noise;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use http::StatusCode;
use serde::Deserialize;
use tokio::sync::Semaphore;
use warren_core::registry;
use warren_core::types::{CapabilityVersion, MachinePublic};
use warren_core::wire::control::OverTlsPublicKeys;

use super::answer::refuse;
use super::connection::{PublicUrl, SiteRate};
use crate::limits;
use crate::metrics::Metrics;
use crate::service::Service;
use machines::Machines;

/// What this face uses.
pub(crate) struct NodeFace {
    service: Service,
    /// How nodes reach us.
    url: Arc<PublicUrl>,
    metrics: Arc<Metrics>,
    /// Places for the large request bodies that are read at once.
    large_bodies: Semaphore,
    /// New Noise channels of a site: each costs elliptic-curve multiplications.
    handshakes: Arc<SiteRate>,
    /// Requests to register of a site, by whatever machine.
    registrations: Arc<SiteRate>,
    /// What each machine has of us at once.
    machines: Arc<Machines>,
}

impl NodeFace {
    pub(crate) fn new(service: Service, url: Arc<PublicUrl>, metrics: Arc<Metrics>, handshakes: Arc<SiteRate>) -> Self {
        Self {
            service,
            url,
            metrics,
            large_bodies: Semaphore::new(limits::LARGE_BODIES),
            handshakes,
            registrations: SiteRate::new(limits::REGISTRATION_RATE),
            machines: Machines::new(),
        }
    }
}

pub(crate) fn routes(face: NodeFace) -> Router {
    Router::new()
        .route("/key", get(key))
        .route("/ts2021", any(noise::upgrade))
        .route("/machine/ping-response", get(ping_response))
        .with_state(Arc::new(face))
}

#[derive(Deserialize)]
struct KeyQuery {
    v: Option<u32>,
}

async fn key(State(face): State<Arc<NodeFace>>, Query(query): Query<KeyQuery>) -> Response {
    let Some(version) = query.v else {
        return refuse(StatusCode::BAD_REQUEST, "say which capability version you speak: /key?v=NUMBER");
    };
    if let Some(refusal) = too_old(CapabilityVersion(version)) {
        return refusal;
    }
    // The legacy key served protocols from before Noise, which nobody speaks here.
    let keys = OverTlsPublicKeys { legacy_public_key: MachinePublic::default(), public_key: face.service.public_key() };
    axum::Json(keys).into_response()
}

/// Refuses a client of a version that is not served.
fn too_old(version: CapabilityVersion) -> Option<Response> {
    registry::State::check_version(version).err().map(|refusal| refuse(StatusCode::BAD_REQUEST, refusal.to_string()))
}

/// The answer to a ping that came outside of Noise, where we send none.
async fn ping_response() -> Response {
    refuse(StatusCode::NOT_FOUND, "no such ping")
}
