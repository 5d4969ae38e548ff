//! The program's end, which every task waits for beside its work.

use tokio::sync::watch;

/// Says that the program ends.
pub(crate) struct End(watch::Sender<bool>);

/// Hears it.
#[derive(Clone)]
pub(crate) struct Ending(watch::Receiver<bool>);

/// Both sides.
pub(crate) fn channel() -> (End, Ending) {
    let (sender, receiver) = watch::channel(false);
    (End(sender), Ending(receiver))
}

impl End {
    pub(crate) fn say(&self) {
        self.0.send_replace(true);
    }
}

impl Ending {
    /// Resolves when the program ends, at once if it does already.
    pub(crate) async fn wait(&mut self) {
        let _ = self.0.wait_for(|ending| *ending).await;
    }
}
