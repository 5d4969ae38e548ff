//! Keeps the kernel as wished: look, compare, act, look again.
//!
//! Level-triggered: a notice of change only says that it is time to look. Nothing is remembered of what
//! was done; every round compares the whole wish with a fresh observation. A round ends where the plan is
//! empty ("converged"). A step that fails does not stop the others, unless they would be unsafe without
//! it; then the next round waits, longer each time. A difference that appears while nothing of ours
//! changed was made by somebody else: it is repaired and named, and an object that needs this again and
//! again is repaired at a slower pace.
//!
//! Time comes in as `now`. `poll_action` gives one action at a time; its result comes back through
//! `handle_observed` or `handle_steps`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use super::desired::Desired;
use super::kernel::KernelError;
use super::lookup::Misroute;
use super::observed::{Observed, ObservedFirewall};
use super::step::{DeviceStep, FirewallStep, LinkStep, PeerStep, Plan, RuleStep, Step};
use super::{diff, own};

/// How long to gather notices of change before looking: one `ip` or `nft` command makes several.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How often to look without any notice: notices can be lost.
const SLOW_LOOK: Duration = Duration::from_secs(60);
/// A look reads all peers: for each further so many, the pause between slow looks is longer by one more of them.
const SLOW_LOOK_PEERS: usize = 1_000;
/// The wait after a round with failures, doubled with each further one.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest such wait.
const RETRY_LAST: Duration = Duration::from_secs(60);
/// So many plans in a row that leave something to do are a failure, though no step says so.
const ROUNDS: u32 = 5;
/// So many repairs of one object within [`CONTEST_WINDOW`] mean that another program undoes ours.
const CONTEST_REPAIRS: usize = 5;
/// See [`CONTEST_REPAIRS`].
const CONTEST_WINDOW: Duration = Duration::from_secs(60);
/// How long to gather notices while another program undoes our work.
const CONTEST_PACE: Duration = Duration::from_secs(5);
/// How long a repair is told of.
const REPAIR_MEMORY: Duration = Duration::from_secs(600);
/// Objects whose repairs are remembered one by one; the sum of them is told in any case.
const REPAIRS_REMEMBERED: usize = 64;

/// Steps in one run: what a device of 10,000 peers needs is twenty of them, and a new wish waits for one at most.
const RUN: usize = 512;

/// What the shell is to do with the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelAction {
    /// Observe, then [`Reconciler::handle_observed`].
    Observe,
    /// Carry out in order, then [`Reconciler::handle_steps`]: one step, or a run of like ones.
    Apply(Vec<Step>),
}

/// What the log should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReconcilerEvent {
    /// Everything is as wished.
    Converged,
    /// Something is wrong, or was.
    Trouble(Trouble),
}

/// What the operator should know of for longer than a moment. Displays as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Something is not as wished and could not be made so.
    Failing {
        what: String,
        /// What the kernel said.
        error: String,
    },
    /// Somebody else changed an object of ours; it is put back.
    Repaired { what: String },
    /// Somebody else deleted our nftables table, and for a while nothing was filtered.
    Exposed {
        /// From the kernel's word of it to the table's return; the last time.
        took: Duration,
    },
    /// Somebody else keeps changing an object of ours.
    Contested {
        what: String,
        /// How often of late.
        times: usize,
    },
}

impl Trouble {
    fn of_repairs(what: &str, times: &VecDeque<Instant>, now: Instant) -> Self {
        match recent(times, now) {
            times if times >= CONTEST_REPAIRS => Self::Contested { what: what.to_owned(), times },
            _ => Self::Repaired { what: what.to_owned() },
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failing { what, error } => write!(f, "could not {what}: {error}"),
            Self::Repaired { what } => write!(f, "another program removed or changed {what}; it was put back"),
            Self::Exposed { took } => write!(
                f,
                "another program deleted table inet {}: for {} ms the packets of peers were not filtered; connections \
                 that began meanwhile were judged again",
                own::NFT_TABLE,
                took.as_millis()
            ),
            Self::Contested { what, times } => write!(
                f,
                "another program keeps removing or changing {what} ({times} times of late); \
                 find it and have it leave the objects of warren alone"
            ),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Reconciler {
    desired: Option<Desired>,
    phase: Phase,
    /// When to look next.
    look_at: Option<Instant>,
    /// Whether the last look found everything as wished, and the wish is still that.
    settled: bool,
    /// Rounds with failures in a row.
    failures: u32,
    /// Whether the last round came to its end but for steps that nothing else depends on.
    works: bool,
    /// Whether what failed in the round that is under way is more than that.
    guard_failed: bool,
    /// Plans carried out in a row that left something to do.
    rounds: u32,
    /// What failed in the last round, and how.
    failing: BTreeMap<String, String>,
    /// The same of the round that is under way.
    tried: BTreeMap<String, String>,
    /// No notice of change brings a look before this.
    not_before: Option<Instant>,
    repairs: BTreeMap<String, VecDeque<Instant>>,
    /// When our table was seen to go, while it is not back.
    gone_at: Option<Instant>,
    /// When it was last put back, and how long it had been gone.
    exposed: Option<(Instant, Duration)>,
    observed: Option<Observed>,
    events: VecDeque<ReconcilerEvent>,
}

#[derive(Debug, Default)]
enum Phase {
    /// Until `look_at`.
    #[default]
    Waiting,
    /// An observation is to be asked for.
    Due,
    /// It was asked for.
    Observing,
    /// A plan is being carried out.
    Applying { rest: VecDeque<Step>, current: Vec<Step>, failed: bool },
}

impl Reconciler {
    /// A reconciler without a wish: it does nothing until it has one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a new wish. What is left of the plan for the old one is dropped, which is safe at any step.
    pub fn handle_desired(&mut self, desired: Desired, now: Instant) {
        if self.desired.as_ref() == Some(&desired) {
            return;
        }
        self.desired = Some(desired);
        self.settled = false;
        self.works = false;
        self.rounds = 0;
        match &mut self.phase {
            Phase::Applying { current, .. } if current.is_empty() => self.phase = Phase::Due,
            Phase::Applying { rest, .. } => rest.clear(),
            Phase::Waiting => self.look_at = Some(now),
            Phase::Due | Phase::Observing => {}
        }
    }

    /// Takes notice that something may have changed.
    pub fn handle_changed(&mut self, now: Instant) {
        let gather = if self.is_contested(now) { CONTEST_PACE } else { DEBOUNCE };
        let look_at = self.look_at.map_or(now + gather, |at| at.min(now + gather));
        self.look_at = Some(self.not_before.map_or(look_at, |at| at.max(look_at)));
    }

    /// Takes notice that a table of our name was deleted. Nothing is gathered: until it is back, nothing is filtered.
    pub fn handle_firewall_gone(&mut self, now: Instant) {
        self.gone_at.get_or_insert(now);
        self.look_at = Some(self.not_before.map_or(now, |at| at.max(now)));
        self.handle_timeout(now);
    }

    /// Takes the answer to [`KernelAction::Observe`].
    pub fn handle_observed(&mut self, observed: Result<Observed, KernelError>, now: Instant) {
        let (Some(desired), Phase::Observing) = (&self.desired, &self.phase) else { return };
        let observed = match observed {
            Ok(observed) => observed,
            Err(error) => {
                self.guard_failed = true;
                self.fail("look at the kernel".to_owned(), error.to_string());
                self.wait_after_failure(now);
                return;
            }
        };
        if matches!(observed.firewall, ObservedFirewall::Table(_)) {
            self.gone_at = None;
        }
        let plan = diff(desired, &observed);
        let foreign = observed.link_is_foreign() && desired.device.is_some();
        self.observed = Some(observed);
        if self.rounds >= ROUNDS
            && let Some(step) = plan.steps.first()
        {
            self.guard_failed = plan.steps.iter().any(guards_the_rest);
            self.fail(step.to_string(), format!("it was done {ROUNDS} times and is still to do"));
            self.wait_after_failure(now);
        } else if !plan.is_empty() {
            if self.settled {
                self.note_repairs(&plan, now);
            }
            self.settled = false;
            self.rounds += 1;
            self.guard_failed = false;
            self.phase = Phase::Applying { rest: plan.steps.into(), current: Vec::new(), failed: false };
        } else if foreign {
            self.guard_failed = true;
            let error = "another program has a link of this name that is not WireGuard; rename or delete that";
            self.fail(format!("create link {}", own::LINK), error.to_owned());
            self.wait_after_failure(now);
        } else {
            self.converged(now);
        }
    }

    /// Takes the answer to [`KernelAction::Apply`]: how each step went.
    pub fn handle_steps(&mut self, results: Vec<Result<(), KernelError>>, now: Instant) {
        let Phase::Applying { current, .. } = &mut self.phase else { return };
        let steps = std::mem::take(current);
        if steps.is_empty() {
            return;
        }
        for (step, result) in steps.iter().zip(results) {
            match result {
                Ok(()) => self.note_done(step, now),
                Err(error) => self.note_failed(step, &error),
            }
        }
        let Phase::Applying { rest, failed, .. } = &self.phase else { return };
        let (finished, failed) = (rest.is_empty(), *failed);
        if finished && failed {
            self.wait_after_failure(now);
        } else if finished {
            self.phase = Phase::Due;
        }
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.forget_repairs(now);
        if self.look_at.is_some_and(|at| at <= now) && matches!(self.phase, Phase::Waiting) {
            self.look_at = None;
            if self.desired.is_some() {
                self.phase = Phase::Due;
            }
        }
    }

    /// What to do with the kernel, one thing at a time.
    pub fn poll_action(&mut self) -> Option<KernelAction> {
        match &mut self.phase {
            Phase::Due => {
                self.phase = Phase::Observing;
                Some(KernelAction::Observe)
            }
            Phase::Applying { rest, current, .. } if current.is_empty() => {
                current.extend(rest.pop_front());
                while let Some(last) = current.last().filter(|_| current.len() < RUN)
                    && let Some(next) = rest.pop_front_if(|next| last.goes_with(next))
                {
                    current.push(next);
                }
                (!current.is_empty()).then(|| KernelAction::Apply(current.clone()))
            }
            Phase::Waiting | Phase::Observing | Phase::Applying { .. } => None,
        }
    }

    /// What happened, for the log.
    pub fn poll_event(&mut self) -> Option<ReconcilerEvent> {
        self.events.pop_front()
    }

    /// When [`Reconciler::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let look_at = self.look_at.filter(|_| matches!(self.phase, Phase::Waiting));
        let forget_at = self.repairs.values().filter_map(|times| times.back()).map(|last| *last + REPAIR_MEMORY).min();
        let exposed_until = self.exposed.map(|(at, _)| at + REPAIR_MEMORY);
        look_at.into_iter().chain(forget_at).chain(exposed_until).min()
    }

    /// The last observation.
    pub fn observed(&self) -> Option<&Observed> {
        self.observed.as_ref()
    }

    /// The wish.
    pub fn desired(&self) -> Option<&Desired> {
        self.desired.as_ref()
    }

    /// Whether the last look found everything as wished.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// Whether what is wished for works, but for parts that could not be had and that nothing else depends on.
    pub fn works(&self) -> bool {
        self.works
    }

    /// What goes another way than is wished for, though all of ours is in its place.
    pub fn misroutes(&self) -> Vec<Misroute> {
        let (Some(desired), Some(observed)) = (&self.desired, &self.observed) else { return Vec::new() };
        if !self.settled {
            return Vec::new();
        }
        observed.lookups.iter().filter_map(|lookup| lookup.misroute(desired)).collect()
    }

    /// What is wrong for longer than a moment.
    pub fn troubles(&self, now: Instant) -> Vec<Trouble> {
        let failing = self.failing.iter();
        let failing = failing.map(|(what, error)| Trouble::Failing { what: what.clone(), error: error.clone() });
        let repairs = self.repairs.iter().map(|(what, times)| Trouble::of_repairs(what, times, now));
        let exposed = self.exposed.map(|(_, took)| Trouble::Exposed { took });
        failing.chain(repairs).chain(exposed).collect()
    }

    fn converged(&mut self, now: Instant) {
        self.phase = Phase::Waiting;
        let slow = now + self.slow_look();
        self.look_at = Some(self.look_at.map_or(slow, |at| at.min(slow)));
        self.failures = 0;
        self.rounds = 0;
        self.works = true;
        self.failing.clear();
        self.tried.clear();
        if !self.settled {
            self.settled = true;
            self.events.push_back(ReconcilerEvent::Converged);
        }
    }

    fn slow_look(&self) -> Duration {
        let device = self.observed.as_ref().and_then(|observed| observed.device.as_ref());
        let thousands = device.map_or(0, |device| device.peers.len() / SLOW_LOOK_PEERS);
        SLOW_LOOK.saturating_mul(u32::try_from(thousands).unwrap_or(u32::MAX).saturating_add(1))
    }

    fn note_done(&mut self, step: &Step, now: Instant) {
        if let (Step::Firewall(FirewallStep::Replace(_)), Some(at)) = (step, self.gone_at) {
            self.gone_at = None;
            let took = now.saturating_duration_since(at);
            self.exposed = Some((now, took));
            self.events.push_back(ReconcilerEvent::Trouble(Trouble::Exposed { took }));
        }
    }

    /// Drops what would be unsafe without this step.
    fn note_failed(&mut self, step: &Step, error: &KernelError) {
        if let Phase::Applying { rest, failed, .. } = &mut self.phase {
            *failed = true;
            self.guard_failed |= guards_the_rest(step);
            if guards_the_rest(step) {
                rest.clear();
            } else if changes_hands(step) {
                rest.retain(|later| !matches!(later, Step::Firewall(FirewallStep::Update { .. })));
            }
        }
        self.fail(step.to_string(), error.to_string());
    }

    fn fail(&mut self, what: String, error: String) {
        if self.failing.get(&what) != Some(&error) {
            self.events
                .push_back(ReconcilerEvent::Trouble(Trouble::Failing { what: what.clone(), error: error.clone() }));
        }
        self.tried.insert(what, error);
    }

    fn wait_after_failure(&mut self, now: Instant) {
        let wait = RETRY_FIRST.saturating_mul(1 << self.failures.min(10)).min(RETRY_LAST);
        self.failures += 1;
        self.rounds = 0;
        self.works = !self.guard_failed;
        self.failing = std::mem::take(&mut self.tried);
        self.phase = Phase::Waiting;
        self.not_before = Some(now + RETRY_FIRST);
        self.look_at = Some(now + wait);
    }

    /// Names what somebody else changed: at most one entry per object, the link for all that hangs on it.
    fn note_repairs(&mut self, plan: &Plan, now: Instant) {
        let hangs_on_link = plan.steps.contains(&Step::Link(LinkStep::Create));
        let named = plan.steps.iter().filter(|step| !hangs_on_link || !goes_with_the_link(step));
        let objects: BTreeSet<String> = named.map(Step::object).collect();
        for what in objects {
            if self.repairs.len() >= REPAIRS_REMEMBERED && !self.repairs.contains_key(&what) {
                continue;
            }
            let times = self.repairs.entry(what.clone()).or_default();
            times.push_back(now);
            if times.len() > CONTEST_REPAIRS {
                times.pop_front();
            }
            self.events.push_back(ReconcilerEvent::Trouble(Trouble::of_repairs(&what, times, now)));
        }
    }

    fn is_contested(&self, now: Instant) -> bool {
        self.repairs.values().any(|times| recent(times, now) >= CONTEST_REPAIRS)
    }

    fn forget_repairs(&mut self, now: Instant) {
        self.repairs.retain(|_, times| times.back().is_some_and(|last| now < *last + REPAIR_MEMORY));
        self.exposed = self.exposed.filter(|(at, _)| now < *at + REPAIR_MEMORY);
    }
}

/// How many of these repairs lie within the contest window.
fn recent(times: &VecDeque<Instant>, now: Instant) -> usize {
    times.iter().filter(|time| now.saturating_duration_since(**time) < CONTEST_WINDOW).count()
}

/// Whether a step is undone by whoever deletes the link.
fn goes_with_the_link(step: &Step) -> bool {
    if let Step::Forwarding(step) = step {
        return step.switch().link() == own::LINK;
    }
    !matches!(
        step,
        Step::Link(LinkStep::Create)
            | Step::Rule(_)
            | Step::Firewall(FirewallStep::Replace(_) | FirewallStep::Update { .. } | FirewallStep::CutFlows(_))
            | Step::RemoveStrange(_)
    )
}

/// Whether what follows would be unsafe, or pointless, where this step failed.
fn guards_the_rest(step: &Step) -> bool {
    matches!(
        step,
        Step::Link(LinkStep::Create | LinkStep::Delete | LinkStep::SetUp)
            | Step::Device(DeviceStep::SetPrivateKey(_) | DeviceStep::SetFwmark(_))
            | Step::Firewall(FirewallStep::Replace(_) | FirewallStep::Update { .. })
            | Step::Rule(RuleStep::Add(_))
    )
}

/// Whether a step decides who holds an address: where it failed, no withheld right may be given.
fn changes_hands(step: &Step) -> bool {
    matches!(
        step,
        Step::Peer(
            _,
            PeerStep::Add(_) | PeerStep::AddAllowedIps(_) | PeerStep::RemoveAllowedIps { .. } | PeerStep::Remove
        )
    )
}
