//! The administrator's side of the socket.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use http::Method;

use super::table;
use warren_core::types::text::{Line, Screen};
use warren_core::wire::admin::{PATH, Reply, Request};
use warren_shell::unix_client;

/// What this server goes by on its socket.
pub(super) const HOST: &str = "localhost";
/// A listing of all nodes at their limit.
const REPLY_BYTES: usize = 256 * 1024 * 1024;

/// Asks the server behind the socket and prints its answer; the error is a sentence.
pub(crate) async fn run(socket: &Path, request: &Request, json: bool) -> Result<(), String> {
    let reply = ask(socket, request).await?;
    let text = if json { as_json(&reply)? } else { table::text(&reply) };
    if let Reply::NewKey(new) = &reply
        && new.user_created
        && !json
    {
        eprintln!("user {} was made", Line(&new.record.user));
    }
    // A policy that goes into a file is what was set, to the byte.
    if matches!(reply, Reply::Policy(_)) && !json && !io::stdout().is_terminal() {
        return written(io::stdout().lock().write_all(text.as_bytes()));
    }
    show(&text, json)?;
    if !json {
        reply.notes().iter().for_each(|note| eprintln!("{}", Line(note)));
    }
    if let (Reply::NewKey(new), false) = (&reply, json)
        && let Some(key) = new.coordinator_key
    {
        let command = format!("warren up --coordinator URL --coordinator-key {key} --auth-key KEY");
        eprintln!("on the node: {}", Line(&command));
    }
    Ok(())
}

async fn ask(socket: &Path, request: &Request) -> Result<Reply, String> {
    let unreachable = |error: &dyn std::fmt::Display| {
        format!("{}: {error}; is `warren-coordinator serve` running, and are you root or its user?", socket.display())
    };
    let body = serde_json::to_vec(request).map_err(|error| error.to_string())?;
    let request = unix_client::request(Method::POST, PATH, HOST, body).map_err(|error| error.to_string())?;
    let response = unix_client::send(socket, request).await.map_err(|error| unreachable(&error))?;
    let status = response.status();
    let body = unix_client::whole(response.into_body(), REPLY_BYTES).await.map_err(|error| error.to_string())?;
    if !status.is_success() {
        return Err(String::from_utf8_lossy(&body).into_owned());
    }
    serde_json::from_slice(&body).map_err(|error| format!("{}: unexpected answer: {error}", socket.display()))
}

fn as_json(reply: &Reply) -> Result<String, String> {
    let mut value = serde_json::to_value(reply).map_err(|error| error.to_string())?;
    let content = value.get_mut("content").map(serde_json::Value::take).unwrap_or_default();
    serde_json::to_string_pretty(&content).map(|text| text + "\n").map_err(|error| error.to_string())
}

/// Prints what is for people, or JSON: no name in it tells a terminal what to do.
pub(crate) fn show(text: &str, json: bool) -> Result<(), String> {
    written(Screen::new(io::stdout().lock(), json).write_all(text.as_bytes()))
}

/// A reader that has seen enough, as `head`, is no error.
fn written(result: io::Result<()>) -> Result<(), String> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(format!("standard output: {error}")),
        _ => Ok(()),
    }
}
