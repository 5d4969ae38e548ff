//! Sign-in by a provider, from the link that a machine shows to the machine's being in, and what must not lead there.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tempfile::TempDir;
use warren_core::types::{NodePrivate, Ticket};
use warren_core::wire::control::{RegisterRequest, RegisterResponse};

use crate::node::{Machine, plain};
use crate::place::place;
use crate::provider::{CLIENT, Provider, SECRET, Says, Signed, issuer};
use crate::server::Server;

/// A coordinator whose providers are these, each with what the operator says of it.
pub(crate) fn coordinator(providers: &[(&str, String, &str)]) -> (Server, TempDir) {
    let (address, directory) = (place(), tempfile::tempdir().unwrap());
    let secret = directory.path().join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    let mut text = format!("server_url = \"http://{address}\"\n");
    for (name, issuer, more) in providers {
        text += &format!(
            "[oidc.{name}]\nissuer = {issuer:?}\nclient_id = {CLIENT:?}\nclient_secret_file = {secret:?}\n{more}\n"
        );
    }
    let config = directory.path().join("coordinator.toml");
    std::fs::write(&config, text).unwrap();
    (Server::start_at(address, &["--config", config.to_str().unwrap()]), directory)
}

/// One with a provider whose people of example.org are welcome.
pub(crate) async fn with_provider(more: &str) -> (Server, Provider, TempDir) {
    let provider = Provider::start().await;
    provider.says(ada());
    let rules = format!("allowed_domains = [\"example.org\"]\n{more}");
    let (server, directory) = coordinator(&[("corp", provider.issuer(), &rules)]);
    (server, provider, directory)
}

pub(crate) fn ada() -> Says {
    said(json!({}))
}

/// What an honest provider says of Ada, with these claims changed.
fn said(change: Value) -> Says {
    let mut claims = json!({"email": "Ada@example.org", "email_verified": true, "name": "Ada"});
    claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    Says { claims, ..Says::default() }
}

/// A machine that waits at a page.
pub(crate) async fn waits(server: &Server, machine: &Machine) -> (RegisterResponse, String) {
    let answer = machine.connect(server.address).await.register(&machine.register_request(None)).await;
    let path = Ticket::in_url(&answer.auth_url).unwrap().path();
    assert!(answer.auth_url.starts_with(&server.url()), "{answer:?}");
    (answer, path)
}

/// A browser: its cookies, and nothing else.
#[derive(Default)]
pub(crate) struct Browser {
    cookies: BTreeMap<String, String>,
}

pub(crate) struct Page {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Browser {
    pub(crate) async fn get(&mut self, url: &str) -> Page {
        self.ask(Method::GET, url, &[], String::new()).await
    }

    /// Sends the first form of a page, as a browser does.
    pub(crate) async fn send(&mut self, server: &Server, page: &Page, which: &str) -> Page {
        let action = attribute(&page.text, "action=\"", which);
        let body = format!("token={}", page.token());
        self.ask(Method::POST, &format!("{}{action}", server.url()), &[("sec-fetch-site", "same-origin")], body).await
    }

    async fn ask(&mut self, method: Method, url: &str, headers: &[(&str, &str)], body: String) -> Page {
        let uri: http::Uri = url.parse().unwrap();
        let address = uri.authority().unwrap().as_str().parse().unwrap();
        let mut request = Request::builder().method(method).uri(uri.path_and_query().unwrap().as_str());
        request = request.header("host", uri.authority().unwrap().as_str());
        let cookies: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !cookies.is_empty() {
            request = request.header("cookie", cookies.join("; "));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (status, headers, text) = plain(address, request.body(Full::new(Bytes::from(body))).unwrap()).await;
        for set in headers.get_all("set-cookie") {
            let set = set.to_str().unwrap();
            assert!(set.contains("; HttpOnly; SameSite=Lax"), "{set}");
            let (name, value) = set.split(';').next().unwrap().split_once('=').unwrap();
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
        Page { status, headers, text }
    }

    /// From the page of a machine to the provider, up to the address to which it sends back.
    async fn up_to_the_answer(&mut self, server: &Server, path: &str, provider: &str) -> String {
        let sent = self.get(&format!("{}{path}/with/{provider}", server.url())).await;
        assert_eq!(sent.status, StatusCode::SEE_OTHER, "{}", sent.text);
        let back = self.get(&sent.location()).await;
        back.location()
    }

    /// The whole way, up to the page on which the callback ends.
    pub(crate) async fn sign_in(&mut self, server: &Server, path: &str, provider: &str) -> Page {
        let callback = self.up_to_the_answer(server, path, provider).await;
        self.get(&callback).await
    }
}

impl Page {
    pub(crate) fn location(&self) -> String {
        self.headers["location"].to_str().unwrap().to_owned()
    }

    fn token(&self) -> String {
        attribute(&self.text, "name=\"token\" value=\"", "")
    }
}

/// What follows these words in quotes, where it contains something.
fn attribute(text: &str, before: &str, contains: &str) -> String {
    let mut found = text.split(before).skip(1).filter_map(|rest| rest.split('"').next());
    found.find(|value| value.contains(contains)).unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[tokio::test]
async fn nothing_that_a_browser_is_answered_can_be_framed_remembered_or_taken_for_something_else() {
    let (server, _provider, _config) = with_provider("").await;
    let (_, path) = waits(&server, &Machine::new("laptop")).await;
    let mut browser = Browser::default();
    let foreign = [("sec-fetch-site", "cross-site")];
    let mut statuses = Vec::new();
    for (method, path, headers) in [
        (Method::GET, path.clone(), &[][..]),
        (Method::GET, "/nowhere".to_owned(), &[]),
        (Method::GET, "/a/x".to_owned(), &[]),
        (Method::DELETE, path.clone(), &[]),
        (Method::GET, format!("{path}/add"), &[]),
        (Method::POST, format!("{path}/add"), &foreign),
        (Method::GET, "/oidc/callback?state=%ff".to_owned(), &[]),
        (Method::GET, format!("{path}/with/corp"), &[]),
    ] {
        let answer = browser.ask(method, &format!("{}{path}", server.url()), headers, String::new()).await;
        statuses.push(answer.status.as_u16());
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
        ] {
            assert_eq!(answer.headers[name], value, "{path}: {}", answer.status);
        }
        let policy = answer.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && policy.ends_with("frame-ancestors 'none'"), "{path}");
    }
    assert_eq!(statuses, [200, 404, 404, 405, 405, 403, 404, 303]);
}

#[tokio::test]
async fn a_machine_is_in_within_a_second_of_the_consent_of_whoever_signed_in() {
    let (server, provider, _config) = with_provider("approval = false").await;
    for (signed, subject, user) in [(Signed::Rs256, "1", "ada@example.org"), (Signed::Es256, "2", "corp-2")] {
        provider.says(Says { signed, ..said(json!({ "sub": subject })) });
        let machine = Machine::new("laptop");
        let (answer, path) = waits(&server, &machine).await;
        let code = Ticket::in_url(&answer.auth_url).unwrap().code();
        let mut browser = Browser::default();
        let page = browser.get(&answer.auth_url).await;
        assert!(page.text.contains(&format!("href=\"{path}/with/corp\"")) && page.text.contains(code.as_str()));
        assert!(browser.cookies.is_empty() && !page.text.contains("<form"), "looking changes nothing");
        let policy = page.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("form-action 'self'"), "{policy}");

        let back = browser.sign_in(&server, &path, "corp").await;
        assert_eq!((back.status, back.location()), (StatusCode::SEE_OTHER, path.clone()));
        let consent = browser.get(&format!("{}{path}", server.url())).await;
        assert!(consent.text.contains(&format!("Add laptop as {user}?")) && consent.text.contains(code.as_str()));
        let waiting = server.json(&["node", "pending"]);
        assert_eq!(waiting[0]["hostname"], "laptop", "signing in adds nothing");

        let connection = machine.connect(server.address).await;
        let asks = RegisterRequest { followup: answer.auth_url, ..machine.register_request(None) };
        let follow = tokio::time::timeout(Duration::from_secs(30), connection.register(&asks));
        let consented = async {
            let added = browser.send(&server, &consent, "/add").await;
            assert!(added.text.contains("is in the network"), "{}", added.text);
            tokio::time::Instant::now()
        };
        let (registered, since) = tokio::join!(follow, consented);
        assert!(since.elapsed() < Duration::from_secs(1));
        let registered = registered.unwrap();
        assert!(registered.machine_authorized && registered.auth_url.is_empty(), "{registered:?}");
        assert_eq!(registered.login.login_name, user);
        connection.map(&[]).await.next().await.unwrap();
        let again = browser.send(&server, &consent, "/add").await;
        assert!(again.text.contains("no machine waits here any more"), "{}", again.text);
    }
    let acts = server.json(&["audit"]);
    let acts: Vec<(&str, &str)> = acts
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|act| Some((act["command"].as_str()?, act["door"].as_str()?)))
        .collect();
    assert!(acts.contains(&("sign-in", "sign-in")) && acts.contains(&("add-machine", "sign-in")), "{acts:?}");
    let audit = server.text(&["--json", "audit"]);
    assert!(audit.contains("Ada@example.org at corp"), "{audit}");
}

#[tokio::test]
async fn an_answer_is_good_once_and_for_the_browser_that_began_it() {
    let (server, provider, _config) = with_provider("approval = false").await;
    let (_, path) = waits(&server, &Machine::new("laptop")).await;
    let (mut one, mut other) = (Browser::default(), Browser::default());
    // A session that somebody planted is not the one that whoever signs in gets.
    let planted = "A".repeat(43);
    one.cookies.insert("warren".to_owned(), planted.clone());
    let (ones, others) =
        (one.up_to_the_answer(&server, &path, "corp").await, other.up_to_the_answer(&server, &path, "corp").await);
    provider.asked();
    let refused = [
        Browser::default().get(&ones).await,
        other.get(&ones).await,
        one.get(&ones.replace("state=", "state=x")).await,
        one.get(&format!("{}/oidc/callback", server.url())).await,
        one.get(&format!("{}/oidc/callback?code=a&state=b&state=c", server.url())).await,
    ];
    for page in refused {
        assert_eq!(page.status, StatusCode::NOT_FOUND);
        assert!(page.text.contains("Start the log-in on the machine again"), "{}", page.text);
    }
    assert_eq!(provider.asked(), Vec::<String>::new(), "nobody was asked");
    assert_eq!(server.json(&["user", "list"]), json!([]));

    // The code of the one with the state of the other.
    let code = |url: &str| url.split("code=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    let swapped = others.replace(&code(&others), &code(&ones));
    assert_eq!(other.get(&swapped).await.status, StatusCode::FORBIDDEN, "PKCE: the code is another's");
    assert_eq!(server.json(&["user", "list"]), json!([]));

    let mut fresh = one.up_to_the_answer(&server, &path, "corp").await;
    let (first, second) = {
        let mut twin = Browser { cookies: one.cookies.clone() };
        tokio::join!(one.get(&fresh), twin.get(&fresh))
    };
    for page in [&first, &second] {
        assert_eq!((page.status, page.location()), (StatusCode::SEE_OTHER, path.clone()));
    }
    let sets: Vec<&str> =
        [&first, &second].iter().filter_map(|page| page.headers.get("set-cookie")?.to_str().ok()).collect();
    assert_eq!(sets.len(), 1, "asked twice, it signs in once");
    assert!(!sets[0].contains(&planted), "{sets:?}");
    fresh.push_str("&more=1");
    let users = server.json(&["user", "list"]);
    assert_eq!(one.get(&fresh).await.location(), path);
    assert_eq!(
        (server.json(&["user", "list"]), users.as_array().unwrap().len()),
        (users, 1),
        "nothing is written twice"
    );
}

#[tokio::test]
async fn only_a_form_of_this_browsers_own_page_adds_a_machine() {
    let (server, _provider, _config) = with_provider("approval = false").await;
    let (_, path) = waits(&server, &Machine::new("laptop")).await;
    let (_, others) = waits(&server, &Machine::new("evil")).await;
    let mut victim = Browser::default();
    victim.sign_in(&server, &path, "corp").await;
    // A link that somebody sent: signed in as they are, looking at it adds nothing.
    let page = victim.get(&format!("{}{others}", server.url())).await;
    assert!(page.text.contains("Add evil as ada@example.org?"), "{}", page.text);
    let (url, token) = (format!("{}{others}/add", server.url()), format!("token={}", page.token()));
    let own = victim.get(&format!("{}{path}", server.url())).await;
    let evil = "https://evil.example";
    for (headers, body) in [
        (&[("sec-fetch-site", "cross-site"), ("origin", evil)][..], token.clone()),
        (&[("sec-fetch-site", "same-site")], token.clone()),
        (&[("origin", evil)], token.clone()),
        (&[("origin", "null")], token.clone()),
        (&[], token.clone()),
        (&[("sec-fetch-site", "same-origin")], String::new()),
        (&[("sec-fetch-site", "same-origin")], format!("token={}", own.token())),
        (&[("sec-fetch-site", "same-origin")], "token=".to_owned() + &"x".repeat(10_000)),
    ] {
        let refused = victim.ask(Method::POST, &url, headers, body).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{headers:?} {}", refused.text);
    }
    let mut attacker = Browser::default();
    let headers = [("sec-fetch-site", "same-origin")];
    assert_eq!(attacker.ask(Method::POST, &url, &headers, token.clone()).await.status, StatusCode::FORBIDDEN);
    for path in [&path, &others] {
        assert_eq!(victim.get(&format!("{}{path}/add", server.url())).await.status, StatusCode::METHOD_NOT_ALLOWED);
    }
    assert_eq!(server.json(&["node", "list"]), json!([]));

    // Signed out, or suspended meanwhile, the same form is worth nothing.
    let out = victim.send(&server, &own, "/sign-out").await;
    assert_eq!(out.location(), path);
    victim.cookies.retain(|name, _| name != "warren");
    victim.sign_in(&server, &path, "corp").await;
    let consent = victim.get(&format!("{}{path}", server.url())).await;
    server.text(&["user", "suspend", "ada@example.org"]);
    assert_eq!(victim.send(&server, &consent, "/add").await.status, StatusCode::FORBIDDEN);
    let refused = victim.sign_in(&server, &path, "corp").await;
    assert!(refused.text.contains("is suspended in this network"), "{}", refused.text);
    assert_eq!(server.json(&["node", "list"]), json!([]));
}

/// Lies, by name, and what is said of each.
fn lies(provider: &Provider) -> Vec<(&'static str, Says, &'static str)> {
    let lie = |claims: Value| said(claims);
    let by = |signed: Signed| Says { signed, ..ada() };
    let other = issuer("127.0.0.2:1".parse().unwrap());
    let error = |error: String| Says { instead: [("/token", (StatusCode::BAD_REQUEST, error))].into(), ..ada() };
    vec![
        ("nonce of another", lie(json!({"nonce": "x"})), "nonce"),
        ("no nonce", lie(json!({"nonce": null})), "nonce"),
        ("issuer", lie(json!({"iss": other})), "issuer"),
        ("issuer with a slash", lie(json!({"iss": format!("{}/", provider.issuer())})), "issuer"),
        ("audience", lie(json!({"aud": "others"})), "audience"),
        ("more audiences", lie(json!({"aud": [CLIENT, "others"], "azp": CLIENT})), "audience"),
        ("party", lie(json!({"azp": "others"})), "for another"),
        ("expired", lie(json!({"exp": 1_700_000_000})), "Expired"),
        ("no subject", lie(json!({"sub": null})), ""),
        ("empty subject", lie(json!({"sub": ""})), ""),
        ("long subject", lie(json!({"sub": "x".repeat(300)})), "255"),
        ("not vouched for", lie(json!({"email_verified": false})), "may not join"),
        ("no word of it", lie(json!({"email_verified": null})), "may not join"),
        ("other domain", lie(json!({"email": "ada@example.org.evil.net"})), "may not join"),
        ("final dot", lie(json!({"email": "ada@example.org."})), "may not join"),
        ("not signed", by(Signed::None), ""),
        ("signed with the secret", by(Signed::BySecret), "algorithm"),
        ("signed with the public key", by(Signed::ByPublicKey), "algorithm"),
        ("forged", by(Signed::Forged), "Signature"),
        ("key of nobody", Says { kid: "other", ..ada() }, "key"),
        ("key of nobody, again", Says { kid: "other", ..ada() }, "key"),
        ("answer of another", Says { answer: vec![("iss", other.clone())], ..ada() }, "not of this provider"),
        ("no", Says { answer: vec![("error", "access_denied".to_owned())], ..ada() }, "did not let you in"),
        ("code of nobody", Says { answer: vec![("code", "x".to_owned())], ..ada() }, "does not take the code"),
        (
            "an error that repeats",
            error(json!({"error": "x", "error_description": SECRET}).to_string()),
            "does not take",
        ),
        (
            "no token",
            Says { instead: [("/token", (StatusCode::OK, "{}".to_owned()))].into(), ..ada() },
            "cannot be read",
        ),
        (
            "a huge answer",
            Says { instead: [("/token", (StatusCode::OK, "x".repeat(2 << 20)))].into(), ..ada() },
            "bytes",
        ),
        ("sent elsewhere", Says { redirects: [("/token", format!("{other}/token"))].into(), ..ada() }, ""),
        (
            "another person",
            Says {
                userinfo: Some(json!({"sub": "2", "email": "ada@example.org", "email_verified": true})),
                ..lie(json!({"email": null}))
            },
            "two persons",
        ),
    ]
}

#[tokio::test]
async fn a_provider_that_lies_lets_nobody_in() {
    let (server, provider, _config) = with_provider("approval = false").await;
    let (_, path) = waits(&server, &Machine::new("laptop")).await;
    for (what, says, said) in lies(&provider) {
        provider.says(says);
        let page = Browser::default().sign_in(&server, &path, "corp").await;
        assert!(
            page.status == StatusCode::FORBIDDEN && page.text.contains(said),
            "{what}: {} {}",
            page.status,
            page.text
        );
        assert!(!page.text.contains(SECRET) && !page.headers.contains_key("set-cookie"), "{what}: {}", page.text);
        assert_eq!(server.json(&["user", "list"]), json!([]), "{what}");
    }
    let keys = provider.asked().iter().filter(|path| *path == "/jwks").count();
    assert_eq!(keys, 2, "a key that nobody has is looked for once in a while");
    // What is only said elsewhere counts too.
    let userinfo = Some(json!({"sub": "1", "email": "ada@example.org", "email_verified": true}));
    provider.says(Says { userinfo, ..said(json!({"email": null, "email_verified": null})) });
    assert_eq!(Browser::default().sign_in(&server, &path, "corp").await.status, StatusCode::SEE_OTHER);
    assert_eq!(server.json(&["user", "list"])[0]["name"], "ada@example.org");
    let log = server.logged() + &server.text(&["--json", "audit"]) + &server.text(&["--json", "user", "list"]);
    for secret in [SECRET, "access-token", "code_verifier", "eyJ"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[tokio::test]
async fn a_provider_that_is_away_slow_or_leads_astray_takes_nothing_else_with_it() {
    let names = ["away", "issuer", "huge", "redirect", "inner", "slow", "good"];
    let mut providers = Vec::new();
    for _ in &names[1..] {
        providers.push(Provider::start().await);
    }
    let [lies, huge, redirect, inner, slow, good] = providers.as_slice() else { panic!() };
    const DISCOVERY: &str = "/.well-known/openid-configuration";
    lies.says(Says { discovery: json!({"issuer": "https://accounts.google.com"}), ..ada() });
    huge.says(Says { instead: [(DISCOVERY, (StatusCode::OK, " ".repeat(2 << 20) + "{}"))].into(), ..ada() });
    redirect.says(Says { redirects: [(DISCOVERY, format!("{}{DISCOVERY}", good.issuer()))].into(), ..ada() });
    inner.says(Says { discovery: json!({"jwks_uri": "https://169.254.169.254/jwks"}), ..ada() });
    slow.says(Says { silent: vec![DISCOVERY], ..ada() });
    good.says(ada());
    let away = place();
    let issuers = std::iter::once(issuer(away)).chain(providers.iter().map(Provider::issuer));
    let described: Vec<_> = names
        .iter()
        .copied()
        .zip(issuers)
        .map(|(name, issuer)| (name, issuer, "allowed_domains = [\"example.org\"]\napproval = false"))
        .collect();
    let (server, _config) = coordinator(&described);
    let (_, path) = waits(&server, &Machine::new("laptop")).await;
    let start = async |name: &str| {
        let page = Browser::default().get(&format!("{}{path}/with/{name}", server.url())).await;
        (page.status, page.text)
    };
    for (name, said) in [
        ("away", "sign-in by away: "),
        ("issuer", "sign-in by issuer: "),
        ("huge", "more than 1048576 bytes"),
        ("redirect", "sign-in by redirect: "),
        ("inner", "not an address that it may send us to"),
    ] {
        let (status, text) = start(name).await;
        assert!(status == StatusCode::FORBIDDEN && text.contains(said), "{name}: {status} {text}");
    }
    assert_eq!(start("nobody").await.0, StatusCode::NOT_FOUND);
    assert_eq!(good.asked(), Vec::<String>::new(), "nobody was led there");
    let ((status, text), ()) = tokio::join!(start("slow"), async {
        let (mut browser, url) = (Browser::default(), format!("{}{path}", server.url()));
        let looked = browser.get(&url);
        let page = tokio::time::timeout(Duration::from_secs(5), looked).await.expect("others do not wait");
        assert!(page.text.contains("Sign in by slow"));
        assert_eq!(Browser::default().sign_in(&server, &path, "good").await.status, StatusCode::SEE_OTHER);
    });
    assert!(status == StatusCode::FORBIDDEN, "{text}");
    assert!(server.text(&["status"]).contains("sign-in by away: "), "its operator learns of it");

    // One that was away is there.
    let provider = Provider::start_at(away).await;
    provider.says(ada());
    let until = tokio::time::Instant::now() + crate::server::PATIENCE;
    while start("away").await.0 != StatusCode::SEE_OTHER {
        assert!(tokio::time::Instant::now() < until);
        tokio::task::yield_now().await;
    }
    assert_eq!(Browser::default().sign_in(&server, &path, "away").await.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn who_comes_by_a_domain_waits_for_approval_and_the_owner_is_whom_the_operator_names() {
    let (server, provider, _config) = with_provider("").await;
    let machine = Machine::new("laptop");
    let (answer, path) = waits(&server, &machine).await;
    let mut browser = Browser::default();
    let page = browser.sign_in(&server, &path, "corp").await;
    assert!(page.text.contains("warren-coordinator user approve ada@example.org"), "{}", page.text);
    assert!(!browser.cookies.contains_key("warren"));
    assert!(server.text(&["user", "list"]).contains("needs-approval"));
    server.text(&["user", "approve", "ada@example.org"]);
    assert_eq!(browser.sign_in(&server, &path, "corp").await.location(), path);

    let said = server.admin(&["user", "invite", "boss", "--provider", "corp", "--email", "Boss@example.net"]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("user boss was made"));
    assert!(String::from_utf8_lossy(&said.stdout).contains("waits for boss@example.net by corp"));
    server.text(&["user", "role", "boss", "owner"]);
    for bad in ["boss", "boss@example.net."] {
        assert!(!server.admin(&["user", "invite", "bob", "--provider", "corp", "--email", bad]).status.success());
    }
    assert!(!server.text(&["user", "list"]).contains("bob"), "nobody is made for an invitation that is none");
    provider.says(said_of_boss());
    let mut browser = Browser::default();
    assert_eq!(browser.sign_in(&server, &path, "corp").await.location(), path);
    let consent = browser.get(&answer.auth_url).await;
    let added = browser.send(&server, &consent, "/add").await;
    assert!(added.text.contains("laptop is in the network"), "{}", added.text);
    let boss = server.json(&["user", "show", "boss"]);
    assert_eq!((&boss["role"], &boss["nodes"], &boss["invitation"]), (&"owner".into(), &1.into(), &Value::Null));
    assert_eq!((&boss["identities"][0]["subject"], &boss["identities"][0]["invited"]), (&"9".into(), &true.into()));

    // Another user on the same machine is another node; the first stays whose it was.
    let first = server.json(&["node", "show", "laptop"]);
    provider.says(ada());
    let node = NodePrivate::from_random(rand::random());
    let asks = RegisterRequest { node_key: node.public(), ..machine.register_request(None) };
    let answer = machine.connect(server.address).await.register(&asks).await;
    let path = Ticket::in_url(&answer.auth_url).unwrap().path();
    let mut browser = Browser::default();
    browser.sign_in(&server, &path, "corp").await;
    let consent = browser.get(&answer.auth_url).await;
    assert!(browser.send(&server, &consent, "/add").await.text.contains("laptop-1 is in the network"));
    assert_eq!(server.json(&["node", "show", "laptop"]), first);
    assert_eq!(server.json(&["node", "show", "laptop-1"])["user"], "ada@example.org");
}

fn said_of_boss() -> Says {
    said(json!({"sub": "9", "email": "boss@example.net"}))
}
