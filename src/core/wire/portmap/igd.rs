//! UPnP's internet gateway device: its description, and SOAP calls of its WAN connection service (UPnP
//! WANIPConnection:1 and :2).

use std::fmt::Write;
use std::net::Ipv4Addr;

use roxmltree::{Document, Node, ParsingOptions};

use super::{Location, MAX_XML, PortmapError};

/// The port is somebody else's (`ConflictInMappingEntry`).
pub const CONFLICT: u16 = 718;
/// Mappings never run out here (`OnlyPermanentLeasesSupported`).
pub const ONLY_PERMANENT: u16 = 725;

/// Services of a description that are looked at.
const SERVICES: usize = 32;
/// Elements, attributes and texts of a document.
const NODES: u32 = 4_096;
/// The services that map ports, best first.
const WANTED: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// How the mapping is called in the router's list.
const DESCRIPTION: &str = "warren";

/// A service that maps ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Which one, of [`WANTED`].
    kind: &'static str,
    /// Where it is called.
    pub control: Location,
}

/// A call: the `SOAPAction` header and the body.
pub type Call = (String, String);

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done. The address that it names, if it does.
    Done {
        /// Of `GetExternalIPAddress`.
        address: Option<Ipv4Addr>,
    },
    /// It was not; UPnP's error code.
    Fault(u16),
}

impl Service {
    /// Finds the best service in the description that was read at a place.
    pub fn find(description: &[u8], place: &Location) -> Result<Self, PortmapError> {
        let text = text(description)?;
        let document = parse(&text)?;
        let base = document.descendants().find(|node| named(node, "URLBase")).and_then(|node| node.text());
        let base = base.and_then(|base| Location::read(base.trim()).ok()).unwrap_or_else(|| place.clone());
        let services = document.descendants().filter(|node| named(node, "service")).take(SERVICES);
        let mut found: Vec<(usize, &str)> = services
            .filter_map(|service| {
                let kind = child(&service, "serviceType")?;
                let rank = WANTED.iter().position(|wanted| *wanted == kind)?;
                Some((rank, child(&service, "controlURL")?))
            })
            .collect();
        found.sort_unstable();
        let (rank, control) = *found.first().ok_or(PortmapError::Foreign)?;
        Ok(Self { kind: WANTED[rank], control: base.join(control)? })
    }

    /// Forwards a UDP port of the gateway to us. `lease` is in seconds, 0 for ever.
    pub fn add_port_mapping(&self, external: u16, internal: u16, client: Ipv4Addr, lease: u32) -> Call {
        self.call(
            "AddPortMapping",
            &[
                ("NewRemoteHost", ""),
                ("NewExternalPort", &external.to_string()),
                ("NewProtocol", "UDP"),
                ("NewInternalPort", &internal.to_string()),
                ("NewInternalClient", &client.to_string()),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", DESCRIPTION),
                ("NewLeaseDuration", &lease.to_string()),
            ],
        )
    }

    /// Gives a port back.
    pub fn delete_port_mapping(&self, external: u16) -> Call {
        self.call(
            "DeletePortMapping",
            &[("NewRemoteHost", ""), ("NewExternalPort", &external.to_string()), ("NewProtocol", "UDP")],
        )
    }

    /// Asks for the gateway's own address outside.
    pub fn get_external_address(&self) -> Call {
        self.call("GetExternalIPAddress", &[])
    }

    /// The arguments are numbers, addresses and words of ours: nothing in them needs escaping.
    fn call(&self, action: &str, arguments: &[(&str, &str)]) -> Call {
        let kind = self.kind;
        let mut body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{kind}\">"
        );
        for (name, value) in arguments {
            let _ = write!(body, "<{name}>{value}</{name}>");
        }
        let _ = write!(body, "</u:{action}></s:Body></s:Envelope>\r\n");
        (format!("\"{kind}#{action}\""), body)
    }
}

/// Reads the answer to a call.
pub fn read(answer: &[u8]) -> Result<Answer, PortmapError> {
    let text = text(answer)?;
    let document = parse(&text)?;
    if !named(&document.root_element(), "Envelope") {
        return Err(PortmapError::Xml);
    }
    let find = |name: &str| document.descendants().find(|node| named(node, name));
    if find("Fault").is_some() {
        let code = find("errorCode").and_then(|node| node.text()).and_then(|code| code.trim().parse().ok());
        return Ok(Answer::Fault(code.unwrap_or(u16::MAX)));
    }
    let address = find("NewExternalIPAddress").and_then(|node| node.text()).and_then(|text| text.trim().parse().ok());
    Ok(Answer::Done { address })
}

fn text(bytes: &[u8]) -> Result<String, PortmapError> {
    if bytes.len() > MAX_XML {
        return Err(PortmapError::Length);
    }
    // Routers write names of vendors in whatever they like; what we read is ASCII. Some end with a zero byte.
    Ok(String::from_utf8_lossy(bytes).trim_matches(['\0', ' ', '\r', '\n', '\t', '\u{feff}']).to_owned())
}

/// Without a DTD, so without entities that grow.
fn parse(text: &str) -> Result<Document<'_>, PortmapError> {
    let options = ParsingOptions { allow_dtd: false, nodes_limit: NODES, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).map_err(|_| PortmapError::Xml)
}

fn named(node: &Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().name() == name
}

fn child<'a>(node: &Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.children().find(|child| named(child, name)).and_then(|child| child.text()).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESCRIPTION: &str = r#"<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><device><deviceList><device><deviceList><device><serviceList>
<service><serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType><controlURL>/ppp</controlURL></service>
<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>/ctl/IPConn</controlURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>"#;

    fn place() -> Location {
        Location::read("http://192.168.1.1:5000/rootDesc.xml").unwrap()
    }

    #[test]
    fn the_best_service_of_a_description_is_found() {
        let service = Service::find(DESCRIPTION.as_bytes(), &place()).unwrap();
        assert_eq!(service.kind, WANTED[1]);
        assert_eq!((service.control.to, service.control.path.as_str()), (place().to, "/ctl/IPConn"));
        let other = DESCRIPTION.replace("<device>", "<URLBase>http://192.168.1.1:49000/</URLBase><device>");
        assert_eq!(Service::find(other.as_bytes(), &place()).unwrap().control.to.port(), 49_000);
        let none = DESCRIPTION.replace("Connection", "Disconnection");
        assert_eq!(Service::find(none.as_bytes(), &place()), Err(PortmapError::Foreign));
    }

    #[test]
    fn a_call_says_what_is_to_be_done() {
        let service = Service::find(DESCRIPTION.as_bytes(), &place()).unwrap();
        let (action, body) = service.add_port_mapping(40_000, 41_741, Ipv4Addr::new(192, 168, 1, 5), 7_200);
        assert_eq!(action, "\"urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping\"");
        assert!(body.contains("<NewExternalPort>40000</NewExternalPort><NewProtocol>UDP</NewProtocol>"));
        assert!(body.contains("<NewInternalClient>192.168.1.5</NewInternalClient>"));
        assert!(Document::parse(&body).is_ok());
    }

    #[test]
    fn answers_are_addresses_or_faults() {
        let envelope = |body: &str| {
            format!(
                "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>{body}</s:Body></s:Envelope>\0"
            )
        };
        let address = envelope("<NewExternalIPAddress> 203.0.113.9 </NewExternalIPAddress>");
        let expected = Answer::Done { address: Some(Ipv4Addr::new(203, 0, 113, 9)) };
        assert_eq!(read(address.as_bytes()), Ok(expected));
        let fault = envelope("<s:Fault><detail><UPnPError><errorCode>718</errorCode></UPnPError></detail></s:Fault>");
        assert_eq!(read(fault.as_bytes()), Ok(Answer::Fault(CONFLICT)));
        assert_eq!(read(b"<html>login</html>"), Err(PortmapError::Xml));
    }

    #[test]
    fn documents_that_grow_or_go_deep_are_refused() {
        let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaaaaaaaa\">]><x>&a;&a;</x>";
        assert_eq!(read(bomb.as_bytes()), Err(PortmapError::Xml));
        let closed = format!("{}{}", "<a>".repeat(4_000), "</a>".repeat(4_000));
        assert_eq!(read(closed.as_bytes()), Err(PortmapError::Xml));
        let deep = "<a>".repeat(MAX_XML / 3);
        assert_eq!(read(deep.as_bytes()), Err(PortmapError::Xml));
        assert_eq!(read(&vec![b'<'; MAX_XML + 1]), Err(PortmapError::Length));
    }
}
