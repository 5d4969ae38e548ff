//! What the coordinator counts, and the listener on loopback that tells it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode, header};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use super::ending::Ending;
use super::http::refuse;
use super::hub::Hub;

/// The figures.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Map streams open at this moment.
    pub(crate) streams: Gauge,
    /// Map streams ended because their node read too slowly.
    pub(crate) dropped: Counter,
    /// Noise handshakes that succeeded.
    pub(crate) handshakes: Counter,
    /// Requests told to come again later.
    pub(crate) refused: Counter,
}

impl Metrics {
    fn text(&self, nodes: usize) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("warren_coordinator");
        registry.register("map_streams", "Map streams open", self.streams.clone());
        registry.register("nodes", "Nodes registered", gauge(nodes));
        registry.register("map_streams_dropped", "Map streams ended for reading too slowly", self.dropped.clone());
        registry.register("handshakes", "Noise handshakes that succeeded", self.handshakes.clone());
        registry.register("requests_deferred", "Requests told to come again later", self.refused.clone());
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// A gauge of this value.
fn gauge(value: usize) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    gauge
}

/// Serves `/metrics` until `ending` turns true.
pub(crate) async fn serve(listener: TcpListener, hub: Hub, metrics: Arc<Metrics>, mut ending: Ending) {
    let router = Router::new().route("/metrics", get(answer)).with_state((hub, metrics));
    let ended = async move {
        ending.wait().await;
    };
    let _ = axum::serve(listener, router).with_graceful_shutdown(ended).await;
}

/// Reachable from this machine only, so a web page could get here only under a name of its own for the loopback
/// address: the `Host` has to be an address or `localhost`.
async fn answer(State((hub, metrics)): State<(Hub, Arc<Metrics>)>, headers: HeaderMap) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    if name != "localhost" && host.parse::<SocketAddr>().is_err() && host.parse::<std::net::IpAddr>().is_err() {
        return refuse(StatusCode::FORBIDDEN, "ask for this by address or as localhost");
    }
    let nodes = match hub.health().await {
        Ok(health) => health.nodes,
        Err(busy) => return busy.into_response(),
    };
    match metrics.text(nodes) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0")], text).into_response(),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
