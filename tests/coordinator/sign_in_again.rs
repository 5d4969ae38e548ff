//! Whoever signs in again on the same machine.

use serde_json::json;
use warren_core::types::{NodePrivate, Ticket};
use warren_core::wire::control::RegisterRequest;

use crate::node::{Machine, long_ago};
use crate::server::Server;
use crate::sign_in::{Browser, with_provider};

/// The machine asks with this key, and whoever signs in says that it is theirs.
async fn sign_in(server: &Server, machine: &Machine, asks: RegisterRequest) {
    let answer = machine.connect(server.address).await.register(&asks).await;
    let path = Ticket::in_url(&answer.auth_url).unwrap_or_else(|| panic!("{answer:?}")).path();
    let mut browser = Browser::default();
    assert_eq!(browser.sign_in(server, &path, "corp").await.location(), path);
    let consent = browser.get(&answer.auth_url).await;
    assert!(browser.send(server, &consent, "/add").await.text.contains("is in the network"));
    let again = machine
        .connect(server.address)
        .await
        .register(&RegisterRequest { old_node_key: Default::default(), ..asks })
        .await;
    assert!(again.machine_authorized && !again.node_key_expired, "{again:?}");
}

#[tokio::test]
async fn address_name_and_tags_stay_after_the_key_ended_and_after_a_log_out() {
    let (server, _provider, _config) = with_provider("approval = false").await;
    let mut machine = Machine::new("laptop");
    sign_in(&server, &machine, machine.register_request(None)).await;
    server.text(&["node", "rename", "laptop", "hers"]);
    let stays = |server: &Server| {
        let node = server.json(&["node", "show", "hers"]);
        json!([node["id"], node["stable_id"], node["addresses"], node["name"], node["user"], node["tags"]])
    };
    let before = stays(&server);
    for ends in ["expired", "logged out"] {
        match ends {
            "expired" => drop(server.text(&["node", "expire", "hers"])),
            _ => {
                let out = RegisterRequest { expiry: Some(long_ago()), ..machine.register_request(None) };
                machine.connect(server.address).await.register(&out).await;
            }
        }
        let told = machine.connect(server.address).await.register(&machine.register_request(None)).await;
        assert!(told.node_key_expired, "{ends}: {told:?}");
        let old = std::mem::replace(&mut machine.node, NodePrivate::from_random(rand::random()));
        let asks = RegisterRequest { old_node_key: old.public(), ..machine.register_request(None) };
        sign_in(&server, &machine, asks).await;
        assert_eq!(stays(&server), before, "{ends}");
        assert_eq!(server.json(&["node", "list"]).as_array().unwrap().len(), 1);
    }
}
