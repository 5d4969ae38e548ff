//! What TCP gets through between two hosts of a lab. A bench that measures it is both ends too, as its own subcommands
//! `sink` and `source ADDRESS`.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::lab::Host;

/// One measurement: long enough for TCP to reach its rate.
const SPELL: Duration = Duration::from_secs(2);
const PORT: u16 = 5201;

/// Sends TCP from one host to an address of another for a while.
pub(crate) fn megabits(from: &Host, to: &Host, address: &str) -> f64 {
    let this = env::current_exe().unwrap();
    let mut sink = to.command([this.as_os_str(), "sink".as_ref()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(sink.stdout.take().unwrap()).lines();
    assert_eq!(output.next().unwrap().unwrap(), "ready");

    from.run(&format!("{} source {address}", this.display()));

    let bits = output.next().unwrap().unwrap().parse::<f64>().unwrap();
    sink.wait().unwrap();
    bits / 1e6
}

/// Takes one connection; prints the bits a second that came in.
pub(crate) fn sink() {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    println!("ready");
    let (mut stream, _) = listener.accept().unwrap();
    let mut buffer = vec![0; 128 * 1024];
    let started = Instant::now();
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => break,
            count => bytes += count,
        }
    }
    println!("{}", bytes as f64 * 8.0 / started.elapsed().as_secs_f64());
}

/// Sends for a [`SPELL`].
pub(crate) fn source(address: &str) {
    let mut stream = TcpStream::connect((address, PORT)).unwrap();
    let data = vec![0; 128 * 1024];
    let started = Instant::now();
    while started.elapsed() < SPELL {
        stream.write_all(&data).unwrap();
    }
}
