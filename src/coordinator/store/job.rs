//! A command on its way to be decided, with a place for its answer.

use tokio::sync::oneshot;

use super::CommandError;
use warren_core::registry::{Actor, Audit, Change, Commands, Decision, Refusal, State};
use warren_core::types::Timestamp;

/// A command whose reply nobody here needs to know.
pub trait Job: Send {
    /// Decides against the state as it is; what was decided before is forgotten. Nothing where it was refused, and whoever
    /// asked knows.
    fn decide(&mut self, state: &State, now: Timestamp) -> Option<(Vec<Change>, Audit)>;

    /// Gives the answer that was decided last, or says why there is none.
    fn answer(self: Box<Self>, done: Result<(), CommandError>);
}

/// Makes a job of a command. It may have to be decided more than once, where somebody else was faster.
pub fn job<R: Send + 'static>(
    actor: Actor,
    decide: impl FnMut(&Commands<'_>) -> Result<Decision<R>, Refusal> + Send + 'static,
) -> (Box<dyn Job>, oneshot::Receiver<Result<R, CommandError>>) {
    let (answer, answered) = oneshot::channel();
    (Box::new(Asked { actor, decide, reply: None, answer: Some(answer) }), answered)
}

struct Asked<R, F> {
    actor: Actor,
    decide: F,
    reply: Option<R>,
    answer: Option<oneshot::Sender<Result<R, CommandError>>>,
}

impl<R, F> Asked<R, F> {
    fn send(&mut self, answer: Result<R, CommandError>) {
        if let Some(sender) = self.answer.take() {
            // Whoever asked may have gone.
            let _ = sender.send(answer);
        }
    }
}

impl<R: Send, F: FnMut(&Commands<'_>) -> Result<Decision<R>, Refusal> + Send> Job for Asked<R, F> {
    fn decide(&mut self, state: &State, now: Timestamp) -> Option<(Vec<Change>, Audit)> {
        match (self.decide)(&state.by(&self.actor, now)) {
            Ok(decision) => {
                self.reply = Some(decision.reply);
                Some((decision.changes, decision.audit))
            }
            Err(refusal) => {
                self.send(Err(refusal.into()));
                None
            }
        }
    }

    fn answer(mut self: Box<Self>, done: Result<(), CommandError>) {
        let reply = self.reply.take();
        match (done, reply) {
            (Ok(()), Some(reply)) => self.send(Ok(reply)),
            (Err(error), _) => self.send(Err(error)),
            // Refused, and answered when it was.
            (Ok(()), None) => {}
        }
    }
}
