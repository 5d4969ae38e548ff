//! GitHub, which has no ID token: whom it names is what it answers about whoever the access token is of.
//!
//! Who somebody is, is their number: names there can be given up and taken by others. Organisations and teams are named
//! by their number too (`12345`), beside what they are called (`acme`, `acme/ops`).

use http::{HeaderValue, Method, StatusCode, header};
use openidconnect::url::{Url, form_urlencoded};
use openidconnect::{AccessToken, PkceCodeChallenge, PkceCodeVerifier};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use warren_core::registry::{Arrival, Email};
use warren_shell::chain;

use super::described::{Described, Person};
use super::fetch::Fetch;

/// Where it is for everybody; an installation of one's own has its interface below its own address.
const PUBLIC: &str = "https://github.com";
const PUBLIC_API: &str = "https://api.github.com";
/// Organisations and teams that are looked at of one person: a page of them.
const PER_PAGE: &str = "per_page=100";

/// GitHub, or an installation of it.
pub(super) struct GitHub {
    fetch: Fetch,
    /// Where people sign in, and where programs ask.
    base: String,
    api: String,
}

#[derive(Deserialize)]
struct Token {
    access_token: Option<AccessToken>,
}

#[derive(Deserialize)]
struct User {
    id: u64,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    avatar_url: Option<String>,
}

#[derive(Deserialize)]
struct Address {
    email: String,
    primary: bool,
    verified: bool,
}

#[derive(Deserialize)]
struct Organisation {
    id: u64,
    login: String,
}

#[derive(Deserialize)]
struct Team {
    id: u64,
    slug: String,
    organization: Organisation,
}

impl GitHub {
    pub(super) fn new(fetch: Fetch, issuer: &str) -> Self {
        let base = issuer.trim_end_matches('/').to_owned();
        let api = if base == PUBLIC { PUBLIC_API.to_owned() } else { format!("{base}/api/v3") };
        Self { fetch, base, api }
    }

    /// Where to send somebody.
    pub(super) fn ask(
        &self,
        described: &Described,
        state: &str,
        challenge: &PkceCodeChallenge,
        callback: &str,
    ) -> Result<Url, String> {
        let mut url: Url = format!("{}/login/oauth/authorize", self.base).parse().map_err(|_| "it is nowhere")?;
        let organisations = if described.rules.has_groups() { " read:org" } else { "" };
        url.query_pairs_mut()
            .append_pair("client_id", &described.client_id)
            .append_pair("redirect_uri", callback)
            .append_pair("scope", &format!("read:user user:email{organisations}"))
            .append_pair("state", state)
            .append_pair("code_challenge", challenge.as_str())
            .append_pair("code_challenge_method", "S256");
        Ok(url)
    }

    /// Whom it names by a code.
    pub(super) async fn named(
        &self,
        described: &Described,
        code: &str,
        verifier: &PkceCodeVerifier,
        callback: &str,
    ) -> Result<Arrival, String> {
        let token = self.exchange(described, code, verifier, callback).await?;
        let user: User = self.get(&token, "user").await?;
        let addresses: Vec<Address> = self.get(&token, "user/emails").await?;
        let primary = addresses.into_iter().find(|address| address.primary);
        let email = primary.map(|address| Email { address: address.email, verified: address.verified });
        let mut groups = Vec::new();
        if described.rules.has_groups() {
            let organisations: Vec<Organisation> = self.get(&token, &format!("user/orgs?{PER_PAGE}")).await?;
            let teams: Vec<Team> = self.get(&token, &format!("user/teams?{PER_PAGE}")).await?;
            groups.extend(organisations.into_iter().flat_map(|one| [one.id.to_string(), one.login]));
            let team = |team: Team| [team.id.to_string(), format!("{}/{}", team.organization.login, team.slug)];
            groups.extend(teams.into_iter().flat_map(team));
        }
        let (name, picture) = (user.name, user.avatar_url);
        let subject = user.id.to_string();
        Ok(described.arrival(Person { subject, email, organisation: None, groups, name, picture }))
    }

    async fn exchange(
        &self,
        described: &Described,
        code: &str,
        verifier: &PkceCodeVerifier,
        callback: &str,
    ) -> Result<AccessToken, String> {
        let secret = described.client_secret.as_ref().map(|secret| secret.secret().as_str()).unwrap_or_default();
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("client_id", &described.client_id)
            .append_pair("client_secret", secret)
            .append_pair("code", code)
            .append_pair("redirect_uri", callback)
            .append_pair("code_verifier", verifier.secret())
            .finish();
        let mut request = http::Request::new(form.into_bytes());
        *request.method_mut() = Method::POST;
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(header::CONTENT_TYPE, kind);
        // Errors come with status 200 too.
        let token: Token = self.ask_for(request, &format!("{}/login/oauth/access_token", self.base)).await?;
        token.access_token.ok_or_else(|| "it does not take the code that it gave".to_owned())
    }

    async fn get<T: DeserializeOwned>(&self, token: &AccessToken, path: &str) -> Result<T, String> {
        let mut request = http::Request::new(Vec::new());
        let bearer = HeaderValue::from_str(&format!("Bearer {}", token.secret()));
        let mut bearer = bearer.map_err(|_| "its access token cannot be sent")?;
        bearer.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
        self.ask_for(request, &format!("{}/{path}", self.api)).await
    }

    async fn ask_for<T: DeserializeOwned>(&self, mut request: http::Request<Vec<u8>>, url: &str) -> Result<T, String> {
        *request.uri_mut() = url.parse().map_err(|_| format!("{url} is no address"))?;
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let answer = self.fetch.ask(request).await.map_err(|error| chain(&error))?;
        if answer.status() != StatusCode::OK {
            return Err(format!("asked at {url}, it answered {}", answer.status()));
        }
        serde_json::from_slice(answer.body()).map_err(|_| format!("what it answers at {url} cannot be read"))
    }
}
