//! The faces: how others see the coordinator. Each speaks one protocol, says who asks, and knows the service alone; none
//! knows another.
//!
//! | face | who | speaks |
//! | --- | --- | --- |
//! | [`node`] | machines | `/key`, then HTTP/2 in a Noise channel: to register, the map |
//! | [`relay`] | clients of the embedded relay, and other relays | DERP, and whether a client is admitted |
//! | [`sign_in`] | people in a browser | the page of a machine that waits, and the way to a provider and back |
//! | [`health`] | monitors | whether all is well |
//! | [`admin_socket`] | accounts of this host | administration in JSON |
//! | [`metrics`] | monitors on this host | figures |
//!
//! `answer` and `connection` are what several of them say and know alike.

pub(crate) mod admin_socket;
mod answer;
mod connection;
pub(crate) mod health;
pub(crate) mod metrics;
pub(crate) mod node;
pub(crate) mod relay;
pub(crate) mod sign_in;

pub(crate) use answer::refuse;
pub(crate) use connection::{Connection, PublicUrl, SiteRate};
