//! What the coordinator counts, and the listener on loopback that tells it.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use super::ending::Ending;
use super::http::refuse;
use super::hub::Hub;
use crate::io::serve_metrics;
use crate::relay::{self, Relay};

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
    fn text(&self, nodes: usize, relay: Option<&Relay>) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("warren_coordinator");
        registry.register("map_streams", "Map streams open", self.streams.clone());
        registry.register("nodes", "Nodes registered", gauge(nodes));
        registry.register("map_streams_dropped", "Map streams ended for reading too slowly", self.dropped.clone());
        registry.register("handshakes", "Noise handshakes that succeeded", self.handshakes.clone());
        registry.register("requests_deferred", "Requests told to come again later", self.refused.clone());
        if let Some(relay) = relay {
            relay::register_metrics(registry.sub_registry_with_prefix("relay"), relay);
        }
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
pub(crate) async fn serve(
    listener: TcpListener,
    hub: Hub,
    metrics: Arc<Metrics>,
    relay: Option<Arc<Relay>>,
    mut ending: Ending,
) {
    let text = move || {
        let (hub, metrics, relay) = (hub.clone(), Arc::clone(&metrics), relay.clone());
        async move { answer(&hub, &metrics, relay.as_deref()).await }
    };
    serve_metrics(listener, text, async move { ending.wait().await }).await;
}

async fn answer(hub: &Hub, metrics: &Metrics, relay: Option<&Relay>) -> Result<String, Response> {
    let nodes = hub.health().await.map_err(IntoResponse::into_response)?.nodes;
    metrics.text(nodes, relay).map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}
