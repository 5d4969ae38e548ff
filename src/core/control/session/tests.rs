//! A session by its script: logging in and out.

use super::login::APPROVAL_TIMEOUT;
use super::*;
use crate::types::CapabilityVersion;
use crate::wire::control::MapRequest;
use crate::wire::map_stream;

mod follow;

const URL: &str = "https://vpn.example.org/register/abc";

/// A session, and the script of what it does.
struct Run {
    session: Session,
    now: Instant,
    last: RequestId,
    stream: RequestId,
    register: Option<RegisterRequest>,
    map: Option<MapRequest>,
}

#[allow(clippy::disallowed_methods, reason = "any instant will do to count from")]
fn start_of_time() -> Instant {
    Instant::now()
}

fn key(number: u8) -> NodePublic {
    NodePublic::from_bytes([number; 32])
}

impl Run {
    fn new() -> Self {
        let setup = Setup {
            server: "https://vpn.example.org".parse().unwrap(),
            node_key: key(1),
            hostinfo: Hostinfo { hostname: "alpha".to_owned(), ..Hostinfo::default() },
            disco_key: DiscoPublic::from_bytes([9; 32]),
            endpoints: vec![("192.0.2.1:41741".parse().unwrap(), EndpointType::LOCAL)],
            ephemeral: false,
        };
        let none = RequestId(0);
        let session = Session::new(setup, 7);
        Self { session, now: start_of_time(), last: none, stream: none, register: None, map: None }
    }

    fn started(login: Login) -> Self {
        let mut run = Self::new();
        run.session.handle_start(login, run.now);
        run
    }

    /// Logged in, with its first update taken and its first map read.
    fn streaming() -> Self {
        let mut run = Self::started(Login::default());
        assert_eq!(run.did(), ["register"]);
        run.answer(200, "{}");
        assert_eq!(run.did(), ["update", "logged in"]);
        run.answer(200, "");
        assert_eq!(run.did(), ["stream"]);
        run.session.handle_received(Received::Opened(run.stream), run.now);
        run.message(r#"{"Node":{"ID":1}}"#);
        assert_eq!(run.did(), ["full map", "online"]);
        run
    }

    /// What the session wants and tells, as words.
    fn did(&mut self) -> Vec<String> {
        let mut words = Vec::new();
        while let Some(transmit) = self.session.poll_transmit() {
            words.push(match transmit {
                Transmit::Register { id, request } => {
                    self.last = id;
                    let word = if request.expiry.is_some() { "log out" } else { "register" };
                    self.register = Some(*request);
                    word.to_owned()
                }
                Transmit::Update { id, request } => {
                    self.last = id;
                    self.map = Some(*request);
                    "update".to_owned()
                }
                Transmit::Stream { id, request } => {
                    self.stream = id;
                    self.map = Some(*request);
                    "stream".to_owned()
                }
                Transmit::Ping { url, .. } => format!("ping {url}"),
                Transmit::Cancel(id) if id == self.stream => "cancel stream".to_owned(),
                Transmit::Cancel(_) => "cancel".to_owned(),
                Transmit::Disconnect => "disconnect".to_owned(),
            });
        }
        while let Some(event) = self.session.poll_event() {
            words.push(match event {
                SessionEvent::AuthUrl(url) => format!("open {url}"),
                SessionEvent::NodeKeyWanted => "new key".to_owned(),
                SessionEvent::LoggedIn { .. } => "logged in".to_owned(),
                SessionEvent::FullMap(_) => "full map".to_owned(),
                SessionEvent::Delta(_) => "delta".to_owned(),
                SessionEvent::KeyExpired => "key expired".to_owned(),
                SessionEvent::LoggedOut { unheard } => format!("logged out, told: {}", unheard.is_none()),
                SessionEvent::Online => "online".to_owned(),
                SessionEvent::Failed(Failure::Unreachable(why)) => format!("unreachable: {why}"),
                SessionEvent::Failed(Failure::Silent(time)) => format!("silent {}", time.as_secs()),
                SessionEvent::Failed(Failure::Busy(time)) => format!("busy {}", time.as_secs()),
                SessionEvent::Failed(Failure::Refused(why)) => format!("refused: {why}"),
                SessionEvent::Failed(Failure::Stranger(_)) => "stranger".to_owned(),
                SessionEvent::Failed(Failure::Status { status, .. }) => format!("status {status}"),
                SessionEvent::Failed(Failure::NotUnderstood(_)) => "not understood".to_owned(),
            });
        }
        words
    }

    fn answer(&mut self, status: u16, body: &str) {
        self.answer_to(self.last, status, body);
    }

    fn answer_to(&mut self, id: RequestId, status: u16, body: &str) {
        let answer = Reply { status, retry_after: None, body: body.as_bytes().to_vec() };
        self.session.handle_received(Received::Reply(id, answer), self.now);
    }

    fn message(&mut self, json: &str) {
        let packed = zstd::bulk::compress(json.as_bytes(), 1).unwrap();
        let bytes = map_stream::encode(&[&packed]).unwrap();
        self.session.handle_received(Received::Bytes(self.stream, bytes), self.now);
    }

    fn closed(&mut self, id: RequestId) {
        self.session.handle_received(Received::Closed(id, "connection reset".to_owned()), self.now);
    }

    /// Goes to the next deadline, and says how far that was.
    fn pass_time(&mut self) -> Duration {
        let next = self.session.poll_timeout().unwrap();
        let passed = next.saturating_duration_since(self.now);
        self.now = next;
        self.session.handle_timeout(self.now);
        passed
    }
}

#[test]
fn a_node_with_a_key_registers_tells_its_facts_and_follows_the_map() {
    let mut run = Run::started(Login { auth_key: Some(AuthKey::new("secret")), renew: false });
    assert_eq!(run.did(), ["register"]);
    let request = run.register.take().unwrap();
    assert_eq!(request.auth.unwrap().auth_key, "secret");
    assert_eq!((request.version, request.node_key), (CapabilityVersion::CURRENT, key(1)));
    assert_eq!(request.hostinfo.unwrap().hostname, "alpha");

    run.answer(200, r#"{"MachineAuthorized":true,"User":{"ID":3},"Login":{"LoginName":"ann"}}"#);
    assert_eq!(run.did(), ["update", "logged in"]);
    let update = run.map.take().unwrap();
    assert!(update.omit_peers && !update.stream && !update.read_only);
    assert_eq!(update.endpoints, ["192.0.2.1:41741".parse().unwrap()]);
    assert_eq!(update.endpoint_types, [EndpointType::LOCAL]);
    assert_eq!(update.disco_key, DiscoPublic::from_bytes([9; 32]));

    run.answer(200, "");
    assert_eq!(run.did(), ["stream"]);
    let stream = run.map.take().unwrap();
    assert!(stream.stream && stream.keep_alive && !stream.omit_peers);
    assert_eq!(stream.compress, "zstd");

    run.message(r#"{"Node":{"ID":1},"Peers":[]}"#);
    assert_eq!(run.did(), ["full map", "online"]);
    run.message(r#"{"PeersRemoved":[4]}"#);
    assert_eq!(run.did(), ["delta"]);
}

#[test]
fn the_auth_key_is_forgotten_once_it_was_used() {
    let mut run = Run::started(Login { auth_key: Some(AuthKey::new("secret")), renew: false });
    run.did();
    run.answer(200, "{}");
    run.did();
    run.answer(404, "no such node");
    assert_eq!(run.did(), ["status 404"]);
    run.pass_time();
    assert_eq!(run.did(), ["register"]);
    assert!(run.register.unwrap().auth.is_none());
}

#[test]
fn a_person_is_shown_the_page_and_the_coordinator_asked_until_it_was_used() {
    let mut run = Run::started(Login::default());
    run.did();
    run.answer(200, &format!(r#"{{"AuthURL":"{URL}"}}"#));
    assert_eq!(run.did(), ["register", &format!("open {URL}")]);
    assert_eq!(run.register.take().unwrap().followup, URL);

    run.answer(200, "{}");
    assert_eq!(run.did(), ["update", "logged in"]);
}

#[test]
fn a_page_that_changes_while_we_wait_is_shown_again_and_the_same_one_is_not() {
    let mut run = Run::started(Login::default());
    run.did();
    run.answer(200, &format!(r#"{{"AuthURL":"{URL}"}}"#));
    run.did();
    run.answer(200, &format!(r#"{{"AuthURL":"{URL}"}}"#));
    assert!(run.did().is_empty(), "it is already on show");
    assert!(run.pass_time() < Duration::from_secs(2), "a person waits");
    assert_eq!(run.did(), ["register"]);

    run.answer(200, r#"{"AuthURL":"https://vpn.example.org/register/def"}"#);
    assert_eq!(run.did(), ["open https://vpn.example.org/register/def"]);
    run.pass_time();
    run.did();
    assert_eq!(run.register.unwrap().followup, "https://vpn.example.org/register/def");
}

#[test]
fn waiting_for_a_person_outlives_a_broken_connection() {
    let mut run = Run::started(Login::default());
    run.did();
    run.answer(200, &format!(r#"{{"AuthURL":"{URL}"}}"#));
    run.did();
    run.closed(run.last);
    assert_eq!(run.did(), ["unreachable: connection reset"]);
    run.pass_time();
    assert_eq!(run.did(), ["register"]);
    assert_eq!(run.register.take().unwrap().followup, URL);
    assert_eq!(run.pass_time(), APPROVAL_TIMEOUT);
    assert_eq!(run.did(), ["cancel", "disconnect", "silent 600"]);
}

#[test]
fn an_expired_key_is_replaced_once_and_the_old_one_named() {
    let mut run = Run::started(Login::default());
    run.did();
    run.answer(200, r#"{"NodeKeyExpired":true}"#);
    assert_eq!(run.did(), ["new key"]);
    assert_eq!(run.session.poll_timeout(), None, "the owner has the turn");

    run.session.handle_node_key(key(2), run.now);
    assert_eq!(run.did(), ["register"]);
    let request = run.register.take().unwrap();
    assert_eq!((request.node_key, request.old_node_key), (key(2), key(1)));

    run.answer(200, r#"{"NodeKeyExpired":true}"#);
    assert_eq!(run.did(), ["refused: it calls a node key expired that was made just now"]);
    run.pass_time();
    assert_eq!(run.did(), ["register"], "later, and with the same key");
    run.answer(200, "{}");
    run.did();
    assert_eq!(run.map.unwrap().node_key, key(2));
}

#[test]
fn a_renewal_changes_the_key_before_anything_is_asked() {
    let mut run = Run::started(Login { auth_key: None, renew: true });
    assert_eq!(run.did(), ["new key"]);
    run.session.handle_node_key(key(2), run.now);
    assert_eq!(run.did(), ["register"]);
    assert_eq!(run.register.unwrap().old_node_key, key(1));
}

#[test]
fn a_refusal_is_told_in_the_coordinators_words_and_not_repeated_in_haste() {
    let mut run = Run::started(Login { auth_key: Some(AuthKey::new("stale")), renew: false });
    run.did();
    run.answer(200, r#"{"Error":"the key has expired"}"#);
    assert_eq!(run.did(), ["refused: the key has expired"]);
    assert!(run.pass_time() >= REFUSED_PAUSE / 2);
    assert_eq!(run.did(), ["register"]);
    run.answer(401, "unknown\nkey");
    assert_eq!(run.did(), ["refused: unknown key"]);
}

#[test]
fn a_busy_coordinator_is_left_alone_as_long_as_it_asks() {
    let mut run = Run::started(Login::default());
    run.did();
    let answer = Reply { status: 429, retry_after: Some(Duration::from_secs(42)), body: Vec::new() };
    run.session.handle_received(Received::Reply(run.last, answer), run.now);
    assert_eq!(run.did(), ["busy 42"]);
    assert_eq!(run.pass_time(), Duration::from_secs(42));
    assert_eq!(run.did(), ["register"]);

    run.answer(429, "");
    assert!((5..10).contains(&run.pass_time().as_secs()));
}

#[test]
fn logging_out_names_an_expiry_in_the_past_and_stops() {
    let mut run = Run::streaming();
    run.session.handle_logout(run.now);
    assert_eq!(run.did(), ["cancel stream", "log out"]);
    assert_eq!(run.register.take().unwrap().expiry.unwrap().to_string(), "1970-01-01T00:02:03Z");
    run.answer(200, r#"{"NodeKeyExpired":true}"#);
    assert_eq!(run.did(), ["cancel", "disconnect", "logged out, told: true"]);
    assert_eq!(run.session.poll_timeout(), None);
}

#[test]
fn logging_out_ends_even_where_the_coordinator_does_not_answer() {
    let mut run = Run::streaming();
    run.session.handle_logout(run.now);
    run.did();
    assert_eq!(run.pass_time(), LOGOUT_TIMEOUT);
    assert_eq!(run.did(), ["cancel", "disconnect", "logged out, told: false"]);
}
