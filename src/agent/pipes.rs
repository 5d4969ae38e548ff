//! Tasks that carry things between the loop and the outside, and decide nothing.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::state::{StateDir, StateError};
use super::{clock, host};
use warren_core::netcheck::LinkKind;
use warren_core::node::{FileContent, Networks, StateFile};
use warren_core::plan::{Change, Figures, Kernel, KernelAction, KernelError, Observed, RouteLookup};
use warren_core::wire::control::Hostinfo;
use warren_linux::{HostRoutes, LocalAddress, LocalNetwork};
use warren_shell::vital;

/// How long to wait before asking a source of news again that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How often the host is asked for its name and its distribution: two small reads, and peers see a new name soon.
pub(super) const HOST_PACE: Duration = Duration::from_secs(10);

/// The rest after a look at the host's networks is at least this many times what that took.
const REST: u32 = 10;

/// What comes from the kernel's pipe.
#[derive(Debug)]
pub(super) enum FromKernel {
    /// The answer to [`KernelAction::Observe`].
    Observed(Result<Box<Observed>, KernelError>),
    /// The answer to [`KernelAction::Apply`].
    Applied(Vec<Result<(), KernelError>>),
    /// Where packets to an address go, as asked for.
    Lookup(IpAddr, Result<Box<RouteLookup>, KernelError>),
    /// Our table with its counters, as asked for.
    Figures(Result<Box<Figures>, KernelError>),
    /// Something may have changed.
    Changed(Change),
}

/// A file and what it should hold.
pub(super) type Save = (StateFile, Option<FileContent>);
/// A file and whether that worked.
pub(super) type Saved = (StateFile, Result<(), StateError>);

/// Addresses that wait to be asked about: more than the local socket has places for those who ask.
const ASKED: usize = 256;

/// Channels to the kernel: what to do, that its counters are wanted, and where packets to which address go.
pub(super) struct ToKernel {
    pub(super) lookups: mpsc::Sender<IpAddr>,
    pub(super) actions: mpsc::Sender<KernelAction>,
    pub(super) figures: mpsc::Sender<()>,
}

/// Looks and acts as told, one thing at a time, and passes on word of changes in between.
pub(super) fn kernel<K: Kernel + Send + 'static>(mut kernel: K) -> (ToKernel, mpsc::Receiver<FromKernel>) {
    let (actions_in, mut actions) = mpsc::channel(1);
    let (figures_in, mut figures) = mpsc::channel(1);
    let (lookups_in, mut lookups) = mpsc::channel(ASKED);
    let (out, news) = mpsc::channel(4);
    tokio::spawn(vital("pipe to the kernel", async move {
        loop {
            let answer = tokio::select! {
                action = actions.recv() => match action {
                    Some(KernelAction::Observe) => FromKernel::Observed(kernel.observe().await.map(Box::new)),
                    Some(KernelAction::Apply(steps)) => FromKernel::Applied(kernel.apply_run(&steps).await),
                    None => return,
                },
                Some(()) = figures.recv() => FromKernel::Figures(kernel.figures().await.map(Box::new)),
                Some(to) = lookups.recv() => FromKernel::Lookup(to, kernel.look_up(to, false).await.map(Box::new)),
                changed = kernel.changed() => FromKernel::Changed(match changed {
                    Ok(change) => change,
                    Err(error) => {
                        // The reconciler looks by itself from time to time.
                        tracing::warn!("word of kernel changes: {error}");
                        tokio::time::sleep(PAUSE).await;
                        Change::Something
                    }
                }),
            };
            if out.send(answer).await.is_err() {
                return;
            }
        }
    }));
    (ToKernel { actions: actions_in, figures: figures_in, lookups: lookups_in }, news)
}

/// Writes and removes files, in the order in which that is asked.
pub(super) fn disk(dir: Arc<StateDir>) -> (mpsc::Sender<Save>, mpsc::Receiver<Saved>) {
    let (saves_in, mut saves) = mpsc::channel::<Save>(8);
    let (out, saved) = mpsc::channel(8);
    tokio::spawn(vital("pipe to the disk", async move {
        while let Some((file, content)) = saves.recv().await {
            let dir = dir.clone();
            let written = tokio::task::spawn_blocking(move || match content {
                Some(content) => dir.save(file, content.expose_bytes()),
                None => dir.remove(file),
            });
            let result = written.await.unwrap_or_else(|_| Err(StateError::busy(file)));
            if out.send((file, result)).await.is_err() {
                return;
            }
        }
    }));
    (saves_in, saved)
}

/// Passes on the host's own addresses, at first and whenever they change.
pub(super) fn networks(mut network: LocalNetwork) -> mpsc::Receiver<Networks> {
    let (out, networks) = mpsc::channel(1);
    tokio::spawn(vital("watch on addresses", async move {
        loop {
            let begun = clock::now().tick;
            let found = match network.addresses().await {
                Ok(addresses) => network.routes().await.map(|routes| (addresses, routes)),
                Err(error) => Err(error),
            };
            match found {
                Ok((addresses, found)) => {
                    let HostRoutes { networks: mut routes, mut links } = found;
                    for LocalAddress { address, interface, .. } in &addresses {
                        links.entry(address.trunc()).or_default().insert(interface.clone());
                    }
                    routes.extend(host::resolvers_in_overlay());
                    let live = addresses.iter().filter(|local| local.has_carrier).map(|local| local.address).collect();
                    let link_kinds = addresses.iter().map(|local| (local.address, link_kind(local))).collect();
                    let all = addresses.into_iter().map(|local| local.address).collect();
                    if out.send(Networks { all, live, link_kinds, routes, links }).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!("this host's addresses: {error}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            // A router of the internet takes seconds to list its routes, and is not to do so all the time.
            tokio::time::sleep(clock::now().tick.saturating_duration_since(begun) * REST).await;
            if let Err(error) = network.changed().await {
                tracing::warn!("word of address changes: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }));
    networks
}

fn link_kind(local: &LocalAddress) -> LinkKind {
    match (local.is_way_out, local.is_virtual) {
        (true, _) => LinkKind::Uplink,
        (false, true) => LinkKind::Virtual,
        (false, false) => LinkKind::Plain,
    }
}

/// Passes on what the host says of itself, at first and whenever that changes.
pub(super) fn host(read: impl Fn() -> Hostinfo + Send + 'static, pace: Duration) -> mpsc::Receiver<Hostinfo> {
    let (out, facts) = mpsc::channel(1);
    tokio::spawn(vital("host's facts", async move {
        let mut told = None;
        loop {
            let facts = read();
            if told.as_ref() != Some(&facts) {
                told = Some(facts.clone());
                if out.send(facts).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pace) => {}
                () = out.closed() => return,
            }
        }
    }));
    facts
}

#[cfg(test)]
mod tests;
