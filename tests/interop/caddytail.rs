//! The official client engine, in a web server, as a node of our network.

use std::fs;
use std::path::{Path, PathBuf};

use crate::foreign;
use crate::lab::{Host, Lab, eventually};
use crate::programs::{Agent, Coordinator, Process};

#[test]
fn the_official_engine_joins_with_a_key_and_outlives_a_restart_of_the_coordinator() {
    let (Some(caddy), Some(mut lab)) = (foreign::caddy(), Lab::new()) else { return };
    let mut coordinator = Coordinator::start(&mut lab);
    let alice = Agent::start(&mut lab, "alice");
    alice.join(&coordinator, &coordinator.key(""));

    let _web = WebServer::start(&mut lab, &caddy, "web", &coordinator, "");

    eventually("the engine to be listed as connected", || online(&coordinator, "web"));
    eventually("the agent to see it as a peer", || {
        alice.status().peer.values().any(|peer| peer.host_name == "web" && peer.online && peer.in_engine).then_some(())
    });
    assert!(alice.warren("status").contains("web"));

    coordinator.kill();
    coordinator.start_again();

    eventually("the engine to be connected again", || online(&coordinator, "web"));
    eventually("the agent to be connected again", || {
        let status = alice.status();
        (status.warren.coordinator_connected && status.peer.values().any(|peer| peer.online)).then_some(())
    });
}

#[test]
fn an_ephemeral_official_engine_is_removed_after_it_ended() {
    let (Some(caddy), Some(mut lab)) = (foreign::caddy(), Lab::new()) else { return };
    let coordinator = Coordinator::start(&mut lab);
    let web = WebServer::start(&mut lab, &caddy, "web", &coordinator, "--ephemeral");
    eventually("the engine to be listed as connected", || online(&coordinator, "web"));

    drop(web);

    eventually("the node to be gone", || (!coordinator.run("node list").contains("web")).then_some(()));
}

#[test]
fn two_official_engines_carry_a_web_request_through_the_overlay() {
    let (Some(caddy), Some(mut lab)) = (foreign::caddy(), Lab::new()) else { return };
    let coordinator = Coordinator::start(&mut lab);
    let server = WebServer::start(&mut lab, &caddy, "server", &coordinator, "");
    let client = WebServer::start(&mut lab, &caddy, "client", &coordinator, "");
    for name in ["server", "client"] {
        eventually("the engines to be listed as connected", || online(&coordinator, name));
    }

    client.forward_to(&address(&coordinator, "server"));

    let answer = eventually("an answer from the other engine", || {
        let output = client.host.try_run("wget -q -T 5 -O - http://127.0.0.1:9000/");
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    });
    assert_eq!(answer, "hello from server");
    drop(server);
}

fn online(coordinator: &Coordinator, name: &str) -> Option<()> {
    node(coordinator, name).filter(|node| node["online"] == true).map(|_| ())
}

fn address(coordinator: &Coordinator, name: &str) -> String {
    node(coordinator, name).unwrap()["addresses"][0].as_str().unwrap().to_owned()
}

fn node(coordinator: &Coordinator, name: &str) -> Option<serde_json::Value> {
    let nodes: Vec<serde_json::Value> = serde_json::from_str(&coordinator.run("node list --json")).unwrap();
    nodes.into_iter().find(|node| node["name"] == name)
}

/// Caddy, serving `hello from NAME` on its overlay address.
struct WebServer {
    _process: Process,
    host: Host,
    caddy: PathBuf,
    name: String,
    config: PathBuf,
    tailscale: String,
}

impl WebServer {
    fn start(lab: &mut Lab, caddy: &Path, name: &str, coordinator: &Coordinator, key_flags: &str) -> Self {
        let host = lab.host(name);
        let dir = lab.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        let config = dir.join("Caddyfile");
        let ephemeral = if key_flags.contains("ephemeral") { "ephemeral" } else { "" };
        let tailscale = format!(
            "control_url {}\nauth_key {}\nstate_dir {}/state\nhostname {name}\n{ephemeral}",
            coordinator.url,
            coordinator.key(key_flags),
            dir.display()
        );
        fs::write(&config, caddyfile(&tailscale, name, "")).unwrap();
        let mut command = host.command([caddy.as_os_str(), "run".as_ref(), "--config".as_ref(), config.as_ref()]);
        command.env("TS_NO_LOGS_NO_SUPPORT", "1").env("HOME", &dir);
        let process = Process::start(command, &dir.join("log"));
        Self { _process: process, host, caddy: caddy.to_owned(), name: name.to_owned(), config, tailscale }
    }

    /// From here on, port 9000 of this host's loopback leads to an address of the overlay.
    fn forward_to(&self, address: &str) {
        let forward =
            format!("http://127.0.0.1:9000 {{\nreverse_proxy http://{address}:80 {{\ntransport tailscale web\n}}\n}}");
        fs::write(&self.config, caddyfile(&self.tailscale, &self.name, &forward)).unwrap();
        self.host.run(&format!("{} reload --config {}", self.caddy.display(), self.config.display()));
    }
}

fn caddyfile(tailscale: &str, name: &str, more: &str) -> String {
    format!(
        "{{\ntailscale {{\n{tailscale}\n}}\n}}\n:80 {{\nbind tailscale/web\nrespond \"hello from {name}\"\n}}\n{more}\n"
    )
}
