//! Two official clients on one coordinator: one echoes, the other sends and compares.
//!
//! Arguments: the coordinator's URL, two keys, and how many bytes. Ends with status 0 when they came back as sent.

use std::error::Error;
use std::time::{Duration, Instant};

use tailscale::{Config, Device};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, split};
use tokio::time::timeout;

const PORT: u16 = 7;
/// Far more than joining takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

type Fault = Box<dyn Error>;

#[tokio::main]
async fn main() -> Result<(), Fault> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or(format!("{what} is missing"));
    let (url, one, two) = (next("the coordinator's URL")?, next("a key")?, next("another key")?);
    let size = next("a number of bytes")?.parse::<usize>()?;

    let (echo, sender) = (join(&url, "echo", one).await?, join(&url, "sender", two).await?);
    let address = echo.ipv4_addr().await?;
    let listener = echo.tcp_listen((address, PORT).into()).await?;
    tokio::spawn(async move {
        while let Ok(connection) = listener.accept().await {
            let (mut reader, mut writer) = split(connection);
            let _ = copy(&mut reader, &mut writer).await;
        }
    });

    let begun = Instant::now();
    let connection = loop {
        // Until both have heard of each other there is nobody to connect to.
        match timeout(Duration::from_secs(5), sender.tcp_connect((address, PORT).into())).await {
            Ok(Ok(connection)) => break connection,
            _ if begun.elapsed() > PATIENCE => return Err("the clients do not reach each other".into()),
            _ => {}
        }
    };
    println!("connected after {:.1} s", begun.elapsed().as_secs_f64());
    let sent: Vec<u8> = (0..size).map(|index| (index * 31 % 251) as u8).collect();
    let (mut reader, mut writer) = split(connection);
    let sending = sent.clone();
    let begun = Instant::now();
    let writing = tokio::spawn(async move { writer.write_all(&sending).await });
    let mut received = vec![0; size];
    timeout(PATIENCE, reader.read_exact(&mut received)).await??;
    writing.await??;
    if received != sent {
        return Err("what came back is not what was sent".into());
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{size} bytes there and back in {seconds:.1} s, {:.1} Mbit/s each way", size as f64 * 8e-6 / seconds);
    Ok(())
}

async fn join(url: &str, name: &str, key: String) -> Result<Device, Fault> {
    let config = Config {
        control_server_url: url.parse::<url::Url>()?,
        requested_hostname: Some(name.to_owned()),
        ..Config::default()
    };
    let device = timeout(PATIENCE, Device::new(&config, Some(key))).await??;
    println!("{name} is {}", timeout(PATIENCE, device.ipv4_addr()).await??);
    Ok(device)
}
