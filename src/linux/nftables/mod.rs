//! The one nftables table that is ours.
//!
//! `table` says what it looks like, in the words of packets (`rule`) and so in the kernel's (`expression`, `object`,
//! `elements`): each of those is declared once, and written and read by that. `update` changes the table by what differs,
//! `batch` makes one netlink transaction of it: no packet meets half a policy. It is sent on one socket for as long as
//! we live, which owns the table where the kernel has that (`socket`), and reads it back; `read` knows it again.
//!
//! The `nft` program reads other programs' chains (`foreign`), and says whether it can show ours.

mod batch;
mod chains;
mod cut;
pub(super) mod decoders;
mod elements;
mod exit;
mod expression;
mod foreign;
mod gateway;
mod object;
mod probes;
mod read;
mod resolver;
mod rule;
mod run;
mod socket;
mod table;
#[cfg(test)]
mod tests;
pub(super) mod trial;
mod update;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use warren_core::plan::{Figures, Firewall, KernelError, ObservedFirewall, Obstacle, own};

use self::read::Listing;
use self::socket::{NftSocket, Refusal, TableOwner};
use self::update::Command;

pub(super) use self::elements::Ended;

/// Reads our table, no more often than it can have changed, and changes it.
pub(super) struct Nftables {
    socket: Arc<Mutex<NftSocket>>,
    /// The last listing, and the generation it is of.
    last: Option<(u32, Seen)>,
    /// What other programs' chains would drop, unless they cannot be looked at; when that was tried, and at which
    /// generation.
    obstacles: Option<Vec<Obstacle>>,
    looked: Option<(Instant, Option<u32>)>,
}

/// How often other programs' chains are looked at, at most: some change theirs all the time.
const OBSTACLES_INTERVAL: Duration = Duration::from_secs(30);

/// How often a listing is taken that others' changes keep making old.
const LIST_ATTEMPTS: u32 = 3;

/// Our table, and whether every flow that it accepts as known was judged by it.
pub(super) type Seen = (ObservedFirewall, bool);

impl Nftables {
    pub(super) fn open() -> io::Result<Self> {
        let socket = Arc::new(Mutex::new(NftSocket::open()?));
        Ok(Self { socket, last: None, obstacles: Some(Vec::new()), looked: None })
    }

    /// Owns no table, though the kernel might allow it.
    pub(super) fn share(&mut self) {
        self.socket().share();
    }

    /// What other programs' chains would drop of ours; nothing where they cannot be looked at. Looked at again when the
    /// ruleset has changed, and only while our table is there: where it is not, that comes first.
    pub(super) async fn obstacles(&mut self, seen: &ObservedFirewall) -> Option<Vec<Obstacle>> {
        let generation = self.socket().generation();
        let is_due = self.looked.is_none_or(|(at, of)| at.elapsed() >= OBSTACLES_INTERVAL && of != generation);
        if let (true, ObservedFirewall::Table(firewall)) = (is_due, seen) {
            let found = foreign::obstacles(firewall).await;
            // A program that is missing is installed without a change of the ruleset.
            self.looked = Some((Instant::now(), generation.filter(|_| found.is_ok())));
            if let (Err(error), Some(_)) = (&found, &self.obstacles) {
                tracing::warn!(%error, "other programs' firewalls cannot be looked at");
            }
            self.obstacles = found.ok();
        }
        self.obstacles.clone()
    }

    /// What the kernel holds. A table that a predecessor left without an owner becomes ours.
    pub(super) async fn observe(&mut self) -> Result<Seen, KernelError> {
        match self.table_owner()? {
            TableOwner::Absent => return Ok((ObservedFirewall::Absent, false)),
            TableOwner::Dormant => return Ok((ObservedFirewall::Altered("it is switched off".to_owned()), false)),
            TableOwner::Orphan if self.socket().may_claim() => {
                if let Err(refusal) = self.socket().claim() {
                    tracing::warn!(?refusal, "taking over nftables table inet {}", own::NFT_TABLE);
                }
            }
            TableOwner::Free | TableOwner::Orphan | TableOwner::Ours | TableOwner::Owned(_) => {}
        }
        // Asked before the listing is taken: a change meanwhile makes the listing old, never new.
        let generation = self.socket().generation();
        if let (Some(generation), Some((of, last))) = (generation, &self.last)
            && generation == *of
        {
            return Ok(last.clone());
        }
        let found = self.list().await?;
        self.last = generation.map(|generation| (generation, found.clone()));
        Ok(found)
    }

    /// Puts this table in place of whatever is there.
    pub(super) async fn replace(&mut self, firewall: &Arc<Firewall>) -> Result<(), KernelError> {
        self.try_ownership().await;
        let firewall = Arc::clone(firewall);
        self.apply(move || update::replace(&firewall)).await.map_err(|refusal| failed("replace", refusal))
    }

    /// Turns one table into the other.
    pub(super) async fn update(&mut self, from: &Arc<Firewall>, to: &Arc<Firewall>) -> Result<(), KernelError> {
        let (from, to) = (Arc::clone(from), Arc::clone(to));
        self.apply(move || update::update(&from, &to)).await.map_err(|refusal| failed("update", refusal))
    }

    /// Deletes the table.
    pub(super) async fn delete(&mut self) -> Result<(), KernelError> {
        self.apply(update::delete).await.map_err(|refusal| failed("delete", refusal))
    }

    /// Remembers flows as ended, so that nothing of theirs passes any more. Says no where there is room for no more of
    /// them.
    pub(super) async fn remember_ended(&mut self, flows: Vec<Ended>) -> Result<bool, KernelError> {
        match self.apply(move || cut::remember(&flows)).await {
            Ok(()) => Ok(true),
            Err(Refusal::Full) => Ok(false),
            Err(refusal) => Err(failed("add ended connections to", refusal)),
        }
    }

    /// Notes that every flow that the table accepts as known was judged by it.
    pub(super) async fn note_judged(&mut self) -> Result<(), KernelError> {
        self.apply(cut::note_judged).await.map_err(|refusal| failed("note the judged connections in", refusal))
    }

    /// The table as it is, with its counters.
    pub(super) async fn figures(&mut self) -> Result<Figures, KernelError> {
        let (firewall, _) = self.list().await?;
        let counters = self.socket().counters().map_err(|reason| error("list the counters of", reason.to_string()))?;
        let counters = counters.map_err(|reason| error("read the counters of", reason))?;
        Ok(Listing::figures(counters, firewall))
    }

    /// The table; once more where it was changed meanwhile.
    async fn list(&mut self) -> Result<Seen, KernelError> {
        let mut attempt = 1;
        loop {
            let before = self.socket().generation();
            if matches!(self.table_owner()?, TableOwner::Absent) {
                return Ok((ObservedFirewall::Absent, false));
            }
            let socket = Arc::clone(&self.socket);
            let seen = blocking(move || lock(&socket).listing().map(see)).await;
            let seen = seen.map_err(|reason: io::Error| error("list", reason.to_string()))?;
            if before == self.socket().generation() || attempt == LIST_ATTEMPTS {
                return Ok(seen);
            }
            attempt += 1;
        }
    }

    /// Tries, once, whether a table can be owned: by the kernel, and so that this host's `nft` still reads it. Those
    /// that are older than the flags may not.
    async fn try_ownership(&mut self) {
        if self.socket().is_trial_due() && self.socket().begin_trial() {
            let is_readable = run::run(&["list", "table", "inet", socket::TRIAL]).await.is_ok();
            self.socket().end_trial(is_readable);
        }
    }

    fn table_owner(&self) -> Result<TableOwner, KernelError> {
        self.socket().table_owner().map_err(|reason| error("look for", reason.to_string()))
    }

    fn socket(&self) -> MutexGuard<'_, NftSocket> {
        lock(&self.socket)
    }

    async fn apply(&mut self, commands: impl FnOnce() -> Vec<Command> + Send + 'static) -> Result<(), Refusal> {
        let socket = Arc::clone(&self.socket);
        let work = move || {
            let commands = commands();
            if commands.is_empty() { Ok(()) } else { lock(&socket).commit(&commands) }
        };
        blocking(work).await
    }
}

/// Runs what may take long on a thread for that: ten thousand elements take milliseconds, which probes would wait for.
async fn blocking<T: Send + 'static, E: From<io::Error> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error).into()),
    }
}

/// A socket is as good as before where its holder panicked.
fn lock(socket: &Mutex<NftSocket>) -> MutexGuard<'_, NftSocket> {
    socket.lock().unwrap_or_else(PoisonError::into_inner)
}

fn see(listing: Result<Listing, String>) -> Seen {
    match listing.and_then(read::read) {
        Ok(listed) => (ObservedFirewall::Table(listed.firewall.into()), listed.flows_judged),
        Err(difference) => (ObservedFirewall::Altered(difference), false),
    }
}

fn failed(verb: &str, refusal: Refusal) -> KernelError {
    error(verb, refusal.to_string())
}

fn error(verb: &str, reason: String) -> KernelError {
    KernelError { operation: format!("{verb} nftables table inet {}", own::NFT_TABLE), reason }
}
