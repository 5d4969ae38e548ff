//! SIGHUP: what can change while nodes are connected does; of the rest it is said that it waits for a restart.
//!
//! A configuration or a certificate that cannot be used changes nothing: what was in force stays so.

use std::sync::{Arc, PoisonError};

use sd_notify::NotifyState;
use tracing::{error, info, warn};

use super::config::{Options, Places, Settings};
use super::http::Shared;
use warren_shell::{CertificateFiles, LogFilter, tell_manager};

/// What a reload needs to know.
pub(crate) struct Reload {
    /// As given on the command line and in the environment.
    pub(crate) options: Options,
    /// See `options`.
    pub(crate) places: Places,
    /// What is logged.
    pub(crate) log: LogFilter,
}

impl Reload {
    /// Reads everything again. `settings` are those in force, before and after.
    pub(crate) async fn run(
        &self,
        settings: &mut Settings,
        certificate: Option<&Arc<CertificateFiles>>,
        shared: &Shared,
    ) {
        let monotonic = NotifyState::monotonic_usec_now();
        notify(&[Some(NotifyState::Reloading), monotonic.ok()]);
        let mut changed = Vec::new();
        match self.options.clone().complete(self.places.clone()).and_then(Options::settle) {
            Ok(new) => self.take(settings, new, certificate, shared, &mut changed).await,
            Err(error) => {
                error!("the configuration stays as it was: {error}");
                reload_certificate(certificate, &mut changed);
            }
        }
        let changed = if changed.is_empty() { "nothing".to_owned() } else { changed.join(", ") };
        info!(changed, "reloaded");
        notify(&[Some(NotifyState::Ready)]);
    }

    async fn take(
        &self,
        settings: &mut Settings,
        new: Settings,
        certificate: Option<&Arc<CertificateFiles>>,
        shared: &Shared,
        changed: &mut Vec<&'static str>,
    ) {
        for ((name, before), (_, after)) in fixed(settings).into_iter().zip(fixed(&new)) {
            if before != after {
                warn!("{name} is another in the configuration; that needs a restart");
            }
        }
        match (certificate, &new.tls) {
            (Some(files), Some(tls)) => match files.replace(&tls.cert, &tls.key) {
                Ok(true) => changed.push("certificate"),
                Ok(false) => {}
                Err(error) => error!("{error}"),
            },
            _ => reload_certificate(certificate, changed),
        }
        if settings.log != new.log {
            match self.log.set(&new.log) {
                Ok(()) => {
                    settings.log = new.log;
                    changed.push("log");
                }
                Err(error) => error!("log: {error}; what is logged stays as it was"),
            }
        }
        if settings.handshake_rate != new.handshake_rate {
            shared.doors.handshakes.lock().unwrap_or_else(PoisonError::into_inner).set(new.handshake_rate);
            settings.handshake_rate = new.handshake_rate;
            changed.push("handshake_rate");
        }
        let graces = (new.offline_grace, new.ephemeral_grace);
        if (settings.offline_grace, settings.ephemeral_grace) != graces {
            match shared.hub.set_graces(graces.0, graces.1).await {
                Ok(()) => {
                    (settings.offline_grace, settings.ephemeral_grace) = graces;
                    changed.push("graces");
                }
                Err(_) => error!("offline_grace and ephemeral_grace stay as they were: the registry is busy"),
            }
        }
        if settings.derp_map != new.derp_map {
            shared.relays.set_others(new.derp_map.clone());
            match shared.hub.renew(shared.relays.shared()).await {
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

/// What cannot change while the server runs, by the names of the configuration.
fn fixed(settings: &Settings) -> Vec<(&'static str, String)> {
    let Settings {
        state_dir,
        socket,
        listen,
        server_url,
        tls,
        acme,
        relay,
        derp_map: _,
        domain,
        offline_grace: _,
        ephemeral_grace: _,
        node_key_lifetime,
        max_connections,
        handshake_rate: _,
        log: _,
        metrics,
    } = settings;
    vec![
        ("state_dir", format!("{state_dir:?}")),
        ("socket", format!("{socket:?}")),
        ("listen", format!("{listen:?}")),
        ("server_url", format!("{server_url:?}")),
        ("whether there is a certificate (tls_cert)", tls.is_some().to_string()),
        ("where the certificate is obtained (acme_*)", format!("{acme:?}")),
        ("what concerns the relay (relay, relay_*, stun_listen)", format!("{relay:?}")),
        ("domain", format!("{domain:?}")),
        ("node_key_lifetime", format!("{node_key_lifetime:?}")),
        ("max_connections", format!("{max_connections:?}")),
        ("metrics", format!("{metrics:?}")),
    ]
}

/// Where there is no service manager there is nobody to tell.
pub(crate) fn notify(states: &[Option<NotifyState<'_>>]) {
    let states: Vec<NotifyState<'_>> = states.iter().flatten().cloned().collect();
    tell_manager(&states);
}
