//! Sign-in by GitHub, which speaks no OpenID Connect.

use http::StatusCode;
use serde_json::{Value, json};

use crate::node::Machine;
use crate::provider::{Provider, SECRET, Says};
use crate::sign_in::{Browser, coordinator, waits};

/// What GitHub answers about somebody.
fn somebody(id: Value, address: &str, verified: bool, organisation: u64) -> Says {
    let others = json!([
        {"email": "other@example.org", "primary": false, "verified": true},
        {"email": address, "primary": true, "verified": verified},
    ]);
    let owner = json!({"id": organisation, "login": "acme"});
    let api = [
        ("user", json!({"id": id, "login": "ada", "name": "Ada", "avatar_url": "https://x/a.png"})),
        ("user/emails", others),
        ("user/orgs", json!([owner])),
        ("user/teams", json!([{"id": 7, "slug": "ops", "organization": owner}])),
    ];
    Says { api: api.into(), ..Says::default() }
}

#[tokio::test]
async fn who_comes_by_github_is_their_number_and_what_it_vouches_for() {
    let provider = Provider::start().await;
    let rules = "kind = \"github\"\napproval = false\nallowed_domains = [\"example.org\"]\nallowed_groups = [\"99\", \"acme/dev\"]";
    let (server, _config) = coordinator(&[("github", provider.issuer(), rules)]);
    let (answer, path) = waits(&server, &Machine::new("laptop")).await;
    for (what, says) in [
        ("not vouched for", somebody(json!(1), "ada@example.org", false, 1)),
        ("another address", somebody(json!(1), "ada@example.net", true, 1)),
        ("no number", somebody(json!("ada"), "ada@example.org", true, 1)),
        (
            "code of nobody",
            Says { answer: vec![("code", "x".to_owned())], ..somebody(json!(1), "ada@example.org", true, 1) },
        ),
        ("not asked", Says { api: [].into(), ..Says::default() }),
    ] {
        provider.says(says);
        let page = Browser::default().sign_in(&server, &path, "github").await;
        assert_eq!(page.status, StatusCode::FORBIDDEN, "{what}: {}", page.text);
        assert!(!page.text.contains(SECRET) && !page.text.contains("access-token"), "{what}: {}", page.text);
        assert_eq!(server.json(&["user", "list"]), json!([]), "{what}");
    }
    provider.says(somebody(json!(17), "Ada@example.org", true, 1));
    let mut browser = Browser::default();
    assert_eq!(browser.sign_in(&server, &path, "github").await.location(), path);
    let consent = browser.get(&answer.auth_url).await;
    assert!(browser.send(&server, &consent, "/add").await.text.contains("is in the network"));
    // Who has the address or the name now is somebody else; who is in the organisation needs none.
    let (_, path) = waits(&server, &Machine::new("desk")).await;
    provider.says(somebody(json!(18), "ada@example.net", true, 99));
    assert_eq!(Browser::default().sign_in(&server, &path, "github").await.location(), path);
    let users = server.json(&["user", "list"]);
    let who = |index: usize| (users[index]["name"].clone(), users[index]["identities"][0]["subject"].clone());
    assert_eq!(who(0), ("ada@example.org".into(), "17".into()));
    assert_eq!(who(1), ("ada@example.net".into(), "18".into()));
    let log = server.logged();
    assert!(!log.contains(SECRET) && !log.contains("access-token"), "{log}");
}
