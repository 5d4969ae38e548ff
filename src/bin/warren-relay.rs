//! The relay: `warren-relay`.

fn main() {}
