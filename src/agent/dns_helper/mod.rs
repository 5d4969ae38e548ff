//! The helper that tells this host's resolver of us: a program of its own, as root without any capability, because the
//! agent is not root and a bus knows of no capabilities.
//!
//! It takes one kind of request, the whole wish, and holds it by a lease: when whoever asked is gone for five seconds,
//! however it ended, the host is as it was. The host's own is on disk before anything is changed, so that this holds for
//! the helper's own end too.

mod bus;
mod disk;
mod facts;
mod resolvconf;
mod serve;

pub use serve::serve_dns_helper;

use std::path::PathBuf;
use std::time::Instant;

use bus::Bus;
use disk::Disk;
use resolvconf::Records;
use warren_core::dns::host::{
    Contest, FileStep, HostNames, HostReport, Leave, Method, ResolvConf, Seen, detect, hold, release,
};
use warren_core::plan::own;

/// This host, as far as it resolves names.
struct Host {
    root: PathBuf,
    disk: Disk,
    records: Records,
    bus: Bus,
    contest: Contest,
    /// Which start of the machine this is.
    boot: String,
    /// systemd-resolved was told something of our link, as far as we know.
    told_link: bool,
    /// The file was ours when it was looked at last.
    held_file: bool,
}

impl Host {
    fn new(root: PathBuf, state: PathBuf, bus: Bus) -> Self {
        let (disk, records) = (Disk::new(&root, &state), Records::new(root.clone()));
        let boot = std::fs::read_to_string(root.join("proc/sys/kernel/random/boot_id")).unwrap_or_default();
        let boot = boot.trim().to_owned();
        let contest = Contest::default();
        let mut host = Self { root, disk, records, bus, contest, boot, told_link: false, held_file: false };
        // systemd-resolved keeps what it was told of a link there.
        let kept = |index: i32| host.root.join(format!("run/systemd/resolve/netif/{index}")).exists();
        host.told_link = host.link().is_some_and(kept);
        host
    }

    /// Whether the file was ours before the machine was started: who held it cannot come back.
    fn is_of_another_boot(&self) -> bool {
        let seen = self.disk.see().ok();
        seen.and_then(|seen| seen.record).is_some_and(|record| record.boot != self.boot)
    }

    /// Makes it so, whatever it is now, and says how.
    async fn settle(&mut self, names: &HostNames, now: Instant) -> HostReport {
        let seen = match self.disk.see() {
            Ok(seen) => seen,
            Err(error) => return HostReport { trouble: format!("/etc/resolv.conf: {error}"), ..HostReport::default() },
        };
        if self.held_file && !seen.is_ours() {
            self.contest.handle_written_over(now);
        }
        if names.is_nothing() {
            return self.leave(&seen).await;
        }
        let facts = facts::facts(&self.root, &seen, &mut self.bus, self.records.upstreams()).await;
        let base = names.search.first();
        let method = match detect(&facts, names) {
            Method::File { .. } if self.contest.is_given_up(now) => Method::Leave(Leave::Contested),
            Method::File { .. } if seen.is_ours() && seen.record.is_none() => Method::Leave(Leave::NoOriginal),
            told @ (Method::Resolved(_) | Method::File { .. } | Method::Resolvconf { .. } | Method::Leave(_)) => told,
        };
        match method {
            Method::Resolved(note) => {
                let put_back = self.put_back(&seen).and(self.records.take_back().await);
                let told = self.tell_link(names).await.and(put_back);
                let told_by = "systemd-resolved".to_owned();
                report(told, told_by, Vec::new(), note.map(|note| note.to_string()))
            }
            Method::File { in_place, upstreams, note } => {
                let reverted = self.revert_link().await.and(self.records.take_back().await);
                let text = ResolvConf::read(&facts.file.text).ours(names);
                let written = self.carry_out(&hold(&seen, &text, in_place, &self.boot)).and(reverted);
                report(written, "/etc/resolv.conf".to_owned(), upstreams, note.map(|note| note.to_string()))
            }
            Method::Resolvconf { gatherer, upstreams } => {
                let put_back = self.put_back(&seen).and(self.revert_link().await);
                let told = self.records.tell(gatherer, names).await.and(put_back);
                report(told, "resolvconf".to_owned(), upstreams, None)
            }
            Method::Leave(reason) => {
                let HostReport { trouble, .. } = self.leave(&seen).await;
                let trouble = if trouble.is_empty() { reason.text(base) } else { trouble };
                HostReport { trouble, ..HostReport::default() }
            }
        }
    }

    /// Whether somebody else wrote the file since it was ours: a cheap look.
    fn is_written_over(&self) -> bool {
        self.held_file && self.disk.see().is_ok_and(|seen| !seen.is_ours())
    }

    /// Everything is as it was.
    async fn leave(&mut self, seen: &Seen) -> HostReport {
        let (put_back, reverted) = (self.put_back(seen), self.revert_link().await);
        let taken_back = self.records.take_back().await;
        report(put_back.and(reverted).and(taken_back), String::new(), Vec::new(), None)
    }

    fn put_back(&mut self, seen: &Seen) -> Result<(), String> {
        self.carry_out(&release(seen))
    }

    fn carry_out(&mut self, steps: &[FileStep]) -> Result<(), String> {
        let done = steps.iter().try_for_each(|step| {
            self.disk.apply(step).map_err(|error| {
                let what = match step {
                    FileStep::SaveRecord(_) => "keep what /etc/resolv.conf was",
                    FileStep::SaveCopy(_) => "copy /etc/resolv.conf",
                    FileStep::Write { .. } => "write /etc/resolv.conf",
                    FileStep::RemoveCopy | FileStep::RemoveRecord => "remove what was kept of /etc/resolv.conf",
                };
                format!("{what}: {error}")
            })
        });
        for step in steps {
            tracing::debug!(?step, "of /etc/resolv.conf");
        }
        self.held_file = self.disk.see().is_ok_and(|seen| seen.is_ours());
        done
    }

    async fn tell_link(&mut self, names: &HostNames) -> Result<(), String> {
        let Some(index) = self.link() else { return Err(format!("there is no {}", own::LINK)) };
        if self.bus.is_told(index, names).await {
            self.told_link = true;
            return Ok(());
        }
        self.told_link = true;
        self.bus.tell(index, names).await.map_err(|error| format!("tell systemd-resolved: {error}"))
    }

    /// What was told of a link goes with the link.
    async fn revert_link(&mut self) -> Result<(), String> {
        if let (true, Some(index)) = (self.told_link, self.link()) {
            self.bus
                .revert(index)
                .await
                .map_err(|error| format!("take back what systemd-resolved was told: {error}"))?;
        }
        self.told_link = false;
        Ok(())
    }

    fn link(&self) -> Option<i32> {
        let file = self.root.join("sys/class/net").join(own::LINK).join("ifindex");
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    }
}

fn report(
    done: Result<(), String>,
    told_by: String,
    upstreams: Vec<std::net::IpAddr>,
    note: Option<String>,
) -> HostReport {
    match done {
        Ok(()) => HostReport { told_by, upstreams, trouble: note.unwrap_or_default() },
        Err(error) => HostReport {
            trouble: format!("this host's resolver: {error}"),
            // Whom the file named is true whatever came after.
            upstreams,
            ..HostReport::default()
        },
    }
}
