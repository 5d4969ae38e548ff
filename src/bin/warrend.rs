//! The agent: `warrend`.

fn main() {}
