//! The official Rust client as a node of our network.
//!
//! `official-client URL KEY NAME echo`: sends back what comes to TCP port 7.
//! `official-client URL KEY NAME send ADDRESS BYTES`: sends so much to that port of an address, and compares what comes
//! back. Ends with status 0 where it is the same.

use std::error::Error;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tailscale::{Config, Device};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, split};
use tokio::time::timeout;

const PORT: u16 = 7;
/// Far more than joining takes, also under emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Until both have heard of each other there is nobody to connect to, and the client does not try again by itself.
const ATTEMPT: Duration = Duration::from_secs(5);

type Fault = Box<dyn Error>;

#[tokio::main]
async fn main() -> Result<(), Fault> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [url, key, name, "echo"] => echo(&join(url, key, name).await?).await,
        [url, key, name, "send", to, size] => send(&join(url, key, name).await?, to.parse()?, size.parse()?).await,
        _ => Err("usage: official-client URL KEY NAME echo|send [ADDRESS BYTES]".into()),
    }
}

async fn join(url: &str, key: &str, name: &str) -> Result<Device, Fault> {
    let config = Config {
        control_server_url: url.parse()?,
        requested_hostname: Some(name.to_owned()),
        ..Config::default()
    };
    let device = timeout(PATIENCE, Device::new(&config, Some(key.to_owned()))).await??;
    println!("{name} is {}", timeout(PATIENCE, device.ipv4_addr()).await??);
    Ok(device)
}

async fn echo(device: &Device) -> Result<(), Fault> {
    let listener = device.tcp_listen((device.ipv4_addr().await?, PORT).into()).await?;
    loop {
        let connection = listener.accept().await?;
        tokio::spawn(async move {
            let (mut reader, mut writer) = split(connection);
            let _ = copy(&mut reader, &mut writer).await;
        });
    }
}

async fn send(device: &Device, to: Ipv4Addr, size: usize) -> Result<(), Fault> {
    let begun = Instant::now();
    let connection = loop {
        match timeout(ATTEMPT, device.tcp_connect((to, PORT).into())).await {
            Ok(Ok(connection)) => break connection,
            _ if begun.elapsed() > PATIENCE => return Err(format!("{to} is not reached").into()),
            // An attempt that failed at once is not repeated at once.
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    println!("connected after {:.1} s", begun.elapsed().as_secs_f64());
    let sent: Vec<u8> = (0..size).map(|index| (index * 31 % 251) as u8).collect();
    let (mut reader, mut writer) = split(connection);
    let sending = sent.clone();
    let writing = tokio::spawn(async move { writer.write_all(&sending).await });
    let mut received = vec![0; size];
    timeout(PATIENCE, reader.read_exact(&mut received)).await??;
    writing.await??;
    if received != sent {
        return Err("what came back is not what was sent".into());
    }
    println!("{size} bytes there and back");
    Ok(())
}
