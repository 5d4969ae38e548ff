//! The `nft` program as our child: it lists other programs' chains for us, and changes nothing.
//!
//! It inherits our capabilities (they must be ambient for an ordinary user). It is killed when it takes too long or
//! when nobody waits for it any more.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use warren_core::types::Limit;

/// A thousand rules take it a tenth of a second on an idle machine; a machine hundred times as slow still gets its
/// answer, and a program that hangs is noticed.
const TIMEOUT: Duration = Duration::from_secs(60);
/// A thousand rules make a listing of some MB. More than this is nothing of ours, and an error before memory is spent
/// on it.
const OUTPUT: Limit = Limit::new("bytes of nft output", 64 << 20);
/// Where the system keeps administrators' programs, whatever `PATH` we were started with.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs `nft -j -n` with these arguments, and returns what it printed.
pub(super) async fn run(arguments: &[&str]) -> io::Result<String> {
    match tokio::time::timeout(TIMEOUT, run_unbounded(arguments)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            Err(io::Error::other(format!("the program nft was not found in {PATH}; install nftables")))
        }
        Ok(result) => result,
        Err(_) => Err(io::Error::other(format!("nft did not finish within {} s", TIMEOUT.as_secs()))),
    }
}

async fn run_unbounded(arguments: &[&str]) -> io::Result<String> {
    let mut child = Command::new("nft")
        .args(["-j", "-n"])
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        // Its complaints are shown.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (output, errors) = tokio::join!(read_bounded(stdout), read_bounded(stderr));
    let (output, errors) = (output?, errors?);
    let status = child.wait().await?;
    if status.success() { Ok(output) } else { Err(io::Error::other(summary(&errors, status))) }
}

async fn read_bounded(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> io::Result<String> {
    let mut text = String::new();
    if let Some(pipe) = pipe {
        let most = u64::try_from(OUTPUT.most).unwrap_or(u64::MAX);
        pipe.take(most + 1).read_to_string(&mut text).await?;
        OUTPUT.check(text.len()).map_err(io::Error::other)?;
    }
    Ok(text)
}

/// The first line of the complaint: the rest repeats our own input.
fn summary(errors: &str, status: std::process::ExitStatus) -> String {
    match errors.lines().find(|line| !line.trim().is_empty()) {
        Some(line) => format!("nft: {}", line.trim()),
        None => format!("nft: {status}"),
    }
}
