//! A port of the gateway that leads to us: PCP (RFC 6887), NAT-PMP (RFC 6886), UPnP's internet gateway device.

mod news;

pub use news::{Action, News};
