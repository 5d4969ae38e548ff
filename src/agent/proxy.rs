//! Tunnels through the proxies that the environment names.

use std::net::IpAddr;

use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::net::TcpStream;
use tower::Service;

use super::control_io::chain;

/// The proxy on the way to a place, if there is one. A relay on this host is not a proxy's to reach, whatever the
/// environment says; the official client agrees (net/http, `ProxyFromEnvironment`).
pub(super) fn towards(proxies: &Matcher, to: &Uri) -> Option<Intercept> {
    let host = to.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_here = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    proxies.intercept(to).filter(|_| !is_here)
}

/// Asks a proxy for a tunnel (RFC 9110 §9.3.6). The name is the proxy's to look up.
pub(super) async fn tunnel(proxy: &Intercept, to: Uri, connector: HttpConnector) -> Result<TcpStream, String> {
    let place = proxy.uri().authority().map_or_else(String::new, ToString::to_string);
    if proxy.uri().scheme_str() != Some("http") {
        return Err(format!("proxy {place}: only proxies with an http:// address are supported"));
    }
    let mut tunnel = Tunnel::new(proxy.uri().clone(), connector);
    if let Some(auth) = proxy.basic_auth() {
        tunnel = tunnel.with_auth(auth.clone());
    }
    let dialled = tunnel.call(to).await;
    Ok(dialled.map_err(|error| format!("proxy {place}: {}", chain(&error)))?.into_inner())
}
