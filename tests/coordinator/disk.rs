//! A coordinator whose disk fills and is freed again.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use http::StatusCode;
use nix::sys::signal::Signal;

use crate::node::get;
use crate::server::Server;

/// Takes all the room that there is.
fn fill(ballast: &Path) {
    let mut ballast = File::options().create(true).append(true).open(ballast).unwrap();
    while ballast.write_all(&[1; 4096]).is_ok() {}
}

#[tokio::test]
async fn while_the_disk_is_full_health_says_so_and_afterwards_everything_acknowledged_is_on_it() {
    let Some(server) = Server::start_on_a_small_disk() else { return };
    let ballast = server.state_dir().join("ballast");
    server.text(&["user", "create", "before"]);
    let mut made = vec!["before".to_owned()];
    let mut refusals = 0;
    // What folding the log in gives back is taken, too.
    for number in 0..200 {
        fill(&ballast);
        let name = format!("user-{number}");
        let output = server.admin(&["user", "create", &name]);
        if output.status.success() {
            made.push(name);
            continue;
        }
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("nothing was changed"), "{told}");
        refusals += 1;
        if refusals == 3 {
            break;
        }
    }
    assert_eq!(refusals, 3);
    let (status, text) = get(server.address, "/health").await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && text.contains("full"), "{status} {text}");

    fs::remove_file(&ballast).unwrap();
    server.text(&["user", "create", "after"]);
    made.push("after".to_owned());
    assert_eq!(get(server.address, "/health").await.0, StatusCode::OK);

    // What a crash at this moment leaves.
    let mut next = Server::start(&["--stun-listen", "none"]);
    assert!(next.end(Signal::SIGTERM));
    for name in ["coordinator.sqlite", "coordinator.sqlite-wal", "noise.key"] {
        fs::copy(server.state_dir().join(name), next.state_dir().join(name)).unwrap();
    }
    next.restart_ended();
    let users = next.json(&["user", "list"]);
    let found: Vec<_> = users.as_array().unwrap().iter().map(|user| user["name"].as_str().unwrap()).collect();
    assert_eq!(found, made);
}
