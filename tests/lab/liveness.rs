//! Nodes that are gone without a word, or come back wrong, as the others see them.

use std::io::copy;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use warren_core::wire::local::BackendState;

use crate::lab::{Host, Lab, PATIENCE, eventually, say, try_within, within};
use crate::programs::{Agent, Coordinator, Joined};
use crate::train::now;

const SUBNET: &str = "10.9.0.0/24";
/// After this long a kernel has given up the session that it had with a peer, and begins another.
const SESSION: Duration = Duration::from_secs(180);
const DAY: i64 = 24 * 60 * 60;

/// The proxy keeps its connection to the coordinator open, whatever becomes of the node's: nothing but the node's silence
/// says that it is gone. How many seconds that takes is proven where time is simulated; without a question it would be a
/// quarter of an hour.
#[test]
fn behind_a_proxy_a_router_whose_cable_is_pulled_is_replaced_within_seconds() {
    let Some(mut lab) = Lab::new() else { return };
    let (host, proxy) = (lab.host("coordinator"), lab.host("proxy"));
    let url = format!("http://{}:8080", proxy.v4);
    forward(&proxy, 8080, format!("{}:8080", host.v4));
    let arguments = vec!["--server-url".to_owned(), url.clone()];
    let coordinator = Coordinator::start_on(host, lab.dir.path().join("coordinator"), arguments);
    let [one, two, client] = ["one", "two", "client"].map(|name| Agent::start(&mut lab, name));
    for agent in [&one, &two, &client] {
        agent.join_at(&url, &coordinator.key(""));
    }
    for router in [&one, &two] {
        router.host.run("ip link add lan type dummy");
        router.host.run("ip address add 10.9.0.1/24 dev lan");
        router.host.run("ip link set lan up");
        router.warren(&format!("set --advertise-routes {SUBNET}"));
        coordinator.run(&format!("route approve {} {SUBNET}", router.name));
    }
    client.warren("set --accept-routes");
    let first = eventually("a primary router", || primary(&coordinator));
    client.host.ping("10.9.0.1");
    let (gone, other) = if first == one.name { (&one, &two) } else { (&two, &one) };

    lab.unplug(&gone.host);
    let pulled = now();

    let taken_over = try_within(PATIENCE, || (primary(&coordinator)? == other.name).then_some(()));
    assert!(
        taken_over.is_some(),
        "{} did not take over; the coordinator says:\n{}",
        other.name,
        coordinator.end_of_log(20)
    );
    say(&format!("the other router took over after {:.1?}", pulled.elapsed()));
    client.host.ping("10.9.0.1");
}

/// Its kernel's handshakes carry a time that the others have seen pass, so that only they can begin one.
#[test]
fn a_node_that_comes_back_with_its_clock_a_day_behind_is_reached_and_reaches_others() {
    if !is_guest() {
        return say("skipped: the clock of this machine is not the test's to set");
    }
    let Some(Joined { mut alice, bob, coordinator: _coordinator, lab: _lab }) = Joined::new() else { return };
    let address = bob.ip(4);
    alice.stop();
    alice.cleanup();

    let _clock = Clock::set_by(-DAY);
    alice.start_again();

    alice.wait_for(BackendState::Running);
    let begun = now();
    let ping = || alice.host.try_run(&format!("ping -n -c 1 -W 2 {address}")).status.success().then_some(());
    within(SESSION + Duration::from_secs(60), "a ping with the clock behind", ping);
    say(&format!("with its clock a day behind it reached its peer after {:.1?}", begun.elapsed()));
    bob.host.ping(&alice.ip(4));
}

/// The node that peers are sent to for the subnet.
fn primary(coordinator: &Coordinator) -> Option<String> {
    let routes: serde_json::Value = serde_json::from_str(&coordinator.run("--json route list")).unwrap();
    let primary = routes.as_array().unwrap().iter().find(|route| route["primary"] == true)?;
    Some(primary["node"].as_str().unwrap().to_owned())
}

/// Passes each connection on. An end that closes closes the other; one that falls silent does not.
fn forward(from: &Host, port: u16, to: String) {
    let listener = from.namespace.inside(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
    from.namespace.spawn_inside(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(&to)) else { continue };
            for (mut source, mut sink) in [(&client, &server), (&server, &client)]
                .map(|(source, sink)| (source.try_clone().unwrap(), sink.try_clone().unwrap()))
            {
                std::thread::spawn(move || {
                    let _ = copy(&mut source, &mut sink);
                    let _ = sink.shutdown(Shutdown::Both);
                });
            }
        }
    });
}

/// A machine that was booted for the tests.
fn is_guest() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default().contains("QEMU")
        && std::env::var_os("WARREN_REQUIRE_KERNEL").is_some()
}

/// The machine's clock, set by so many seconds until this is dropped.
struct Clock(i64);

impl Clock {
    fn set_by(seconds: i64) -> Self {
        move_clock(seconds);
        Self(seconds)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        move_clock(-self.0);
    }
}

#[allow(clippy::disallowed_methods, reason = "it is this clock that is set")]
fn move_clock(seconds: i64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let time = format!("@{}", i64::try_from(now).unwrap() + seconds);
    let set = Command::new("date").args(["-s", &time]).output().unwrap();
    assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
}
