//! Another node key for the same node, without a packet that is lost.
//!
//! A kernel that is given another private key goes on taking what comes under its old sessions, and keeps what it is to
//! send, 128 packets a peer, until there is a handshake under the new key. So both keys are written first; then the
//! device goes over to the new one; only then is the coordinator asked, which tells the peers. They move the addresses
//! over to the new key, keep what they are to send likewise, and begin the handshake. In the other order a peer would
//! send to a key that this machine does not hold yet, and drop what still comes under the old one.
//!
//! Where the coordinator refuses, or does not answer for as long as the kernel may keep packets, the device goes back.
//! Without an answer nobody knows which key the peers have, so the same is asked again until there is one; after a crash
//! too, since both keys are on disk until then.

use std::time::{Duration, Instant};

use super::calls::Awaited;
use super::{Answer, CallId, Engine, Now, StateFile};
use crate::control::Failure;
use crate::types::{NodePrivate, Timestamp};
use crate::wire::control::ROTATES_NODE_KEYS;

/// How old a node key becomes, less a part of [`SPREAD`].
const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Machines that joined on one day do not change their keys at one moment.
const SPREAD: Duration = Duration::from_secs(2 * 24 * 3_600);
/// When a change that was refused, or given up, is tried again by itself.
const AGAIN: Duration = Duration::from_secs(24 * 3_600);
/// How long the disk may take.
const WRITING: Duration = Duration::from_secs(10);
/// How long the kernel keeps packets: it has room for 128 a peer, which is one second of a busy conversation.
const KEEPS: Duration = Duration::from_secs(1);

/// How far it is. The new key is `login.next_key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rotation {
    /// Both keys are being written.
    Writing { until: Instant },
    /// The device is to have the new key.
    Switching { until: Instant },
    /// It has, and the coordinator was asked.
    Asked { until: Instant },
    /// The coordinator may have heard and did not answer: the device has the present key, and it is asked again.
    Unanswered,
}

impl Engine {
    /// Somebody wants another key for this node.
    pub(super) fn rotate_keys(&mut self, id: CallId, now: Now) {
        let is_in = self.login.online && self.netmap.node().is_some() && !self.key_is_spent(now);
        let refusal = if self.rotation.is_some() {
            "the node key is being changed already"
        } else if !is_in || self.login.needed {
            "the coordinator has to be there to take another key, and this machine in its network; `warren status` says \
             what is wrong"
        } else if self.login.asked || self.login.next_key.is_some() {
            "this machine is signing in at the moment, which changes the key"
        } else {
            self.calls.wait(id, Awaited::Rotation, None);
            return self.begin_rotation(now);
        };
        self.reply(id, Answer::refused(409, refusal));
    }

    /// Which key the device is to have.
    pub(super) fn device_key(&self) -> Option<&NodePrivate> {
        let next = match *self.rotation {
            Some(Rotation::Switching { .. } | Rotation::Asked { .. }) => self.login.next_key.as_ref(),
            Some(Rotation::Writing { .. } | Rotation::Unanswered) | None => None,
        };
        next.or(self.identity.node_key.as_ref())
    }

    fn begin_rotation(&mut self, now: Now) {
        tracing::info!("the node key is being changed");
        self.login.next_key = Some(NodePrivate::from_random(self.entropy.key()));
        self.login.next_key_told = true;
        self.rotation.set(Some(Rotation::Writing { until: now.tick + WRITING }));
        self.saves.want(StateFile::NodeKey, now);
        // The map is known to be of the new key too before it is of no other.
        self.saves.want_at_once(StateFile::Map, now);
    }

    /// A change that was under way when the last agent ended comes to its end. The coordinator may know either key.
    pub(super) fn resume_rotation(&mut self, now: Now) {
        let (Some(spare), Some(session)) = (self.identity.spare_key.take(), &mut self.session) else { return };
        session.handle_rotation(spare.public(), now.tick);
        (self.login.next_key, self.login.next_key_told) = (Some(spare), true);
        self.rotation.set(Some(Rotation::Unanswered));
    }

    /// Goes on as soon as it can.
    pub(super) fn proceed_with_rotation(&mut self, now: Now) {
        let Some(next) = self.login.next_key.as_ref().map(NodePrivate::public) else { return };
        match *self.rotation {
            Some(Rotation::Writing { .. }) if self.saves.has_identity() => {
                self.rotation.set(Some(Rotation::Switching { until: now.tick + KEEPS }));
            }
            Some(Rotation::Switching { .. }) if self.kernel_key() == Some(next) => {
                if let Some(session) = &mut self.session {
                    session.handle_rotation(next, now.tick);
                    self.rotation.set(Some(Rotation::Asked { until: now.tick + KEEPS }));
                }
            }
            Some(Rotation::Writing { .. } | Rotation::Switching { .. } | Rotation::Asked { .. })
            | Some(Rotation::Unanswered)
            | None => {}
        }
    }

    /// The coordinator let the new key in, or the old one again.
    pub(super) fn finish_rotation(&mut self, now: Now) {
        if self.rotation.set(None) {
            tracing::info!("the node key is another one, and the coordinator has told the peers");
            self.saves.want(StateFile::Map, now);
            self.answer_rotation(&Answer::Done);
        }
        self.note_key(now);
    }

    /// Something is wrong between us and the coordinator while it is asked.
    pub(super) fn fail_rotation(&mut self, failure: &Failure, now: Now) {
        let Some(stage) = *self.rotation else { return };
        match failure {
            Failure::Refused(_) => {
                self.rotation.set(None);
                self.home.rotate_not_before = self.time(now).checked_add(AGAIN).ok();
                self.answer_rotation(&Answer::refused(502, format!("{failure}. The present key stays")));
            }
            Failure::Unreachable(_)
            | Failure::Silent(_)
            | Failure::Busy(_)
            | Failure::Stranger(_)
            | Failure::Status { .. }
            | Failure::NotUnderstood(_) => match stage {
                Rotation::Writing { .. } | Rotation::Switching { .. } => {
                    self.abandon_rotation(&failure.to_string(), now)
                }
                Rotation::Asked { .. } | Rotation::Unanswered => self.go_back(&failure.to_string()),
            },
        }
    }

    /// It is given up before the coordinator has said its word. Where that may know the new key, both stay on disk.
    pub(super) fn abandon_rotation(&mut self, reason: &str, now: Now) {
        let Some(stage) = *self.rotation else { return };
        self.rotation.set(None);
        let next = self.login.next_key.take();
        self.identity.spare_key = match stage {
            Rotation::Writing { .. } | Rotation::Switching { .. } => None,
            Rotation::Asked { .. } | Rotation::Unanswered => next,
        };
        self.saves.want(StateFile::NodeKey, now);
        self.login.next_key_told = false;
        self.home.rotate_not_before = self.time(now).checked_add(AGAIN).ok();
        if let (Some(key), Some(session)) = (&*self.identity.node_key, &mut self.session) {
            session.handle_key_kept(key.public());
        }
        self.answer_rotation(&Answer::refused(409, format!("the node key was not changed: {reason}")));
    }

    /// The peers have the present key as likely as not, and the kernel keeps no more packets.
    fn go_back(&mut self, reason: &str) {
        self.rotation.set(Some(Rotation::Unanswered));
        let text = format!(
            "the coordinator did not say whether it took the new node key ({reason}): the present one stays in use, and it \
             is asked again until it answers"
        );
        self.answer_rotation(&Answer::refused(504, text));
    }

    fn answer_rotation(&mut self, answer: &Answer) {
        for (id, ()) in self.calls.take(|awaited| matches!(awaited, Awaited::Rotation).then_some(())) {
            self.reply(id, answer.clone());
        }
    }

    /// Which key the kernel was last seen to have.
    fn kernel_key(&self) -> Option<crate::types::NodePublic> {
        let device = self.reconciler.observed()?.device.as_ref()?;
        device.private_key.as_ref().map(NodePrivate::public)
    }

    // ---- by itself ----

    /// When it is to be done, or has waited long enough.
    pub(super) fn rotation_timeout(&self, now: Now) -> Option<Instant> {
        match *self.rotation {
            Some(Rotation::Writing { until } | Rotation::Switching { until } | Rotation::Asked { until }) => {
                Some(until)
            }
            Some(Rotation::Unanswered) => None,
            None => {
                let at = self.rotates_at(now)?;
                self.on_the_tick(Some(at), now).or(Some(now.tick))
            }
        }
    }

    pub(super) fn expire_rotation(&mut self, now: Now) {
        match *self.rotation {
            Some(Rotation::Writing { until }) if until <= now.tick => {
                self.abandon_rotation("the disk is too slow", now)
            }
            Some(Rotation::Switching { until }) if until <= now.tick => {
                self.abandon_rotation(
                    "the kernel did not take the new key; `warren plan` lists what is left to do",
                    now,
                );
            }
            Some(Rotation::Asked { until }) if until <= now.tick => self.go_back("no answer in time"),
            Some(_) => {}
            None if self.rotates_at(now).is_some_and(|at| at <= self.time(now)) => self.begin_rotation(now),
            None => {}
        }
    }

    /// When the key has become old, where the coordinator knows what to do then.
    fn rotates_at(&self, now: Now) -> Option<Timestamp> {
        let is_free = self.login.online && !self.login.asked && !self.login.needed && self.login.next_key.is_none();
        let node = self.netmap.node().filter(|_| is_free && !self.key_is_spent(now))?;
        // Noted, and not made from the private key: this is asked at each turn of the loop.
        let share = SPREAD / 256 * u32::from(self.home.key?.as_bytes()[0]);
        let at = self.home.key_since?.checked_add(LIFETIME.saturating_sub(share)).ok()?;
        let at = self.home.rotate_not_before.map_or(at, |not_before| at.max(not_before));
        node.cap_map.contains_key(ROTATES_NODE_KEYS).then_some(at)
    }

    /// From when a key's age counts: what was in use before anybody noted it counts from now.
    fn note_key(&mut self, now: Now) {
        let Some(key) = self.identity.node_key.as_ref().map(NodePrivate::public) else { return };
        if self.home.key_since.is_none() || self.home.key != Some(key) {
            self.home.key_since = Some(self.time(now));
            self.home.key = Some(key);
            self.saves.want(StateFile::Coordinator, now);
        }
    }
}
