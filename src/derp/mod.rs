//! The relay protocol, both ends: client (log-in, keep-alive, reconnect) and server (routing, limits).
