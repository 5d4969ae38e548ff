//! The one task that owns the registry, and the handle by which everybody else talks to it.
//!
//! Questions come in on a bounded channel, each with a place for its answer; an answer is released only when
//! what it tells is on disk, and the task goes on with everything else meanwhile. What the registry says to nodes goes out on one bounded queue per map stream: a
//! node that does not read fast enough loses its stream and comes back for a full map, so nobody waits for it.

mod task;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::error;

use super::limits;
use super::store::{CommandError, Job, StoreError, job};
use warren_core::registry::{
    Actor, CheckedPolicy, Commands, Decision, MapMessage, MapRefusal, Names, NodeRecord, PendingCode, PingId,
    PolicyRecord, Refusal, Registered, SessionId, Snapshot, State,
};
use warren_core::types::{MachinePublic, NodePublic};
use warren_core::wire::admin::{JournalQuery, JournalRecord};
use warren_core::wire::control::{DerpMap, MapRequest, RegisterRequest, RegisterResponse};

pub(crate) use task::Task;

/// The registry cannot take the question now: come again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Busy;

impl From<Busy> for CommandError {
    fn from(Busy: Busy) -> Self {
        Self::Busy
    }
}

/// How a request to register ends, as far as the registry is concerned.
pub(crate) enum Registration {
    Answer(RegisterResponse),
    /// Ask again once `woken` resolves; `meanwhile` is the answer when that takes too long.
    Wait {
        /// Resolves when somebody decided about the code.
        woken: oneshot::Receiver<()>,
        /// Carries the address where the decision can be made.
        meanwhile: RegisterResponse,
    },
    /// Come again later.
    Later(Duration),
    /// It could not be written down.
    Failed,
}

/// An open map stream. Dropping it closes the stream.
pub(crate) struct Subscription {
    messages: mpsc::Receiver<Arc<MapMessage>>,
    session: SessionId,
    closed: mpsc::UnboundedSender<SessionId>,
}

impl Subscription {
    /// The next message; `None` when the stream ends.
    pub(crate) fn poll_next(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Arc<MapMessage>>> {
        self.messages.poll_recv(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let _ = self.closed.send(self.session);
    }
}

/// How the registry is.
pub(crate) struct Health {
    /// How many nodes there are.
    pub(crate) nodes: usize,
    /// What is not as it should be, and stops nothing.
    pub(crate) warnings: Vec<String>,
    /// How often a node's word was passed on later than it came.
    pub(crate) held_back: u64,
    /// Why nothing can be written, where that is so.
    pub(crate) fault: Option<String>,
}

/// Asks the registry.
#[derive(Clone)]
pub(crate) struct Hub {
    asks: mpsc::Sender<Ask>,
    pongs: mpsc::Sender<(MachinePublic, PingId)>,
}

/// What was decided about a machine that asked to register, for the log, and what its nodes were before.
struct Decided {
    site: IpAddr,
    request: RegisterRequest,
    before: Vec<Arc<NodeRecord>>,
    response: RegisterResponse,
}

/// A look at the state, with a place for what is seen.
type Look = Box<dyn FnOnce(&State) + Send>;

enum Ask {
    Look(Look),
    Command(Box<dyn Job>),
    /// A command that puts this policy in force.
    Policy(Box<CheckedPolicy>, Box<dyn Job>),
    /// A machine registers, as the node with this key.
    Register(MachinePublic, NodePublic, Box<dyn Job>),
    Decided(Box<Decided>),
    /// Gives what resolves when nobody waits under this code any more; nothing where too many ask for it.
    Await(PendingCode, oneshot::Sender<Option<oneshot::Receiver<()>>>),
    Update(MachinePublic, Box<MapRequest>, oneshot::Sender<Result<(), MapRefusal>>),
    Open(MachinePublic, Box<MapRequest>, Option<DerpMap>, oneshot::Sender<Result<Subscription, MapRefusal>>),
    Renew(Option<DerpMap>, oneshot::Sender<()>),
    Health(oneshot::Sender<Health>),
    Graces(Duration, Duration, oneshot::Sender<()>),
    Names(Names, oneshot::Sender<()>),
    Copy(PathBuf, oneshot::Sender<Result<(), StoreError>>),
    Journal(JournalQuery, oneshot::Sender<Result<Vec<JournalRecord>, StoreError>>),
}

impl Hub {
    /// Looks at the state as it is, in the registry's task: what takes long is not done there.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&State) -> T + Send + 'static,
    ) -> Result<T, Busy> {
        self.ask(|answer| {
            Ask::Look(Box::new(move |state| {
                let _ = answer.send(look(state));
            }))
        })
        .await
    }

    /// Gives a command on somebody's behalf. What the reply tells is on disk. The command may be decided more than once,
    /// where somebody else was faster.
    pub(crate) async fn command<R: Send + 'static>(
        &self,
        actor: Actor,
        decide: impl FnMut(&Commands<'_>) -> Result<Decision<R>, Refusal> + Send + 'static,
    ) -> Result<R, CommandError> {
        let (job, answered) = job(actor, decide);
        self.give(Ask::Command(job), answered).await
    }

    /// Puts a policy in force that was compiled outside the registry's task. Comes with which of its tests could not be
    /// asked of the network itself, in words.
    pub(crate) async fn set_policy(
        &self,
        actor: Actor,
        ready: CheckedPolicy,
        by: String,
        if_version: Option<u64>,
    ) -> Result<(Arc<PolicyRecord>, Vec<String>), CommandError> {
        let text = Arc::clone(ready.text());
        let (job, answered) = job(actor, move |commands| {
            let set = commands.set_policy(&text, &by, if_version)?;
            Ok(set.map(|record| (record, commands.staged_notes())))
        });
        self.give(Ask::Policy(Box::new(ready), job), answered).await
    }

    /// A node wants to join, renew or leave.
    pub(crate) async fn register(
        &self,
        machine: MachinePublic,
        site: IpAddr,
        request: RegisterRequest,
    ) -> Result<Registration, Busy> {
        let (key, asked) = (request.node_key, request.clone());
        let (job, answered) = job(Actor::machine(machine, site), move |commands| {
            let before: Vec<_> = commands.nodes_of_machine(machine).cloned().collect();
            let registered = commands.register(machine, &asked, rand::random());
            Ok(registered.map(|registered| (registered, before)))
        });
        match self.give(Ask::Register(machine, key, job), answered).await {
            Ok((Registered::Answer(response), before)) => {
                let decided = Decided { site, request, before, response: response.clone() };
                self.send(Ask::Decided(Box::new(decided))).await?;
                Ok(Registration::Answer(response))
            }
            Ok((Registered::Busy { retry_after }, _)) => Ok(Registration::Later(retry_after)),
            Ok((Registered::Wait { code, meanwhile }, _)) => {
                let woken = self.ask(|answer| Ask::Await(code, answer)).await?;
                let later = Registration::Later(limits::RETRY_AFTER);
                Ok(woken.map_or(later, |woken| Registration::Wait { woken, meanwhile }))
            }
            Err(CommandError::Busy) => Err(Busy),
            Err(error @ (CommandError::Store(_) | CommandError::Refused(_))) => {
                error!(%error, "writing a registration");
                Ok(Registration::Failed)
            }
        }
    }

    /// A node says what it is and where it is.
    pub(crate) async fn update(
        &self,
        machine: MachinePublic,
        request: MapRequest,
    ) -> Result<Result<(), MapRefusal>, Busy> {
        self.ask(|answer| Ask::Update(machine, Box::new(request), answer)).await
    }

    /// A node wants its map and every change of it. Replaces the stream it had. `relays` are those of this node, where
    /// nodes do not share them.
    pub(crate) async fn open(
        &self,
        machine: MachinePublic,
        request: MapRequest,
        relays: Option<DerpMap>,
    ) -> Result<Result<Subscription, MapRefusal>, Busy> {
        self.ask(|answer| Ask::Open(machine, Box::new(request), relays, answer)).await
    }

    /// A machine answered that it is there. Nobody waits for it; one that finds no place is asked again.
    pub(crate) fn pong(&self, machine: MachinePublic, ping: PingId) {
        let _ = self.pongs.try_send((machine, ping));
    }

    /// Whether a key belongs to a node that may use the network.
    pub(crate) async fn knows(&self, key: NodePublic) -> Result<bool, Busy> {
        self.look(move |state| state.node_by_key(&key).is_some_and(|node| !node.expired && !node.record.is_device()))
            .await
    }

    /// What nodes know of the relays is outdated: these are the shared ones; where nodes do not share them, their streams
    /// end and they ask again.
    pub(crate) async fn renew(&self, relays: Option<DerpMap>) -> Result<(), Busy> {
        self.ask(|answer| Ask::Renew(relays, answer)).await
    }

    /// The network as it is, to compile policies against.
    pub(crate) async fn snapshot(&self) -> Result<Snapshot, Busy> {
        self.look(State::snapshot).await
    }

    /// How the registry is. Comes back when the task has come to this question.
    pub(crate) async fn health(&self) -> Result<Health, Busy> {
        self.ask(Ask::Health).await
    }

    /// How long a node may be away from here on: until it counts as offline, and until it is deleted if it is ephemeral.
    pub(crate) async fn set_graces(&self, offline: Duration, ephemeral: Duration) -> Result<(), Busy> {
        self.ask(|answer| Ask::Graces(offline, ephemeral, answer)).await
    }

    /// What nodes do with names is, from here on, this.
    pub(crate) async fn set_names(&self, names: Names) -> Result<(), Busy> {
        self.ask(|answer| Ask::Names(names, answer)).await
    }

    /// Entries of the journal, the oldest first.
    pub(crate) async fn journal(&self, query: JournalQuery) -> Result<Result<Vec<JournalRecord>, StoreError>, Busy> {
        self.ask(|answer| Ask::Journal(query, answer)).await
    }

    /// Copies the database into this new file. Whoever wants something kept waits for some tenths of a second where it is
    /// large.
    pub(crate) async fn copy(&self, to: PathBuf) -> Result<Result<(), StoreError>, Busy> {
        self.ask(|answer| Ask::Copy(to, answer)).await
    }

    async fn give<R>(&self, ask: Ask, answered: oneshot::Receiver<Result<R, CommandError>>) -> Result<R, CommandError> {
        self.send(ask).await?;
        answered.await.map_err(|_| Busy)?
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Busy> {
        let (sender, receiver) = oneshot::channel();
        self.send(make(sender)).await?;
        receiver.await.map_err(|_| Busy)
    }

    async fn send(&self, ask: Ask) -> Result<(), Busy> {
        self.asks.send_timeout(ask, limits::HUB_PATIENCE).await.map_err(|_| Busy)
    }
}

#[cfg(test)]
mod tests;
