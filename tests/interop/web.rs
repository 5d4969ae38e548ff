//! Web servers and requests of a few lines.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::lab::{Host, PATIENCE};

/// What our own web server says.
pub(crate) const SERVED: &str = "from a thread";

/// How long a request waits for the connection, and then for each part of the answer.
const TO_ANSWER: Duration = Duration::from_secs(10);

/// Serves on a node's overlay address, as long as the test runs.
pub(crate) fn serve(host: &Host, ip: &str, port: u16) {
    let address: SocketAddr = format!("{ip}:{port}").parse().unwrap();
    let listener = host.namespace.inside(move || TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(|| answer(stream));
        }
    });
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        request.extend(byte);
    }
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{SERVED}", SERVED.len())
}

/// Whether a request is answered with these words.
pub(crate) fn get(from: &Host, address: &str, words: &'static str) -> bool {
    get_within(TO_ANSWER, from, address, words)
}

/// The same with another limit for the connection, and then for each part of the answer.
pub(crate) fn get_within(limit: Duration, from: &Host, address: &str, words: &'static str) -> bool {
    let address: SocketAddr = address.parse().unwrap();
    let request = move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    from.namespace.inside(request).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200") && answer.contains(words))
}
