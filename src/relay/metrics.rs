//! A relay's figures for Prometheus: neither keys nor addresses.

use std::sync::Arc;

use axum::response::IntoResponse;
use http::StatusCode;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use super::Relay;
use warren_shell::serve_metrics;

/// Adds a relay's figures of this moment.
pub fn register(registry: &mut Registry, relay: &Relay) {
    let (counters, tally) = (relay.counters(), relay.tally());
    let (connections, homes) = relay.connected();
    for (name, help, value) in [
        ("connections", "Clients and other relays connected", connections),
        ("homes", "Clients that call this relay their home", homes),
        ("remote_keys", "Keys connected to other relays of the region", relay.remote_keys()),
    ] {
        registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
    }
    for (name, help, value) in [
        ("packets_received", "Packets from clients", counters.packets_in),
        ("bytes_received", "Bytes of packets from clients", counters.bytes_in),
        ("packets_sent", "Packets queued for clients and other relays", counters.packets_out),
        ("bytes_sent", "Bytes of packets queued for clients and other relays", counters.bytes_out),
        ("packets_forwarded_in", "Packets from other relays of the region", counters.forwarded_in),
        ("packets_forwarded_out", "Packets to other relays of the region", counters.forwarded_out),
        ("packets_dropped_queue_full", "Packets pushed out by newer ones", counters.dropped_queue_full),
        ("packets_dropped_unknown_peer", "Packets to keys that are not connected", counters.dropped_unknown_peer),
        ("packets_dropped_memory", "Packets dropped for want of memory", counters.dropped_memory),
        ("clients_admitted", "Clients admitted", tally.admitted.get()),
        ("clients_refused", "Clients not admitted", tally.refused.get()),
        ("clients_slow", "Clients closed for not reading or not introducing themselves in time", tally.slow.get()),
        ("clients_broken", "Clients closed for breaking the protocol", tally.broken.get()),
        ("clients_withdrawn", "Clients closed because they are admitted no longer", tally.withdrawn.get()),
        ("connections_too_often", "Connections closed for coming too often from one address", tally.too_often.get()),
    ] {
        registry.register(name, help, ConstCounter::new(value));
    }
}

/// Serves them for as long as the relay runs.
pub(super) async fn serve(listener: TcpListener, relay: Arc<Relay>) {
    let text = move || {
        let relay = Arc::clone(&relay);
        async move { text(&relay).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()) }
    };
    serve_metrics(listener, text, std::future::pending()).await;
}

fn text(relay: &Relay) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("warren_relay");
    register(&mut registry, relay);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}
