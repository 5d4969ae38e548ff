//! Requests that wait for their answer, each for something and until some time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use super::{CallId, Engine, Now, PumpCounters};
use crate::wire::local::WhyQuestion;

/// What has to come before a request is answered.
#[derive(Debug)]
pub(super) enum Awaited {
    /// The kernel holds the wish.
    Settled,
    /// The kernel was looked at: a status is to have fresh counters.
    Look,
    /// The disk holds what it should, or could not be made to.
    Kept(Kept),
    /// The coordinator's word on a sign-out, or none.
    SignOut,
    /// The coordinator's word on another node key.
    Rotation,
    /// A whole look at the network has ended.
    Netcheck,
    /// What our table says.
    Table(TableQuestion),
    /// Where the kernel sends packets to this address: why a packet passes.
    WayTo(IpAddr, WhyQuestion),
    /// The pump's counters.
    Counters(Counters),
}

/// What is asked of our table.
#[derive(Clone, Debug)]
pub(super) enum TableQuestion {
    /// Who may open what.
    Acl,
    /// Why a packet passes or does not.
    Why(WhyQuestion),
}

/// What is told once the disk was written.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    /// All faults.
    Health,
    /// This machine is signed out; the text says what the coordinator did not hear.
    SignOut(Option<String>),
}

/// What the pump's counters are told in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counters {
    /// How the connections to relays stand.
    Relays,
    /// Figures for a monitor: those that official clients have, or all.
    Metrics { all: bool },
}

#[derive(Debug)]
struct Waiting {
    until: Option<Instant>,
    awaited: Awaited,
}

/// All that wait. Whoever asks holds a place at the local socket meanwhile, so there are not many.
#[derive(Debug, Default)]
pub(super) struct Calls(BTreeMap<CallId, Waiting>);

impl Calls {
    /// A request waits, until this time at most where one is given.
    pub(super) fn wait(&mut self, id: CallId, awaited: Awaited, until: Option<Instant>) {
        self.0.insert(id, Waiting { until, awaited });
    }

    /// Those that wait for a thing of which this makes something, with what it makes.
    pub(super) fn take<T>(&mut self, pick: impl Fn(&Awaited) -> Option<T>) -> Vec<(CallId, T)> {
        let picked = self.0.iter().filter_map(|(id, waiting)| Some((*id, pick(&waiting.awaited)?)));
        let picked: Vec<(CallId, T)> = picked.collect();
        for (id, _) in &picked {
            self.0.remove(id);
        }
        picked
    }

    /// Those that have waited long enough.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<(CallId, Awaited)> {
        let taken = self.0.extract_if(.., |_, waiting| waiting.until.is_some_and(|until| until <= now));
        taken.map(|(id, waiting)| (id, waiting.awaited)).collect()
    }

    /// Whether anybody waits for such a thing.
    pub(super) fn any(&self, is_it: impl Fn(&Awaited) -> bool) -> bool {
        self.0.values().any(|waiting| is_it(&waiting.awaited))
    }

    /// When the first has waited long enough.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.values().filter_map(|waiting| waiting.until).min()
    }
}

impl Engine {
    /// Whoever has waited long enough is told how far things are.
    pub(super) fn expire_calls(&mut self, now: Now) {
        for (id, awaited) in self.calls.take_expired(now.tick) {
            match awaited {
                Awaited::Settled => self.reply(id, self.status_json(false, now)),
                Awaited::Look => self.reply(id, self.status_json(true, now)),
                Awaited::Kept(kept) => self.reply(id, self.kept_answer(kept)),
                Awaited::Netcheck => self.reply(id, self.netcheck_answer(now)),
                Awaited::Counters(of) => self.reply(id, self.counters_answer(of, &PumpCounters::default())),
                // These wait for what always comes to an end: the session's time-out, the kernel's answer.
                Awaited::SignOut | Awaited::Rotation | Awaited::Table(_) | Awaited::WayTo(..) => {}
            }
        }
    }
}
