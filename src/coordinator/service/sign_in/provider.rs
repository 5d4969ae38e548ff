//! One provider: where it is, where it sends people, and whom it names.
//!
//! Discovery is done when somebody first wants to sign in, and again after it failed or grew old: a provider that is away
//! when the server starts keeps nobody else from anything. What a provider says is believed only as far as its signature,
//! by algorithms that we chose, says that it said it, to us, now, and in answer to what we asked.

use std::borrow::Cow;
use std::time::{Duration, Instant, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use http::{HeaderValue, Method, StatusCode, header};
use openidconnect::core::{
    CoreAuthDisplay, CoreAuthenticationFlow, CoreClaimName, CoreClaimType, CoreClient, CoreClientAuthMethod,
    CoreGrantType, CoreIdToken, CoreIdTokenVerifier, CoreJsonWebKey, CoreJsonWebKeySet,
    CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm, CoreJwsSigningAlgorithm, CoreResponseMode,
    CoreResponseType, CoreSubjectIdentifierType,
};
use openidconnect::url::Url;
use openidconnect::{
    AccessToken, AdditionalProviderMetadata, AuthType, AuthorizationCode, ClaimsVerificationError, ClientId, CsrfToken,
    IssuerUrl, Nonce, OAuth2TokenResponse, PkceCodeChallenge, PkceCodeVerifier, ProviderMetadata, RedirectUrl, Scope,
    SignatureVerificationError, TokenResponse,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use warren_core::registry::Arrival;
use warren_shell::chain;

use super::claims::Claims;
use super::described::{Described, Kind};
use super::fetch::Fetch;
use super::github::GitHub;
use crate::clock;

/// How long what a provider said of itself is taken for true.
const FRESH: Duration = Duration::from_secs(60 * 60);
/// How long a provider that did not answer is left alone.
const PAUSE: Duration = Duration::from_secs(5);
/// How often its keys are asked for because a token names one that is not among them.
const KEYS_ANEW: Duration = Duration::from_secs(60);
/// By how much its clock may differ from ours.
const LEEWAY: Duration = Duration::from_secs(60);
/// The algorithms whose signatures count: those by which nobody who only checks can sign.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 5] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

/// A provider, and what it said of itself.
pub(super) struct Known {
    pub(super) described: Described,
    fetch: Fetch,
    /// Where it is GitHub, which says nothing of itself.
    github: Option<GitHub>,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    metadata: Option<(Metadata, Instant)>,
    failed: Option<(NotNamed, Instant)>,
    keys_at: Option<Instant>,
}

/// What is kept of an attempt to sign in until its answer comes. GitHub gives nothing back that has the nonce in it.
pub(super) struct Asked {
    nonce: Nonce,
    verifier: PkceCodeVerifier,
}

/// What a provider sends back with somebody.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    state: Option<String>,
    code: Option<String>,
    error: Option<String>,
    iss: Option<String>,
}

impl Answer {
    /// What says which attempt it is about.
    pub(crate) fn state(&self) -> &str {
        self.state.as_deref().unwrap_or_default()
    }
}

/// Why somebody is not signed in, in a sentence.
#[derive(Clone, Debug)]
pub(super) struct NotNamed(pub(super) String);

type Metadata = ProviderMetadata<
    MoreMetadata,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

/// RFC 9207: whether each answer says whose it is.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct MoreMetadata {
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

impl AdditionalProviderMetadata for MoreMetadata {}

impl Known {
    pub(super) fn new(described: Described) -> Result<Self, String> {
        let fetch = Fetch::new(&described.issuer)?;
        let github = match described.kind {
            Kind::Oidc => None,
            Kind::Github => Some(GitHub::new(fetch.clone(), &described.issuer)),
        };
        Ok(Self { described, fetch, github, found: Mutex::default() })
    }

    /// Where to send somebody, and what to keep until they come back.
    pub(super) async fn ask(&self, state: String, callback: &str) -> Result<(Url, Asked), NotNamed> {
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        if let Some(github) = &self.github {
            let url =
                github.ask(&self.described, &state, &challenge, callback).map_err(|reason| self.wrong(&reason))?;
            return Ok((url, Asked { nonce: Nonce::new_random(), verifier }));
        }
        let metadata = self.metadata().await?;
        let redirect = self.redirect(callback)?;
        let id = ClientId::new(self.described.client_id.clone());
        let client = CoreClient::from_provider_metadata(metadata, id, None);
        let flow = CoreAuthenticationFlow::AuthorizationCode;
        let request = client.authorize_url(flow, move || CsrfToken::new(state), Nonce::new_random);
        let scopes = self.described.scopes.iter().filter(|scope| *scope != "openid").cloned().map(Scope::new);
        let request = request.add_scopes(scopes).set_pkce_challenge(challenge);
        let (url, _, nonce) = request.set_redirect_uri(Cow::Owned(redirect)).url();
        match self.fetch.may_show(&url) {
            true => Ok((url, Asked { nonce, verifier })),
            false => Err(self.wrong("it sends people to where nobody may be sent")),
        }
    }

    /// Whom the provider names by its answer.
    pub(super) async fn named(&self, answer: Answer, asked: Asked, callback: &str) -> Result<Arrival, NotNamed> {
        if let Some(github) = &self.github {
            let code = self.code(answer)?;
            let named = github.named(&self.described, &code, &asked.verifier, callback).await;
            return named.map_err(|reason| self.wrong(&reason));
        }
        let metadata = self.metadata().await?;
        self.check_issuer(&answer, &metadata)?;
        let code = AuthorizationCode::new(self.code(answer)?);
        let id = ClientId::new(self.described.client_id.clone());
        let client = CoreClient::from_provider_metadata(metadata.clone(), id, self.described.client_secret.clone());
        let client = client.set_redirect_uri(self.redirect(callback)?).set_auth_type(auth_type(&metadata));
        let exchange = client.exchange_code(code).map_err(|error| self.wrong(&error.to_string()))?;
        let answer = exchange.set_pkce_verifier(asked.verifier).request_async(&self.fetch).await;
        // What it says may hold what we sent: the kind of the error is enough.
        let answer = answer.map_err(|error| self.wrong(&kind_of(&error)))?;
        let token = answer.id_token().ok_or_else(|| self.wrong("it gave no ID token"))?;
        self.verify(token, &metadata, &asked.nonce).await?;
        let claims = payload(token).ok_or_else(|| self.wrong("its ID token cannot be read"))?;
        if !claims.are_for(&self.described.client_id) {
            return Err(self.wrong("its ID token was made for another"));
        }
        let claims = self.completed(claims, &metadata, answer.access_token()).await?;
        Ok(claims.arrival(&self.described))
    }

    /// The code of an answer, or why it has none.
    fn code(&self, answer: Answer) -> Result<String, NotNamed> {
        match (answer.code, answer.error) {
            (Some(code), None) => Ok(code),
            (_, Some(error)) if error == "access_denied" => Err(self.wrong("it did not let you in")),
            (_, Some(error)) => Err(self.wrong(&error)),
            (None, None) => Err(self.wrong("its answer has no code")),
        }
    }

    /// An answer of another provider is none of this one.
    fn check_issuer(&self, answer: &Answer, metadata: &Metadata) -> Result<(), NotNamed> {
        let says_always = metadata.additional_metadata().authorization_response_iss_parameter_supported;
        match answer.iss.as_deref() {
            Some(issuer) if issuer == self.described.issuer => Ok(()),
            None if !says_always => Ok(()),
            Some(_) | None => Err(self.wrong("the answer is not of this provider")),
        }
    }

    /// Checks a token: as signed, by whom we asked, for us, in time, and in answer to us.
    async fn verify(&self, token: &CoreIdToken, metadata: &Metadata, nonce: &Nonce) -> Result<(), NotNamed> {
        let refused = |error: ClaimsVerificationError| self.wrong(&chain(&error));
        match self.verify_by(token, metadata.jwks(), nonce) {
            Ok(()) => Ok(()),
            Err(ClaimsVerificationError::SignatureVerification(SignatureVerificationError::NoMatchingKey)) => {
                let keys = self.keys_anew(metadata).await?;
                self.verify_by(token, &keys, nonce).map_err(refused)
            }
            Err(error) => Err(refused(error)),
        }
    }

    fn verify_by(
        &self,
        token: &CoreIdToken,
        keys: &CoreJsonWebKeySet,
        nonce: &Nonce,
    ) -> Result<(), ClaimsVerificationError> {
        let other = |error: openidconnect::url::ParseError| ClaimsVerificationError::Other(error.to_string());
        let issuer = IssuerUrl::new(self.described.issuer.clone()).map_err(other)?;
        let client_id = ClientId::new(self.described.client_id.clone());
        let trusted = self.described.trusted_audiences.clone();
        // As one without a secret: a secret signs nothing here.
        let verifier = CoreIdTokenVerifier::new_public_client(client_id, issuer, keys.clone())
            .set_allowed_algs(ALGORITHMS)
            .set_other_audience_verifier_fn(move |audience| trusted.iter().any(|known| *known == **audience))
            .set_time_fn(|| {
                let then = clock::now().checked_sub(LEEWAY).unwrap_or_else(|_| clock::now());
                let since_epoch = u64::try_from(then.as_second()).unwrap_or_default();
                (SystemTime::UNIX_EPOCH + Duration::from_secs(since_epoch)).into()
            });
        token.claims(&verifier, nonce).map(drop)
    }

    /// The claims, with what only the provider's page of a person says, where that is needed.
    async fn completed(&self, claims: Claims, metadata: &Metadata, access: &AccessToken) -> Result<Claims, NotNamed> {
        let Some(url) = metadata.userinfo_endpoint().filter(|_| !claims.are_enough_for(&self.described)) else {
            return Ok(claims);
        };
        let mut request = http::Request::new(Vec::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = url.as_str().parse().map_err(|_| self.wrong("where it says who people are is nowhere"))?;
        let bearer = HeaderValue::from_str(&format!("Bearer {}", access.secret()));
        let mut bearer = bearer.map_err(|_| self.wrong("its access token cannot be sent"))?;
        bearer.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let answer = self.fetch.ask(request).await.map_err(|error| self.wrong(&chain(&error)))?;
        if answer.status() != StatusCode::OK {
            return Err(self.wrong(&format!("asked who somebody is, it answered {}", answer.status())));
        }
        let more: Claims = serde_json::from_slice(answer.body())
            .map_err(|_| self.wrong("what it says of who somebody is cannot be read"))?;
        match more.sub == claims.sub {
            true => Ok(claims.and(more)),
            false => Err(self.wrong("it names two persons at once")),
        }
    }

    // ---- what it says of itself ----

    /// Why nobody can sign in by it at the moment, as far as anybody tried.
    pub(super) fn fault(&self) -> Option<String> {
        let found = self.found.try_lock().ok()?;
        found.failed.as_ref().map(|(reason, _)| reason.0.clone())
    }

    async fn metadata(&self) -> Result<Metadata, NotNamed> {
        let mut found = self.found.lock().await;
        let now = clock::instant();
        let known = found.metadata.clone();
        if let Some((metadata, _)) = known.as_ref().filter(|(_, at)| now.duration_since(*at) < FRESH) {
            return Ok(metadata.clone());
        }
        let known = known.map(|(metadata, _)| metadata);
        if let Some((reason, _)) = found.failed.as_ref().filter(|(_, at)| now.duration_since(*at) < PAUSE) {
            return known.ok_or_else(|| reason.clone());
        }
        let issuer = IssuerUrl::new(self.described.issuer.clone()).map_err(|error| self.wrong(&error.to_string()))?;
        match Metadata::discover_async(issuer, &self.fetch).await {
            Ok(metadata) => {
                (found.metadata, found.failed) = (Some((metadata.clone(), now)), None);
                Ok(metadata)
            }
            Err(error) => {
                let reason = self.wrong(&chain(&error));
                tracing::warn!(provider = %self.described.name, "{}", reason.0);
                found.failed = Some((reason.clone(), clock::instant()));
                // What it said before is better than nothing.
                known.ok_or(reason)
            }
        }
    }

    /// Its keys, asked for again; those that are known where that was done a moment ago.
    async fn keys_anew(&self, metadata: &Metadata) -> Result<CoreJsonWebKeySet, NotNamed> {
        let mut found = self.found.lock().await;
        let now = clock::instant();
        if found.keys_at.is_some_and(|at| now.duration_since(at) < KEYS_ANEW) {
            // Whoever came just before may have found new ones.
            return Ok(found.metadata.as_ref().map_or(metadata, |(metadata, _)| metadata).jwks().clone());
        }
        found.keys_at = Some(now);
        let keys = CoreJsonWebKeySet::fetch_async(metadata.jwks_uri(), &self.fetch).await;
        let keys = keys.map_err(|error| self.wrong(&chain(&error)))?;
        if let Some((metadata, _)) = &mut found.metadata {
            *metadata = metadata.clone().set_jwks(keys.clone());
        }
        Ok(keys)
    }

    fn redirect(&self, callback: &str) -> Result<RedirectUrl, NotNamed> {
        RedirectUrl::new(callback.to_owned()).map_err(|error| self.wrong(&error.to_string()))
    }

    fn wrong(&self, reason: &str) -> NotNamed {
        NotNamed(format!("sign-in by {}: {reason}", self.described.title))
    }
}

/// How it wants to be shown that it is us who asks: as the standard says, where it knows that.
fn auth_type(metadata: &Metadata) -> AuthType {
    let Some(methods) = metadata.token_endpoint_auth_methods_supported() else { return AuthType::BasicAuth };
    let basic = methods.contains(&CoreClientAuthMethod::ClientSecretBasic);
    match !basic && methods.contains(&CoreClientAuthMethod::ClientSecretPost) {
        true => AuthType::RequestBody,
        false => AuthType::BasicAuth,
    }
}

/// What a token says; its signature was checked.
fn payload(token: &CoreIdToken) -> Option<Claims> {
    let text = token.to_string();
    let payload = text.split('.').nth(1)?;
    serde_json::from_slice(&BASE64URL_NOPAD.decode(payload.as_bytes()).ok()?).ok()
}

fn kind_of<E, T>(error: &openidconnect::RequestTokenError<E, T>) -> String
where
    E: std::error::Error + 'static,
    T: openidconnect::ErrorResponse + 'static,
{
    match error {
        openidconnect::RequestTokenError::ServerResponse(_) => "it does not take the code that it gave".to_owned(),
        openidconnect::RequestTokenError::Request(error) => chain(error),
        openidconnect::RequestTokenError::Parse(..) => "its answer cannot be read".to_owned(),
        openidconnect::RequestTokenError::Other(text) => text.clone(),
    }
}
