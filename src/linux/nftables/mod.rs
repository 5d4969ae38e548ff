//! The one nftables table that is ours.
//!
//! The `nft` program carries it in and out as JSON; `table` says what it looks like, `read` knows it again,
//! `update` changes it by what differs. Every change is one transaction: no packet meets half a policy.

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

use crate::plan::{Firewall, KernelError, ObservedFirewall, own};

use self::generation::Generation;
use self::object::{Command, Document};
use self::run::NftError;

/// Reads our table, and no more often than it can have changed.
pub(super) struct Nftables {
    generation: Generation,
    /// The last listing, and the generation it is of.
    last: Option<(u32, ObservedFirewall)>,
}

impl Nftables {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { generation: Generation::open()?, last: None })
    }

    /// What the kernel holds.
    pub(super) async fn observe(&mut self) -> Result<ObservedFirewall, KernelError> {
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

async fn list() -> Result<ObservedFirewall, KernelError> {
    match run::run(&["list", "table", "inet", own::NFT_TABLE], Vec::new()).await {
        Ok(listing) => Ok(match read::read(&listing) {
            Ok(firewall) => ObservedFirewall::Table(firewall.into()),
            Err(difference) => ObservedFirewall::Altered(difference),
        }),
        Err(NftError::Absent(_)) => Ok(ObservedFirewall::Absent),
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
