//! `doctor`, on a server that is well and on ones that are not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::server::{Server, program};

/// What is found, with this server's options and these.
fn doctor(dir: &Path, listen: &str, options: &[&str]) -> (Option<i32>, Vec<(String, String, String)>) {
    let base = ["--json", "--state-dir", dir.to_str().unwrap(), "doctor", "--listen", listen, "--stun-listen", "none"];
    let output = program(&[&base[..], options].concat(), &[]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let all = found.as_array().unwrap().iter();
    let all = all.map(|finding| (text(finding, "what"), text(finding, "verdict"), text(finding, "text")));
    (output.status.code(), all.collect())
}

fn of<'a>(found: &'a [(String, String, String)], what: &str) -> (&'a str, &'a str) {
    let it = found.iter().find(|(name, ..)| name == what).unwrap_or_else(|| panic!("{what}: {found:?}"));
    (&it.1, &it.2)
}

#[test]
fn a_server_that_is_well_is_said_to_be_and_one_that_is_not_is_told_what_to_do() {
    let server = Server::start(&["--stun-listen", "none"]);
    let listen = server.address.to_string();
    let (status, found) = doctor(server.state_dir(), &listen, &["--server-url", &server.url()]);
    assert_eq!(status, Some(0), "{found:?}");
    for what in ["server", "noise.key", "coordinator.sqlite", "clock", "port", "health", "as a node"] {
        assert_eq!(of(&found, what).0, "ok", "{what}: {found:?}");
    }

    let other = Server::start(&["--stun-listen", "none"]);
    let key = server.state_dir().join("noise.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (status, found) = doctor(server.state_dir(), &listen, &["--server-url", &other.url()]);
    assert_eq!(status, Some(1));
    assert!(of(&found, "noise.key").1.contains("chmod 600"), "{found:?}");
    assert!(of(&found, "as a node").1.contains("another coordinator"), "{found:?}");
}

#[test]
fn a_broken_key_of_any_kind_and_files_that_others_could_read_are_found_before_a_start_fails_or_mends_them() {
    let mut server = Server::start(&["--stun-listen", "none"]);
    server.text(&["server-key", "rotate"]);
    server.text(&["user", "create", "ada"]);
    let (listen, dir) = (server.address.to_string(), server.state_dir().to_owned());
    assert!(server.end(Signal::SIGTERM));
    let mode = |name: &str, mode| fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
    let names = ["noise.key", "noise-former.key", "relay.key", "relay-tls.key", "coordinator.sqlite"];
    for name in names {
        mode(name, 0o644);
    }
    let (status, found) = doctor(&dir, &listen, &[]);
    assert_eq!(status, Some(1));
    for name in names {
        assert!(of(&found, name).1.contains("chmod 600"), "{name}: {found:?}");
    }

    server.restart_ended();
    let is = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
    for name in names {
        assert_eq!(is(name), 0o600, "{name}");
    }
    assert!(server.end(Signal::SIGTERM));
    for name in &names[1..4] {
        let whole = fs::read(dir.join(name)).unwrap();
        fs::write(dir.join(name), "nonsense").unwrap();
        let (status, found) = doctor(&dir, &listen, &[]);
        assert!(status == Some(1) && of(&found, name).1.contains("restore it from a backup"), "{name}: {found:?}");
        fs::write(dir.join(name), whole).unwrap();
    }
    fs::remove_file(dir.join("noise.key")).unwrap();
    let (_, found) = doctor(&dir, &listen, &[]);
    assert_eq!(of(&found, "noise.key").0, "failed");
    assert_eq!(of(&found, "state").0, "failed");
}

#[test]
fn without_a_server_its_state_and_its_ports_are_looked_at() {
    let mut server = Server::start(&["--stun-listen", "none"]);
    server.text(&["user", "create", "ada"]);
    let listen = server.address.to_string();
    assert!(server.end(Signal::SIGTERM));
    let (status, found) = doctor(server.state_dir(), &listen, &[]);
    assert_eq!(status, Some(0), "{found:?}");
    assert_eq!(of(&found, "server").0, "warning");
    assert!(of(&found, "database").1.contains("1 users, 0 nodes"), "{found:?}");

    let _taken = std::net::TcpListener::bind(server.address).unwrap();
    fs::write(server.state_dir().join("coordinator.sqlite"), vec![b'x'; 9000]).unwrap();
    fs::remove_file(server.state_dir().join("noise.key")).unwrap();
    let (status, found) = doctor(server.state_dir(), &listen, &[]);
    assert_eq!(status, Some(1));
    assert!(of(&found, "port").1.contains("says who has it"), "{found:?}");
    assert!(of(&found, "database").1.contains("not a database"), "{found:?}");
    assert_eq!(of(&found, "noise.key").0, "failed");
}

#[test]
fn a_certificate_of_another_time_or_name_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let write = |years: [i32; 2]| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years[0], 1, 1);
        params.not_after = rcgen::date_time_ymd(years[1], 1, 1);
        fs::write(directory.path().join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(directory.path().join("key.pem"), key.serialize_pem()).unwrap();
    };
    let (cert, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    let files = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap(), "--server-url"];
    let look = |url: &str| doctor(directory.path(), "127.0.0.1:0", &[&files[..], &[url]].concat()).1;
    write([2020, 4000]);
    assert_eq!(of(&look("https://a.example"), "certificate").0, "ok");
    assert!(of(&look("https://b.example"), "certificate").1.contains("it is not for b.example"));
    write([2020, 2021]);
    assert!(of(&look("https://a.example"), "certificate").1.contains("it is valid from 2020"));
    fs::write(&key, "nonsense").unwrap();
    assert_eq!(of(&look("https://a.example"), "certificate").0, "failed");
}
