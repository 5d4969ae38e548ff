//! systemd-resolved on the system's bus (org.freedesktop.resolve1(5)): what it is told of our link, and what it says.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use warren_core::dns::host::{HostNames, ResolvConfMode};
use warren_core::types::RESOLVER_ADDRESSES;
use zbus::proxy::CacheProperties;
use zbus::{Connection, Proxy};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);
const SOCKET: &str = "/run/dbus/system_bus_socket";
const RESOLVED: &str = "org.freedesktop.resolve1";
const PATH: &str = "/org/freedesktop/resolve1";
const MANAGER: &str = "org.freedesktop.resolve1.Manager";
const LINK: &str = "org.freedesktop.resolve1.Link";
const NETWORK_MANAGER: &str = "org.freedesktop.NetworkManager";
// Families as they are told (`AF_INET`, `AF_INET6`).
const INET: i32 = 2;
const INET6: i32 = 10;

/// A connection to the bus, made when it is needed.
pub(super) struct Bus {
    /// Where it is, if anywhere.
    socket: Option<&'static Path>,
    connection: Option<Connection>,
}

impl Bus {
    pub(super) fn of_system() -> Self {
        Self { socket: Some(Path::new(SOCKET)), connection: None }
    }

    /// For a host without one.
    #[cfg(test)]
    pub(super) const fn none() -> Self {
        Self { socket: None, connection: None }
    }

    async fn proxy(
        &mut self,
        name: &'static str,
        path: String,
        interface: &'static str,
    ) -> zbus::Result<Proxy<'static>> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None if !self.socket.is_some_and(Path::exists) => {
                return Err(zbus::Error::Failure("there is no bus".to_owned()));
            }
            None => {
                let built = zbus::connection::Builder::system().method_timeout(ANSWER).build();
                match tokio::time::timeout(ANSWER, built).await {
                    Ok(connection) => connection?,
                    Err(_) => return Err(zbus::Error::Failure("the bus does not answer".to_owned())),
                }
            }
        };
        let proxy = zbus::proxy::Builder::new(&connection).destination(name).path(path).interface(interface);
        let proxy = proxy.cache_properties(CacheProperties::No).build().await;
        self.connection = Some(connection);
        proxy
    }

    async fn manager(&mut self) -> zbus::Result<Proxy<'static>> {
        self.proxy(RESOLVED, PATH.to_owned(), MANAGER).await
    }

    /// How systemd-resolved sees the file; nothing where it is not there. Asking starts it where it is to run.
    pub(super) async fn resolv_conf_mode(&mut self) -> Option<ResolvConfMode> {
        let peer = self.proxy(RESOLVED, PATH.to_owned(), "org.freedesktop.DBus.Peer").await.ok()?;
        if let Err(error) = peer.call::<_, _, ()>("Ping", &()).await {
            tracing::debug!(%error, "systemd-resolved is not there");
            // It may be the bus that was started anew.
            self.connection = None;
            return None;
        }
        let mode = self.manager().await.ok()?.get_property::<String>("ResolvConfMode").await;
        Some(mode.map_or(ResolvConfMode::Unknown, |mode| ResolvConfMode::from(mode.as_str())))
    }

    /// The version of NetworkManager, where it runs.
    pub(super) async fn network_manager(&mut self) -> Option<(u32, u32, u32)> {
        let bus = self
            .proxy("org.freedesktop.DBus", "/org/freedesktop/DBus".to_owned(), "org.freedesktop.DBus")
            .await
            .ok()?;
        if !bus.call::<_, _, bool>("NameHasOwner", &NETWORK_MANAGER).await.ok()? {
            return None;
        }
        let manager =
            self.proxy(NETWORK_MANAGER, "/org/freedesktop/NetworkManager".to_owned(), NETWORK_MANAGER).await.ok()?;
        let version = manager.get_property::<String>("Version").await.ok()?;
        let mut numbers = version.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
        Some((numbers.next()?, numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)))
    }

    /// Whether the link is as it should be: who is asked there for what.
    pub(super) async fn is_told(&mut self, index: i32, names: &HostNames) -> bool {
        let path = match self.manager().await {
            Ok(manager) => manager.call::<_, _, zbus::OwnedObjectPath>("GetLink", &index).await,
            Err(error) => Err(error),
        };
        let Ok(path) = path else { return false };
        let Ok(link) = self.proxy(RESOLVED, path.to_string(), LINK).await else { return false };
        let told = link.get_property::<Vec<(String, bool)>>("Domains").await.unwrap_or_default();
        let servers = link.get_property::<Vec<(i32, Vec<u8>)>>("DNS").await.unwrap_or_default();
        let of_ours = addresses(names).into_iter().map(|(family, address, ..)| (family, address)).collect::<Vec<_>>();
        let sorted = |mut domains: Vec<(String, bool)>| {
            domains.sort();
            domains
        };
        servers == of_ours && sorted(told) == sorted(domains(names))
    }

    /// Tells systemd-resolved to ask us, at this link, for these names.
    pub(super) async fn tell(&mut self, index: i32, names: &HostNames) -> zbus::Result<()> {
        let manager = self.manager().await?;
        // Names before servers: without those nobody is asked for anything. Absent in old versions, and of no weight there.
        let _: zbus::Result<()> = manager.call("SetLinkDefaultRoute", &(index, names.everything)).await;
        let domains = domains(names);
        if manager.call::<_, _, ()>("SetLinkDomains", &(index, &domains)).await.is_err() {
            // While a list takes the place of another, those of both count against its limit.
            let none: [(String, bool); 0] = [];
            manager.call::<_, _, ()>("SetLinkDomains", &(index, &none[..])).await?;
            manager.call::<_, _, ()>("SetLinkDomains", &(index, &domains)).await?;
        }
        let set: zbus::Result<()> = manager.call("SetLinkDNSEx", &(index, addresses(names))).await;
        if let Err(error) = set {
            // Before 246 there is no port to be said.
            if !names.has_port_53 {
                return Err(error);
            }
            let plain: Vec<_> = addresses(names).into_iter().map(|(family, address, ..)| (family, address)).collect();
            manager.call::<_, _, ()>("SetLinkDNS", &(index, plain)).await?;
        }
        for method in ["SetLinkLLMNR", "SetLinkMulticastDNS", "SetLinkDNSOverTLS", "SetLinkDNSSEC"] {
            let _: zbus::Result<()> = manager.call(method, &(index, "no")).await;
        }
        let _: zbus::Result<()> = manager.call("FlushCaches", &()).await;
        Ok(())
    }

    /// Takes everything back.
    pub(super) async fn revert(&mut self, index: i32) -> zbus::Result<()> {
        let manager = self.manager().await?;
        manager.call::<_, _, ()>("RevertLink", &index).await?;
        let _: zbus::Result<()> = manager.call("FlushCaches", &()).await;
        Ok(())
    }
}

/// Who is asked: our addresses, at our own port, which needs no translation.
fn addresses(names: &HostNames) -> Vec<(i32, Vec<u8>, u16, &'static str)> {
    let server = |address: IpAddr| match address {
        IpAddr::V4(address) => (INET, address.octets().to_vec(), names.port, ""),
        IpAddr::V6(address) => (INET6, address.octets().to_vec(), names.port, ""),
    };
    RESOLVER_ADDRESSES.into_iter().map(server).collect()
}

/// For what: each domain, and whether it is no search domain.
fn domains(names: &HostNames) -> Vec<(String, bool)> {
    let search = names.search.iter().map(|domain| (domain.to_string(), false));
    let routes = names.routes.iter().filter(|route| !names.search.contains(route));
    let everything = names.everything.then(|| (".".to_owned(), true));
    // It takes 256 in all, and none at all of more.
    let all = search.chain(everything).chain(routes.map(|domain| (domain.to_string(), true)));
    all.take(256).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_searched_or_only_asked_for_and_none_is_said_twice() {
        let parse = |name: &str| name.parse().unwrap();
        let names = HostNames {
            routes: vec![parse("corp.example"), parse("other.example")],
            search: vec![parse("corp.example")],
            everything: true,
            port: 5353,
            has_port_53: false,
        };
        let told = domains(&names);
        let told: Vec<_> = told.iter().map(|(name, only)| (name.as_str(), *only)).collect();
        assert_eq!(told, [("corp.example", false), (".", true), ("other.example", true)]);
        assert_eq!(addresses(&names)[0], (2, vec![100, 100, 100, 100], 5353, ""));
        assert_eq!(addresses(&names)[1].1.len(), 16);
    }
}
