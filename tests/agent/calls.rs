//! Every call that official clients know: served, or refused with a reason. None is simply not there.

use std::path::Path;

use tempfile::tempdir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use warren_core::types::UserId;
use warren_core::wire::control::DnsConfig;

use crate::scene::{Agent, SharedKernel, map, node, store};

/// An agent that was in a network with a peer.
async fn agent(root: &Path) -> Agent {
    let mut map = map(vec![node(2)]);
    map.dns_config = Some(DnsConfig { proxied: true, ..DnsConfig::default() });
    store(root, &map, "2026-11-01T00:00:00Z");
    let agent = Agent::start(root, SharedKernel::default()).await;
    agent.until_running().await;
    agent
}

/// Status, headers and body of an answer; of one that never ends, its beginning.
async fn call(agent: &Agent, method: &str, call: &str, headers: &str) -> (u16, String, String) {
    let mut stream = UnixStream::connect(&agent.socket).await.unwrap();
    let request = format!("{method} /localapi/v0/{call} HTTP/1.1\r\nHost: local-tailscaled.sock\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let whole = length.map_or(0, |length| length.parse().unwrap());
            if body.len() >= whole {
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                return (status, head, body.to_owned());
            }
        }
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "{method} {call}: {text}");
    }
}

async fn ask(agent: &Agent, method: &str, name: &str) -> (u16, String) {
    let (status, _, body) = call(agent, method, name, "").await;
    (status, body)
}

/// What is served, with the status of the answer.
const SERVED: &[(&str, &str, u16)] = &[
    ("GET", "status", 200),
    ("GET", "whois?addr=100.64.0.2", 200),
    ("GET", "peer-by-id?id=2", 200),
    ("GET", "user-profile?id=1", 200),
    ("GET", "prefs", 200),
    ("GET", "watch-ipn-bus", 200),
    ("GET", "derpmap", 200),
    ("GET", "dns-config", 200),
    ("GET", "dns-query?name=node-2.example.net&type=A", 200),
    ("GET", "dns-query?name=node-2.example.net&type=MX", 200),
    ("GET", "dns-osconfig", 200),
    ("GET", "usermetrics", 200),
    ("GET", "metrics", 200),
    ("GET", "tka/status", 200),
    ("GET", "optional-features", 200),
    ("POST", "optional-features", 200),
    ("GET", "check-udp-gro-forwarding", 200),
    ("GET", "cert-domains", 200),
    ("GET", "serve-config", 200),
    ("GET", "profiles/current", 200),
    ("GET", "profiles/", 200),
    ("POST", "bugreport?note=slow", 200),
    ("POST", "debug?action=current-netmap", 200),
    // Without their bodies, or where nobody answers.
    ("PATCH", "prefs", 400),
    ("POST", "check-prefs", 400),
    ("POST", "start", 400),
    ("POST", "dial", 400),
    ("POST", "ping?ip=100.64.0.9&type=disco", 200),
    ("POST", "login-interactive", 204),
];

/// What is refused with a reason.
const REFUSED: &[(&str, &str)] = &[
    ("POST", "alpha-set-device-attrs"),
    ("GET", "appc-route-info"),
    ("GET", "cert/node-1.example.net"),
    ("GET", "check-ip-forwarding"),
    ("GET", "check-reverse-path-filtering"),
    ("POST", "component-debug-logging?component=magicsock"),
    ("POST", "debug?action=rebind"),
    ("GET", "debug-bus-events"),
    ("GET", "debug-bus-graph"),
    ("POST", "debug-capture"),
    ("POST", "debug-derp-region?region=1"),
    ("POST", "debug-dial-types"),
    ("POST", "debug-log"),
    ("POST", "debug-packet-filter-matches"),
    ("POST", "debug-packet-filter-rules"),
    ("GET", "debug-peer-endpoint-changes?ip=100.64.0.2"),
    ("GET", "debug-portmap"),
    ("POST", "dev-set-state-store"),
    ("POST", "disconnect-control"),
    ("GET", "dns-query?name=www.example.com&type=A"),
    ("GET", "dns-query?name=node-2.example.net&type=AXFR"),
    ("PUT", "drive/fileserver-address"),
    ("GET", "drive/shares"),
    ("PUT", "file-put/n2/report.pdf"),
    ("GET", "file-targets"),
    ("GET", "files/"),
    ("GET", "goroutines"),
    ("POST", "handle-push-message"),
    ("GET", "id-token?aud=x"),
    ("GET", "logtap"),
    ("GET", "policy/profile"),
    ("GET", "pprof?name=heap"),
    ("POST", "query-feature?feature=serve"),
    ("POST", "reload-config"),
    ("POST", "reset-auth"),
    ("POST", "set-dns"),
    ("POST", "set-expiry-sooner"),
    ("POST", "set-gui-visible"),
    ("POST", "set-push-device-token"),
    ("POST", "set-udp-gro-forwarding"),
    ("POST", "set-use-exit-node-enabled?enabled=true"),
    ("POST", "shutdown"),
    ("GET", "suggest-exit-node"),
    ("POST", "tka/init"),
    ("POST", "tka/sign"),
    ("GET", "update/check"),
    ("POST", "update/install"),
    ("POST", "upload-client-metrics"),
];

#[tokio::test]
async fn each_call_of_the_official_clients_is_served_or_refused_with_a_reason() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;
    for (method, name, expected) in SERVED {
        let (status, body) = ask(&agent, method, name).await;
        assert_eq!(status, *expected, "{method} {name}: {body}");
        assert!(status < 400 || body.contains(r#"{"error":""#), "{method} {name}: {body}");
    }
    for (method, name) in REFUSED {
        let (status, body) = ask(&agent, method, name).await;
        assert_eq!(status, 501, "{method} {name}: {body}");
        let error: serde_json::Value = serde_json::from_str(&body).unwrap();
        let reason = error["error"].as_str().unwrap();
        assert!(reason.len() > 20 && !reason.ends_with(": "), "{method} {name}: {reason}");
    }
    let (status, body) = ask(&agent, "GET", "no-such-call").await;
    assert_eq!((status, body.as_str()), (404, r#"{"error":"no call /localapi/v0/no-such-call"}"#));
}

#[tokio::test]
async fn figures_are_in_the_text_format_that_monitors_read() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;
    let (_, figures) = ask(&agent, "GET", "usermetrics").await;
    for line in [
        "# TYPE tailscaled_inbound_bytes_total counter",
        r#"tailscaled_inbound_bytes_total{path="derp"} 0"#,
        r#"tailscaled_outbound_bytes_total{path="direct"} 0"#,
        "tailscaled_advertised_routes 0",
        "tailscaled_home_derp_region_id 0",
    ] {
        assert!(figures.lines().any(|found| found == line), "{line}: {figures}");
    }
    assert!(figures.contains(r#"tailscaled_health_messages{type="warning"} "#));
    assert!(!figures.contains("warren_"));
    for line in figures.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        value.parse::<u64>().unwrap();
        let family = name.split('{').next().unwrap();
        assert!(figures.contains(&format!("# TYPE {family} ")), "{line}");
    }
    let (_, all) = ask(&agent, "GET", "metrics").await;
    assert!(all.contains("\nwarren_peers 1\n"), "{all}");
}

#[tokio::test]
async fn the_map_is_shown_as_the_coordinator_told_it_and_a_report_has_a_mark() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;
    let (_, map) = ask(&agent, "POST", "debug?action=current-netmap").await;
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    assert_eq!(map["SelfNode"]["Name"], "node-1.example.net.");
    assert_eq!(map["Peers"][0]["Name"], "node-2.example.net.");
    assert_eq!((&map["Domain"], &map["Name"]), (&"example.net".into(), &"node-1.example.net.".into()));
    assert_eq!(map["UserProfiles"][UserId(1).0.to_string()]["LoginName"], "ada");

    let (_, mark) = ask(&agent, "POST", "bugreport?note=it+is+slow").await;
    let parts: Vec<&str> = mark.trim_end().split('-').collect();
    assert!(mark.ends_with('\n') && parts.len() == 4 && parts[0] == "BUG" && parts[1].len() == 32, "{mark}");
}

#[tokio::test]
async fn a_name_of_the_network_is_answered_and_a_wrong_one_in_it_denied() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;
    let message = async |query: &str| {
        let (status, reply) = ask(&agent, "GET", &format!("dns-query?{query}")).await;
        assert_eq!(status, 200, "{reply}");
        let reply: serde_json::Value = serde_json::from_str(&reply).unwrap();
        data_encoding::BASE64.decode(reply["Bytes"].as_str().unwrap().as_bytes()).unwrap()
    };
    assert!(message("name=node-2.example.net.&type=A").await.ends_with(&[0, 4, 100, 64, 0, 2]));
    assert!(message("name=NODE-2&type=A").await.ends_with(&[0, 4, 100, 64, 0, 2]));
    let nothing = message("name=NODE-2&type=AAAA").await;
    assert_eq!((nothing[3] & 15, nothing[7]), (0, 0), "as the resolver: many hosts cannot use the family");
    assert_eq!(message("name=nobody.example.net&type=A").await[3] & 15, 3, "no such name");
}

#[tokio::test]
async fn a_client_is_connected_to_nodes_and_to_nothing_else() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;
    let dial = async |host: &str, port: &str| {
        let headers = format!("Upgrade: ts-dial\r\nConnection: upgrade\r\nDial-Host: {host}\r\nDial-Port: {port}\r\n");
        let (status, _, body) = call(&agent, "POST", "dial", &headers).await;
        (status, body)
    };
    for (host, port, status, why) in [
        ("127.0.0.1", "22", 502, "is not in this network"),
        ("192.0.2.1", "22", 502, "is not in this network"),
        ("nobody", "22", 502, "no node has the name"),
        ("node-2", "ssh", 400, "is no port"),
        ("", "22", 400, "no Dial-Host"),
    ] {
        let answer = dial(host, port).await;
        assert!(answer.0 == status && answer.1.contains(why), "{host}: {answer:?}");
    }
}
