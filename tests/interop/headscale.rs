//! Our agent on a coordination server that we did not write.

use std::fs;

use warren_core::wire::local::BackendState;

use crate::elsewhere::configuration;
use crate::foreign;
use crate::lab::{Lab, eventually};
use crate::programs::{Agent, Process};

#[test]
#[ignore = "needs headscale, on PATH or in WARREN_INTEROP_BIN"]
fn our_agents_join_headscale_and_reach_each_other() {
    let (Some(headscale), Some(mut lab)) = (foreign::program("headscale"), Lab::new()) else { return };
    let server = lab.host("headscale");
    let dir = lab.dir.path().join("headscale");
    fs::create_dir(&dir).unwrap();
    let config = dir.join("config.yaml");
    fs::write(&config, configuration(&server.v4, &dir.display().to_string())).unwrap();
    let program = headscale.display();
    let ask = |line: &str| server.try_run(&format!("{program} --config {} {line}", config.display()));
    let command = server.command([headscale.as_os_str(), "--config".as_ref(), config.as_ref(), "serve".as_ref()]);
    let _process = Process::start(command, &dir.join("log"));
    eventually("headscale to answer", || ask("users create lab").status.success().then_some(()));
    let key = String::from_utf8(ask("preauthkeys create --user 1 --reusable").stdout).unwrap();

    let (alice, bob) = (Agent::start(&mut lab, "alice"), Agent::start(&mut lab, "bob"));
    for agent in [&alice, &bob] {
        let name = &agent.name;
        agent.warren(&format!(
            "up --coordinator http://{}:8080 --auth-key {} --hostname {name}",
            server.v4,
            key.trim()
        ));
        agent.wait_for(BackendState::Running);
    }

    alice.host.ping(&bob.ip(4));
    bob.host.ping(&alice.ip(6));
}
