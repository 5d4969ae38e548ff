//! The administrator's side of the socket.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use data_encoding::BASE64;
use fast_qr::QRBuilder;
use http::Method;
use zeroize::Zeroizing;

use super::table;
use warren_core::types::NodePrivate;
use warren_core::types::text::{Line, Screen};
use warren_core::wire::admin::{PATH, PRIVATE_KEY, Reply, Request};
use warren_shell::unix_client;

/// What this server goes by on its socket.
pub(super) const HOST: &str = "localhost";
/// A listing of all nodes at their limit.
const REPLY_BYTES: usize = 256 * 1024 * 1024;

/// Asks the server behind the socket and prints its answer; the error is a sentence.
pub(crate) async fn run(socket: &Path, request: &Request, json: bool) -> Result<(), String> {
    print(ask(socket, request).await?, json)
}

/// The same for a device, whose file gets the private key that was made for it. The server never hears of that.
pub(crate) async fn run_device(
    socket: &Path,
    request: &Request,
    key: Option<&NodePrivate>,
    json: bool,
) -> Result<(), String> {
    let mut reply = ask(socket, request).await?;
    let Reply::Device(device) = &mut reply else { return print(reply, json) };
    let Some(key) = key else {
        eprintln!("{}", Line(&format!("put the device's private key in place of {PRIVATE_KEY}")));
        return print(reply, json);
    };
    // It is printed for the device, this once.
    let secret = Zeroizing::new(BASE64.encode(key.expose_bytes()));
    let text = Zeroizing::new(device.config.replace(PRIVATE_KEY, &secret));
    device.config.clone_from(&text);
    let picture = (!json && io::stdout().is_terminal()).then(|| QRBuilder::new(text.as_str()).build().ok()).flatten();
    print(reply, json)?;
    match picture {
        Some(picture) => show(&format!("\n{}\n", picture.to_str()), json),
        None => Ok(()),
    }
}

fn print(reply: Reply, json: bool) -> Result<(), String> {
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
