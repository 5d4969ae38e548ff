#![allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]

use super::*;
use crate::wire::portmap::{igd, ssdp};

const PORT_US: u16 = 41_741;
const NONCE: [u8; 12] = *b"abcdefghijkl";
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

fn gateway() -> Gateway {
    Gateway { address: Ipv4Addr::new(192, 168, 1, 1), local: Ipv4Addr::new(192, 168, 1, 5) }
}

/// A router that speaks some of the protocols, and a mapper that talks to it, on a clock that jumps.
struct Scene {
    mapper: PortMapper,
    now: Instant,
    booted: Instant,
    speaks: (bool, bool, bool),
    /// Fault codes that the next calls to open a port are answered with.
    faults: Vec<u16>,
    external: Ipv4Addr,
    lifetime: u32,
    asked: Vec<String>,
}

impl Scene {
    fn new(pcp: bool, pmp: bool, upnp: bool) -> Self {
        let now = Instant::now() + Duration::from_secs(100_000);
        Self {
            mapper: PortMapper::new(PORT_US, NONCE),
            now,
            booted: now - Duration::from_secs(50_000),
            speaks: (pcp, pmp, upnp),
            faults: Vec::new(),
            external: EXTERNAL,
            lifetime: 7_200,
            asked: Vec::new(),
        }
    }

    fn started(pcp: bool, pmp: bool, upnp: bool) -> Self {
        let mut scene = Self::new(pcp, pmp, upnp);
        scene.mapper.handle_gateway(Some(gateway()));
        scene.mapper.handle_wanted(scene.now);
        scene.run(Duration::from_secs(20));
        scene
    }

    fn epoch(&self) -> [u8; 4] {
        (self.now.duration_since(self.booted).as_secs() as u32).to_be_bytes()
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            while let Some(action) = self.mapper.poll_action() {
                if let Some(news) = self.answer(action) {
                    self.mapper.handle_input(news, self.now);
                }
            }
            let Some(next) = self.mapper.poll_timeout().filter(|next| *next <= end) else { break };
            self.now = next.max(self.now);
            self.mapper.handle_timeout(self.now);
        }
        self.now = end;
    }

    fn answer(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::Send { from, to, payload } => {
                assert_eq!(from, gateway().local);
                let payload = self.answer_datagram(to, &payload)?;
                let port = if to.port() == PORT { PORT } else { 49_152 };
                Some(Input::Datagram { from: SocketAddrV4::new(gateway().address, port), payload })
            }
            Action::Http { id, to, path, call } => {
                assert_eq!(to, "192.168.1.1:5000".parse().unwrap());
                if !self.speaks.2 {
                    return Some(Input::Http { id, outcome: Err("refused".into()) });
                }
                Some(Input::Http { id, outcome: Ok(self.answer_http(&path, call).into_bytes()) })
            }
        }
    }

    fn answer_datagram(&mut self, to: SocketAddrV4, payload: &[u8]) -> Option<Vec<u8>> {
        let (pcp, pmp, upnp) = self.speaks;
        if to.port() == ssdp::PORT {
            self.asked.push("search".into());
            let answer =
                format!("HTTP/1.1 200 OK\r\nST: {}\r\nLOCATION: http://192.168.1.1:5000/d.xml\r\n\r\n", ssdp::GATEWAY);
            return upnp.then(|| answer.into_bytes());
        }
        assert_eq!(to, SocketAddrV4::new(gateway().address, PORT));
        let mut answer = payload.to_vec();
        match (payload[0], payload[1]) {
            (2, opcode) => {
                self.asked.push(if opcode == 1 {
                    format!("pcp map {}", u32::from_be_bytes([payload[4], payload[5], payload[6], payload[7]]))
                } else {
                    "announce".into()
                });
                if !pcp {
                    return pmp.then(|| vec![0, 0x80, 0, 1, 0, 0, 0, 0]);
                }
                answer[1] |= 0x80;
                answer[4..8].copy_from_slice(&self.lifetime.to_be_bytes());
                answer[8..12].copy_from_slice(&self.epoch());
                if opcode == 1 {
                    answer[44..60].copy_from_slice(&self.external.to_ipv6_mapped().octets());
                }
            }
            (0, 0) => {
                self.asked.push("address".into());
                answer = vec![0, 0x80, 0, 0];
                answer.extend(self.epoch());
                answer.extend(self.external.octets());
            }
            (0, 1) => {
                self.asked.push("pmp map".into());
                answer = vec![0, 0x81, 0, 0];
                answer.extend(self.epoch());
                answer.extend(&payload[4..8]);
                answer.extend(self.lifetime.to_be_bytes());
            }
            other => panic!("{other:?}"),
        }
        (pcp || pmp).then_some(answer)
    }

    fn answer_http(&mut self, path: &str, call: Option<(String, String)>) -> String {
        let Some((action, body)) = call else {
            self.asked.push(format!("GET {path}"));
            return "<root><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
                    <controlURL>/ctl</controlURL></service></root>"
                .into();
        };
        assert_eq!(path, "/ctl");
        let name = action.trim_matches('"').split('#').nth(1).unwrap().to_owned();
        let inside = match name.as_str() {
            "AddPortMapping" => {
                let port = body.split("NewExternalPort>").nth(1).unwrap().trim_end_matches("</").to_owned();
                let lease = body.split("NewLeaseDuration>").nth(1).unwrap().trim_end_matches("</").to_owned();
                self.asked.push(format!("open {port} {lease}"));
                match self.faults.pop() {
                    Some(code) => format!("<Fault><errorCode>{code}</errorCode></Fault>"),
                    None => String::new(),
                }
            }
            other => {
                self.asked.push(other.to_owned());
                format!("<NewExternalIPAddress>{}</NewExternalIPAddress>", self.external)
            }
        };
        format!("<Envelope><Body>{inside}</Body></Envelope>")
    }

    fn take_asked(&mut self) -> Vec<String> {
        std::mem::take(&mut self.asked)
    }

    fn external(&self) -> Option<SocketAddr> {
        self.mapper.report().external
    }
}

#[test]
fn pcp_is_asked_first_and_alone_where_it_works() {
    let mut scene = Scene::started(true, true, true);
    assert_eq!(scene.external(), Some("203.0.113.9:41741".parse().unwrap()));
    assert_eq!(scene.take_asked(), ["pcp map 7200"]);
    let report = scene.mapper.report();
    assert_eq!((report.pcp, report.pmp, report.upnp), (Some(true), None, None));
}

#[test]
fn a_gateway_that_knows_only_nat_pmp_is_asked_by_it_at_once() {
    let mut scene = Scene::started(false, true, true);
    assert_eq!(scene.take_asked(), ["pcp map 7200", "pmp map", "address"]);
    assert_eq!(scene.external(), Some("203.0.113.9:41741".parse().unwrap()));
    let report = scene.mapper.report();
    assert_eq!((report.pcp, report.pmp, report.upnp), (Some(false), Some(true), None));
}

#[test]
fn upnp_is_looked_for_last() {
    let mut scene = Scene::started(false, false, true);
    let asked = scene.take_asked();
    assert_eq!(
        asked[3..],
        [
            "pmp map",
            "address",
            "pmp map",
            "address",
            "pmp map",
            "address",
            "search",
            "search",
            "GET /d.xml",
            "open 41741 7200",
            "GetExternalIPAddress"
        ]
    );
    assert_eq!(scene.external(), Some("203.0.113.9:41741".parse().unwrap()));
    assert_eq!(scene.mapper.report().upnp, Some(true));
}

#[test]
fn a_upnp_port_that_is_taken_and_a_lease_that_is_not_known_are_asked_for_otherwise() {
    let mut scene = Scene::new(false, false, true);
    scene.faults = vec![igd::ONLY_PERMANENT, igd::CONFLICT];
    scene.mapper.handle_gateway(Some(gateway()));
    scene.mapper.handle_wanted(scene.now);
    scene.run(Duration::from_secs(20));
    let port = u16::from_be_bytes([NONCE[2], NONCE[3]]) | 0x4000;
    let asked = scene.take_asked();
    let opened: Vec<&String> = asked.iter().filter(|line| line.starts_with("open")).collect();
    assert_eq!(opened, [&format!("open {PORT_US} 7200"), &format!("open {port} 7200"), &format!("open {port} 0")]);
    assert_eq!(scene.external(), Some(SocketAddr::new(EXTERNAL.into(), port)));
}

#[test]
fn a_gateway_that_opens_nothing_is_left_alone_for_a_while() {
    let mut scene = Scene::started(false, false, false);
    let report = scene.mapper.report();
    assert_eq!((report.pcp, report.pmp, report.upnp), (Some(false), Some(false), Some(false)));
    assert!(scene.take_asked().len() < 20);
    scene.mapper.handle_wanted(scene.now);
    scene.run(Duration::from_secs(60));
    assert!(scene.take_asked().is_empty());
    scene.run(REST);
    scene.mapper.handle_wanted(scene.now);
    scene.run(Duration::from_secs(60));
    assert!(!scene.take_asked().is_empty());
}

#[test]
fn a_mapping_is_renewed_at_half_its_lifetime_and_lost_at_its_end() {
    for (pcp, pmp, upnp, lines) in [(true, false, false, 1), (false, true, false, 2), (false, false, true, 2)] {
        let mut scene = Scene::started(pcp, pmp, upnp);
        scene.take_asked();
        scene.run(Duration::from_secs(3_500));
        assert_eq!(scene.take_asked(), Vec::<String>::new());
        scene.run(Duration::from_secs(200));
        assert_eq!(scene.take_asked().len(), lines);
        assert!(scene.external().is_some());

        scene.speaks = (false, false, false);
        scene.run(Duration::from_secs(7_000));
        assert!(scene.external().is_some(), "a gateway that does not answer may still forward");
        scene.run(Duration::from_secs(400));
        assert_eq!(scene.external(), None);
    }
}

#[test]
fn a_gateway_that_lost_its_memory_is_asked_again() {
    for (pcp, check) in [(true, "announce"), (false, "address")] {
        let mut scene = Scene::started(pcp, !pcp, false);
        scene.take_asked();
        scene.run(CHECK_EVERY);
        scene.mapper.handle_wanted(scene.now);
        scene.run(Duration::from_secs(5));
        assert_eq!(scene.take_asked(), [check], "nothing is lost");

        scene.run(CHECK_EVERY);
        scene.booted = scene.now;
        scene.mapper.handle_wanted(scene.now);
        scene.run(Duration::from_secs(5));
        assert_eq!(scene.take_asked().len(), if pcp { 2 } else { 3 });
    }
}

#[test]
fn another_address_of_the_gateway_is_noticed() {
    let mut scene = Scene::started(false, true, false);
    scene.external = Ipv4Addr::new(198, 51, 100, 4);
    scene.run(CHECK_EVERY);
    scene.mapper.handle_wanted(scene.now);
    scene.run(Duration::from_secs(5));
    assert_eq!(scene.external(), Some("198.51.100.4:41741".parse().unwrap()));
}

#[test]
fn another_gateway_is_another_world() {
    let mut scene = Scene::started(true, false, false);
    scene.mapper.handle_gateway(None);
    assert_eq!(scene.mapper.report(), MappingReport::default());
    scene.mapper.handle_wanted(scene.now);
    assert_eq!(scene.mapper.poll_timeout(), None);
}

#[test]
fn a_mapping_is_given_back_when_the_node_leaves() {
    for (pcp, pmp, upnp, line) in
        [(true, false, false, "pcp map 0"), (false, true, false, "pmp map"), (false, false, true, "DeletePortMapping")]
    {
        let mut scene = Scene::started(pcp, pmp, upnp);
        scene.take_asked();
        scene.mapper.handle_release();
        scene.run(Duration::from_secs(100_000));
        assert_eq!(scene.take_asked(), [line]);
        assert_eq!(scene.external(), None);
    }
}

#[test]
fn only_the_gateway_is_believed() {
    let mut scene = Scene::new(true, false, false);
    scene.mapper.handle_gateway(Some(gateway()));
    scene.mapper.handle_wanted(scene.now);
    let Some(Action::Send { payload, .. }) = scene.mapper.poll_action() else { panic!("nothing was asked") };
    let answer = scene.answer_datagram(SocketAddrV4::new(gateway().address, PORT), &payload).unwrap();
    let mut with = |from: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut payload = answer.clone();
        change(&mut payload);
        let from = from.parse().unwrap();
        scene.mapper.handle_input(Input::Datagram { from, payload }, scene.now);
        scene.mapper.report().external
    };
    assert_eq!(with("192.168.1.66:5351", &|_| ()), None, "somebody else");
    assert_eq!(with("192.168.1.1:5352", &|_| ()), None, "another port");
    assert_eq!(with("192.168.1.1:5351", &|bytes| bytes[24] ^= 1), None, "another nonce");
    assert_eq!(with("192.168.1.1:5351", &|bytes| bytes[40] ^= 1), None, "another port of ours");
    assert!(with("192.168.1.1:5351", &|_| ()).is_some());
}

#[test]
fn a_description_elsewhere_than_on_the_gateway_is_not_fetched() {
    let mut scene = Scene::new(false, false, false);
    scene.mapper.handle_gateway(Some(gateway()));
    scene.mapper.handle_wanted(scene.now);
    scene.run(Duration::from_millis(3_700));
    let answer = |place: &str| {
        let text = format!("HTTP/1.1 200 OK\r\nST: {}\r\nLOCATION: http://{place}/d.xml\r\n\r\n", ssdp::GATEWAY);
        let from = SocketAddrV4::new(gateway().address, 1900);
        Input::Datagram { from, payload: text.into_bytes() }
    };
    scene.mapper.handle_input(answer("169.254.169.254"), scene.now);
    assert!(!std::iter::from_fn(|| scene.mapper.poll_action()).any(|action| matches!(action, Action::Http { .. })));
    scene.mapper.handle_input(answer("192.168.1.1:5000"), scene.now);
    assert!(std::iter::from_fn(|| scene.mapper.poll_action()).any(|action| matches!(action, Action::Http { .. })));
}

#[test]
fn a_host_with_an_address_of_the_world_asks_no_gateway() {
    let mut scene = Scene::new(true, true, true);
    scene
        .mapper
        .handle_gateway(Some(Gateway { address: Ipv4Addr::new(203, 0, 113, 1), local: Ipv4Addr::new(203, 0, 113, 5) }));
    scene.mapper.handle_wanted(scene.now);
    assert_eq!(scene.mapper.poll_action(), None);
}
