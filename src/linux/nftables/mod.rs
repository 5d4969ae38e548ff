//! The one nftables table that is ours.
//!
//! The `nft` program carries it in and out as JSON; `table` says what it looks like, `read` knows it again,
//! `update` changes it by what differs. Every change is one transaction: no packet meets half a policy.

mod chains;
mod cut;
mod foreign;
mod generation;
mod object;
mod probes;
mod read;
mod run;
mod table;
#[cfg(test)]
mod tests;
mod update;

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use crate::plan::{Figures, Firewall, KernelError, ObservedFirewall, Obstacle, Packet, own};

use self::generation::Generation;
use self::object::{Command, Document};
use self::run::NftError;

/// Reads our table, and no more often than it can have changed.
pub(super) struct Nftables {
    generation: Generation,
    /// The last listing, and the generation it is of.
    last: Option<(u32, Seen)>,
    /// What other programs' chains would drop, when that was looked at, and at which generation.
    obstacles: Vec<Obstacle>,
    looked: Option<(Instant, Option<u32>)>,
}

/// How often other programs' chains are looked at, at most: some change theirs all the time.
const OBSTACLES_INTERVAL: Duration = Duration::from_secs(30);

/// Our table, and whether every flow that it accepts as known was judged by it.
pub(super) type Seen = (ObservedFirewall, bool);

impl Nftables {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { generation: Generation::open()?, last: None, obstacles: Vec::new(), looked: None })
    }

    /// What other programs' chains would drop of ours. Looked at again when the ruleset has changed, and only while our
    /// table is there: where it is not, that comes first.
    pub(super) async fn obstacles(&mut self, seen: &ObservedFirewall) -> Vec<Obstacle> {
        let generation = self.generation.current();
        let is_due = self.looked.is_none_or(|(at, of)| at.elapsed() >= OBSTACLES_INTERVAL && of != generation);
        if let (true, ObservedFirewall::Table(firewall)) = (is_due, seen) {
            self.obstacles = foreign::obstacles(firewall).await;
            self.looked = Some((Instant::now(), generation));
        }
        self.obstacles.clone()
    }

    /// What the kernel holds.
    pub(super) async fn observe(&mut self) -> Result<Seen, KernelError> {
        // Asked before the listing is taken: a change meanwhile makes the listing old, never new.
        let generation = self.generation.current();
        if let (Some(generation), Some((of, last))) = (generation, &self.last)
            && generation == *of
        {
            return Ok(last.clone());
        }
        let found = list().await?;
        self.last = generation.map(|generation| (generation, found.clone()));
        Ok(found)
    }
}

/// Puts this table in place of whatever is there.
pub(super) async fn replace(firewall: &Firewall) -> Result<(), KernelError> {
    apply("replace", update::replace(firewall)).await
}

/// Turns one table into the other.
pub(super) async fn update(from: &Firewall, to: &Firewall) -> Result<(), KernelError> {
    let commands = update::update(from, to);
    if commands.is_empty() { Ok(()) } else { apply("update", commands).await }
}

/// Deletes the table.
pub(super) async fn delete() -> Result<(), KernelError> {
    apply("delete", update::delete()).await
}

/// What `nft` calls ENFILE, the kernel's answer where a set has as many elements as it may.
const FULL: &str = "Too many open files in system";

/// Flows that can be remembered in one go: with many more, the kernel's answer does not fit its buffer.
pub(super) const ENDED_AT_ONCE: usize = 2_048;

/// Remembers flows as ended, so that nothing of theirs passes any more; each is the packet that opened it and the port
/// that it came from. Says no where there is room for no more of them.
pub(super) async fn remember_ended<'a>(
    flows: impl Iterator<Item = (&'a Packet, u16)> + Clone,
) -> Result<bool, KernelError> {
    match apply("add ended connections to", cut::remember(flows)).await {
        Ok(()) => Ok(true),
        Err(error) if error.reason.contains(FULL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Notes that every flow that the table accepts as known was judged by it.
pub(super) async fn note_judged() -> Result<(), KernelError> {
    apply("note the judged connections in", cut::note_judged()).await
}

/// The table as it is, with its counters.
pub(super) async fn figures() -> Result<Figures, KernelError> {
    let (firewall, _) = list().await?;
    let listing = match run::run(&["list", "counters", "table", "inet", own::NFT_TABLE], Vec::new()).await {
        Ok(listing) => listing,
        Err(NftError::Absent(_)) => return Ok(Figures { firewall, ..Figures::default() }),
        Err(NftError::Failed(reason)) => return Err(failed("list the counters of", reason)),
    };
    read::read_counters(firewall, &listing).map_err(|reason| failed("read the counters of", reason))
}

async fn list() -> Result<Seen, KernelError> {
    match run::run(&["list", "table", "inet", own::NFT_TABLE], Vec::new()).await {
        Ok(listing) => Ok(match read::read(&listing) {
            Ok(listed) => (ObservedFirewall::Table(listed.firewall.into()), listed.flows_judged),
            Err(difference) => (ObservedFirewall::Altered(difference), false),
        }),
        Err(NftError::Absent(_)) => Ok((ObservedFirewall::Absent, false)),
        Err(NftError::Failed(reason)) => Err(failed("list", reason)),
    }
}

async fn apply(verb: &str, nftables: Vec<Command>) -> Result<(), KernelError> {
    let input =
        serde_json::to_vec(&Document { nftables }).map_err(|error| failed(verb, format!("write it down: {error}")))?;
    match run::run(&["-f", "-"], input).await {
        Ok(_) => Ok(()),
        Err(NftError::Absent(reason) | NftError::Failed(reason)) => Err(failed(verb, reason)),
    }
}

fn failed(verb: &str, reason: String) -> KernelError {
    KernelError { operation: format!("{verb} nftables table inet {}", own::NFT_TABLE), reason }
}
