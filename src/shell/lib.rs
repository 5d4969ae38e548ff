//! What more than one program's shell needs: the codecs of `wire` laid over a socket, connections to others, open ports,
//! certificates, secret files, the log, tasks that a program cannot do without, what the service manager is told.
//!
//! Its own module because the programs, such as the agent and the coordinator as the two ends of the control
//! protocol, may not name each other. Nothing here decides anything.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

mod certificate_files;
mod dial;
mod directory_lock;
mod listening;
mod logging;
mod metrics;
mod noise_stream;
mod pinned;
mod places;
mod rate;
mod secret_file;
mod server_certificate;
mod service_manager;
mod table;
pub mod unix_client;
mod vital;
mod websocket;

pub use certificate_files::{CertificateFiles, FileStamp, file_stamp, open_to_all};
pub use dial::{CONNECT_TIME, DIAL_TIME, DialTarget, Dialler, Found, LookUp, NAME_TIME, System};
pub use directory_lock::{DirectoryLock, DirectoryLockError};
pub use listening::{bind, bind_udp, tune};
pub use logging::{CleanFields, LogFilter, log_to_stderr};
pub use metrics::serve_metrics;
pub use noise_stream::NoiseStream;
pub use pinned::CertificatePin;
pub use places::{HeldPlace, Places, Room, possible_connections};
pub use rate::{Buckets, Rates};
pub use secret_file::{keep_private, kept_key, make_directory, write_secret};
pub use server_certificate::{ServerCertificate, client_config};
pub use service_manager::{Heartbeat, keep_for_next, kept_by_last, tell_manager};
pub use table::table;
pub use vital::{FATAL, Watch, lasting, locked, vital};
pub use websocket::{WebSocketBytes, websocket_accept};

/// An error and what caused it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
