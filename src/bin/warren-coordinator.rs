//! The coordinator: `warren-coordinator`.

fn main() {}
