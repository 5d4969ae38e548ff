//! Figures for Prometheus, told to whoever asks from this machine.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode, header};
use tokio::net::TcpListener;

/// Serves `/metrics` with what `text` gives until `ended` resolves. The listener is one of loopback.
pub async fn serve_metrics<F, R>(listener: TcpListener, text: F, ended: impl Future<Output = ()> + Send + 'static)
where
    F: Fn() -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<String, Response>> + Send,
{
    let router = Router::new().route("/metrics", get(move |headers: HeaderMap| answer(headers, text.clone())));
    let _ = axum::serve(listener, router).with_graceful_shutdown(ended).await;
}

/// Reachable from this machine only, so a web page could get here only under a name of its own for the loopback
/// address: the `Host` has to be an address or `localhost`.
async fn answer<F, R>(headers: HeaderMap, text: F) -> Response
where
    F: Fn() -> R,
    R: Future<Output = Result<String, Response>>,
{
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    if name != "localhost" && host.parse::<SocketAddr>().is_err() && host.parse::<IpAddr>().is_err() {
        return (StatusCode::FORBIDDEN, "ask for this by address or as localhost").into_response();
    }
    match text().await {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0")], text).into_response(),
        Err(refusal) => refusal,
    }
}
