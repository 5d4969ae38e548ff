//! The programs under test, which cargo puts beside the test programs: `target/debug/warrend` for `target/debug/deps/lab-…`.

use std::path::Path;

/// The path of one of the four programs.
///
/// # Panics
///
/// If it was not built: cargo builds it with the tests of its own member only, and `cargo build` builds all four.
pub(crate) fn program_path(name: &str) -> &'static str {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(program.exists(), "{} is missing: type `cargo build`", program.display());
    program.into_os_string().into_string().unwrap().leak()
}
