//! The official client engine, in a web server, as a node of our network.

use std::fs;
use std::path::Path;

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

fn online(coordinator: &Coordinator, name: &str) -> Option<()> {
    node(coordinator, name).filter(|node| node["online"] == true).map(|_| ())
}

/// What the administrator is shown of a node.
pub(crate) fn node(coordinator: &Coordinator, name: &str) -> Option<serde_json::Value> {
    let nodes: Vec<serde_json::Value> = serde_json::from_str(&coordinator.run("node list --json")).unwrap();
    nodes.into_iter().find(|node| node["name"] == name)
}

/// Caddy, with the engine as a node of this name.
pub(crate) struct WebServer {
    _process: Process,
    pub(crate) host: Host,
}

impl WebServer {
    fn start(lab: &mut Lab, caddy: &Path, name: &str, coordinator: &Coordinator, key_flags: &str) -> Self {
        let host = lab.host(name);
        let ephemeral = if key_flags.contains("ephemeral") { "ephemeral" } else { "" };
        let join = format!("control_url {}\nauth_key {}\n{ephemeral}", coordinator.url, coordinator.key(key_flags));
        Self::start_on(host, &lab.dir.path().join(name), caddy, name, &join, "")
    }

    /// On a host that is there, with this folder for its files: how it joins, and what it serves beside a greeting, in
    /// Caddy's words.
    pub(crate) fn start_on(host: Host, dir: &Path, caddy: &Path, name: &str, join: &str, more: &str) -> Self {
        fs::create_dir(dir).unwrap();
        let state = dir.join("state");
        let caddyfile = format!(
            "{{
                admin off
                debug
                tailscale {{
                    {join}
                    state_dir {}
                }}
            }}
            :80 {{
                bind tailscale/{name}
                respond hello
            }}
            {more}",
            state.display()
        );
        let config = dir.join("Caddyfile");
        fs::write(&config, caddyfile).unwrap();
        let mut command = host.command([caddy.as_os_str(), "run".as_ref(), "--config".as_ref(), config.as_ref()]);
        command.env("TS_NO_LOGS_NO_SUPPORT", "1").env("HOME", dir);
        Self { _process: Process::start(command, &dir.join("log")), host }
    }
}
