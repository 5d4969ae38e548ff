//! `[oidc.NAME]`: a provider by which people sign in.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use openidconnect::ClientSecret;
use serde::{Deserialize, Serialize};
use warren_core::registry::{ProviderName, Rules};

use super::{ConfigError, ServerUrl, wrong};
use crate::service::{Described, Kind};

/// What is asked for where nobody says it: who somebody is, their address, and their name.
const SCOPES: [&str; 3] = ["openid", "email", "profile"];
/// Where GitHub is, unless it is an installation of one's own.
const GITHUB: &str = "https://github.com";
/// Where the service manager puts credentials, and how one of a provider is called there.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// The longest secret that is read; none is a tenth of it.
const SECRET_BYTES: usize = 4096;

/// The providers by name.
pub(crate) type Providers = BTreeMap<ProviderName, Oidc>;

/// A provider, as it is written.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Oidc {
    #[serde(default)]
    kind: Kind,
    issuer: Option<String>,
    client_id: String,
    client_secret_file: Option<PathBuf>,
    title: Option<String>,
    scopes: Option<Vec<String>>,
    #[serde(default)]
    allowed_domains: Vec<String>,
    #[serde(default)]
    allowed_users: Vec<String>,
    #[serde(default)]
    allowed_groups: Vec<String>,
    groups_claim: Option<String>,
    approval: Option<bool>,
    #[serde(default)]
    trust_email: bool,
    #[serde(default)]
    trusted_audiences: Vec<String>,
}

/// The providers, with what is secret read from its place.
pub(super) fn settle(given: Option<Providers>, url: Option<&ServerUrl>) -> Result<Vec<Described>, ConfigError> {
    let given = given.unwrap_or_default();
    if let (Some(name), None) = (given.keys().next(), url) {
        let reason = "people come back from it to `server_url`, which is not set";
        return Err(wrong(&format!("oidc.{name}"), reason));
    }
    given.into_iter().map(|(name, provider)| describe(name, provider)).collect()
}

fn describe(name: ProviderName, given: Oidc) -> Result<Described, ConfigError> {
    let wrong = |key: &str, reason: String| wrong(&format!("oidc.{name}.{key}"), reason);
    let (domains, users, groups) = (&given.allowed_domains, &given.allowed_users, &given.allowed_groups);
    let issuer = match (given.issuer, given.kind) {
        (Some(issuer), Kind::Oidc | Kind::Github) => issuer,
        (None, Kind::Github) => GITHUB.to_owned(),
        (None, Kind::Oidc) => return Err(wrong("issuer", "it has to be said".to_owned())),
    };
    let rules = Rules::new(domains, users, groups, given.approval).map_err(|reason| wrong("allowed", reason))?;
    let in_credentials = std::env::var_os(CREDENTIALS).map(|dir| Path::new(&dir).join(format!("oidc.{name}")));
    let file = given.client_secret_file.or_else(|| in_credentials.filter(|file| file.exists()));
    let secret = file.map(|file| read_secret(&file)).transpose();
    Ok(Described {
        title: given.title.unwrap_or_else(|| name.to_string()),
        issuer,
        kind: given.kind,
        client_id: given.client_id,
        client_secret: secret.map_err(|reason| wrong("client_secret_file", reason))?,
        scopes: given.scopes.unwrap_or_else(|| SCOPES.map(str::to_owned).to_vec()),
        trusted_audiences: given.trusted_audiences,
        groups_claim: given.groups_claim.unwrap_or_else(|| "groups".to_owned()),
        trust_email: given.trust_email,
        rules,
        name,
    })
}

fn read_secret(file: &Path) -> Result<ClientSecret, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let secret = text.trim_end_matches(['\r', '\n']);
    match (1..=SECRET_BYTES).contains(&secret.len()) && !secret.contains('\n') {
        true => Ok(ClientSecret::new(secret.to_owned())),
        false => Err(format!("{}: it is not one line of up to {SECRET_BYTES} bytes", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, parse};

    fn error(text: &str) -> String {
        parse(text).and_then(Settings::of).unwrap_err().to_string()
    }

    fn with(provider: &str) -> String {
        format!(
            "server_url = \"https://vpn.example.org\"\n[oidc.corp]\nissuer = \"https://idp.example.org\"\n\
             client_id = \"warren\"\n{provider}"
        )
    }

    #[test]
    fn a_provider_is_described_with_its_secret_from_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "hunter2\n").unwrap();
        let text = with(&format!(
            "client_secret_file = {:?}\nallowed_domains = [\"Example.org\"]\ntitle = \"Corp\"\n[oidc.other]\nkind = \"github\"\nclient_id = \"w\"",
            file.path()
        ));
        let settings = Settings::of(parse(&text).unwrap()).unwrap();
        let [corp, other] = settings.oidc.as_slice() else { panic!("{settings:?}") };
        assert_eq!(corp.client_secret.as_ref().unwrap().secret(), "hunter2");
        assert_eq!((corp.title.as_str(), other.title.as_str(), other.issuer.as_str()), ("Corp", "other", GITHUB));
        assert_eq!(other.scopes, SCOPES);
        assert!(other.client_secret.is_none() && !format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_wrong_with_a_provider_is_said_by_its_name() {
        let no_url = with("").replace("server_url", "#server_url");
        for (text, said) in [
            (no_url, "configuration: oidc.corp: people come back from it to `server_url`"),
            (
                with("allowed_domains = [\"gmail.com\"]"),
                "configuration: oidc.corp.allowed: anybody may have an address",
            ),
            (with("allowed_users = [\"ada\"]"), "configuration: oidc.corp.allowed: \"ada\" is no address"),
            (
                with("client_secret_file = \"/nonexistent\""),
                "configuration: oidc.corp.client_secret_file: /nonexistent: ",
            ),
            (with("client_secret = \"x\""), "coordinator.toml: oidc.corp.client_secret: "),
            (
                with("[oidc.Corp]\nissuer = \"x\"\nclient_id = \"x\""),
                "coordinator.toml: oidc.Corp: the name of a provider",
            ),
            ("[oidc.corp]\nissuer = \"x\"".to_owned(), "coordinator.toml: oidc.corp: missing field `client_id`"),
            (
                "server_url = \"https://x\"\n[oidc.corp]\nclient_id = \"x\"".to_owned(),
                "configuration: oidc.corp.issuer: ",
            ),
            ("oidc = 1".to_owned(), "coordinator.toml: oidc: "),
        ] {
            let error = error(&text);
            assert!(error.starts_with(said), "{text} gave {error}");
        }
    }
}
