//! Requests of the local socket on their way through the engine, and whoever watches.

use std::collections::BTreeMap;

use tokio::sync::{mpsc, oneshot};

use super::local_api::{Call, Reply};
use warren_core::node::{Answer, CallId, Engine, Now};

/// Notices that wait for one watcher to read them. One that falls further behind is cut off, and can begin anew.
const NOTICES: usize = 128;

/// Who waits for an answer, and who watches.
#[derive(Default)]
pub(super) struct Calls {
    last: u64,
    waiting: BTreeMap<CallId, oneshot::Sender<Reply>>,
    watchers: BTreeMap<CallId, mpsc::Sender<Vec<u8>>>,
}

impl Calls {
    /// Hands a request in, under a number of its own.
    pub(super) fn ask(&mut self, engine: &mut Engine, call: Call, now: Now) {
        let Call { caller, request, reply } = call;
        self.last += 1;
        let id = CallId(self.last);
        self.waiting.insert(id, reply);
        engine.handle_call(id, &caller, request, now);
    }

    /// The engine has answered.
    pub(super) fn answer(&mut self, id: CallId, answer: Answer) {
        if let Some(reply) = self.waiting.remove(&id) {
            // Nobody waits any more where this fails; so below.
            let _ = reply.send(Reply::Answer(answer));
        }
    }

    /// Somebody watches from here on, and is told this at once.
    pub(super) fn watch(&mut self, id: CallId, first: Vec<u8>) {
        let Some(reply) = self.waiting.remove(&id) else { return };
        let (sender, receiver) = mpsc::channel(NOTICES);
        // An empty queue takes one line.
        let _ = sender.try_send(first);
        let _ = reply.send(Reply::Stream(receiver));
        self.watchers.insert(id, sender);
    }

    /// Tells all watchers; those that cannot be told any more are gone.
    pub(super) fn notify(&mut self, engine: &mut Engine, line: &[u8]) {
        self.watchers.retain(|id, watcher| {
            let is_told = watcher.try_send(line.to_vec()).is_ok();
            if !is_told {
                engine.handle_watcher_gone(*id);
            }
            is_told
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use warren_core::node::{Caller, Machine, Request, Settings, Stored};
    use warren_core::wire::local::Mask;

    fn watch(calls: &mut Calls, engine: &mut Engine) -> mpsc::Receiver<Vec<u8>> {
        let (reply, mut replied) = oneshot::channel();
        let call = Call { caller: Caller::default(), request: Request::Watch(Mask::default()), reply };
        calls.ask(engine, call, super::super::clock::now());
        while let Some(effect) = engine.poll_effect() {
            if let warren_core::node::Effect::Watch(id, first) = effect {
                calls.watch(id, first);
            }
        }
        match replied.try_recv() {
            Ok(Reply::Stream(notices)) => notices,
            Ok(Reply::Answer(answer)) => unreachable!("{answer:?}"),
            Err(error) => unreachable!("{error}"),
        }
    }

    #[test]
    fn a_watcher_that_does_not_read_is_cut_off_and_the_others_go_on() {
        let stored = Stored::read(BTreeMap::new(), &Machine::default());
        let now = super::super::clock::now();
        let mut engine = Engine::new(Settings::default(), stored, Default::default(), [1; 32], now);
        let mut calls = Calls::default();
        let mut asleep = watch(&mut calls, &mut engine);
        let mut awake = watch(&mut calls, &mut engine);
        for number in 0..=NOTICES {
            calls.notify(&mut engine, format!("{number}\n").as_bytes());
            while awake.try_recv().is_ok() {}
        }
        calls.notify(&mut engine, b"last\n");

        assert_eq!(awake.try_recv(), Ok(b"last\n".to_vec()));
        assert_eq!(std::iter::from_fn(|| asleep.try_recv().ok()).count(), NOTICES);
        assert_eq!(asleep.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    }
}
