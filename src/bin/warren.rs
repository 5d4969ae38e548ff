//! The command line: `warren`.

fn main() {}
