//! The two capabilities that the agent has, and nothing else.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use crate::StartError;

const OURS: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];

/// Uses files as the owner of this directory does, where that is possible: of this thread, and of those that it starts.
pub(super) fn use_files_of_owner(directory: &Path) {
    if let Ok(owner) = std::fs::metadata(directory) {
        setfsgid(Gid::from_raw(owner.gid()));
        setfsuid(Uid::from_raw(owner.uid()));
    }
}

/// Gives up every capability but ours, for this process and for the programs it starts (`nft`).
///
/// Capabilities belong to threads: call this before there are others.
pub(super) fn keep_only_ours() -> Result<(), StartError> {
    let failed = |error: caps::errors::CapsError| StartError::Privilege(error.to_string());
    let missing: Vec<String> = OURS
        .into_iter()
        .filter(|ours| !caps::has_cap(None, CapSet::Permitted, *ours).unwrap_or(false))
        .map(|ours| ours.to_string())
        .collect();
    if !missing.is_empty() {
        return Err(StartError::Missing(missing.join(" and ")));
    }
    let ours: CapsHashSet = OURS.into_iter().collect();
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        // Root regains everything on exec, within the bounding set.
        for other in caps::read(None, CapSet::Bounding).map_err(failed)?.difference(&ours) {
            caps::drop(None, CapSet::Bounding, *other).map_err(failed)?;
        }
    }
    for other in caps::read(None, CapSet::Ambient).map_err(failed)?.difference(&ours) {
        caps::drop(None, CapSet::Ambient, *other).map_err(failed)?;
    }
    // A service manager hands over these sets as they are to be, and may forbid the call that changes them.
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        if caps::read(None, set).map_err(failed)? != ours {
            caps::set(None, set, &ours).map_err(failed)?;
        }
    }
    for capability in OURS {
        caps::raise(None, CapSet::Ambient, capability).map_err(failed)?;
    }
    Ok(())
}
