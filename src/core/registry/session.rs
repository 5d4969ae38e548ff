//! Nodes that follow their map, and what time brings: going offline, expiry, clean-up.

use std::sync::Arc;
use std::time::Duration;

use super::actor::Actor;
use super::broadcast::{Delivery, MapMessage};
use super::commands::{Command, Decision};
use super::config::Names;
use super::presence::{Graces, Opening, PingDue, PingId, SessionId, Timer};
use super::record::{Change, NodeRecord, NodeReport};
use super::refusal::MapRefusal;
use super::state::State;
use super::update::accept_version;
use crate::types::{CapabilityVersion, MachinePublic, NodeId, NodePublic, PendingCode, Timestamp};
use crate::wire::control::DerpMap;

/// A stream that was opened, and its first message: the full map.
#[derive(Clone, Debug)]
pub struct Opened {
    pub session: SessionId,
    /// The full map.
    pub message: Arc<MapMessage>,
}

/// What the shell must do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send one message to many.
    Send {
        /// To these, in no particular order.
        sessions: Vec<SessionId>,
        message: Arc<MapMessage>,
    },
    /// End a stream, after whatever was sent to it before.
    Close { session: SessionId },
    /// A machine waits no longer: ask [`Commands::register`](super::Commands::register) again on behalf of whoever held its
    /// request.
    Settled {
        /// The code it waited under.
        code: PendingCode,
    },
    /// Tell the operator.
    Noticed(Notice),
    /// A node key is good for nothing from here on: whoever admitted it to something has to end that.
    Withdrawn { key: NodePublic },
}

/// What an operator should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A node follows its map no more, though its connection stands.
    Silent(NodeId),
    /// Two machines use one node's key.
    TwoMachines(NodeId),
    /// A node claims the disco key of another, and is not told to anybody by it.
    DiscoTaken {
        /// Who claims it.
        node: NodeId,
        /// Whose it is.
        holder: NodeId,
    },
}

impl State {
    /// A node begins to follow its map. An older stream of the same node ends.
    pub fn open(&mut self, id: NodeId, version: CapabilityVersion, now: Timestamp) -> Result<Opened, MapRefusal> {
        accept_version(version)?;
        if self.directory.policy_fault().is_some() {
            return Err(MapRefusal::NoPolicy);
        }
        let record = self.directory.node(id);
        if record.is_some_and(|record| record.is_device()) {
            return Err(MapRefusal::Unknown);
        }
        if record.is_some_and(|record| self.is_suspended(record)) {
            return Err(MapRefusal::Suspended);
        }
        let opening = self.presence.open(id, now).ok_or(MapRefusal::Unknown)?;
        let Opening { session, older, came, was_silent, is_second } = opening;
        if is_second {
            self.outputs.push_back(Output::Noticed(Notice::TwoMachines(id)));
        }
        if let Some(older) = older {
            self.end_stream(older);
        }
        if came || was_silent {
            self.refresh(id);
        }
        let source = super::broadcast::Source { directory: &self.directory, config: &self.config };
        let message = self.broadcast.open(&source, id, session, now).ok_or(MapRefusal::Unknown)?;
        Ok(Opened { session, message })
    }

    /// A machine asked something as the node with this key, or for it: it is about to come back, so that the deadline of
    /// an ephemeral node that is away begins anew.
    pub fn heard(&mut self, machine: MachinePublic, key: &NodePublic, now: Timestamp) {
        let Some(id) = self.directory.node_by_key(key) else { return };
        if self.directory.node(id).is_some_and(|record| record.machine == machine) {
            self.presence.heard(id, now);
        }
    }

    /// A stream ended. Unless the node comes back soon, its peers will be told.
    pub fn close(&mut self, session: SessionId, now: Timestamp) {
        self.broadcast.close(session);
        self.presence.close(session, now);
    }

    /// A node answered a question. It counts only from the machine that was asked.
    pub fn pong(&mut self, machine: MachinePublic, ping: PingId, now: Timestamp) {
        let directory = &self.directory;
        self.presence.pong(ping, now, |id| directory.node(id).is_some_and(|record| record.machine == machine));
    }

    /// The coordinator stops: whoever is online was seen until this moment.
    pub fn stop(&mut self, now: Timestamp) {
        for id in self.presence.online().collect::<Vec<NodeId>>() {
            self.presence.set_offline(id);
            self.saw_last(id, now, now);
        }
    }

    /// How long a node may be away from here on: until it counts as offline, and until it is deleted if it is ephemeral.
    pub fn set_graces(&mut self, offline: Duration, ephemeral: Duration) {
        (self.config.offline_grace, self.config.ephemeral_timeout) = (offline, ephemeral);
        self.presence.set_graces(Graces { offline, ephemeral });
    }

    /// The relays are, from here on, these.
    pub fn set_derp_map(&mut self, derp_map: DerpMap) {
        self.broadcast.relays_changed(&derp_map);
        self.config.derp_map = Some(derp_map);
    }

    /// What nodes do with names is, from here on, this.
    pub fn set_names(&mut self, names: Names) {
        if self.config.names != names {
            self.config.names = names;
            self.broadcast.names_changed(&self.config);
        }
    }

    /// The one message for a stream of a node that is gone: what it would have been sent had it been there.
    pub fn goodbye(key: NodePublic, machine: MachinePublic) -> MapMessage {
        super::broadcast::goodbye(key, machine)
    }

    /// What must be done for good because of the time: see `cleanup`.
    pub fn due(&self, now: Timestamp) -> Decision<()> {
        self.by(&Actor::COORDINATOR, now).decided(Command::CleanUp, (), self.due_changes(now))
    }

    /// When [`State::due`] has something next.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.next_cleanup()
    }

    /// What time brings by itself; and tells connected nodes of changes, if it is time for that.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        for (at, timer) in self.presence.take_due(now) {
            match timer {
                Timer::Offline(id) => {
                    if let Some(seen) = self.presence.went_offline(id, at) {
                        self.saw_last(id, seen, now);
                    }
                }
                Timer::Expire(id) => self.expire(id),
                Timer::Say(id) => self.say_held(id, now),
                Timer::Ask(session) => self.ask(session, now),
            }
        }
        self.presence.ask_contested(now);
        if self.broadcast.is_due(now) {
            let source = super::broadcast::Source { directory: &self.directory, config: &self.config };
            let sendings = self.broadcast.flush(&source, now);
            self.outputs
                .extend(sendings.into_iter().map(|Delivery { sessions, message }| Output::Send { sessions, message }));
        }
    }

    /// When [`State::handle_timeout`] wants to be called again.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.presence.due().into_iter().chain(self.broadcast.due()).min()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Records that changed and may be saved at leisure; the caller has them from here on.
    pub fn take_unsaved(&mut self) -> Vec<Change> {
        let reports = self.directory.take_unsaved().into_iter().map(|record| NodeReport {
            id: record.id,
            status: record.status.clone(),
            last_seen: record.last_seen,
            label: record.label.clone(),
        });
        reports.map(|report| Change::NodeReport(Box::new(report))).collect()
    }

    /// How many records [`State::take_unsaved`] would give.
    pub fn unsaved(&self) -> usize {
        self.directory.unsaved()
    }

    /// Saving failed: give these out again next time.
    pub fn put_back_unsaved(&mut self, changes: &[Change]) {
        for change in changes {
            if let Change::NodeReport(report) = change {
                self.directory.put_back_unsaved(report.id);
            }
        }
    }

    /// A key is past its time.
    fn expire(&mut self, id: NodeId) {
        if self.presence.set_expired(id, true)
            && let Some(record) = self.directory.node(id)
        {
            self.outputs.push_back(Output::Withdrawn { key: record.key });
            self.refresh(id);
        }
    }

    /// The time has come to ask a stream, or to judge it.
    fn ask(&mut self, session: SessionId, now: Timestamp) {
        match self.presence.ask(session, now) {
            PingDue::Later => {}
            PingDue::Ask(ping) => {
                let message = self.broadcast.ping(&ping.request());
                self.outputs.push_back(Output::Send { sessions: vec![session], message });
            }
            // Another routes in its place from here on, and its stream ends as if it had.
            PingDue::Silent(id) => {
                self.elect(id);
                self.outputs.push_back(Output::Noticed(Notice::Silent(id)));
                self.outputs.push_back(Output::Close { session });
                self.close(session, now);
            }
        }
    }

    /// A node is offline, and was last seen then.
    pub(super) fn saw_last(&mut self, id: NodeId, seen: Timestamp, now: Timestamp) {
        let Some(record) = self.directory.node(id) else { return };
        // To the second: nobody needs more, and it is in every peer's map.
        let last_seen = Timestamp::from_second(seen.as_second()).ok();
        let record = NodeRecord { last_seen, ..record.as_ref().clone() };
        self.put_unsaved(record, now);
    }
}
