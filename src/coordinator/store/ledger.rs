//! A state and its store, joined so that memory never runs ahead of the disk, and nobody waits for the disk but whoever
//! wants something kept.
//!
//! Model: the store is either at rest here, or at work in a task of its own. A command is decided when the store is at rest;
//! its changes are committed beside the ledger's owner, who goes on meanwhile, and applied and answered when they are on
//! disk ([`Ledger::handle_written`]). Commands that come meanwhile wait their turn, but for those that change nothing: they
//! are answered at once, as things are. So nothing comes between the look and the act: a one-off key that two machines
//! show at once admits one of them. What nodes say of themselves is saved lazily and rides along with the next commit.
//!
//! Where somebody else wrote into the store, what it holds is read, and the command is decided again.

mod outcome;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::job::Job;
use super::work::{self, Done, Work};
use super::{Batch, Store, StoreError};
#[cfg(test)]
use warren_core::registry::{Actor, Commands, Decision};
use warren_core::registry::{Audit, Change, CheckedPolicy, Config, Refusal, State};
use warren_core::types::Timestamp;
use warren_core::wire::admin::{JournalQuery, JournalRecord};

/// The longest that a change which may be saved at leisure waits. Where a peer is found is among them: after a crash
/// others are told of it as it was saved last.
const SAVE_WITHIN: Duration = Duration::from_secs(1);
/// The most nodes that wait to be saved at leisure: one transaction of some milliseconds.
const SAVE_ABOVE: usize = 1_024;
/// How long to leave a database alone that just failed.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The oldest success that says of the store that it can be written to.
const FRESH: Duration = Duration::from_secs(30);
/// How long a store may be at work before that is a fault.
const SLOW: Duration = Duration::from_secs(10);
/// Commands that wait for the store; whoever comes then is sent away. Each holds a request.
pub(super) const QUEUE: usize = 1_024;
/// How often a command is decided because somebody else was faster.
const TRIES: u8 = 5;

/// A state and its store.
#[derive(Debug)]
pub struct Ledger<S> {
    state: State,
    store: StoreState<S>,
    /// The number of the last entry of the journal that the state knows of.
    revision: u64,
    waiting: VecDeque<Task>,
    save_at: Option<Timestamp>,
    retry_at: Option<Timestamp>,
    fault: Option<StoreError>,
    /// The last time that something was kept.
    kept_at: Timestamp,
    /// What a commit held of which it is not known whether it is on disk.
    doubtful: Option<Batch>,
}

/// A store that has done what it was at work for, and what became of that.
#[derive(Debug)]
pub struct Written<S> {
    store: S,
    done: Done,
}

/// Where the store is.
#[derive(Debug)]
enum StoreState<S> {
    AtRest(S),
    /// In a task of its own since then, and what for.
    AtWork {
        task: JoinHandle<(S, Done)>,
        purpose: Box<Purpose>,
        since: Timestamp,
    },
    /// Nowhere: for the moment in which it is handed over.
    Moving,
}

/// What a store is at work for.
enum Purpose {
    /// To keep what a command or the time decided, and what waited to be saved.
    Commit {
        task: Option<Task>,
        batch: Batch,
        reports: Vec<Change>,
    },
    /// To keep what waited to be saved.
    Save,
    Prove,
    /// To tell what it holds, because somebody else wrote into it.
    Reload(Option<Task>),
    Copy(oneshot::Sender<Result<(), StoreError>>),
    Read(oneshot::Sender<Result<Vec<JournalRecord>, StoreError>>),
}

/// What waits for the store.
enum Task {
    Command { job: Box<dyn Job>, ready: Option<Box<CheckedPolicy>>, tries: u8 },
    Copy(PathBuf, oneshot::Sender<Result<(), StoreError>>),
    Read(JournalQuery, oneshot::Sender<Result<Vec<JournalRecord>, StoreError>>),
}

impl std::fmt::Debug for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Commit { .. } => "Commit",
            Self::Save => "Save",
            Self::Prove => "Prove",
            Self::Reload(_) => "Reload",
            Self::Copy(_) => "Copy",
            Self::Read(_) => "Read",
        })
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Command { .. } => "Command",
            Self::Copy(..) => "Copy",
            Self::Read(..) => "Read",
        })
    }
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CommandError {
    /// It makes no sense as things are.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Too much else is to be done.
    #[error("the coordinator is busy, try again later")]
    Busy,
}

impl<S: Store> Ledger<S> {
    /// The state that the store describes.
    pub async fn open(mut store: S, config: Config, now: Timestamp) -> Result<Self, StoreError> {
        let mut records = store.load().await?;
        let as_it_was = State::restore(config.clone(), records.clone(), now);
        let (settled, words) = as_it_was.settled(&records, now);
        if !settled.changes.is_empty() {
            let batch = Batch { revision: records.revision, audits: vec![settled.audit], changes: settled.changes };
            store.commit(&batch).await?;
            records = store.load().await?;
        }
        words.iter().for_each(|word| tracing::warn!("{word}"));
        let revision = records.revision;
        let state = State::restore(config, records, now);
        let mut ledger = Self {
            state,
            store: StoreState::AtRest(store),
            revision,
            waiting: VecDeque::new(),
            save_at: None,
            retry_at: None,
            fault: None,
            kept_at: now,
            doubtful: None,
        };
        if !ledger.know(now).await {
            tracing::error!("serving with what is on the disk; every change is refused until it can be written to");
        }
        Ok(ledger)
    }

    /// The state, to look at.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The state, for what is never saved or saved at leisure: map requests, streams, outputs.
    pub const fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    // ---- what is asked for ----

    /// Carries out a command, now or when the store is at rest; with the policy that it sets, if that was compiled elsewhere.
    pub fn submit(&mut self, mut job: Box<dyn Job>, ready: Option<Box<CheckedPolicy>>, now: Timestamp) {
        let is_busy = matches!(self.store, StoreState::AtWork { .. });
        if is_busy && ready.is_none() {
            match job.decide(&self.state, now) {
                None => return,
                Some((changes, _)) if changes.is_empty() => return job.answer(Ok(())),
                // To be decided again when its turn comes.
                Some(_) => {}
            }
        }
        if self.waiting.len() >= QUEUE {
            return job.answer(Err(CommandError::Busy));
        }
        self.waiting.push_back(Task::Command { job, ready, tries: 0 });
        self.go_on(now);
    }

    /// Copies everything into a new file, what waits to be saved included.
    pub fn copy(&mut self, to: PathBuf, answer: oneshot::Sender<Result<(), StoreError>>, now: Timestamp) {
        self.waiting.push_back(Task::Copy(to, answer));
        self.go_on(now);
    }

    /// Reads the journal.
    pub fn read_journal(
        &mut self,
        query: JournalQuery,
        answer: oneshot::Sender<Result<Vec<JournalRecord>, StoreError>>,
        now: Timestamp,
    ) {
        self.waiting.push_back(Task::Read(query, answer));
        self.go_on(now);
    }

    // ---- time ----

    /// What time brings. Call it after every command and whenever [`Ledger::poll_timeout`] says so; then
    /// drain the state's outputs.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.state.handle_timeout(now);
        self.go_on(now);
    }

    /// The clock was set by this much, and it is `now`.
    pub fn handle_clock_set(&mut self, by: SignedDuration, now: Timestamp) {
        let end = if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX };
        let shifted = |at: Timestamp| at.checked_add(by).unwrap_or(end);
        self.save_at = self.save_at.map(shifted);
        self.retry_at = self.retry_at.map(shifted);
        self.kept_at = shifted(self.kept_at);
        if let StoreState::AtWork { since, .. } = &mut self.store {
            *since = shifted(*since);
        }
        self.state.handle_clock_set(by, now);
    }

    /// When [`Ledger::handle_timeout`] wants to be called again.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let writes = match self.store {
            StoreState::AtRest(_) => {
                self.retry_at.or([self.state.next_due(), self.save_at].into_iter().flatten().min())
            }
            StoreState::AtWork { .. } | StoreState::Moving => None,
        };
        self.state.poll_timeout().into_iter().chain(writes).min()
    }

    // ---- health ----

    /// What is wrong with the store since its last success.
    pub const fn fault(&self) -> Option<&StoreError> {
        self.fault.as_ref()
    }

    /// What is wrong with it at this moment, in words.
    pub fn complaint(&self, now: Timestamp) -> Option<String> {
        match &self.store {
            StoreState::AtWork { since, .. } if later(*since, SLOW) < now => {
                Some("the database has not answered for more than ten seconds; what is to be kept waits".to_owned())
            }
            StoreState::AtWork { .. } | StoreState::AtRest(_) | StoreState::Moving => {
                self.fault.as_ref().map(ToString::to_string)
            }
        }
    }

    /// Tries to write where nothing was written lately. `true` where [`Ledger::complaint`] knows more once that is done.
    pub fn examine(&mut self, now: Timestamp) -> bool {
        let is_old = self.fault.is_none() && later(self.kept_at, FRESH) <= now;
        if let (true, StoreState::AtRest(_)) = (is_old, &self.store) {
            self.retry_at = None;
            let reports = self.state.take_unsaved();
            match reports.is_empty() {
                true => self.start(Purpose::Prove, Work::Prove, now),
                false => self.save(reports, now),
            }
        }
        matches!(self.store, StoreState::AtWork { .. }) && is_old
    }

    // ---- the store ----

    /// Waits until the store has done what it is at work for; for ever where it is at rest. May be given up at any time.
    pub async fn written(&mut self) -> Written<S> {
        match &mut self.store {
            StoreState::AtWork { task, .. } => match task.await {
                Ok((store, done)) => Written { store, done },
                Err(error) => match error.try_into_panic() {
                    // It happened elsewhere, and takes along the same.
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => std::future::pending().await,
                },
            },
            StoreState::AtRest(_) | StoreState::Moving => std::future::pending().await,
        }
    }

    /// The store has done what it was at work for.
    pub fn handle_written(&mut self, written: Written<S>, now: Timestamp) {
        let Written { store, done } = written;
        let was = std::mem::replace(&mut self.store, StoreState::AtRest(store));
        let StoreState::AtWork { purpose, .. } = was else { return };
        if matches!(*purpose, Purpose::Commit { .. } | Purpose::Save | Purpose::Prove) {
            self.note(&done.result, now);
        }
        match *purpose {
            Purpose::Commit { task, batch, reports } => self.committed(task, batch, &reports, done, now),
            Purpose::Save => {
                self.state.put_back_unsaved(&done.unkept);
                if done.result.is_err() {
                    (self.save_at, self.retry_at) = (Some(now), Some(later(now, RETRY_AFTER)));
                }
            }
            Purpose::Prove => self.proven(done, now),
            Purpose::Reload(task) => self.reloaded(task, done, now),
            Purpose::Copy(answer) => {
                self.state.put_back_unsaved(&done.unkept);
                let _ = answer.send(done.result);
            }
            Purpose::Read(answer) => {
                let _ = answer.send(done.result.map(|()| done.read));
            }
        }
        self.go_on(now);
    }

    /// Begins what is to be done next, if the store is at rest.
    fn go_on(&mut self, now: Timestamp) {
        while let StoreState::AtRest(store) = &self.store {
            let is_sound = store.is_sound();
            let may_try = self.retry_at.is_none_or(|at| at <= now);
            // Before what waits, which may never end.
            let is_due = is_sound && may_try && self.state.next_due().is_some_and(|at| at <= now);
            if is_due && self.begin_what_is_due(is_sound, now) {
                continue;
            }
            match self.waiting.pop_front() {
                // Nothing is decided before it is known what is on disk.
                Some(task) if !is_sound && matches!(task, Task::Command { .. }) => {
                    self.waiting.push_front(task);
                    return self.start(Purpose::Prove, Work::Prove, now);
                }
                Some(task) => self.begin(task, now),
                None if !may_try || !self.begin_what_is_due(is_sound, now) => return,
                None => {}
            }
        }
    }

    fn begin(&mut self, task: Task, now: Timestamp) {
        match task {
            Task::Command { mut job, ready, tries } => {
                if let Some(ready) = ready
                    && let Err(refusal) = self.state.stage_policy(*ready)
                {
                    return job.answer(Err(refusal.into()));
                }
                match job.decide(&self.state, now) {
                    Some((changes, audit)) if !changes.is_empty() => {
                        let task = Task::Command { job, ready: None, tries: tries + 1 };
                        self.commit(Some(task), changes, audit, now);
                    }
                    Some(_) => {
                        self.state.unstage_policy();
                        job.answer(Ok(()));
                    }
                    None => self.state.unstage_policy(),
                }
            }
            Task::Copy(to, answer) => {
                let reports = self.state.take_unsaved();
                self.start(Purpose::Copy(answer), Work::Copy(reports, to), now);
            }
            Task::Read(query, answer) => self.start(Purpose::Read(answer), Work::Read(query), now),
        }
    }

    /// `false` where nothing is due.
    fn begin_what_is_due(&mut self, is_sound: bool, now: Timestamp) -> bool {
        self.retry_at = None;
        let has_due = self.state.next_due().is_some_and(|at| at <= now);
        let unsaved = self.state.unsaved();
        self.save_at = match unsaved {
            0 => None,
            SAVE_ABOVE.. => Some(now),
            _ => self.save_at.or_else(|| Some(later(now, SAVE_WITHIN))),
        };
        let saves = self.save_at.is_some_and(|at| at <= now);
        if !is_sound || self.fault.is_some() && !has_due && !saves {
            // Whoever looks at the health report should not have to write something to see that the disk is well again.
            if has_due || saves || self.fault.is_some() {
                self.start(Purpose::Prove, Work::Prove, now);
                return true;
            }
            return false;
        }
        if has_due {
            let due = self.state.due(now);
            if !due.changes.is_empty() {
                self.commit(None, due.changes, due.audit, now);
                return true;
            }
        }
        if saves {
            self.save_at = None;
            let reports = self.state.take_unsaved();
            self.save(reports, now);
        }
        saves
    }

    /// Commits what waits to be saved with these; where the store does not take what waits, these alone.
    fn commit(&mut self, task: Option<Task>, changes: Vec<Change>, audit: Audit, now: Timestamp) {
        let batch = Batch { revision: self.revision, audits: vec![audit], changes };
        let reports = self.state.take_unsaved();
        let work = Work::Commit { batch: batch.clone(), reports: reports.clone() };
        self.start(Purpose::Commit { task, batch, reports }, work, now);
    }

    fn save(&mut self, reports: Vec<Change>, now: Timestamp) {
        self.start(Purpose::Save, Work::Save(reports), now);
    }

    fn start(&mut self, purpose: Purpose, work: Work, now: Timestamp) {
        match std::mem::replace(&mut self.store, StoreState::Moving) {
            StoreState::AtRest(store) => {
                let task = tokio::spawn(work::carry_out(store, work, self.revision));
                self.store = StoreState::AtWork { task, purpose: Box::new(purpose), since: now };
            }
            busy @ (StoreState::AtWork { .. } | StoreState::Moving) => self.store = busy,
        }
    }
}

// ---- one thing after the other ----

impl<S: Store> Ledger<S> {
    /// Saves what waits to be saved and who was online, and gives the store back to be closed.
    pub async fn shutdown(mut self, now: Timestamp) -> (Option<S>, Result<(), StoreError>) {
        self.settle(now).await;
        self.know(now).await;
        self.state.stop(now);
        let reports = self.state.take_unsaved();
        self.save(reports, now);
        let saved = match &mut self.store {
            StoreState::AtWork { .. } => {
                let written = self.written().await;
                let saved = written.done.result.clone();
                self.store = StoreState::AtRest(written.store);
                saved
            }
            StoreState::AtRest(_) | StoreState::Moving => Ok(()),
        };
        match self.store {
            StoreState::AtRest(store) => (Some(store), saved),
            StoreState::AtWork { .. } | StoreState::Moving => (None, saved),
        }
    }

    /// Finds out what is on disk, where that is not known. `false` where that cannot be.
    async fn know(&mut self, now: Timestamp) -> bool {
        let is_sound = |store: &StoreState<S>| matches!(store, StoreState::AtRest(store) if store.is_sound());
        if !is_sound(&self.store) {
            self.start(Purpose::Prove, Work::Prove, now);
            self.settle(now).await;
        }
        is_sound(&self.store)
    }

    /// Goes on until the store is at rest.
    pub async fn settle(&mut self, now: Timestamp) {
        while matches!(self.store, StoreState::AtWork { .. }) {
            let written = self.written().await;
            self.handle_written(written, now);
        }
    }
}

#[cfg(test)]
impl<S: Store> Ledger<S> {
    pub(super) fn store(&self) -> &S {
        match &self.store {
            StoreState::AtRest(store) => store,
            StoreState::AtWork { .. } | StoreState::Moving => panic!("the store is at work"),
        }
    }

    pub(super) fn store_mut(&mut self) -> &mut S {
        match &mut self.store {
            StoreState::AtRest(store) => store,
            StoreState::AtWork { .. } | StoreState::Moving => panic!("the store is at work"),
        }
    }

    /// Carries out a command, and waits for that.
    pub(super) async fn try_run<R: Send + 'static>(
        &mut self,
        actor: &Actor,
        now: Timestamp,
        decide: impl FnMut(&Commands<'_>) -> Result<Decision<R>, Refusal> + Send + 'static,
    ) -> Result<R, CommandError> {
        let (job, answered) = super::job(actor.clone(), decide);
        self.submit(job, None, now);
        self.settle(now).await;
        answered.await.unwrap()
    }

    /// Lets it be this moment, and waits for what that brings.
    pub(super) async fn pass(&mut self, now: Timestamp) {
        self.handle_timeout(now);
        self.settle(now).await;
        self.handle_timeout(now);
    }

    pub(super) async fn examined(&mut self, now: Timestamp) -> Option<&StoreError> {
        self.examine(now);
        self.settle(now).await;
        self.fault()
    }
}

fn later(now: Timestamp, duration: Duration) -> Timestamp {
    now.checked_add(duration).unwrap_or(Timestamp::MAX)
}
