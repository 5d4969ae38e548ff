//! SIGHUP: what can change while nodes are connected does; of the rest it is said that it waits for a restart.
//!
//! A configuration or a certificate that cannot be used changes nothing: what was in force stays so.

use std::sync::Arc;

use sd_notify::NotifyState;
use tracing::{error, info, warn};

use super::config::{Certificate, GlobalOptions, Options, Settings};
use super::face::SiteRate;
use super::hub::Hub;
use super::service::RelayMap;
use warren_shell::{CertificateFiles, LogFilter, tell_manager};

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
            if !RELOADED.contains(&name) {
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
    }
}

fn reload_certificate(certificate: Option<&Arc<CertificateFiles>>, changed: &mut Vec<&'static str>) {
    match certificate.map(|files| files.reload()) {
        Some(Ok(true)) => changed.push("certificate"),
        Some(Err(error)) => error!("{error}"),
        Some(Ok(false)) | None => {}
    }
}

/// What changes while the server runs, by the names of the configuration; of the rest it is said that it does not.
const RELOADED: &[&str] =
    &["derp_map", "nodes.offline_grace", "nodes.ephemeral_grace", "limits.handshake_rate", "log.filter"];
/// As long as there are files before and after.
const OF_CERTIFICATE: &[&str] = &["tls.cert", "tls.key"];

/// Where there is no service manager there is nobody to tell.
pub(crate) fn notify(states: &[Option<NotifyState<'_>>]) {
    let states: Vec<NotifyState<'_>> = states.iter().flatten().cloned().collect();
    tell_manager(&states);
}
