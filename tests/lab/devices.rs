//! A device that speaks nothing but WireGuard, behind a gateway: set up with the kernel's own tools from the file that the
//! administrator is given, as `wg-quick` does.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::lab::{Host, Lab, eventually};
use crate::programs::{Agent, Coordinator};

/// How long a connection that is refused in silence is tried.
const SILENCE: Duration = Duration::from_secs(2);

const POLICY: &str = r#"{
    "tagOwners": { "tag:phone": [], "tag:web": [], "tag:gate": [] },
    "acls": [
        { "action": "accept", "src": ["tag:phone"], "dst": ["tag:web:80"] },
        { "action": "accept", "src": ["tag:web"], "dst": ["tag:phone:90"] },
    ],
}"#;

#[test]
fn a_device_reaches_what_the_policy_says_by_its_gateway_and_is_reached_so_until_it_is_deleted() {
    let Some(mut lab) = Lab::new() else { return };
    let coordinator = Coordinator::start(&mut lab);
    let agents = ["gate", "web", "other"].map(|name| Agent::start(&mut lab, name));
    let [gate, web, other] = &agents;
    gate.join(&coordinator, &coordinator.key("--tag tag:gate"));
    web.join(&coordinator, &coordinator.key("--tag tag:web"));
    other.join(&coordinator, &coordinator.key(""));
    let policy = std::env::temp_dir().join(format!("warren-lab-devices-{}.hujson", std::process::id()));
    std::fs::write(&policy, POLICY).unwrap();
    coordinator.run(&format!("policy set {}", policy.display()));
    gate.host.run("sysctl -q -w net.ipv4.conf.warren0.forwarding=1 net.ipv6.conf.all.forwarding=1");

    let port = gate.host.run("wg show warren0 listen-port");
    let endpoint = format!("{}:{}", gate.host.v4, port.trim());
    let file = coordinator.run(&format!(
        "node add-wireguard phone --generate-key --user me --tag tag:phone --via gate --gateway-endpoint {endpoint}"
    ));
    let phone = Phone::set_up(lab.host("phone"), &file);
    assert!(coordinator.run("node list").contains("wireguard device"));

    let _servers: Vec<_> = [(&web.host, [80, 81]), (&gate.host, [80, 81]), (&phone.host, [90, 91])]
        .into_iter()
        .flat_map(|(host, ports)| ports.map(|port| serve(host, port)))
        .collect();
    for family in [0, 1] {
        let (own, web_ip, gate_ip) = (phone.addresses[family], ip(web, family), ip(gate, family));
        let seen = eventually("the device to reach the server", || whom_they_see(&phone.host, web_ip, 80));
        assert_eq!(seen, own, "the server sees the device itself");
        let seen = eventually("the server to reach the device", || whom_they_see(&web.host, own, 90));
        assert_eq!(seen, web_ip);
        // Refused by the server, by the gateway for itself, and by the gateway in the device's place.
        assert_eq!(whom_they_see(&phone.host, web_ip, 81), None);
        assert_eq!(whom_they_see(&phone.host, gate_ip, 80), None);
        assert_eq!(whom_they_see(&web.host, own, 91), None);
        assert_eq!(whom_they_see(&other.host, own, 90), None);
        assert_eq!(whom_they_see(&gate.host, own, 90), Some(gate_ip), "the gateway is trusted with its device");
    }

    coordinator.run("node delete phone");
    let key = phone.key.as_str();
    eventually("the gateway to forget the device", || {
        (!gate.host.run("wg show warren0 peers").contains(key)).then_some(())
    });
    for family in [0, 1] {
        assert_eq!(whom_they_see(&phone.host, ip(web, family), 80), None);
        assert_eq!(whom_they_see(&web.host, phone.addresses[family], 90), None);
    }
    std::fs::remove_file(&policy).unwrap();
}

struct Phone {
    host: Host,
    addresses: [IpAddr; 2],
    /// Its public key, as WireGuard writes it.
    key: String,
}

impl Phone {
    /// What `wg-quick` does with the file.
    fn set_up(host: Host, file: &str) -> Self {
        let value = |name: &str| {
            let line = file.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
            line.unwrap_or_else(|| panic!("{name} is missing in {file}")).to_owned()
        };
        let addresses: Vec<String> = value("Address").split(", ").map(str::to_owned).collect();
        let stripped: String = file
            .lines()
            .filter(|line| !line.starts_with("Address") && !line.starts_with("MTU"))
            .map(|line| format!("{line}\n"))
            .collect();
        let path = std::env::temp_dir().join(format!("warren-lab-phone-{}.conf", std::process::id()));
        std::fs::write(&path, stripped).unwrap();
        host.run("ip link add wg0 type wireguard");
        host.run(&format!("wg setconf wg0 {}", path.display()));
        for address in &addresses {
            host.run(&format!("ip address add {address} dev wg0"));
        }
        host.run(&format!("ip link set wg0 mtu {} up", value("MTU")));
        for net in value("AllowedIPs").split(", ") {
            host.run(&format!("ip route add {net} dev wg0"));
        }
        std::fs::remove_file(&path).unwrap();
        let key = host.run("wg show wg0 public-key").trim().to_owned();
        let addresses = [0, 1].map(|family| addresses[family].split('/').next().unwrap().parse().unwrap());
        Self { host, addresses, key }
    }
}

fn ip(agent: &Agent, family: usize) -> IpAddr {
    agent.ip([4, 6][family]).parse().unwrap()
}

/// Whoever connects is told as whom it is seen.
fn serve(host: &Host, port: u16) -> std::thread::JoinHandle<()> {
    host.namespace.spawn_inside(move || {
        let listener = TcpListener::bind(("::", port)).unwrap();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let seen = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(seen.to_string().as_bytes());
        }
    })
}

fn whom_they_see(from: &Host, to: IpAddr, port: u16) -> Option<IpAddr> {
    from.namespace.inside(move || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, port), SILENCE).ok()?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text).ok()?;
        text.parse().ok()
    })
}
