use super::*;
use crate::types::{Role, UserStatus};

const HERE: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9));

/// Somebody whom the provider `corp` names, with an address that it vouches for.
fn arrival(subject: &str, address: &str, welcome: Welcome) -> Arrival {
    let email = Some(Email { address: address.to_owned(), verified: true });
    let (provider, issuer) = ("corp".parse().unwrap(), "https://idp.example.org".to_owned());
    Arrival {
        identity: Identity { provider, issuer, subject: subject.to_owned(), invited: false, email },
        display_name: "Ada Lovelace".to_owned(),
        picture: String::new(),
        welcome,
    }
}

fn browser(number: u8) -> Browser {
    Browser { session: BrowserSessionId([number; 32]), before: None, address: HERE, agent: "Mozilla".to_owned() }
}

fn sign_in(world: &mut World, arrival: &Arrival, browser: &Browser) -> Result<SignedIn, Refusal> {
    let guest = Actor::guest("somebody".to_owned(), HERE);
    let decision = world.state.by(&guest, world.now).sign_in(arrival, browser)?;
    Ok(world.run(decision))
}

fn active(signed_in: Result<SignedIn, Refusal>) -> UserRecord {
    match signed_in.unwrap() {
        SignedIn::Yes(user) => user,
        SignedIn::NotYet(user) => panic!("{user:?}"),
    }
}

/// A machine that waits, and its ticket.
fn waits(world: &mut World, machine: u8, change: impl FnOnce(&mut RegisterRequest)) -> Ticket {
    let mut asks = request(machine, "laptop", "");
    change(&mut asks);
    Ticket::in_url(&world.answer(machine, &asks).auth_url).unwrap()
}

fn add(world: &mut World, user: &UserRecord, browser: u8, ticket: Ticket) -> Result<Arc<NodeRecord>, Refusal> {
    let actor = Actor::user(user, Door::SignIn, HERE);
    let entropy = world.entropy();
    let session = BrowserSessionId([browser; 32]);
    let decision = world.state.by(&actor, world.now).add_machine(&session, &ticket, entropy)?;
    Ok(world.run(decision))
}

#[test]
fn who_signs_in_is_a_user_from_then_on_by_what_their_provider_calls_them_and_not_by_their_address() {
    let mut world = World::new();
    let ada = active(sign_in(&mut world, &arrival("1", "Ada@Example.org", Welcome::Welcome), &browser(1)));
    assert_eq!(
        (ada.name.as_str(), ada.role, ada.display_name.as_str()),
        ("ada@example.org", Role::Member, "Ada Lovelace")
    );
    let renamed = arrival("1", "lovelace@example.org", Welcome::Welcome);
    let again = active(sign_in(&mut world, &renamed, &browser(2)));
    assert_eq!((again.id, again.name.as_str()), (ada.id, "ada@example.org"), "the name is chosen once");
    assert_eq!(again.identities[0].email.as_ref().unwrap().address, "lovelace@example.org");

    let other = active(sign_in(&mut world, &arrival("2", "ada@example.org", Welcome::Welcome), &browser(3)));
    assert_ne!(other.id, ada.id, "whoever has the address now is somebody else");
    assert_eq!(other.name.as_str(), "corp-2");
    for changed in ["https://idp.example.org/", "https://IDP.example.org"] {
        let mut arrival = arrival("1", "ada@example.org", Welcome::Refused);
        arrival.identity.issuer = changed.to_owned();
        assert_eq!(sign_in(&mut world, &arrival, &browser(4)).unwrap_err().kind(), RefusalKind::Forbidden);
    }
}

#[test]
fn a_user_whom_somebody_made_is_nobodys_by_name_and_once_whoever_was_invited() {
    let mut world = World::new();
    let owner = world.user("ada@example.org");
    let decision = world.by().set_role(owner, Role::Owner).unwrap();
    world.run(decision);
    let came = active(sign_in(&mut world, &arrival("7", "ada@example.org", Welcome::Welcome), &browser(1)));
    assert_ne!(came.id, owner);

    let decision = world.by().invite_user(owner, "corp".parse().unwrap(), "Boss@Example.org").unwrap();
    world.run(decision);
    let unverified = {
        let mut arrival = arrival("8", "boss@example.org", Welcome::Refused);
        arrival.identity.email.as_mut().unwrap().verified = false;
        arrival
    };
    assert!(sign_in(&mut world, &unverified, &browser(2)).is_err());
    let by_another = {
        let mut arrival = arrival("8", "boss@example.org", Welcome::Refused);
        arrival.identity.provider = "other".parse().unwrap();
        arrival
    };
    assert!(sign_in(&mut world, &by_another, &browser(2)).is_err());
    let boss = active(sign_in(&mut world, &arrival("8", "boss@example.org", Welcome::Refused), &browser(2)));
    assert_eq!((boss.id, boss.role, boss.invitation.is_none()), (owner, Role::Owner, true));
    assert!(sign_in(&mut world, &arrival("9", "boss@example.org", Welcome::Refused), &browser(3)).is_err(), "once");
    active(sign_in(&mut world, &arrival("8", "new@example.org", Welcome::Refused), &browser(4)));

    let bob = world.user("bob");
    let it = UserRecord { role: Role::ItAdmin, ..world.state.users().last().unwrap().clone() };
    let by = Actor::user(&it, Door::Console, HERE);
    let refused = world.state.by(&by, world.now).invite_user(owner, "corp".parse().unwrap(), "it@example.org");
    assert_eq!(refused.unwrap_err().kind(), RefusalKind::Forbidden, "nobody becomes somebody who may more");
    assert!(world.by().invite_user(bob, "corp".parse().unwrap(), "bob").is_err());
    let decision = world.by().invite_user(bob, "corp".parse().unwrap(), "bob@example.org").unwrap();
    world.run(decision);
    let twice = world.by().invite_user(came.id, "corp".parse().unwrap(), "bob@example.org");
    assert_eq!(twice.unwrap_err().kind(), RefusalKind::Conflict);
}

#[test]
fn who_is_not_let_in_leaves_nothing_and_who_waits_for_approval_gets_no_session() {
    let mut world = World::new();
    for refused in [
        arrival("1", "ada@example.org", Welcome::Refused),
        arrival("", "ada@example.org", Welcome::Welcome),
        arrival(&"x".repeat(256), "ada@example.org", Welcome::Welcome),
    ] {
        assert!(sign_in(&mut world, &refused, &browser(1)).is_err());
    }
    assert_eq!((world.state.users().count(), world.state.sessions().count()), (0, 0));

    let ada = arrival("1", "ada@example.org", Welcome::WithApproval);
    let SignedIn::NotYet(user) = sign_in(&mut world, &ada, &browser(1)).unwrap() else { panic!() };
    assert_eq!((user.status, world.state.sessions().count()), (UserStatus::NeedsApproval, 0));
    let ticket = waits(&mut world, 1, |_| {});
    assert!(add(&mut world, &user, 1, ticket).is_err());
    let approval = world.by().approve(&ticket.code(), user.id, &[], [9; 32]);
    assert_eq!(approval.unwrap_err().kind(), RefusalKind::Forbidden, "nor by another way");
    // A node that becomes theirs rests until they are approved, for those that come back too.
    let bob = world.user("bob");
    let key = world.key(bob, |key| key.reusable = true);
    let (moved, watches) = (world.join(2, "desk", &key), world.join(3, "watch", &key));
    let decision = world.by().move_node(moved, user.id).unwrap();
    world.run(decision);
    let stream = world.open(watches);
    let peer = world.client(stream).peers[&moved].clone();
    assert!(peer.expired && peer.allowed_ips.as_ref().is_some_and(Vec::is_empty), "{peer:?}");
    assert!(world.state.open(moved, VERSION, world.now).is_err() && world.withdrawn.contains(&node_key(2)));

    let decision = world.by().approve_user(user.id).unwrap();
    world.run(decision);
    let user = active(sign_in(&mut world, &ada, &browser(2)));
    assert!(world.state.open(moved, VERSION, world.now).is_ok());
    assert_eq!(add(&mut world, &user, 2, ticket).unwrap().user, Some(user.id));
    // The rule that let them in is gone, and they with it.
    let gone = arrival("1", "ada@example.org", Welcome::Refused);
    assert_eq!(sign_in(&mut world, &gone, &browser(3)).unwrap_err().kind(), RefusalKind::Forbidden);
}

#[test]
fn only_who_is_signed_in_adds_a_machine_that_waits_and_each_once() {
    let mut world = World::new();
    let ada = active(sign_in(&mut world, &arrival("1", "ada@example.org", Welcome::Welcome), &browser(1)));
    let bob = active(sign_in(&mut world, &arrival("2", "bob@example.org", Welcome::Welcome), &browser(2)));
    let ticket = waits(&mut world, 1, |_| {});
    assert!(add(&mut world, &ada, 3, ticket).is_err(), "no such session");
    assert!(add(&mut world, &bob, 1, ticket).is_err(), "another's session");
    let node = add(&mut world, &ada, 1, ticket).unwrap();
    assert_eq!((node.user, world.settled.as_slice()), (Some(ada.id), &[ticket.code()][..]));
    assert!(world.answer(1, &request(1, "laptop", "")).machine_authorized);
    assert_eq!(add(&mut world, &ada, 1, ticket).unwrap_err().kind(), RefusalKind::NotFound);

    let tagged = waits(&mut world, 2, |asks| asks.hostinfo.as_mut().unwrap().request_tags = vec!["tag:web".to_owned()]);
    assert!(add(&mut world, &ada, 1, tagged).unwrap_err().to_string().contains("tag:web"));

    let decision = world.by().suspend_user(ada.id).unwrap();
    world.run(decision);
    let ticket = waits(&mut world, 3, |_| {});
    assert!(add(&mut world, &ada, 1, ticket).is_err());
    let refused = sign_in(&mut world, &arrival("1", "ada@example.org", Welcome::Welcome), &browser(4));
    assert!(refused.unwrap_err().to_string().contains("suspended"));
    world.advance(BrowserSession::IDLE);
    assert!(add(&mut world, &bob, 2, ticket).is_err(), "a browser that nobody used is signed out");
}

#[test]
fn signing_in_again_keeps_the_node_and_another_user_of_the_machine_is_another_node() {
    let mut world =
        World::with(Config { key_lifetime: Some(Duration::from_secs(3_600)), ..Config::default() }, Records::default());
    let ada = active(sign_in(&mut world, &arrival("1", "ada@example.org", Welcome::Welcome), &browser(1)));
    let ticket = waits(&mut world, 1, |_| {});
    let first = add(&mut world, &ada, 1, ticket).unwrap();
    let decision = world.by().rename_node(first.id, "hers".parse().unwrap()).unwrap();
    world.run(decision);
    world.advance(Duration::from_secs(3_601));
    assert!(world.answer(1, &request(1, "laptop", "")).node_key_expired);
    let ticket = waits(&mut world, 1, |asks| (asks.node_key, asks.old_node_key) = (node_key(101), node_key(1)));
    let again = add(&mut world, &ada, 1, ticket).unwrap();
    assert_eq!((again.id, again.ipv4, &again.stable_id), (first.id, first.ipv4, &first.stable_id));
    assert_eq!((again.label.as_str(), again.key), ("hers", node_key(101)));
    assert!(again.key_expiry > Some(world.now));
    let bob = active(sign_in(&mut world, &arrival("2", "bob@example.org", Welcome::Welcome), &browser(2)));
    let ticket = waits(&mut world, 1, |asks| asks.node_key = node_key(102));
    let his = add(&mut world, &bob, 2, ticket).unwrap();
    assert_ne!((his.id, his.ipv4), (first.id, first.ipv4));
    assert_eq!(world.state.node(first.id).unwrap().record.user, Some(ada.id), "hers stays hers");
}

#[test]
fn a_browser_has_one_session_and_a_user_a_bounded_number() {
    let mut world = World::new();
    let ada = arrival("1", "ada@example.org", Welcome::Welcome);
    active(sign_in(&mut world, &ada, &browser(1)));
    let again = Browser { before: Some(BrowserSessionId([1; 32])), ..browser(2) };
    active(sign_in(&mut world, &ada, &again));
    let is_there = |world: &World, id: u8| world.state.signed_in(&BrowserSessionId([id; 32]), world.now).is_some();
    assert!(!is_there(&world, 1) && is_there(&world, 2));
    for id in 3..=30 {
        world.advance(Duration::from_secs(1));
        active(sign_in(&mut world, &ada, &browser(id)));
    }
    assert_eq!(world.state.sessions().count(), 20);
    assert!(!is_there(&world, 2) && is_there(&world, 30));
    let decision = world.by().sign_out(&BrowserSessionId([30; 32]));
    world.run(decision);
    assert!(!is_there(&world, 30));
}
