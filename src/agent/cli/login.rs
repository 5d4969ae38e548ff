//! `up` and `login`: settings, sign-in, and the wait until the machine is in.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use fast_qr::QRBuilder;

use super::args::{Login, SignIn, Up};
use super::client::{Client, Notices};
use super::{Error, Exit, exit_node, print_json};
use warren_core::types::Ticket;
use warren_core::types::text::Line;
use warren_core::wire::local::{BackendState, Mask, MaskedPrefs, Prefs, StartOptions};

/// `warren up`.
pub(super) async fn up(client: &Client, up: Up, json: bool, out: &mut (impl Write + Send)) -> Result<Exit, Error> {
    let mut change = change(up.settings.change()?, &up.sign_in);
    exit_node::choose(client, up.settings.exit_node.as_deref(), &mut change).await?;
    let before = if up.reset { fresh(client.prefs().await?) } else { client.prefs().await? };
    let prefs = change.apply(&before).map_err(|error| Error::Usage(error.to_string()))?;
    sign_in(client, prefs, &up.sign_in, up.force_reauth, json, out).await
}

/// `warren login`.
pub(super) async fn login(
    client: &Client,
    login: Login,
    json: bool,
    out: &mut (impl Write + Send),
) -> Result<Exit, Error> {
    let mut change = change(login.settings.change()?, &login.sign_in);
    exit_node::choose(client, login.settings.exit_node.as_deref(), &mut change).await?;
    let prefs = change.apply(&client.prefs().await?).map_err(|error| Error::Usage(error.to_string()))?;
    sign_in(client, prefs, &login.sign_in, true, json, out).await
}

/// The settings, and what every sign-in says beside them.
fn change(mut change: MaskedPrefs, sign_in: &SignIn) -> MaskedPrefs {
    if let Some(coordinator) = &sign_in.coordinator {
        change.set("ControlURL", coordinator.trim_end_matches('/'));
    }
    change.set("WantRunning", true);
    change.set("LoggedOut", false);
    change
}

/// The defaults, but for what a reset must not lose: where the machine belongs.
fn fresh(prefs: Prefs) -> Prefs {
    Prefs { control_url: prefs.control_url, profile_name: prefs.profile_name, ..Prefs::initial() }
}

async fn sign_in(
    client: &Client,
    prefs: Prefs,
    how: &SignIn,
    anew: bool,
    json: bool,
    out: &mut (impl Write + Send),
) -> Result<Exit, Error> {
    if prefs.control_url.is_empty() {
        return Err(Error::Usage("name the coordinator once: warren up --coordinator URL".to_owned()));
    }
    prefs.check().map_err(|error| Error::Usage(error.to_string()))?;
    let auth_key = how.auth_key.as_deref().map(read_key).transpose()?.unwrap_or_default();
    let has_key = !auth_key.is_empty();
    let mut notices = client.watch(Mask::default()).await?;
    let options = StartOptions { update_prefs: Some(Box::new(prefs)), auth_key, coordinator_key: how.coordinator_key };
    client.post("start", &options).await?;
    let status = client.status(false).await?;
    if anew || (status.backend_state == BackendState::NeedsLogin && !has_key) {
        client.post("login-interactive", &()).await?;
    }
    let patience = how.timeout.filter(|timeout| !timeout.is_zero());
    let done = wait(client, &mut notices, has_key, json, out);
    match patience {
        None => done.await,
        Some(patience) => tokio::time::timeout(patience, done).await.unwrap_or_else(|_| Err(timed_out(patience))),
    }
}

/// Waits until the machine is in; shows the page where a person lets it in.
async fn wait(
    client: &Client,
    notices: &mut Notices,
    has_key: bool,
    json: bool,
    out: &mut (impl Write + Send),
) -> Result<Exit, Error> {
    let mut shown = String::new();
    let mut reasons: Vec<String> = Vec::new();
    loop {
        let status = client.status(false).await?;
        if status.backend_state == BackendState::Running {
            if json {
                return print_json(out, &serde_json::json!({ "BackendState": status.backend_state }));
            }
            if !shown.is_empty() {
                writeln!(out, "Success.")?;
            }
            return Ok(Exit::Ok);
        }
        if !has_key && !status.auth_url.is_empty() && status.auth_url != shown {
            shown.clone_from(&status.auth_url);
            show_page(&shown, status.backend_state, json, out)?;
        }
        for reason in status.health.into_iter().filter(|_| !json) {
            if !reasons.contains(&reason) {
                eprintln!("warren: waiting: {}", Line(&reason));
                reasons.push(reason);
            }
        }
        let notice = notices.next().await?;
        if let Some(error) = notice.err_message {
            return Err(Error::Failed(error));
        }
    }
}

fn show_page(url: &str, state: BackendState, json: bool, out: &mut impl Write) -> Result<(), Error> {
    if json {
        print_json(out, &serde_json::json!({ "AuthURL": url, "BackendState": state }))?;
    } else {
        writeln!(out, "\nTo authenticate, visit:\n\n\t{url}\n")?;
        if let Some(ticket) = Ticket::in_url(url) {
            writeln!(out, "The page must show this code: {}\n", ticket.code())?;
        }
        if let Some(picture) = std::io::stdout().is_terminal().then(|| picture(url)).flatten() {
            writeln!(out, "{picture}\n")?;
        }
    }
    out.flush()?;
    Ok(())
}

/// An address for a camera; none where it is too long to be one.
fn picture(url: &str) -> Option<String> {
    QRBuilder::new(url).build().ok().map(|code| code.to_str())
}

/// The key itself, or the content of the file that `file:PATH` names.
fn read_key(text: &str) -> Result<String, Error> {
    let Some(path) = text.strip_prefix("file:") else { return Ok(text.to_owned()) };
    let content = std::fs::read_to_string(Path::new(path));
    content
        .map(|content| content.trim().to_owned())
        .map_err(|error| Error::Usage(format!("--auth-key: read {path}: {error}")))
}

fn timed_out(patience: Duration) -> Error {
    Error::Timeout(format!("not in after {} seconds; `warren status` says why", patience.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_itself_or_the_content_of_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "wk-123\n").unwrap();

        assert_eq!(read_key("wk-9").unwrap(), "wk-9");
        assert_eq!(read_key(&format!("file:{}", file.path().display())).unwrap(), "wk-123");
        let error = read_key("file:/no/such/file").unwrap_err();
        assert!(error.to_string().starts_with("--auth-key: read /no/such/file:"), "{error}");
    }

    #[test]
    fn an_address_is_a_square_for_a_camera_where_it_has_room_in_one() {
        let text = picture("https://vpn.example.org/a/mfrggzdfmztwq2lknnwg23tpoa").unwrap();
        let lines: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert!(lines.iter().all(|width| *width == lines[0]) && lines[0].abs_diff(2 * lines.len()) <= 2, "{text}");
        assert!(lines[0] <= 80 && text.chars().all(|c| "\n \u{2580}\u{2584}\u{2588}".contains(c)), "{text}");
        assert!(picture(&"x".repeat(10_000)).is_none());
    }

    #[test]
    fn a_reset_keeps_the_coordinator_and_nothing_else() {
        let prefs = Prefs { control_url: "http://c".into(), shields_up: true, ..Prefs::initial() };
        assert_eq!(fresh(prefs), Prefs { control_url: "http://c".into(), ..Prefs::initial() });
    }

    #[test]
    fn signing_in_turns_the_machine_on_at_the_named_coordinator() {
        let how = SignIn { coordinator: Some("http://c:8080/".into()), ..SignIn::default() };
        let prefs =
            change(MaskedPrefs::default(), &how).apply(&Prefs { logged_out: true, ..Prefs::initial() }).unwrap();
        assert_eq!(prefs, Prefs { control_url: "http://c:8080".into(), want_running: true, ..Prefs::initial() });
    }
}
