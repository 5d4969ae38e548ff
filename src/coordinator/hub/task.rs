//! The task itself: it answers what it is asked, lets time pass, and hands out what the registry has to say.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use super::{Ask, Decided, Health, Hub, Subscription};
use crate::clock;
use crate::ending::Ending;
use crate::limits;
use crate::metrics::Metrics;
use crate::store::{Ledger, Store, StoreError, Written};
use warren_core::registry::{
    MapMessage, MapRefusal, NodeRecord, NodeView, Notice, Output, PendingCode, PingId, SessionId,
};
use warren_core::types::{MachinePublic, NodeId};
use warren_core::wire::control::{DerpMap, MapRequest, RegisterRequest, RegisterResponse};
use warren_relay::Relay;
use warren_shell::{Buckets, Heartbeat};

/// The longest the task sleeps: a clock that is set is noticed after this.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// By how much a clock is set so that people should know.
const REMARKABLE: Duration = Duration::from_secs(60);
/// Requests that may wait for the same code; a node has one under way, and one it gave up without telling.
const WAITERS: usize = 16;

/// The task. Runs until the program ends, then writes what it has not yet written and gives the store back.
pub(crate) struct Task<S> {
    ledger: Ledger<S>,
    asks: mpsc::Receiver<Ask>,
    /// One entry per session that ended, so it holds at most as many as there are sessions.
    closed: mpsc::UnboundedReceiver<SessionId>,
    closing: mpsc::UnboundedSender<SessionId>,
    streams: BTreeMap<SessionId, mpsc::Sender<Arc<MapMessage>>>,
    waiters: BTreeMap<PendingCode, Vec<oneshot::Sender<()>>>,
    metrics: Arc<Metrics>,
    /// How many lines who caused.
    lines: Buckets<IpAddr>,
    /// How many lines of what else is worth knowing about whom.
    notices: Buckets<NodeId>,
    /// Who asked how the registry is, and waits for the store to be tried.
    examiners: Vec<oneshot::Sender<Health>>,
    /// Nodes that answered that they are there. Apart from what is asked, behind which it must not wait.
    pongs: mpsc::Receiver<(MachinePublic, PingId)>,
    /// What the policy and the network made of each other, and when: a look at every node, that strangers may ask for.
    advice: Option<(Instant, Vec<String>)>,
    /// The embedded relay, which ends what a key that is withdrawn has open there.
    relay: Option<Arc<Relay>>,
}

impl<S: Store> Task<S> {
    pub(crate) fn new(ledger: Ledger<S>, metrics: Arc<Metrics>) -> (Hub, Self) {
        let (sender, asks) = mpsc::channel(limits::HUB_QUEUE);
        let (closing, closed) = mpsc::unbounded_channel();
        let (streams, waiters) = (BTreeMap::new(), BTreeMap::new());
        let lines = Buckets::new(limits::LINE_RATE, limits::LINE_BURST);
        let notices = Buckets::new(limits::NOTICE_RATE, limits::NOTICE_BURST);
        let (pong, pongs) = mpsc::channel(limits::PONG_QUEUE);
        let hub = Hub { asks: sender, pongs: pong };
        let relay = None;
        let (advice, examiners) = (None, Vec::new());
        (
            hub,
            Self {
                ledger,
                asks,
                closed,
                closing,
                streams,
                waiters,
                metrics,
                lines,
                notices,
                examiners,
                pongs,
                advice,
                relay,
            },
        )
    }

    /// From here on this relay hears of keys that are withdrawn.
    pub(crate) fn set_relay(&mut self, relay: Arc<Relay>) {
        self.relay = Some(relay);
    }

    pub(crate) async fn run(mut self, mut ending: Ending) -> (Option<S>, Result<(), StoreError>) {
        let mut heartbeat = Heartbeat::expected();
        loop {
            heartbeat.beat(clock::instant());
            let sleep = self.ledger.poll_timeout().map_or(LONGEST_SLEEP, until).min(LONGEST_SLEEP);
            tokio::select! {
                biased;
                () = ending.wait() => break,
                Some(session) = self.closed.recv() => self.close(session),
                Some((machine, ping)) = self.pongs.recv() => self.ledger.state_mut().pong(machine, ping, clock::now()),
                written = self.ledger.written() => self.written(written),
                Some(ask) = self.asks.recv() => self.answer(ask),
                () = tokio::time::sleep(sleep) => {}
            }
            if let Some(by) = clock::heed() {
                if by.unsigned_abs() >= REMARKABLE {
                    warn!(%by, "this machine's clock was set; periods go on, and dates count by the new time");
                }
                self.ledger.handle_clock_set(by, clock::now());
            }
            while let Ok((machine, ping)) = self.pongs.try_recv() {
                self.ledger.state_mut().pong(machine, ping, clock::now());
            }
            self.ledger.handle_timeout(clock::now());
            self.deliver();
        }
        // Dropping the queues ends every stream after what is queued; dropping the channel answers "come again".
        self.streams.clear();
        self.ledger.shutdown(clock::now()).await
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Look(look) => look(self.ledger.state()),
            Ask::Command(job) => self.ledger.submit(job, None, clock::now()),
            Ask::Policy(ready, job) => self.ledger.submit(job, Some(ready), clock::now()),
            Ask::Register(machine, key, job) => {
                self.ledger.state_mut().heard(machine, &key, clock::now());
                self.ledger.submit(job, None, clock::now());
            }
            Ask::Decided(decided) => self.report_decided(&decided),
            Ask::Await(code, answer) => {
                let woken = self.wait_for(code);
                let _ = answer.send(woken);
            }
            Ask::Update(machine, request, answer) => {
                let updated = self.ledger.state_mut().update(machine, &request, clock::now());
                let _ = answer.send(updated.map(|_| ()));
            }
            Ask::Open(machine, request, relays, answer) => {
                let opened = self.open(machine, &request, relays.as_ref());
                let _ = answer.send(opened);
            }
            Ask::Renew(relays, answer) => {
                self.renew(relays);
                let _ = answer.send(());
            }
            Ask::Graces(offline, ephemeral, answer) => {
                self.ledger.state_mut().set_graces(offline, ephemeral);
                let _ = answer.send(());
            }
            Ask::Names(names, answer) => {
                self.ledger.state_mut().set_names(names);
                let _ = answer.send(());
            }
            Ask::Copy(to, answer) => self.ledger.copy(to, answer, clock::now()),
            Ask::Journal(query, answer) => self.ledger.read_journal(query, answer, clock::now()),
            Ask::Health(answer) => match self.ledger.examine(clock::now()) {
                true => self.examiners.push(answer),
                false => {
                    let health = self.health();
                    let _ = answer.send(health);
                }
            },
        }
    }

    /// The store has done what it was at work for.
    fn written(&mut self, written: Written<S>) {
        self.ledger.handle_written(written, clock::now());
        for answer in std::mem::take(&mut self.examiners) {
            let health = self.health();
            let _ = answer.send(health);
        }
    }

    fn health(&mut self) -> Health {
        let now = clock::now();
        let fault = self.ledger.complaint(now);
        let fault = fault.or_else(|| self.ledger.state().policy_fault().map(str::to_owned));
        let state = self.ledger.state();
        let twins = state.two_machines(now).filter_map(|id| state.node(id)).map(|node| two_machines(&node));
        let mut warnings: Vec<String> = twins.collect();
        let (nodes, held_back) = (state.nodes().len(), state.held_back());
        warnings.extend(self.advice());
        Health { nodes, warnings, held_back, fault }
    }

    fn advice(&mut self) -> Vec<String> {
        let now = clock::instant();
        match &self.advice {
            Some((at, advice)) if now.saturating_duration_since(*at) < limits::ADVICE_EVERY => advice.clone(),
            _ => self.advice.insert((now, self.ledger.state().advice())).1.clone(),
        }
    }

    /// Tells the operator what became of a registration.
    fn report_decided(&mut self, decided: &Decided) {
        let Decided { site, request, before, response } = decided;
        self.report_rights(request, before);
        if self.lines.take(*site, clock::instant()).is_ok() {
            report(request, response);
            self.report_tags(request);
        } else {
            self.metrics.unlogged.inc();
        }
    }

    fn wait_for(&mut self, code: PendingCode) -> Option<oneshot::Receiver<()>> {
        let (wake, woken) = oneshot::channel();
        if self.ledger.state().pending(&code).is_none() {
            // Somebody decided meanwhile.
            let _ = wake.send(());
            return Some(woken);
        }
        let waiters = self.waiters.entry(code).or_default();
        waiters.retain(|waiter| !waiter.is_closed());
        if waiters.len() >= WAITERS {
            return None;
        }
        waiters.push(wake);
        Some(woken)
    }

    /// A node that logs in anew may be somebody else's than before, with other rights.
    fn report_rights(&self, request: &RegisterRequest, before: &[Arc<NodeRecord>]) {
        let state = self.ledger.state();
        let Some(node) = state.node_by_key(&request.node_key) else { return };
        if let Some(before) = before.iter().find(|record| record.id == node.record.id) {
            state.rights_changed(before, node.record).iter().for_each(|change| info!("{change}"));
        }
    }

    /// A node that is in keeps the tags it has, so what it asks for besides is nothing but a line for the operator.
    fn report_tags(&self, request: &RegisterRequest) {
        let asked = request.hostinfo.iter().flat_map(|info| &info.request_tags);
        let Some(node) = self.ledger.state().node_by_key(&request.node_key) else { return };
        let has = |tag: &str| node.record.tags.iter().any(|given| given.as_str() == tag);
        let (node, tags) = (node.record.label.as_str(), asked.filter(|tag| !has(tag)).collect::<Vec<_>>());
        if !tags.is_empty() {
            info!(node, ?tags, "a node asks for tags that it does not have; `warren-coordinator node tag` gives them");
        }
    }

    fn open(
        &mut self,
        machine: MachinePublic,
        request: &MapRequest,
        relays: Option<&DerpMap>,
    ) -> Result<Subscription, MapRefusal> {
        let now = clock::now();
        let node = self.ledger.state_mut().update(machine, request, now)?;
        let mut opened = self.ledger.state_mut().open(node, request.version, now)?;
        if let Some(relays) = relays {
            Arc::make_mut(&mut opened.message).insert("DERPMap", relays);
        }
        let (sender, messages) = mpsc::channel(limits::STREAM_QUEUE);
        // A queue that was made this moment has room.
        let _ = sender.try_send(opened.message);
        self.streams.insert(opened.session, sender);
        Ok(Subscription { messages, session: opened.session, closed: self.closing.clone() })
    }

    fn renew(&mut self, relays: Option<DerpMap>) {
        if let Some(relays) = relays {
            return self.ledger.state_mut().set_derp_map(relays);
        }
        for session in self.streams.keys().copied().collect::<Vec<_>>() {
            self.close(session);
        }
    }

    fn close(&mut self, session: SessionId) {
        self.streams.remove(&session);
        self.ledger.state_mut().close(session, clock::now());
    }

    /// Hands out what the registry has to say.
    fn deliver(&mut self) {
        while let Some(output) = self.ledger.state_mut().poll_output() {
            match output {
                Output::Send { sessions, message } => {
                    for session in sessions {
                        self.send(session, &message);
                    }
                }
                Output::Close { session } => {
                    self.streams.remove(&session);
                }
                Output::Settled { code } => {
                    for waiter in self.waiters.remove(&code).into_iter().flatten() {
                        let _ = waiter.send(());
                    }
                }
                Output::Noticed(notice) => self.report_notice(notice),
                Output::Withdrawn { key } => {
                    if let Some(relay) = &self.relay {
                        relay.withdraw(&key);
                    }
                }
            }
        }
        self.metrics.streams.set(i64::try_from(self.streams.len()).unwrap_or(i64::MAX));
    }

    /// What an operator should know, in the log; of each node not more often than it can be read.
    fn report_notice(&mut self, notice: Notice) {
        let (Notice::Silent(id) | Notice::TwoMachines(id) | Notice::DiscoTaken { node: id, .. }) = notice;
        if self.notices.take(id, clock::instant()).is_err() {
            self.metrics.unlogged.inc();
            return;
        }
        let label = |id| self.ledger.state().node(id).map_or_else(String::new, |node| node.record.label.to_string());
        let node = label(id);
        match notice {
            Notice::Silent(_) => warn!(node, "a node does not answer though its connection stands; it counts as gone"),
            Notice::TwoMachines(_) => warn!(
                node,
                "two machines use this node's key, as after a copy of its disk; sign one of them out and in again"
            ),
            Notice::DiscoTaken { holder, .. } => {
                warn!(node, holder = label(holder), "a node claims the disco key of another; it keeps its own");
            }
        }
    }

    fn send(&mut self, session: SessionId, message: &Arc<MapMessage>) {
        let Some(queue) = self.streams.get(&session) else { return };
        match queue.try_send(Arc::clone(message)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                info!(?session, "a node reads too slowly; its stream ends and it will ask for a full map");
                self.metrics.dropped.inc();
                self.close(session);
            }
            Err(mpsc::error::TrySendError::Closed(_)) => debug!(?session, "a message for a stream that just closed"),
        }
    }
}

fn two_machines(node: &NodeView<'_>) -> String {
    format!("two machines use the key of the node {}; sign one of them out and in again", node.record.label)
}

/// Tells the operator. Keys stay out of it, and what the machine calls itself is quoted.
fn report(request: &RegisterRequest, response: &RegisterResponse) {
    let host = request.hostinfo.as_ref().map_or("", |info| info.hostname.as_str());
    let node = request.node_key.short();
    if !response.error.is_empty() {
        info!(host, node, reason = response.error, "a machine was refused");
    } else if !response.auth_url.is_empty() {
        info!(host, node, "a machine waits for approval: `warren-coordinator node pending`");
    } else if response.node_key_expired {
        info!(host, node, "a machine has to log in again");
    } else {
        info!(host, node, user = response.login.login_name, "a node is registered");
    }
}

fn until(deadline: warren_core::types::Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(clock::now())).unwrap_or_default()
}
