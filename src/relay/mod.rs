//! The relay's shell: listener, TLS and metrics around the relay protocol and STUN.
