//! What goes to the gateway and comes from there.

use std::net::{Ipv4Addr, SocketAddrV4};

/// What the shell is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a datagram from the one socket of port mapping.
    Send {
        /// Our address on the gateway's link: the datagram leaves from there.
        from: Ipv4Addr,
        /// The gateway, or the group of UPnP's discovery.
        to: SocketAddrV4,
        payload: Vec<u8>,
    },
    /// Ask over HTTP; answered by [`Input::Http`].
    Http {
        /// Comes back with the answer.
        id: u64,
        to: SocketAddrV4,
        path: String,
        /// A SOAP call: the `SOAPAction` header and the body, sent by POST. Without it, a GET.
        call: Option<(String, String)>,
    },
}

/// What came from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A datagram.
    Datagram {
        /// Where it came from.
        from: SocketAddrV4,
        payload: Vec<u8>,
    },
    /// The answer to [`Action::Http`].
    Http {
        /// Comes back with the answer.
        id: u64,
        /// The body, of error answers too; or why there is none.
        outcome: Result<Vec<u8>, String>,
    },
}
