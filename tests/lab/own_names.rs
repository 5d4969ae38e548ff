//! The names that an agent itself needs, while all that leaves its host goes by an exit node.

use std::fs;

use warren_core::wire::local::BackendState;

use crate::host_names::{NameServer, OwnFile};
use crate::lab::{Lab, eventually};
use crate::programs::{Agent, Coordinator};

/// Name servers far away: addresses of the internet, which an exit node carries. Nobody is at the second one.
const FAR: [&str; 2] = ["11.0.0.53", "11.0.0.54"];
const HUB: &str = "hub.example.net";

#[test]
fn an_agent_whose_exit_node_is_dead_finds_its_coordinator_by_name() {
    let Some(mut lab) = Lab::new() else { return };
    let (host, far) = (lab.host("coordinator"), lab.host("far"));
    far.run(&format!("ip address add {}/32 dev lo", FAR[0]));
    let url = format!("http://{HUB}:8080");
    let hub: std::net::Ipv4Addr = host.v4.parse().unwrap();
    let arguments = vec!["--server-url".to_owned(), url.clone()];
    let coordinator = Coordinator::start_on(host, lab.dir.path().join("coordinator"), arguments);
    let (near, _) = (NameServer::start(&far, &far.v4, hub.octets()), NameServer::start(&far, FAR[0], hub.octets()));

    let names = |server: &str| format!("nameserver {server}\noptions timeout:2 attempts:1\n");
    let (mut alice, mut gate) = (Agent::not_started(&mut lab, "alice"), Agent::not_started(&mut lab, "gate"));
    let files = [&alice, &gate].map(|agent| OwnFile::new(&agent.host, &names(&far.v4)));
    alice.host.run(&format!("ip route add default via {}", far.v4));
    for agent in [&mut alice, &mut gate] {
        agent.start_again();
        agent.join_at(&url, &coordinator.key(""));
    }
    assert!(near.was_asked_within(HUB).len() > 1);
    gate.warren("set --advertise-routes=0.0.0.0/0,::/0");
    eventually("the offer to be there", || coordinator.run("route list").contains("0.0.0.0/0").then_some(()));
    coordinator.run("route approve gate 0.0.0.0/0");
    let is_option = || alice.status().peer.values().any(|peer| peer.exit_node_option);
    eventually("alice to hear of an exit node", || is_option().then_some(()));
    alice.warren("set --exit-node gate");
    // Names that others know are asked of the exit node, through the tunnel.
    let by_exit = || {
        let said = alice.try_warren("dns query www.example.org").stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        (said.contains(&format!("http://{}:", gate.ip(4))) && said.contains(&coordinator.host.v4)).then_some(())
    };
    eventually("a name by way of the exit node", by_exit);
    gate.stop();
    gate.host.run("ip link del warren0");
    alice.wait_for_health(&["exit node", "not online"]);

    let is_online = || {
        let nodes = coordinator.run("node list");
        nodes.lines().any(|line| line.contains("alice") && line.contains("online") && !line.contains("offline"))
    };
    let kept = alice.state_dir().join("names.json");
    eventually("names to be kept", || fs::read_to_string(&kept).is_ok_and(|text| text.contains(HUB)).then_some(()));
    // Another network, whose name servers nothing on this host knows to be kept off the tunnel; then one where nobody answers.
    for (server, is_kept) in [(FAR[0], false), (FAR[1], true)] {
        alice.kill();
        eventually("alice to be gone", || (!is_online()).then_some(()));
        files[0].write(&names(server));
        if !is_kept {
            fs::remove_file(&kept).unwrap();
        }
        alice.start_again();
        alice.wait_for(BackendState::Running);
        eventually(&format!("alice to be online by way of {server}"), || is_online().then_some(()));
        eventually("names to be kept", || kept.exists().then_some(()));
    }
}
