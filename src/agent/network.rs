//! The transports beside the connection to the coordinator: probes in and out, the relay pump, the look at the own network.
//!
//! Each is an ability that the agent can go without: where a socket cannot be opened, a fault says so, and the rest
//! goes on.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::host_pipe::{HostNews, HostPipe};
use super::relay_pump::{self, Pump, PumpConfig, ToPump};
use super::resolver_io::Resolver;
use super::{clock, netcheck_io};
use warren_core::dns::host::HostNames;
use warren_core::dns::{self, Explained};
use warren_core::netcheck::{Action, Input};
use warren_core::node::{
    Answer, Askers, CallId, Engine, PumpCommand, PumpCounters, PumpNews, PumpPeer, Settings, dns_answer,
};
use warren_core::plan::own;
use warren_core::types::{NodePublic, Timestamp};
use warren_core::wire::local::Severity;
use warren_linux::DefaultRoute;
use warren_linux::packet::{Datagram, ProbeSocket, UdpSender};
use warren_shell::{Dialler, vital};

/// Datagrams that wait for the loop. More are dropped by the kernel: probes are repeated.
const DATAGRAMS: usize = 256;
/// Commands that wait for the pump, but for those about peers, of which the last one counts. A probe that finds no
/// room is lost, as on a network.
const COMMANDS: usize = 1_024;
/// How long to wait after a socket failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long an answer is waited for: longer than the resolver itself does.
const QUESTION: Duration = Duration::from_secs(12);
/// How long an echo is waited for.
const ECHO: Duration = Duration::from_secs(5);

/// The way out from WireGuard's port. Never waits.
pub trait DatagramSender: Send {
    /// Sends a datagram; from the given address of ours, where that matters.
    fn send(&mut self, to: SocketAddr, from: Option<IpAddr>, payload: &[u8]) -> io::Result<()>;
    /// Addresses or routes of this host changed.
    fn handle_network_changed(&mut self);
}

impl DatagramSender for UdpSender {
    fn send(&mut self, to: SocketAddr, from: Option<IpAddr>, payload: &[u8]) -> io::Result<()> {
        Self::send(self, to, from, payload)
    }

    fn handle_network_changed(&mut self) {
        Self::handle_network_changed(self);
    }
}

/// The transports, each where there is one. The default is none at all.
#[derive(Default)]
pub struct Network {
    /// Datagrams that the firewall diverted from WireGuard's port.
    pub datagrams: Option<mpsc::Receiver<Datagram>>,
    /// The way out from that port.
    pub send: Option<Box<dyn DatagramSender>>,
    /// The relay pump: what it is told, and what it tells. Without it no relay is used.
    pub pump: Option<(mpsc::Sender<ToPump>, mpsc::Receiver<PumpNews>)>,
    /// What answers for names.
    pub resolver: Option<Resolver>,
    /// Who tells this host's own resolver.
    pub host: Option<HostPipe>,
    /// Names, gateways, HTTPS.
    pub netcheck: Option<(mpsc::Sender<Action>, mpsc::Receiver<Input>)>,
}

/// What could not be opened: a code, and what it means for people.
pub type Missing = Vec<(&'static str, String)>;

impl Network {
    /// Opens everything that can be opened, and notes in the settings on which ports.
    pub fn open(settings: &mut Settings, dialler: &Dialler) -> (Self, Missing) {
        let mut missing = Missing::new();
        let mut opened = |code, what: &str, instead: &str, error: &dyn Display| {
            missing.push((code, format!("{what}: {error}; {instead}. The agent needs CAP_NET_RAW and CAP_NET_ADMIN")));
        };
        let (_no_gateway, unknown) = mpsc::channel(1);
        let gateways = match DefaultRoute::new() {
            Ok(route) => netcheck_io::watch_gateway(route),
            Err(error) => {
                opened("gateway", "watch the default route", "no port is mapped at the gateway", &error);
                unknown
            }
        };
        let mut network = Self { netcheck: Some(netcheck_io::spawn(dialler.apart(), gateways)), ..Self::default() };
        match ProbeSocket::bind(own::PROBE_PORT)
            .and_then(|socket| Ok((socket, UdpSender::open(settings.port, dialler.mark())?)))
        {
            Ok((socket, sender)) => {
                settings.probe_port = Some(socket.port());
                network.datagrams = Some(datagrams(socket));
                network.send = Some(Box::new(sender));
            }
            Err(error) => opened("probes", "open the sockets for path probes", "no direct path is looked for", &error),
        }
        let config =
            PumpConfig { dialler: dialler.clone(), wireguard_port: settings.port, relay_port: own::RELAY_PORT };
        match relay_pump::spawn(&config) {
            Ok(Pump { commands, news, relay_port }) => {
                settings.relay_port = Some(relay_port);
                network.pump = Some((commands, news));
            }
            Err(error) => opened("relays", "relayed packets", "no relay is used", &error),
        }
        match Resolver::open(own::RESOLVER_PORT, clock::key_bytes(), dialler.apart().unmarked()) {
            Ok(resolver) => {
                settings.resolver_port = Some(resolver.port());
                network.resolver = Some(resolver);
            }
            Err(error) => opened("names", "open the sockets for names", "names of machines are not answered", &error),
        }
        (network, missing)
    }
}

/// An echo's number and outcome.
pub(super) type Echoed = (CallId, Result<Duration, String>);

/// The same, as the loop uses them: what is not there is silent.
pub(super) struct Transports {
    pub(super) datagrams: mpsc::Receiver<Datagram>,
    pub(super) pump_news: mpsc::Receiver<PumpNews>,
    pub(super) netcheck_news: mpsc::Receiver<Input>,
    pub(super) echoes: mpsc::Receiver<Echoed>,
    pub(super) counters: mpsc::Receiver<PumpCounters>,
    pub(super) host_news: mpsc::Receiver<HostNews>,
    /// Answers to questions for names.
    pub(super) answers: mpsc::Receiver<(CallId, Answer)>,
    pub(super) commands: Commands,
    send: Option<Box<dyn DatagramSender>>,
    resolver: Option<Resolver>,
    host_names: Option<watch::Sender<HostNames>>,
    netcheck: Option<mpsc::Sender<Action>>,
    echoes_in: mpsc::Sender<Echoed>,
    answers_in: mpsc::Sender<(CallId, Answer)>,
    counters_in: mpsc::Sender<PumpCounters>,
    /// Keeps the receivers open that nothing comes from.
    _open: (mpsc::Sender<Datagram>, mpsc::Sender<PumpNews>, mpsc::Sender<Input>, mpsc::Sender<HostNews>),
}

impl Transports {
    pub(super) fn new(network: Network) -> Self {
        let (datagrams_in, no_datagrams) = mpsc::channel(1);
        let (pump_in, no_pump_news) = mpsc::channel(1);
        let (netcheck_in, no_netcheck_news) = mpsc::channel(1);
        let (echoes_in, echoes) = mpsc::channel(DATAGRAMS);
        let (answers_in, answers) = mpsc::channel(DATAGRAMS);
        let (counters_in, counters) = mpsc::channel(1);
        let (host_in, no_host_news) = mpsc::channel(1);
        let (host_names, host_news) = network.host.map(|pipe| (pipe.names, pipe.news)).unzip();
        let (pump, pump_news) = network.pump.unzip();
        let (netcheck, netcheck_news) = network.netcheck.unzip();
        Self {
            datagrams: network.datagrams.unwrap_or(no_datagrams),
            pump_news: pump_news.unwrap_or(no_pump_news),
            netcheck_news: netcheck_news.unwrap_or(no_netcheck_news),
            echoes,
            counters,
            host_news: host_news.unwrap_or(no_host_news),
            answers,
            commands: Commands { pump, peers: BTreeMap::new(), others: VecDeque::new() },
            send: network.send,
            resolver: network.resolver,
            host_names,
            netcheck,
            echoes_in,
            answers_in,
            counters_in,
            _open: (datagrams_in, pump_in, netcheck_in, host_in),
        }
    }

    /// What the network does not take is lost, as on the way.
    pub(super) fn datagram(&mut self, to: SocketAddr, from: Option<IpAddr>, payload: &[u8]) {
        if let Some(Err(error)) = self.send.as_mut().map(|send| send.send(to, from, payload)) {
            tracing::debug!("send {} bytes to {to}: {error}", payload.len());
        }
    }

    /// Addresses or routes changed.
    pub(super) fn rebind(&mut self) {
        if let Some(send) = &mut self.send {
            send.handle_network_changed();
        }
        self.commands.push(ToPump::Command(PumpCommand::Rebind));
    }

    /// Changes what is answered for names.
    pub(super) fn update_resolver(&self, askers: Option<Askers>, change: impl FnOnce(&mut dns::Server)) {
        if let Some(resolver) = &self.resolver {
            resolver.update(change);
            resolver.answer_others(askers);
        }
    }

    /// Asks our resolver for somebody at the local socket.
    pub(super) fn question(&self, id: CallId, message: &[u8], explained: Explained) {
        let (answers, begun) = (self.answers_in.clone(), clock::now().tick);
        let answered = self.resolver.as_ref().map(|resolver| resolver.question(message));
        tokio::spawn(async move {
            let answer = match answered {
                Some(answered) => tokio::time::timeout(QUESTION, answered).await.ok().and_then(Result::ok),
                None => None,
            };
            let took = clock::now().tick.saturating_duration_since(begun);
            let answer = match answer {
                Some(bytes) => dns_answer(&bytes, explained, took),
                None => Answer::refused(504, "nobody answered".to_owned()),
            };
            // The loop has ended where this fails.
            let _ = answers.send((id, answer)).await;
        });
    }

    /// Has the host told. Where nobody does, it is as it was.
    pub(super) fn tell_host(&self, names: HostNames) {
        if let Some(host) = &self.host_names {
            host.send_replace(names);
        }
    }

    pub(super) fn netcheck(&self, action: Action) {
        if let Some(Err(error)) = self.netcheck.as_ref().map(|netcheck| netcheck.try_send(action)) {
            tracing::warn!("look at the network: {error}");
        }
    }

    /// Asks the pump what it has done. Where there is none, it has done nothing.
    pub(super) fn ask_counters(&mut self) {
        let (answer, counters) = oneshot::channel();
        self.commands.push(ToPump::Counters(answer));
        let out = self.counters_in.clone();
        tokio::spawn(async move {
            // The loop has ended where this fails.
            let _ = out.send(counters.await.unwrap_or_default()).await;
        });
    }

    /// Sends an echo in a task of its own.
    pub(super) fn echo(&self, id: CallId, address: IpAddr) {
        let echoes = self.echoes_in.clone();
        tokio::spawn(async move {
            let begun = clock::now().tick;
            let echo = warren_linux::echo(address, clock::seed().to_ne_bytes());
            let result = match tokio::time::timeout(ECHO, echo).await {
                Ok(Ok(())) => Ok(clock::now().tick.saturating_duration_since(begun)),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("no answer".to_owned()),
            };
            // The loop has ended where this fails.
            let _ = echoes.send((id, result)).await;
        });
    }
}

/// Commands on their way to the pump. Of those about one peer only the last counts, so what waits is bounded by the
/// number of peers.
pub(super) struct Commands {
    pump: Option<mpsc::Sender<ToPump>>,
    peers: BTreeMap<NodePublic, Option<PumpPeer>>,
    others: VecDeque<ToPump>,
}

impl Commands {
    pub(super) fn push(&mut self, command: ToPump) {
        if self.pump.is_none() {
            return;
        }
        match command {
            ToPump::Command(PumpCommand::Peer { key, entry }) => drop(self.peers.insert(key, entry)),
            other if self.others.len() < COMMANDS => self.others.push_back(other),
            ToPump::Command(_) | ToPump::Counters(_) => {
                tracing::debug!("a probe through the relay is dropped: too many wait");
            }
        }
        self.advance();
    }

    /// Whether anything waits for the pump to have room.
    pub(super) fn is_waiting(&self) -> bool {
        !(self.peers.is_empty() && self.others.is_empty())
    }

    /// Waits until the pump has room. Pending for ever where there is no pump.
    pub(super) async fn room(&self) {
        let Some(pump) = &self.pump else { return std::future::pending().await };
        // A pump that has ended has no news either; what waits for it, waits.
        if pump.reserve().await.is_err() {
            std::future::pending().await
        }
    }

    /// Hands over what the pump has room for, peers first: what else is to be sent may be for them.
    pub(super) fn advance(&mut self) {
        let Some(pump) = &self.pump else { return };
        while let Ok(place) = pump.try_reserve() {
            if let Some((key, entry)) = self.peers.pop_first() {
                place.send(ToPump::Command(PumpCommand::Peer { key, entry }));
            } else if let Some(command) = self.others.pop_front() {
                place.send(command);
            } else {
                return;
            }
        }
    }
}

/// Reads the probe socket.
fn datagrams(mut socket: ProbeSocket) -> mpsc::Receiver<Datagram> {
    let (out, datagrams) = mpsc::channel(DATAGRAMS);
    tokio::spawn(vital("reader of path probes", async move {
        loop {
            match socket.recv().await {
                Ok(datagram) => {
                    if out.send(datagram).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!("receive path probes: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }));
    datagrams
}

/// Reports what could not be opened.
pub(super) fn report(engine: &mut Engine, missing: Missing, wall: Timestamp) {
    for (code, text) in missing {
        tracing::error!("{text}");
        engine.report(code, Severity::High, text, wall);
    }
}
