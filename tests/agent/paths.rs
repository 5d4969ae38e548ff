//! How two agents find each other: through the relay at once, directly as soon as the network allows.

use std::net::SocketAddr;
use std::time::Duration;

use crate::ether::{Ether, REGION};
use crate::scene::{Agent, SharedKernel};
use crate::server::Server;
use tempfile::{TempDir, tempdir};
use warren_core::node::Settings;
use warren_core::plan::Observed;
use warren_core::types::NodePublic;
use warren_core::wire::local::PingKind;

const RELAY_PORT: u16 = 41_742;

/// Two agents that are in, on a network that is a value.
struct Pair {
    ether: Ether,
    ada: Agent,
    bob: Agent,
    bobs_key: NodePublic,
    ada_root: TempDir,
    _bob_root: TempDir,
    _server: Server,
}

impl Pair {
    async fn new() -> Self {
        let (server, ether) = (Server::start(&[]), Ether::default());
        let (ada_root, ada) = joined(&server, &ether, 1, "ada").await;
        let (bob_root, bob) = joined(&server, &ether, 2, "bob").await;
        let bobs_key = bob.client.status(false).await.unwrap().this.public_key;
        let relayed = |state: &Observed| {
            let peers = state.device.iter().flat_map(|device| device.peers.values());
            peers.filter(|peer| peer.endpoint.is_some_and(|endpoint| endpoint.ip().is_loopback())).count() == 1
        };
        ada.kernel.until("knowing bob and his relay", relayed).await;
        bob.kernel.until("knowing ada and her relay", relayed).await;
        let adas_key = ada.client.status(false).await.unwrap().this.public_key;
        // The pumps are told by a pipe of their own.
        while ether.told(at(1), &bobs_key).is_none() || ether.told(at(2), &adas_key).is_none() {
            tokio::task::yield_now().await;
        }
        Self { ether, ada, bob, bobs_key, ada_root, _bob_root: bob_root, _server: server }
    }

    /// Where ada's kernel sends what is for bob.
    fn endpoint(&self) -> Option<SocketAddr> {
        endpoint_in(&self.ada.kernel.state(), &self.bobs_key)
    }

    async fn until_endpoint(&self, what: &str, wanted: SocketAddr) {
        let is_there = |state: &Observed| endpoint_in(state, &self.bobs_key) == Some(wanted);
        self.ada.kernel.until(what, is_there).await;
    }
}

fn endpoint_in(state: &Observed, key: &NodePublic) -> Option<SocketAddr> {
    state.device.as_ref()?.peers.get(key)?.endpoint
}

fn at(n: u8) -> SocketAddr {
    format!("10.0.0.{n}:41741").parse().unwrap()
}

/// Tenths of a second that pass until then, counted as this runtime has time for them: where the machine stands still or is
/// slow, so is the count, as are the agents that share the runtime.
async fn tenths(until: impl Future<Output = ()>) -> u32 {
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut until = std::pin::pin!(until);
    let mut count = 0;
    loop {
        tokio::select! {
            biased;
            () = &mut until => return count,
            _ = ticks.tick() => count += 1,
        }
    }
}

fn settings() -> Settings {
    Settings { port: 41_741, relay_port: Some(RELAY_PORT), probe_port: Some(41_743), ..Settings::default() }
}

async fn joined(server: &Server, ether: &Ether, n: u8, name: &str) -> (TempDir, Agent) {
    let root = tempdir().unwrap();
    let network = ether.join(at(n));
    let agent =
        Agent::start_in(root.path(), SharedKernel::default(), settings(), &format!("10.0.0.{n}/24"), network).await;
    let key = server.key(&[]);
    let up = ["up", "--coordinator", &server.url(), "--auth-key", &key, "--hostname", name];
    assert_eq!(agent.warren(&up).await, (0, String::new()));
    (root, agent)
}

#[tokio::test]
async fn a_peer_begins_at_its_relay_and_the_pump_knows_where_that_is() {
    let pair = Pair::new().await;
    let told = pair.ether.told(at(1), &pair.bobs_key).unwrap();
    assert_eq!((told.region, told.direct), (Some(REGION), None));
    let loopback = SocketAddr::new(told.loopback.into(), RELAY_PORT);
    pair.until_endpoint("at the relay's loopback address", loopback).await;
}

#[tokio::test]
async fn a_ping_comes_back_through_the_relay_and_directly_once_the_network_allows() {
    let pair = Pair::new().await;
    pair.ether.forbid_direct(true);

    let (exit, said) = pair.ada.warren(&["ping", "-c", "1", "bob"]).await;
    assert_eq!(exit, 1, "{said}");
    let (exit, said) = pair.ada.warren(&["ping", "-c", "1", "--until-direct=false", "bob"]).await;
    assert_eq!(exit, 0, "{said}");
    assert!(said.starts_with("pong from bob (100.64.0.2) via relay warren in "), "{said}");

    pair.ether.forbid_direct(false);
    let (exit, said) = pair.ada.warren(&["ping", "bob"]).await;
    assert_eq!(exit, 0, "{said}");
    assert!(said.contains("pong from bob (100.64.0.2) via 10.0.0.2:41741 in "), "{said}");
}

#[tokio::test]
async fn a_handshake_of_the_kernel_wakes_discovery_and_kernel_and_pump_go_direct() {
    let pair = Pair::new().await;

    pair.ether.begin_handshake(at(1), pair.bobs_key).await;

    pair.until_endpoint("direct", at(2)).await;
    let direct = pair.ether.told(at(1), &pair.bobs_key).unwrap().direct.unwrap();
    assert_eq!(direct.endpoint, at(2));
    let status = pair.ada.client.status(true).await.unwrap();
    assert_eq!(status.peer[&pair.bobs_key].cur_addr, "10.0.0.2:41741");
}

#[tokio::test]
async fn a_path_that_falls_silent_goes_back_to_the_relay_within_seven_seconds() {
    let pair = Pair::new().await;
    let relay = pair.endpoint().unwrap();
    pair.ether.begin_handshake(at(1), pair.bobs_key).await;
    pair.until_endpoint("direct", at(2)).await;

    pair.ether.forbid_direct(true);
    let took = tenths(pair.until_endpoint("back at the relay", relay)).await;

    // Its last sign of life may be a moment old.
    assert!(took < 80, "{took} tenths of a second");
    assert_eq!(pair.ether.told(at(1), &pair.bobs_key).unwrap().direct, None);
}

#[tokio::test]
async fn an_address_that_goes_takes_its_paths_back_to_the_relay_at_once() {
    is_back_at_the_relay_after(async |ada| ada.readdress(&["192.0.2.7/24"]).await).await;
}

#[tokio::test]
async fn an_address_that_stays_without_a_carrier_takes_its_paths_back_to_the_relay_at_once() {
    is_back_at_the_relay_after(async |ada| ada.pull_the_cable(&["10.0.0.1/24", "192.0.2.7/24"]).await).await;
}

async fn is_back_at_the_relay_after(change: impl AsyncFnOnce(&Agent)) {
    let pair = Pair::new().await;
    let relay = pair.endpoint().unwrap();
    pair.ether.begin_handshake(at(1), pair.bobs_key).await;
    pair.until_endpoint("direct", at(2)).await;

    pair.ether.forbid_direct(true);
    change(&pair.ada).await;
    let took = tenths(pair.until_endpoint("back at the relay", relay)).await;

    assert!(took < 30, "{took} tenths of a second");
}

#[tokio::test]
async fn a_killed_agent_comes_back_without_moving_a_direct_peer() {
    let Pair { ether, ada, bob, bobs_key, ada_root, _bob_root, _server } = Pair::new().await;
    ether.begin_handshake(at(1), bobs_key).await;
    let kernel = ada.kernel.clone();
    kernel.until("direct", |state| endpoint_in(state, &bobs_key) == Some(at(2))).await;
    kernel.meddle(|state| {
        let peer = state.device.as_mut().unwrap().peers.get_mut(&bobs_key).unwrap();
        peer.last_handshake = Some(warren_core::types::Timestamp::now());
    });
    ada.kill().await;
    kernel.take_applied();

    let network = ether.join(at(1));
    let ada = Agent::start_in(ada_root.path(), kernel.clone(), settings(), "10.0.0.1/24", network).await;
    ada.until("settled", |status| status.warren.converged && status.warren.coordinator_connected).await;

    assert_eq!(kernel.take_applied(), Vec::<String>::new());
    assert_eq!(endpoint_in(&kernel.state(), &bobs_key), Some(at(2)));
    assert_eq!(ether.told(at(1), &bobs_key).unwrap().direct.map(|direct| direct.endpoint), Some(at(2)));
    drop(bob);
}

#[tokio::test]
async fn without_a_relay_two_machines_still_reach_each_other_directly() {
    let pair = Pair::new().await;
    pair.ether.forbid_relay(true);
    let (exit, said) = pair.bob.warren(&["ping", "ada"]).await;
    assert_eq!(exit, 0, "{said}");
    assert!(said.contains("via 10.0.0.1:41741"), "{said}");
}

#[tokio::test]
async fn the_relays_are_listed_with_the_home_and_pings_to_nobody_say_why() {
    let pair = Pair::new().await;

    let (exit, relays) = pair.ada.warren(&["derp-map"]).await;
    assert_eq!(exit, 0, "{relays}");
    assert!(relays.contains("900  warren") && relays.contains("home connected"), "{relays}");

    for (target, reason) in
        [("100.64.0.1", "100.64.0.1 is local Tailscale IP"), ("100.64.0.99", "no peer has this address")]
    {
        let reply = pair.ada.client.ping(target.parse().unwrap(), PingKind::Disco).await.unwrap();
        assert_eq!((reply.err.as_str(), reply.is_local_ip), (reason, target == "100.64.0.1"));
    }
    let (exit, said) = pair.ada.warren(&["ping", "nobody"]).await;
    assert_eq!((exit, said.as_str()), (1, "no peer is called nobody"));
}
