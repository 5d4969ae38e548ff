//! Backups, of a running server and of one that does not run, and what is made of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::node::Machine;
use crate::program::program_path;
use crate::server::{Server, program};

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

/// Runs a command on a state directory where no server runs.
fn on(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = program(&[&["--state-dir", dir.to_str().unwrap()], arguments].concat(), &[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[tokio::test]
async fn a_network_comes_back_from_a_backup_that_was_made_while_it_was_served() {
    let mut server = Server::start(&[]);
    let machine = Machine::new("web");
    machine.connect(server.address).await.join(&server.key(&["--reusable"])).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("warren.backup");
    let name = file.to_str().unwrap();

    let said = server.text(&["backup", name]);
    assert!(said.contains("1 users, 1 nodes, no policy") && said.contains("noise.key"), "{said}");
    assert_eq!(mode(&file), 0o600);
    let again = server.admin(&["backup", name]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("--force replaces it"));
    server.text(&["backup", name, "--force"]);
    let done = server.json(&["backup", name, "--force"]);
    assert!(done["done"].as_str().unwrap().contains("1 users"), "{done}");
    for refused in [&["--json", "backup", name][..], &["--json", "node", "delete", "nobody"]] {
        let refused = server.admin(refused);
        let said: serde_json::Value = serde_json::from_slice(&refused.stdout).unwrap();
        assert!(!refused.status.success() && said["error"].is_string(), "{said}");
    }
    let left: Vec<_> = fs::read_dir(elsewhere.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing is left beside it");
    assert!(!server.state_dir().join("backup.draft").exists());
    let running = server.admin(&["restore", name, "--force"]);
    let told = String::from_utf8_lossy(&running.stderr).into_owned();
    assert!(!running.status.success() && told.contains("stop it first"), "{told}");

    // What comes after the backup is gone with it.
    server.text(&["user", "create", "late"]);
    let key_before = fs::read(server.state_dir().join("noise.key")).unwrap();
    assert!(server.end(Signal::SIGTERM));
    let refused = server.admin(&["restore", name]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force moves it aside"), "{refused:?}");
    let said = server.text(&["restore", name, "--force"]);
    assert!(said.contains("what was there is in"), "{said}");
    assert_eq!(fs::read(server.state_dir().join("noise.key")).unwrap(), key_before);
    assert_eq!(mode(&server.state_dir().join("coordinator.sqlite")), 0o600);
    let database = fs::read(server.state_dir().join("coordinator.sqlite")).unwrap();
    let secret = key_before.trim_ascii();
    assert!(!database.windows(secret.len()).any(|part| part == secret), "the key is not in the database");
    server.restart_ended();
    assert_eq!(server.json(&["user", "list"]).as_array().unwrap().len(), 1);
    assert_eq!(server.json(&["node", "list"])[0]["name"], "web");
    machine.connect(server.address).await.map(&[]).await;
}

#[test]
fn a_server_that_does_not_run_is_backed_up_and_restored_elsewhere() {
    let mut server = Server::start(&[]);
    server.text(&["user", "create", "ada"]);
    assert!(server.end(Signal::SIGTERM));
    let elsewhere = tempfile::tempdir().unwrap();
    let (file, dir) = (elsewhere.path().join("b"), elsewhere.path().join("state"));
    server.text(&["backup", file.to_str().unwrap()]);
    let (status, said) = on(&dir, &["restore", file.to_str().unwrap()]);
    assert_eq!(status, Some(0), "{said}");
    for name in ["noise.key", "relay.key", "relay-tls.key"] {
        assert_eq!(fs::read(dir.join(name)).unwrap(), fs::read(server.state_dir().join(name)).unwrap(), "{name}");
    }
    assert!(!dir.join("restore.draft").exists());
}

#[test]
fn a_restore_that_finds_no_room_leaves_the_old_state_as_it_was() {
    let mut server = Server::start(&[]);
    server.text(&["user", "create", "ada"]);
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("b");
    server.text(&["backup", file.to_str().unwrap()]);
    server.text(&["user", "create", "late"]);
    assert!(server.end(Signal::SIGTERM));
    let dir = server.state_dir().to_owned();

    // Files of 16 KiB at most: the keys fit, the database does not.
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 32; exec \"$0\" \"$@\""]).arg(program_path("warren-coordinator"));
    let output = shell.arg("--state-dir").arg(&dir).args(["restore", "--force"]).arg(&file).output().unwrap();

    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("nothing was changed"), "{said}");
    assert!(!dir.join("restore.draft").exists() && !dir.join("restore.half").exists());
    server.restart_ended();
    assert_eq!(server.json(&["user", "list"]).as_array().unwrap().len(), 2);
    assert!(server.end(Signal::SIGTERM));

    // What is left of one that ended while files were moved names both ways on, and the second is one.
    let aside = dir.join("replaced-1");
    fs::create_dir(&aside).unwrap();
    fs::create_dir(dir.join("restore.half")).unwrap();
    fs::rename(dir.join("noise.key"), aside.join("noise.key")).unwrap();
    let (status, said) = on(&dir, &["serve", "--listen", "127.0.0.1:0", "--stun-listen", "none"]);
    assert!(status == Some(1) && said.contains("restore` again") && said.contains("replaced-"), "{said}");
    fs::rename(aside.join("noise.key"), dir.join("noise.key")).unwrap();
    fs::remove_dir(dir.join("restore.half")).unwrap();
    server.restart_ended();
}

#[test]
fn a_backup_takes_the_place_of_no_link_and_of_no_special_file() {
    let server = Server::start(&[]);
    let directory = tempfile::tempdir().unwrap();
    let named = |name: &str| directory.path().join(name);
    std::os::unix::fs::symlink(named("nowhere"), named("dangling")).unwrap();
    fs::write(named("file"), "kept").unwrap();
    std::os::unix::fs::symlink(named("file"), named("link")).unwrap();
    nix::unistd::mkfifo(&named("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(named("directory")).unwrap();
    let kind = |name: &str| fs::symlink_metadata(named(name)).unwrap().file_type();

    for name in ["dangling", "link", "pipe", "directory"] {
        let (before, path) = (kind(name), named(name));
        for options in [&[][..], &["--force"]] {
            let refused = server.admin(&[&["backup", path.to_str().unwrap()], options].concat());
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && said.contains("no regular file"), "{name}: {said}");
        }
        assert_eq!(kind(name), before, "{name}");
    }
    assert_eq!(fs::read_to_string(named("file")).unwrap(), "kept");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 5, "nothing is left beside them");
}

#[test]
fn what_is_no_backup_is_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let (file, dir) = (directory.path().join("file"), directory.path().join("state"));
    let name = file.to_str().unwrap();
    let cases = [(Vec::new(), "no database of warren-coordinator"), (vec![b'x'; 9000], "not a database")];
    for (content, words) in cases {
        fs::write(&file, content).unwrap();
        let (status, said) = on(&dir, &["restore", name]);
        assert!(status == Some(1) && said.contains(words), "{said}");
    }
    let mut server = Server::start(&[]);
    assert!(server.end(Signal::SIGTERM));
    fs::copy(server.state_dir().join("coordinator.sqlite"), &file).unwrap();
    let (status, said) = on(&dir, &["restore", name]);
    assert!(status == Some(1) && said.contains("it has no server key in it"), "{said}");
    assert!(!dir.exists(), "nothing was begun");
    let (status, said) = on(&dir, &["backup", directory.path().join("new").to_str().unwrap()]);
    assert!(status == Some(1) && said.contains("there is no coordinator.sqlite"), "{said}");
}

#[test]
fn a_server_starts_neither_without_its_database_nor_without_its_key() {
    let mut server = Server::start(&[]);
    server.text(&["user", "create", "ada"]);
    assert!(server.end(Signal::SIGTERM));
    let dir = server.state_dir().to_owned();
    let (database, key) = (dir.join("coordinator.sqlite"), dir.join("noise.key"));
    let aside = dir.join("aside");

    fs::rename(&key, &aside).unwrap();
    let (status, said) = on(&dir, &["serve", "--listen", "127.0.0.1:0", "--stun-listen", "none"]);
    assert!(status == Some(1) && said.contains("init --new-key"), "{said}");
    assert!(!key.exists(), "none is made");
    fs::rename(&aside, &key).unwrap();

    fs::remove_file(&database).unwrap();
    let (status, said) = on(&dir, &["serve", "--listen", "127.0.0.1:0", "--stun-listen", "none"]);
    assert!(status == Some(1) && said.contains("init --empty-network"), "{said}");
    assert!(!database.exists(), "none is made");

    let absent = dir.join("absent");
    let (status, said) = on(&absent, &["init", "--new-key"]);
    assert!(status == Some(1) && said.contains("nothing was made") && !absent.exists(), "{said}");
    let (status, said) = on(&dir, &["init", "--empty-network", "--new-key"]);
    assert!(status == Some(1) && said.contains("there already"), "{said}");
    let (status, said) = on(&dir, &["init", "--empty-network"]);
    assert!(status == Some(0) && said.contains("an empty network made"), "{said}");
    server.restart_ended();
    assert_eq!(server.json(&["user", "list"]), serde_json::json!([]));
}
