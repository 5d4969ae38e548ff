//! Tunnels through the proxies that the environment names.

use std::error::Error;
use std::net::IpAddr;

use hyper::Uri;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use super::DialTarget;
use crate::chain;

const HTTP_PORT: u16 = 80;
const SOCKS_PORT: u16 = 1080;

/// The proxy on the way to a place, if there is one. A place on this host is not a proxy's to reach, whatever the
/// environment says; the official client agrees (net/http, `ProxyFromEnvironment`).
pub(super) fn towards(proxies: &Matcher, to: &Uri) -> Option<Intercept> {
    let host = to.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_here = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    proxies.intercept(to).filter(|_| !is_here)
}

/// Where a proxy is.
pub(super) fn place(proxy: &Uri) -> Result<DialTarget, String> {
    let host = proxy.host().ok_or_else(|| format!("{proxy}: names no proxy"))?;
    let port = if proxy.scheme_str() == Some("http") { HTTP_PORT } else { SOCKS_PORT };
    Ok(DialTarget::new(host, proxy.port_u16().unwrap_or(port)))
}

/// Asks a proxy for a tunnel (RFC 9110 §9.3.6, RFC 1928). The name is the proxy's to look up.
pub(super) async fn tunnel<C>(proxy: &Intercept, to: Uri, connector: C) -> Result<TcpStream, String>
where
    C: Service<Uri, Response = TokioIo<TcpStream>, Error = std::io::Error> + Clone + Send,
    C::Future: Send + 'static,
{
    let name = proxy.uri().authority().map_or_else(String::new, ToString::to_string);
    let failed = |error: &dyn Error| format!("proxy {name}: {}", chain(error));
    match proxy.uri().scheme_str() {
        Some("http") => {
            let mut tunnel = Tunnel::new(proxy.uri().clone(), connector);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            Ok(tunnel.call(to).await.map_err(|error| failed(&error))?.into_inner())
        }
        Some("socks5" | "socks5h") => {
            let mut socks = SocksV5::new(proxy.uri().clone(), connector).local_dns(false);
            if let Some((user, password)) = proxy.raw_auth() {
                socks = socks.with_auth(user.to_owned(), password.to_owned());
            }
            Ok(socks.call(to).await.map_err(|error| failed(&error))?.into_inner())
        }
        _ => Err(format!("proxy {name}: only http://, socks5:// and socks5h:// are supported")),
    }
}
