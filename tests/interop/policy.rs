//! The policy between the official engine and us: each side obeys what our coordinator tells it.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use warren_core::wire::local::AclReply;

use crate::caddytail::{WebServer, node};
use crate::foreign;
use crate::lab::{Lab, eventually, side_by_side};
use crate::programs::{Agent, Coordinator};
use crate::web::{SERVED, get, get_within, serve};

/// The engine's second port; it greets at 80 as well.
const SECOND: u16 = 8080;
/// Where the engine's web server passes requests on, over its tunnel, to our node's ports 80 and 81.
const PROXIES: [u16; 2] = [9000, 9001];
/// How long a request waits that should not be answered: the third packet of its connection leaves after three seconds.
const UNANSWERED: Duration = Duration::from_secs(4);

/// A coordinator, our agent and the official engine on one switch, each serving on two ports.
struct Scene {
    alice: Agent,
    web: WebServer,
    web_ip: String,
    coordinator: Coordinator,
    policies: AtomicU32,
    lab: Lab,
}

/// A request that the policy may open or not.
#[derive(Clone, Copy)]
enum Ask {
    /// Our node asks the engine, at this port.
    Ours(u16),
    /// The engine asks our node, by this proxy.
    Theirs(u16),
}

#[test]
fn the_official_engine_and_our_agent_obey_the_policy_both_ways_and_its_revocation() {
    let (Some(caddy), Some(lab)) = (foreign::caddy(), Lab::new()) else { return };
    let scene = Scene::new(lab, &caddy);
    let (alice, web) = (scene.alice.ip(4), scene.web_ip.clone());
    let allowed = vec![Ask::Ours(80), Ask::Theirs(PROXIES[0])];
    let denied = vec![Ask::Ours(SECOND), Ask::Theirs(PROXIES[1])];
    scene.wait_until_answered(&[&allowed[..], &denied].concat());

    scene.set_policy(&[(&alice, &format!("{web}:80")), (&web, &format!("{alice}:80"))]);
    scene.wait_until_denied(&denied);
    scene.wait_until_answered(&allowed);
    scene.our_kernel_counted_and_explains();

    scene.set_policy(&[]);
    scene.wait_until_denied(&allowed);
    eventually("nobody to be seen whom no rule connects", || scene.alice.status().peer.is_empty().then_some(()));

    // It was the policy, and nothing that broke meanwhile.
    scene.set_policy(&[("*", "*:*")]);
    scene.wait_until_answered(&allowed);
}

impl Scene {
    fn new(mut lab: Lab, caddy: &Path) -> Self {
        let coordinator = Coordinator::start(&mut lab);
        let alice = Agent::start(&mut lab, "alice");
        alice.join(&coordinator, &coordinator.key(""));
        let ip = alice.ip(4);
        for port in [80, 81] {
            serve(&alice.host, &ip, port);
        }
        let join = format!("control_url {}\nauth_key {}", coordinator.url, coordinator.key(""));
        let greeting = format!(":{SECOND} {{\nbind tailscale/web\nrespond hello\n}}");
        let proxies = PROXIES.iter().zip([80, 81]).map(|(proxy, port)| {
            format!("http://127.0.0.1:{proxy} {{\nreverse_proxy http://{ip}:{port} {{\ntransport tailscale web\n}}\n}}")
        });
        let more: Vec<_> = [greeting].into_iter().chain(proxies).collect();
        let (host, dir) = (lab.host("web"), lab.dir.path().join("web"));
        let web = WebServer::start_on(host, &dir, caddy, "web", &join, &more.join("\n"));
        let web_ip = eventually("the engine to be listed as connected", || {
            let node = node(&coordinator, "web").filter(|node| node["online"] == true)?;
            Some(node["addresses"][0].as_str()?.split('/').next()?.to_owned())
        });
        Self { alice, web, web_ip, coordinator, policies: AtomicU32::new(0), lab }
    }

    /// Puts a policy in force: one line for each source and what it may reach, from the second line on.
    fn set_policy(&self, rules: &[(&str, &str)]) {
        let number = self.policies.fetch_add(1, Ordering::Relaxed);
        let file = self.lab.dir.path().join(format!("policy-{number}"));
        let rules = rules.iter().map(|(source, destination)| {
            format!("{{\"action\": \"accept\", \"src\": [\"{source}\"], \"dst\": [\"{destination}\"]}},\n")
        });
        fs::write(&file, format!("{{\"acls\": [\n{}]}}", rules.collect::<String>())).unwrap();
        self.coordinator.run(&format!("policy set {}", file.display()));
    }

    fn wait_until_answered(&self, asks: &[Ask]) {
        for &ask in asks {
            let asked = || match ask {
                Ask::Ours(port) => get(&self.alice.host, &format!("{}:{port}", self.web_ip), "hello"),
                Ask::Theirs(proxy) => get(&self.web.host, &format!("127.0.0.1:{proxy}"), SERVED),
            };
            eventually("what is allowed to be answered", || asked().then_some(()));
        }
    }

    /// A node is told of a policy a little later than who set it: until then it may still answer.
    fn wait_until_denied(&self, asks: &[Ask]) {
        side_by_side(asks.to_vec(), |ask| {
            let asked = || match ask {
                Ask::Ours(port) => {
                    get_within(UNANSWERED, &self.alice.host, &format!("{}:{port}", self.web_ip), "hello")
                }
                // The proxy waits three seconds for the connection, and then says that it has none.
                Ask::Theirs(proxy) => get(&self.web.host, &format!("127.0.0.1:{proxy}"), SERVED),
            };
            eventually("what is not allowed to be refused", || (!asked()).then_some(()));
        });
    }

    fn our_kernel_counted_and_explains(&self) {
        let acl: AclReply = serde_json::from_str(&self.alice.warren("acl --json")).unwrap();
        let denied = acl.denied.iter().find(|denied| denied.reason == "denied_by_policy").map(|denied| denied.packets);
        assert!(denied.is_some_and(|packets| packets > 0), "{acl:?}");
        let why = self.alice.try_warren("why web self tcp/81");
        assert!(!why.status.success(), "{why:?}");
        let why = self.alice.warren("why web self tcp/80");
        assert!(why.contains("line 3 of the policy"), "{why}");
    }
}
