//! Our relay beside derper, plain and by TLS: memory of a client that is idle, packets, and what each packet costs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use http::Uri;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use warren_shell::CertificatePin;

use crate::foreign::find;
use crate::free_port;
use crate::lab::eventually;
use crate::measure::{PACKET, connect, idle_clients, load};
use crate::programs::Process;
use crate::server::OwnRelay;
use crate::table::versus;
use crate::usage::Usage;

/// Clients of one measurement: a pair, and a busy relay's.
const CLIENTS: [u32; 2] = [2, 1_000];
/// Packets that one sender has under way where it is alone, and the least.
const WINDOW: u64 = 64;
const LEAST_WINDOW: u64 = 8;
/// How long packets are counted.
const SPELL: Duration = Duration::from_secs(4);
const ADDRESS: &str = "127.0.0.1";

/// One relay in one manner.
struct Figures {
    /// Memory that an idle client takes, in KiB.
    idle: f64,
    /// One for each entry of [`CLIENTS`].
    packets: Vec<Packets>,
}

struct Packets {
    a_second: f64,
    /// Microseconds of the relay's processor time for one.
    cost: f64,
    lost: f64,
}

/// Prints the rows of both manners.
pub(crate) async fn compare() {
    let program = find("derper").ok_or("no derper in WARREN_INTEROP_BIN or on PATH");
    for (manner, has_tls) in [("plain", false), ("TLS", true)] {
        let figures = match &program {
            Ok(program) => Ok(both(program, has_tls).await),
            Err(missing) => Err(*missing),
        };
        let print = |what: String, unit: &str, figure: &dyn Fn(&Figures) -> f64| {
            let [ours, theirs] = match &figures {
                Ok(both) => both.each_ref().map(|of| Ok(figure(of))),
                Err(missing) => [Err(*missing); 2],
            };
            versus(&format!("relay, {manner}: {what}"), unit, ours, theirs);
        };
        print("memory of an idle client".to_owned(), "KiB", &|figures| figures.idle);
        for (place, clients) in CLIENTS.iter().enumerate() {
            let what = format!("{PACKET}-byte packets over {clients} clients");
            print(what.clone(), "/s", &|figures| figures.packets[place].a_second);
            print(format!("{what}, each"), "us CPU", &|figures| figures.packets[place].cost);
            print(format!("{what}, lost"), "", &|figures| figures.packets[place].lost);
        }
    }
}

async fn both(program: &Path, has_tls: bool) -> [Figures; 2] {
    let own = OwnRelay::start(has_tls);
    let ours = measure(&own.url, has_tls.then_some(own.pin.as_str()), own.usage()).await;
    drop(own);
    let derper = Derper::start(program, has_tls);
    [ours, measure(&derper.url, derper.pin.as_deref(), Usage(derper.process.id())).await]
}

async fn measure(server: &Uri, pin: Option<&str>, usage: Usage) -> Figures {
    let idle = idle_clients(server, pin, Some(usage), CLIENTS[1]).await.expect("its process is known");
    let mut packets = Vec::new();
    for clients in CLIENTS {
        let pairs = clients / 2;
        let window = (WINDOW / u64::from(pairs)).max(LEAST_WINDOW);
        let figures = load(connect(server, pin, pairs, window).await, Some(usage), SPELL).await;
        let busy = figures.busy.expect("its process is known").as_secs_f64();
        packets.push(Packets {
            a_second: figures.packets / SPELL.as_secs_f64(),
            cost: busy * 1e6 / figures.packets,
            lost: figures.lost,
        });
    }
    Figures { idle, packets }
}

/// A derper on loopback; gone with the value.
struct Derper {
    process: Process,
    url: Uri,
    pin: Option<String>,
    _dir: TempDir,
}

impl Derper {
    /// With TLS it makes itself a certificate.
    fn start(program: &Path, has_tls: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = format!("{ADDRESS}:{}", free_port());
        let mut command = Command::new(program);
        command.args(["-a", &address, "-http-port", "-1", "-stun=false", "-hostname", ADDRESS]);
        command.arg("-c").arg(dir.path().join("key.json")).arg("-certdir").arg(dir.path());
        if has_tls {
            command.args(["-certmode", "manual"]);
        }
        let process = Process::start(command, &dir.path().join("log"));
        eventually("derper to listen", || std::net::TcpStream::connect(&address).ok());
        let scheme = if has_tls { "https" } else { "http" };
        let url = format!("{scheme}://{address}").parse().expect("an address makes a URL");
        let certificate = dir.path().join(format!("{ADDRESS}.crt"));
        let pin = has_tls.then(|| {
            CertificatePin::of(&CertificateDer::from_pem_file(&certificate).expect("its certificate")).to_string()
        });
        Self { process, url, pin, _dir: dir }
    }
}
