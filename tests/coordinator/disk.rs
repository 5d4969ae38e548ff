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

/// Fills the disk until three changes were refused; the users that were made meanwhile.
fn starve(server: &Server) -> Vec<String> {
    let ballast = server.state_dir().join("ballast");
    let (mut made, mut refusals) = (Vec::new(), 0);
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
            return made;
        }
    }
    panic!("the disk is not full");
}

fn users(server: &Server) -> Vec<String> {
    let users = server.json(&["user", "list"]);
    users.as_array().unwrap().iter().map(|user| user["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn on_a_full_disk_a_coordinator_starts_serves_what_is_there_and_takes_changes_once_there_is_room() {
    let Some(mut server) = Server::start_on_a_small_disk() else { return };
    server.text(&["user", "create", "before"]);
    let mut made = vec!["before".to_owned()];
    made.extend(starve(&server));

    server.crash_and_restart_on_the_small_disk();

    let ballast = server.state_dir().join("ballast");
    fill(&ballast);
    assert_eq!(users(&server), made);
    let (status, text) = get(server.address, "/health").await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && text.contains("full"), "{status} {text}");
    let output = server.admin(&["user", "create", "meanwhile"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("nothing was changed") && told.contains("full"), "{told}");
    let output = server.admin(&["server-key", "rotate"]);
    assert!(!output.status.success());
    assert!(!server.state_dir().join("noise-former.new").exists(), "half a key takes no room");

    // The one moment when a copy elsewhere is wanted most.
    let elsewhere = tempfile::tempdir().unwrap();
    let backup = elsewhere.path().join("b").display().to_string();
    server.text(&["backup", &backup]);
    let mut restored = Server::start(&["--stun-listen", "none"]);
    assert!(restored.end(Signal::SIGTERM));
    assert!(restored.admin(&["restore", "--force", &backup]).status.success());
    restored.restart_ended();
    assert_eq!(users(&restored), made);

    fs::remove_file(&ballast).unwrap();
    server.text(&["user", "create", "after"]);
    assert_eq!(get(server.address, "/health").await.0, StatusCode::OK);
    made.push("after".to_owned());
    server.crash_and_restart_on_the_small_disk();
    assert_eq!(users(&server), made);
}

#[tokio::test]
async fn while_the_disk_is_full_health_says_so_and_afterwards_everything_acknowledged_is_on_it() {
    let Some(server) = Server::start_on_a_small_disk() else { return };
    let ballast = server.state_dir().join("ballast");
    server.text(&["user", "create", "before"]);
    let mut made = vec!["before".to_owned()];
    made.extend(starve(&server));
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
    assert_eq!(users(&next), made);
}
