//! SIGHUP: what can change while nodes are connected does; of the rest it is said that it waits for a restart.
//!
//! A configuration or a certificate that cannot be used changes nothing: what was in force stays so.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tracing::{error, info, warn};

use super::config::{Certificate, Dns, GlobalOptions, Options, Settings};
use super::face::SiteRate;
use super::hub::Hub;
use super::service::RelayMap;
use warren_shell::{CertificateFiles, FileStamp, LogFilter, file_stamp, tell_manager};

/// How often the file of further names is looked at: names are to be known within a second or two.
const LOOK: Duration = Duration::from_secs(1);

/// What a reload changes.
pub(crate) struct InForce {
    /// The certificate, where it comes from files.
    pub(crate) files: Option<Arc<CertificateFiles>>,
    pub(crate) hub: Hub,
    pub(crate) relays: Arc<RelayMap>,
    /// How often a site may begin a Noise channel.
    pub(crate) handshakes: Arc<SiteRate>,
}

/// What a reload needs to know.
pub(crate) struct Reload {
    /// As given on the command line and in the environment.
    pub(crate) options: Options,
    /// See `options`.
    pub(crate) places: GlobalOptions,
    pub(crate) log: LogFilter,
}

impl Reload {
    /// Reads everything again. `settings` are those in force, before and after.
    pub(crate) async fn run(&self, settings: &mut Settings, in_force: &InForce) {
        let monotonic = NotifyState::monotonic_usec_now();
        notify(&[Some(NotifyState::Reloading), monotonic.ok()]);
        let mut changed = Vec::new();
        match self.places.complete(self.options.clone()).and_then(Settings::of) {
            Ok(new) => self.take(settings, new, in_force, &mut changed).await,
            Err(error) => {
                error!("the configuration stays as it was: {error}");
                reload_certificate(in_force.files.as_ref(), &mut changed);
            }
        }
        let changed = if changed.is_empty() { "nothing".to_owned() } else { changed.join(", ") };
        info!(changed, "reloaded");
        notify(&[Some(NotifyState::Ready)]);
    }

    async fn take(&self, settings: &mut Settings, new: Settings, in_force: &InForce, changed: &mut Vec<&'static str>) {
        let is_other_kind = in_force.files.is_some() != matches!(new.certificate, Certificate::Files { .. });
        for name in settings.differing(&new).filter(|name| is_other_kind || !OF_CERTIFICATE.contains(name)) {
            if !is_reloaded(name) {
                warn!("{name} is another in the configuration; that needs a restart");
            }
        }
        match (&in_force.files, &new.certificate) {
            (Some(files), Certificate::Files { cert, key }) => match files.replace(cert, key) {
                Ok(true) => changed.push("certificate"),
                Ok(false) => {}
                Err(error) => error!("{error}"),
            },
            (_, Certificate::Files { .. } | Certificate::Acme(_) | Certificate::None) => {
                reload_certificate(in_force.files.as_ref(), changed);
            }
        }
        if settings.log.filter != new.log.filter {
            match self.log.set(&new.log.filter) {
                Ok(()) => {
                    settings.log = new.log;
                    changed.push("log");
                }
                Err(error) => error!("log: {error}; what is logged stays as it was"),
            }
        }
        if settings.limits.handshake_rate != new.limits.handshake_rate {
            let rate = new.limits.handshake_rate;
            in_force.handshakes.set(rate);
            settings.limits.handshake_rate = rate;
            changed.push("handshake_rate");
        }
        let graces = (new.nodes.offline_grace, new.nodes.ephemeral_grace);
        if (settings.nodes.offline_grace, settings.nodes.ephemeral_grace) != graces {
            match in_force.hub.set_graces(graces.0.0, graces.1.0).await {
                Ok(()) => {
                    (settings.nodes.offline_grace, settings.nodes.ephemeral_grace) = graces;
                    changed.push("graces");
                }
                Err(_) => error!("offline_grace and ephemeral_grace stay as they were: the registry is busy"),
            }
        }
        if settings.derp_map != new.derp_map {
            in_force.relays.set_others(new.derp_map.clone());
            match in_force.hub.renew(in_force.relays.shared()).await {
                Ok(()) => {
                    settings.derp_map = new.derp_map;
                    changed.push("derp_map");
                }
                Err(_) => error!("derp_map: the registry is busy; reload again to tell the nodes"),
            }
        }
        if settings.names != new.names {
            match in_force.hub.set_names(new.names.clone()).await {
                Ok(()) => {
                    settings.names = new.names;
                    changed.push("dns");
                }
                Err(_) => error!("dns: the registry is busy; reload again to tell the nodes"),
            }
        }
        settings.dns = Dns { domain: settings.dns.domain.clone(), ..new.dns };
    }

    /// Reads the file of further names again, once it is another.
    pub(crate) async fn read_records(&self, settings: &mut Settings, in_force: &InForce) {
        match settings.dns.names() {
            Ok(names) if names == settings.names => {}
            Ok(names) => match in_force.hub.set_names(names.clone()).await {
                Ok(()) => {
                    info!(records = names.extra_records.len(), "nodes are told of the extra records as they are now");
                    settings.names = names;
                }
                Err(_) => error!("extra records: the registry is busy; reload to tell the nodes"),
            },
            Err(error) => error!("extra records stay as they were: {error}"),
        }
    }
}

/// A file that is looked at for as long as the server runs.
pub(crate) struct Watched {
    looked: FileStamp,
}

impl Watched {
    /// As it is now.
    pub(crate) fn new(file: Option<&Path>) -> Self {
        Self { looked: file.and_then(file_stamp) }
    }

    /// Returns once somebody wrote it since the last time, or it is another.
    pub(crate) async fn written(&mut self, file: Option<&Path>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let stamp = file.and_then(file_stamp);
            // Between a removal and what takes its place there is nothing to read.
            if stamp.is_some() && stamp != self.looked {
                self.looked = stamp;
                return;
            }
        }
    }
}

fn is_reloaded(name: &str) -> bool {
    RELOADED
        .iter()
        .any(|reloaded| name.strip_prefix(reloaded).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

fn reload_certificate(certificate: Option<&Arc<CertificateFiles>>, changed: &mut Vec<&'static str>) {
    match certificate.map(|files| files.reload()) {
        Some(Ok(true)) => changed.push("certificate"),
        Some(Err(error)) => error!("{error}"),
        Some(Ok(false)) | None => {}
    }
}

/// What changes while the server runs, by the names of the configuration; of the rest it is said that it does not.
const RELOADED: &[&str] = &[
    "derp_map",
    "dns.magic_dns",
    "dns.override_local_dns",
    "dns.nameservers",
    "dns.search_domains",
    "dns.extra_records",
    "dns.extra_records_path",
    "nodes.offline_grace",
    "nodes.ephemeral_grace",
    "limits.handshake_rate",
    "log.filter",
];
/// As long as there are files before and after.
const OF_CERTIFICATE: &[&str] = &["tls.cert", "tls.key"];

/// Where there is no service manager there is nobody to tell.
pub(crate) fn notify(states: &[Option<NotifyState<'_>>]) {
    let states: Vec<NotifyState<'_>> = states.iter().flatten().cloned().collect();
    tell_manager(&states);
}
