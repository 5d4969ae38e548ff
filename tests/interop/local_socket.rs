//! Clients made for the official agent's local socket, on ours.

use std::process::Command;

use warren_core::wire::local::BackendState;

use crate::foreign;
use crate::programs::Joined;

#[test]
fn the_tslocal_crate_reads_status_and_whois() {
    let Some(Joined { alice, bob, lab: _lab, coordinator: _coordinator }) = Joined::new() else { return };
    let config =
        tslocal::TransportConfig { socket_path: Some(alice.socket().display().to_string()), use_socket_only: true };
    let client = tslocal::Client::with_config(config);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();

    let status = runtime.block_on(client.status()).unwrap();
    let whois = runtime.block_on(client.who_is(&bob.ip(4))).unwrap();

    assert_eq!(status.backend_state, "Running");
    assert_eq!(status.tailscale_ips, [alice.ip(4), alice.ip(6)]);
    let peers = status.peer.values().map(|peer| peer.host_name.clone());
    assert_eq!(peers.collect::<Vec<_>>(), ["bob"]);
    assert!(format!("{whois:?}").contains("bob"), "{whois:?}");
}

#[test]
fn the_tslocal_package_reads_status_and_whois() {
    let (Some(python), Some(joined)) = (foreign::python(), Joined::new()) else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/tslocal_status.py");

    let output = Command::new(python).arg(script).arg(joined.alice.socket()).arg(joined.bob.ip(4)).output().unwrap();

    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed, format!("Running {}\npeer bob\nwhois bob lab\n", joined.alice.ip(4)), "{output:?}");
}

#[test]
#[ignore = "needs tailscale, on PATH or in WARREN_INTEROP_BIN"]
fn the_official_command_line_reads_and_changes() {
    let (Some(tailscale), Some(joined)) = (foreign::program("tailscale"), Joined::new()) else { return };

    let whois = format!("whois {}", joined.bob.ip(4));
    let (set, profiles) = ("set --hostname=renamed --accept-routes", "switch --list");
    for command in ["status", "status --json", "ip", &whois, "version --daemon", "debug prefs", set, profiles, "down"] {
        let mut official = joined.alice.host.command([&tailscale]);
        let output = official.arg("--socket").arg(joined.alice.socket()).args(command.split(' ')).output().unwrap();
        assert!(output.status.success(), "tailscale {command}: {output:?}");
    }
    joined.alice.wait_for(BackendState::Stopped);
}
