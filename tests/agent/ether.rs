//! A network of agents that is a value: datagrams between their addresses, one relay, and what a test forbids.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use warren_agent::relay_pump::ToPump;
use warren_agent::{DatagramSender, Network};
use warren_core::node::{PumpCommand, PumpNews, PumpPeer, RegionState};
use warren_core::types::{NodePrivate, NodePublic, RegionId};
use warren_core::wire::stun;
use warren_linux::packet::Datagram;

/// The region of the coordinator's own relay.
pub const REGION: RegionId = RegionId(900);
const STUN_PORT: u16 = 3_478;

/// See the module.
#[derive(Clone, Default)]
pub struct Ether {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    hosts: BTreeMap<SocketAddr, Host>,
    no_direct: bool,
    no_relay: bool,
}

struct Host {
    datagrams: mpsc::Sender<Datagram>,
    news: mpsc::Sender<PumpNews>,
    key: Option<NodePublic>,
    told: BTreeMap<NodePublic, PumpPeer>,
}

impl Ether {
    /// The ways into the network of an agent at this address, in place of one that was there before.
    pub fn join(&self, address: SocketAddr) -> Network {
        let (datagrams_in, datagrams) = mpsc::channel(64);
        let (news_in, news) = mpsc::channel(64);
        let (commands_in, mut commands) = mpsc::channel(64);
        let host = Host { datagrams: datagrams_in, news: news_in.clone(), key: None, told: BTreeMap::new() };
        self.state.lock().unwrap().hosts.insert(address, host);
        let ether = self.clone();
        tokio::spawn(async move {
            // Ours to keep open: the state's copy goes when the address is taken anew.
            let _news = news_in;
            while let Some(asked) = commands.recv().await {
                if let ToPump::Command(command) = asked {
                    ether.carry_out(address, command);
                }
            }
        });
        let port = Port { ether: self.clone(), address };
        Network {
            datagrams: Some(datagrams),
            send: Some(Box::new(port)),
            pump: Some((commands_in, news)),
            ..Network::default()
        }
    }

    /// Loses every datagram between agents from here on, or no more. STUN goes on.
    pub fn forbid_direct(&self, forbidden: bool) {
        self.state.lock().unwrap().no_direct = forbidden;
    }

    /// Loses what goes through the relay.
    pub fn forbid_relay(&self, forbidden: bool) {
        self.state.lock().unwrap().no_relay = forbidden;
    }

    /// The kernel's handshake with a peer begins at the relay's loopback address.
    pub async fn begin_handshake(&self, address: SocketAddr, peer: NodePublic) {
        let news = self.state.lock().unwrap().hosts[&address].news.clone();
        let mut packet = vec![0; 148];
        packet[0] = 1;
        news.send(PumpNews::Initiation { peer, packet }).await.unwrap();
    }

    /// What the pump of an agent was last told of a peer.
    pub fn told(&self, address: SocketAddr, peer: &NodePublic) -> Option<PumpPeer> {
        self.state.lock().unwrap().hosts[&address].told.get(peer).copied()
    }

    fn carry_out(&self, address: SocketAddr, command: PumpCommand) {
        let mut state = self.state.lock().unwrap();
        let Some(host) = state.hosts.get_mut(&address) else { return };
        match command {
            PumpCommand::Key(key) => host.key = key.as_ref().map(NodePrivate::public),
            PumpCommand::Home(Some(region)) => {
                let _ = host.news.try_send(PumpNews::Region { region, state: RegionState::Connected });
            }
            PumpCommand::Peer { key, entry: Some(entry) } => drop(host.told.insert(key, entry)),
            PumpCommand::Peer { key, entry: None } => drop(host.told.remove(&key)),
            PumpCommand::Disco { region, peer, payload } => {
                let Some(from) = host.key.filter(|_| !state.no_relay) else { return };
                let to = state.hosts.values().find(|host| host.key == Some(peer));
                if let Some(to) = to.filter(|to| to.told.contains_key(&from)) {
                    let _ = to.news.try_send(PumpNews::Disco { region, from, payload });
                }
            }
            _ => {}
        }
    }

    fn deliver(&self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let state = self.state.lock().unwrap();
        if to.port() == STUN_PORT {
            let Ok(transaction) = stun::read_request(payload) else { return };
            let payload = stun::response(transaction, from);
            let answer = Datagram { from: to, local: Some(from.ip()), payload };
            let _ = state.hosts[&from].datagrams.try_send(answer);
        } else if let Some(host) = state.hosts.get(&to).filter(|_| !state.no_direct) {
            let datagram = Datagram { from, local: Some(to.ip()), payload: payload.to_vec() };
            let _ = host.datagrams.try_send(datagram);
        }
    }
}

struct Port {
    ether: Ether,
    address: SocketAddr,
}

impl DatagramSender for Port {
    fn send(&mut self, to: SocketAddr, _from: Option<IpAddr>, payload: &[u8]) -> std::io::Result<()> {
        self.ether.deliver(self.address, to, payload);
        Ok(())
    }

    fn handle_network_changed(&mut self) {}
}
