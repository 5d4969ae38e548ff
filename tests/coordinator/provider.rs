//! An OpenID provider in this process, which signs in whoever comes, and lies where it is told to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use http::{HeaderMap, StatusCode, header};
use openidconnect::core::{CoreHmacKey, CoreJwsSigningAlgorithm, CoreRsaPrivateSigningKey};
use openidconnect::{JsonWebKeyId, PkceCodeChallenge, PkceCodeVerifier, PrivateSigningKey};
use rcgen::SigningKey;
use serde_json::{Value, json};

use crate::place::place;

pub(crate) const CLIENT: &str = "warren";
pub(crate) const SECRET: &str = "the-secret-of-the-client";
const KEY: &str = include_str!("data/provider.key");

pub(crate) struct Provider {
    pub(crate) address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
}

/// How an ID token is signed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signed {
    Rs256,
    Es256,
    /// As RS256, with a key that is not among its keys, under the name of one that is.
    Forged,
    /// By nobody.
    None,
    /// With what only client and provider know.
    BySecret,
    /// With its public key, taken for a secret.
    ByPublicKey,
}

/// What it says of itself, and of whoever comes.
pub(crate) struct Says {
    pub(crate) signed: Signed,
    pub(crate) kid: &'static str,
    /// Put into the ID token, or taken from it where null.
    pub(crate) claims: Value,
    pub(crate) userinfo: Option<Value>,
    /// What it answers where it is asked as GitHub, by path.
    pub(crate) api: BTreeMap<&'static str, Value>,
    /// Likewise, into what it says of itself.
    pub(crate) discovery: Value,
    /// Put into the answer that the browser carries.
    pub(crate) answer: Vec<(&'static str, String)>,
    /// Whole answers in place of its own, by path.
    pub(crate) instead: BTreeMap<&'static str, (StatusCode, String)>,
    /// Paths at which it sends elsewhere, or does not answer.
    pub(crate) redirects: BTreeMap<&'static str, String>,
    pub(crate) silent: Vec<&'static str>,
}

struct Inner {
    address: SocketAddr,
    says: Says,
    elliptic: rcgen::KeyPair,
    /// Codes that it gave: of which nonce and challenge, and for which place.
    codes: BTreeMap<String, BTreeMap<String, String>>,
    asked: Vec<String>,
}

impl Default for Says {
    fn default() -> Self {
        Self {
            signed: Signed::Rs256,
            kid: "rsa",
            claims: json!({}),
            userinfo: None,
            api: BTreeMap::new(),
            discovery: json!({}),
            answer: Vec::new(),
            instead: BTreeMap::new(),
            redirects: BTreeMap::new(),
            silent: Vec::new(),
        }
    }
}

impl Provider {
    pub(crate) async fn start() -> Self {
        Self::start_at(place()).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let elliptic = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let inner = Inner { address, says: Says::default(), elliptic, codes: BTreeMap::new(), asked: Vec::new() };
        let inner = Arc::new(Mutex::new(inner));
        let routes = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/jwks", get(keys))
            .route("/authorize", get(authorize))
            .route("/token", post(token))
            .route("/userinfo", get(userinfo))
            .route("/login/oauth/authorize", get(github_authorize))
            .route("/login/oauth/access_token", post(github_token))
            .route("/api/v3/{*path}", get(github_api))
            .layer(axum::middleware::from_fn_with_state(Arc::clone(&inner), instead))
            .with_state(Arc::clone(&inner));
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { address, inner }
    }

    pub(crate) fn issuer(&self) -> String {
        issuer(self.address)
    }

    /// It says this from here on.
    pub(crate) fn says(&self, says: Says) {
        self.inner.lock().unwrap().says = says;
    }

    /// The paths that it was asked for since somebody looked.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.inner.lock().unwrap().asked)
    }
}

pub(crate) fn issuer(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// Whatever it was told to do in place of its own answer.
async fn instead(
    State(inner): State<Arc<Mutex<Inner>>>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let path = request.uri().path().to_owned();
    let (instead, redirect, silent) = {
        let mut inner = inner.lock().unwrap();
        inner.asked.push(path.clone());
        let says = &inner.says;
        let redirect = says.redirects.get(path.as_str()).cloned();
        (says.instead.get(path.as_str()).cloned(), redirect, says.silent.contains(&path.as_str()))
    };
    match (instead, redirect) {
        _ if silent => std::future::pending().await,
        (Some((status, body)), _) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        (None, Some(to)) => Redirect::temporary(&to).into_response(),
        (None, None) => next.run(request).await,
    }
}

async fn discovery(State(inner): State<Arc<Mutex<Inner>>>) -> Response {
    let inner = inner.lock().unwrap();
    let issuer = issuer(inner.address);
    let mut said = json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "userinfo_endpoint": format!("{issuer}/userinfo"),
        "jwks_uri": format!("{issuer}/jwks"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        // It would take anything.
        "id_token_signing_alg_values_supported": ["RS256", "ES256", "HS256", "none"],
    });
    merge(&mut said, &inner.says.discovery);
    axum::Json(said).into_response()
}

async fn keys(State(inner): State<Arc<Mutex<Inner>>>) -> Response {
    let inner = inner.lock().unwrap();
    let point = inner.elliptic.public_key_raw();
    let elliptic = json!({
        "kty": "EC", "crv": "P-256", "kid": "ec", "use": "sig",
        "x": BASE64URL_NOPAD.encode(&point[1..33]), "y": BASE64URL_NOPAD.encode(&point[33..]),
    });
    axum::Json(json!({ "keys": [rsa().as_verification_key(), elliptic] })).into_response()
}

/// Signs in whoever comes, and sends them back at once.
async fn authorize(State(inner): State<Arc<Mutex<Inner>>>, Query(asked): Query<BTreeMap<String, String>>) -> Response {
    assert_eq!((asked["response_type"].as_str(), asked["client_id"].as_str()), ("code", CLIENT));
    assert_eq!(asked["code_challenge_method"], "S256");
    assert!(asked["scope"].split(' ').any(|scope| scope == "openid"));
    send_back(&mut inner.lock().unwrap(), asked)
}

async fn token(State(inner): State<Arc<Mutex<Inner>>>, headers: HeaderMap, body: Body) -> Response {
    let body = axum::body::to_bytes(body, 1 << 16).await.unwrap();
    let form: BTreeMap<String, String> = openidconnect::url::form_urlencoded::parse(&body).into_owned().collect();
    let mut inner = inner.lock().unwrap();
    let refuse = |error: &str| (StatusCode::BAD_REQUEST, axum::Json(json!({ "error": error }))).into_response();
    let basic = format!("Basic {}", BASE64.encode(format!("{CLIENT}:{SECRET}").as_bytes()));
    if headers.get(header::AUTHORIZATION).is_none_or(|shown| shown.as_bytes() != basic.as_bytes()) {
        return refuse("invalid_client");
    }
    let Some(asked) = inner.codes.remove(&form["code"]) else { return refuse("invalid_grant") };
    let challenge = PkceCodeChallenge::from_code_verifier_sha256(&PkceCodeVerifier::new(form["code_verifier"].clone()));
    if asked["code_challenge"] != challenge.as_str() || asked["redirect_uri"] != form["redirect_uri"] {
        return refuse("invalid_grant");
    }
    let id_token = inner.id_token(&asked["nonce"]);
    let answer = json!({"access_token": "access-token", "token_type": "Bearer", "id_token": id_token});
    axum::Json(answer).into_response()
}

async fn userinfo(State(inner): State<Arc<Mutex<Inner>>>, headers: HeaderMap) -> Response {
    let inner = inner.lock().unwrap();
    assert_eq!(headers[header::AUTHORIZATION], "Bearer access-token");
    match &inner.says.userinfo {
        Some(said) => axum::Json(said).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// As GitHub: without OpenID Connect.
async fn github_authorize(
    State(inner): State<Arc<Mutex<Inner>>>,
    Query(asked): Query<BTreeMap<String, String>>,
) -> Response {
    assert_eq!((asked["client_id"].as_str(), asked["code_challenge_method"].as_str()), (CLIENT, "S256"));
    assert!(asked["scope"].starts_with("read:user user:email"));
    send_back(&mut inner.lock().unwrap(), asked)
}

async fn github_token(State(inner): State<Arc<Mutex<Inner>>>, headers: HeaderMap, body: Body) -> Response {
    let body = axum::body::to_bytes(body, 1 << 16).await.unwrap();
    let form: BTreeMap<String, String> = openidconnect::url::form_urlencoded::parse(&body).into_owned().collect();
    let asked = inner.lock().unwrap().codes.remove(&form["code"]);
    let challenge = PkceCodeChallenge::from_code_verifier_sha256(&PkceCodeVerifier::new(form["code_verifier"].clone()));
    let is_good = asked.is_some_and(|asked| asked["code_challenge"] == challenge.as_str())
        && (form["client_id"].as_str(), form["client_secret"].as_str()) == (CLIENT, SECRET)
        && headers[header::ACCEPT] == "application/json";
    // It never answers with another status.
    let error = json!({"error": "bad_verification_code", "error_description": "The code is not good."});
    axum::Json(if is_good { json!({"access_token": "access-token", "token_type": "bearer"}) } else { error })
        .into_response()
}

async fn github_api(
    State(inner): State<Arc<Mutex<Inner>>>,
    axum::extract::Path(path): axum::extract::Path<String>,
    headers: HeaderMap,
) -> Response {
    assert_eq!(headers[header::AUTHORIZATION], "Bearer access-token");
    match inner.lock().unwrap().says.api.get(path.as_str()) {
        Some(said) => axum::Json(said).into_response(),
        None => StatusCode::FORBIDDEN.into_response(),
    }
}

/// Sends whoever signed in back to where they came from.
fn send_back(inner: &mut Inner, asked: BTreeMap<String, String>) -> Response {
    let code = BASE64URL_NOPAD.encode(&rand::random::<[u8; 16]>());
    let mut back = openidconnect::url::Url::parse(&asked["redirect_uri"]).unwrap();
    let mut answer = BTreeMap::from([("code", code.clone()), ("state", asked["state"].clone())]);
    answer.extend(inner.says.answer.iter().cloned());
    back.query_pairs_mut().extend_pairs(answer);
    inner.codes.insert(code, asked);
    Redirect::to(back.as_str()).into_response()
}

impl Inner {
    fn id_token(&self, nonce: &str) -> String {
        let now = jiff::Timestamp::from_second(now()).unwrap().as_second();
        let mut claims = json!({
            "iss": issuer(self.address), "sub": "1", "aud": CLIENT, "nonce": nonce,
            "iat": now, "exp": now + 300,
        });
        merge(&mut claims, &self.says.claims);
        let (algorithm, kid) = match self.says.signed {
            Signed::Rs256 | Signed::Forged => ("RS256", self.says.kid),
            Signed::Es256 => ("ES256", "ec"),
            Signed::None => ("none", "rsa"),
            Signed::BySecret | Signed::ByPublicKey => ("HS256", "rsa"),
        };
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let text = format!("{}.{}", encode(&json!({"alg": algorithm, "kid": kid})), encode(&claims));
        let signature = self.signature(text.as_bytes());
        format!("{text}.{}", BASE64URL_NOPAD.encode(&signature))
    }

    fn signature(&self, text: &[u8]) -> Vec<u8> {
        let by_hmac = |secret: &str| CoreHmacKey::new(secret).sign(&CoreJwsSigningAlgorithm::HmacSha256, text).unwrap();
        match self.says.signed {
            Signed::Rs256 => rsa().sign(&CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256, text).unwrap(),
            Signed::Forged => {
                let signature = rsa().sign(&CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256, b"something else");
                signature.unwrap()
            }
            Signed::Es256 => fixed(&self.elliptic.sign(text).unwrap()),
            Signed::None => Vec::new(),
            Signed::BySecret => by_hmac(SECRET),
            Signed::ByPublicKey => by_hmac(&serde_json::to_string(&rsa().as_verification_key()).unwrap()),
        }
    }
}

fn rsa() -> CoreRsaPrivateSigningKey {
    CoreRsaPrivateSigningKey::from_pem(KEY, Some(JsonWebKeyId::new("rsa".to_owned()))).unwrap()
}

/// The two numbers of a signature in DER, each of 32 bytes.
fn fixed(der: &[u8]) -> Vec<u8> {
    let (first, rest) = der[4..].split_at(usize::from(der[3]));
    let numbers = [first, &rest[2..]].map(|number| {
        let number = &number[number.len().saturating_sub(32)..];
        [vec![0; 32 - number.len()], number.to_vec()].concat()
    });
    numbers.concat()
}

fn merge(into: &mut Value, more: &Value) {
    for (name, value) in more.as_object().unwrap() {
        match value {
            Value::Null => drop(into.as_object_mut().unwrap().remove(name)),
            value => into[name] = value.clone(),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "tokens have a time")]
fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}
