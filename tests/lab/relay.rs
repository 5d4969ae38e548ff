//! The relay as its own program, among hosts that have addresses of their own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::lab::{Host, Lab, PATIENCE, eventually};
use crate::program::program_path;
use crate::programs::Process;

const METRICS: &str = "127.0.0.1:9090";
/// Ten times as many may come at once.
const RATE: u32 = 1;
/// Far more than may come in the time that this many take.
const CONNECTIONS: u32 = 100;

#[test]
fn an_address_that_connects_too_often_is_closed_and_counted_and_another_is_served() {
    let Some(mut lab) = Lab::without_tunnels() else { return };
    let (relay, flood, other) = (lab.host("relay"), lab.host("flood"), lab.host("other"));
    let mut command = relay.command([program_path("warren-relay"), "--open", "--plain-http"]);
    command.args(["--listen", "[::]:3340", "--metrics", METRICS, "--accept-rate", &RATE.to_string()]);
    command.arg("--state-dir").arg(lab.dir.path().join("relay"));
    let _relay = Process::start(command, &lab.dir.path().join("relay.log"));
    let address: SocketAddr = format!("{}:3340", relay.v4).parse().unwrap();
    eventually("the relay to answer", || is_answered(&relay, METRICS, "/metrics").then_some(()));

    let answered = (0..CONNECTIONS).filter(|_| is_answered(&flood, &address.to_string(), "/derp/probe")).count();

    assert!(answered >= 10 * RATE as usize && answered < CONNECTIONS as usize, "{answered} of {CONNECTIONS}");
    assert!(is_answered(&other, &address.to_string(), "/derp/probe"));
    let text = ask(&relay, METRICS, "/metrics").unwrap();
    let counted = format!("warren_relay_connections_too_often_total {}\n", CONNECTIONS as usize - answered);
    assert!(text.contains(&counted), "{counted} is not in {text}");
}

fn is_answered(from: &Host, address: &str, path: &str) -> bool {
    ask(from, address, path).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn ask(from: &Host, address: &str, path: &str) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let address = address.to_owned();
    from.namespace.inside(move || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}
