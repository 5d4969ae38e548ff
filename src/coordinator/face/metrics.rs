//! `/metrics`: the figures, on a port of this host's own.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use super::answer::refuse;
use crate::ending::Ending;
use crate::metrics::Metrics;
use crate::service::{Health, Service};
use warren_relay::Relay;
use warren_shell::{Places, serve_metrics};

fn text(metrics: &Metrics, health: &Health, relay: Option<&Relay>, places: &Places) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("warren_coordinator");
    registry.register("map_streams", "Map streams open", metrics.streams.clone());
    registry.register("nodes", "Nodes registered", gauge(health.nodes));
    registry.register("warnings", "Nodes whose key two machines use", gauge(health.warnings.len()));
    registry.register(
        "node_changes_held_back",
        "Changes of nodes passed on later than they came, for coming too often",
        ConstCounter::new(health.held_back),
    );
    registry.register("map_streams_dropped", "Map streams ended for reading too slowly", metrics.dropped.clone());
    registry.register("handshakes", "Noise handshakes that succeeded", metrics.handshakes.clone());
    registry.register("requests_deferred", "Requests told to come again later", metrics.refused.clone());
    registry.register("map_streams_stalled", "Connections ended for taking nothing of a map", metrics.stalled.clone());
    registry.register(
        "log_lines_suppressed",
        "Lines not logged, of addresses that cause many",
        metrics.unlogged.clone(),
    );
    let (strangers, refused, displaced) = places.counts();
    registry.register("connections_of_strangers", "Connections that no node proved to be its own", gauge(strangers));
    registry.register(
        "connections_refused",
        "Connections closed because their address had too many",
        ConstCounter::new(refused),
    );
    registry.register("connections_displaced", "Connections of strangers that made room", ConstCounter::new(displaced));
    if let Some(relay) = relay {
        warren_relay::register_metrics(registry.sub_registry_with_prefix("relay"), relay);
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
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
    service: Service,
    metrics: Arc<Metrics>,
    (relay, places): (Option<Arc<Relay>>, Arc<Places>),
    mut ending: Ending,
) {
    let text = move || {
        let (service, metrics, relay, places) =
            (service.clone(), Arc::clone(&metrics), relay.clone(), Arc::clone(&places));
        async move { answer(&service, &metrics, relay.as_deref(), &places).await }
    };
    serve_metrics(listener, text, async move { ending.wait().await }).await;
}

async fn answer(
    service: &Service,
    metrics: &Metrics,
    relay: Option<&Relay>,
    places: &Places,
) -> Result<String, Response> {
    let health = service.health().await.map_err(IntoResponse::into_response)?;
    text(metrics, &health, relay, places).map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}
