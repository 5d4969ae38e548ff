//! `warren acl` and `warren why`: from a packet to the line of the policy.

use tempfile::tempdir;
use warren_core::plan::{Ability, ObservedFirewall};
use warren_core::wire::control::{FilterRule, MapResponse, NetPortRange, Ports, RuleOrigin};
use warren_core::wire::local::{BackendState, PingKind};

use crate::scene::{Agent, SharedKernel, map, node, store};

const CONFIRMED: &str = "2026-01-01T00:00:00Z";

/// Port 80 for node 2, and port 53 of UDP for everybody.
fn restricted() -> MapResponse {
    let rule = |source: &str, protocol, port, line, reference: &str| FilterRule {
        src_ips: vec![source.to_owned()],
        dst_ports: vec![NetPortRange { ip: "*".to_owned(), ports: Ports { first: port, last: port } }],
        ip_proto: vec![protocol],
        origin: Some(RuleOrigin { reference: reference.to_owned(), line }),
        ..FilterRule::default()
    };
    let rules = vec![rule("100.64.0.2", 6, 80, 4, "acl-web"), rule("*", 17, 53, 7, "acl-dns")];
    MapResponse { packet_filters: [("base".to_owned(), Some(rules))].into(), ..map(vec![node(2), node(3)]) }
}

async fn agent(root: &std::path::Path, kernel: SharedKernel) -> Agent {
    store(root, &restricted(), CONFIRMED);
    let agent = Agent::start(root, kernel).await;
    agent.until("settled", |status| status.warren.converged).await;
    agent
}

#[tokio::test]
async fn acl_lists_each_rule_with_its_line_and_how_many_sources_have_it() {
    let root = tempdir().unwrap();
    let agent = agent(root.path(), SharedKernel::default()).await;

    let (exit, text) = agent.warren(&["acl"]).await;

    assert_eq!(exit, 0);
    assert!(text.contains("rule line 4 (acl-web)\n    tcp to 0.0.0.0/0 port 80\n"), "{text}");
    assert!(text.contains("    1 sources, 0 packets"), "{text}");
    assert!(text.contains("rule line 7 (acl-dns)"), "{text}");
    assert!(text.contains("    4 sources, 0 packets"), "both addresses of both peers: {text}");
}

#[tokio::test]
async fn why_names_the_line_that_lets_a_packet_in_or_the_lines_that_do_not() {
    let root = tempdir().unwrap();
    let agent = agent(root.path(), SharedKernel::default()).await;

    let (exit, text) = agent.warren(&["why", "node-2", "self", "tcp/80"]).await;
    assert_eq!(exit, 0, "{text}");
    assert!(
        text.starts_with("tcp to port 80 from node-2 (100.64.0.2) to this machine (100.64.0.1): allowed\n"),
        "{text}"
    );
    assert!(text.contains("line 4 of the policy (acl-web) lets it in"), "{text}");
    assert!(text.contains("kernel: lets it in by counter rule_"), "{text}");

    let (exit, text) = agent.warren(&["why", "100.64.0.2", "node-1", "22"]).await;
    assert_eq!(exit, 1);
    assert!(text.contains("denied\n  no rule that names the source admits it\n"), "{text}");
    assert!(text.contains("rule line 4 (acl-web)") && text.contains("rule line 7 (acl-dns)"), "{text}");
    assert!(text.contains("kernel: drops it: no rule that names the source admits it (denied_by_policy)"), "{text}");
}

#[tokio::test]
async fn why_tells_both_directions_and_what_is_not_ours_to_say() {
    let root = tempdir().unwrap();
    let agent = agent(root.path(), SharedKernel::default()).await;

    let (exit, text) = agent.warren(&["why", "self", "node-3", "tcp/22"]).await;
    assert_eq!(exit, 0);
    assert!(text.contains("lets out whatever it sends; whether node-3 takes it is for its own filter"), "{text}");
    for (source, destination, because) in [
        ("node-2", "192.0.2.1", "neither here nor behind this machine"),
        ("192.0.2.1", "self", "is no peer's address"),
        ("nobody", "self", "`nobody` is no address, no peer that is in the map"),
        ("100.64.0.2", "fd7a:115c:a1e0::1", "no address of the same family"),
    ] {
        let (exit, text) = agent.warren(&["why", source, destination]).await;
        assert_eq!(exit, 1, "{text}");
        assert!(text.contains(because), "{text}");
    }
}

/// All objects of ours are in their places, and a rule of somebody else's is asked before them.
#[tokio::test]
async fn packets_that_go_another_way_are_told_of_by_status_why_and_ping() {
    let root = tempdir().unwrap();
    let kernel = SharedKernel::default();
    let agent = agent(root.path(), kernel.clone()).await;
    let (exit, text) = agent.warren(&["why", "self", "node-3", "tcp/22"]).await;
    assert_eq!(exit, 0, "{text}");
    assert!(text.contains("kernel: sends it into warren0, unfiltered"), "{text}");

    kernel.lead_astray(&["100.64.0.3/32"]);
    let led = "packets to 100.64.0.3 are sent to eth0 and not into the tunnel, so the firewall drops them: rule 1000";
    agent.until("told", |status| status.health.iter().any(|text| text.contains(led))).await;
    let (exit, text) = agent.warren(&["why", "self", "node-3", "tcp/22"]).await;
    assert_eq!(exit, 1, "{text}");
    assert!(text.contains(led) && text.contains("ip rule add pref 999 not fwmark 0x5000000"), "{text}");
    let (exit, text) = agent.warren(&["ping", "--timeout", "50ms", "-c", "1", "node-3"]).await;
    assert_eq!(exit, 1, "{text}");
    let reply = agent.client.ping("100.64.0.3".parse().unwrap(), PingKind::Disco).await.unwrap();
    assert!(reply.astray.contains(led), "{reply:?}");

    kernel.lead_astray(&[]);
    agent.until("mended", |status| !status.health.iter().any(|text| text.contains(led))).await;
    let reply = agent.client.ping("100.64.0.3".parse().unwrap(), PingKind::Disco).await.unwrap();
    assert_eq!(reply.astray, "");
}

#[tokio::test]
async fn a_host_without_ipv6_on_the_link_runs_with_ipv4_and_says_so() {
    let root = tempdir().unwrap();
    let kernel = SharedKernel::default();
    kernel.change_silently(|state| state.lacking.extend([Ability::LinkIpv6]));
    let agent = agent(root.path(), kernel.clone()).await;
    agent.until("running", |status| status.backend_state == BackendState::Running).await;
    let told = "IPv6 is switched off on warren0, so only IPv4 goes through the tunnel";
    agent.until("told", |status| status.health.iter().any(|text| text.contains(told))).await;
    let link = kernel.state().link.unwrap();
    assert!(link.addresses.iter().all(|address| address.addr().is_ipv4()) && !link.addresses.is_empty());

    kernel.meddle(|state| state.lacking.clear());
    agent.until("mended", |status| !status.health.iter().any(|text| text.contains(told))).await;
    kernel.until("both families", |state| state.link.as_ref().is_some_and(|link| link.addresses.len() == 2)).await;
}

#[tokio::test]
async fn why_says_where_the_kernel_differs_from_the_policy() {
    let root = tempdir().unwrap();
    let kernel = SharedKernel::default();
    let agent = agent(root.path(), kernel.clone()).await;

    // Nobody hears of it, so it is not repaired at once.
    kernel.change_silently(|state| state.firewall = ObservedFirewall::Absent);
    let (exit, text) = agent.warren(&["why", "node-2", "self", "tcp/80"]).await;

    assert_eq!(exit, 1);
    assert!(text.contains("kernel has no table of ours: nothing is filtered at this moment  <-- differs"), "{text}");
}

#[tokio::test]
async fn shields_that_are_up_are_the_reason_given() {
    let root = tempdir().unwrap();
    let agent = agent(root.path(), SharedKernel::default()).await;
    agent.warren(&["set", "--shields-up"]).await;
    agent.until("settled", |status| status.warren.converged).await;

    let (exit, text) = agent.warren(&["why", "node-2", "self", "tcp/80"]).await;

    assert_eq!(exit, 1);
    assert!(text.contains("the shields are up"), "{text}");
}
