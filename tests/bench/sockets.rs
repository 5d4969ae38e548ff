//! Room for many sockets.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A node is a socket here and one there; the usual limit is a thousand. What we start inherits ours.
pub(crate) fn allow_many() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("read the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raise the limit of open files");
}
