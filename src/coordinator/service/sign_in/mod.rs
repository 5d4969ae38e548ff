//! Sign-in by a provider: from the page of a machine that waits, to the provider, back, and to the machine's being in.
//!
//! | step | what is decided |
//! | --- | --- |
//! | [`Service::visit`] | which machine waits there, and who is signed in with this browser |
//! | [`Service::begin_sign_in`] | an attempt, known again by its state and by what this browser alone holds |
//! | [`Service::finish_sign_in`] | whom the provider names; the registry says who they are here, and gives a session |
//! | [`Service::add_machine`] | the machine is theirs: by a form that was shown to this browser, and by nothing else |

mod attempts;
mod claims;
mod described;
mod fetch;
mod github;
mod provider;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use data_encoding::BASE64URL_NOPAD;
use thiserror::Error;
use tracing::{info, warn};
use warren_core::registry::{
    Actor, Arrival, Browser, BrowserSecret, BrowserSessionId, Door, NodeRecord, ProviderName, SignedIn, State, Ticket,
};
use warren_core::types::Timestamp;
use warren_core::wire::control::Hostinfo;

use super::{Busy, Refused, Service};
use crate::clock;
use attempts::{ATTEMPT_TIME, Attempt, Attempts};
pub(crate) use described::{Described, Kind};
pub(crate) use provider::Answer;
use provider::Known;

/// Where providers send people back to.
pub(crate) const CALLBACK: &str = "/oidc/callback";

/// The providers, and who is with them.
pub(crate) struct SignIn {
    /// How people reach this server. Without it there is no provider.
    server_url: String,
    providers: BTreeMap<ProviderName, Arc<Known>>,
    attempts: Mutex<Attempts>,
}

/// What is at the address of a machine that waits.
pub(crate) struct Visit {
    pub(crate) machine: WaitingMachine,
    /// Who is signed in with this browser.
    pub(crate) user: Option<String>,
}

/// A machine that waits, for a person to recognise.
pub(crate) struct WaitingMachine {
    pub(crate) code: String,
    pub(crate) hostname: String,
    pub(crate) os: String,
    pub(crate) version: String,
    pub(crate) tags: Vec<String>,
    /// Where it asked from: an IPv4 address or an IPv6 /64.
    pub(crate) site: IpAddr,
    pub(crate) since: Timestamp,
}

/// Where to send a browser, and what it holds until it is back.
pub(crate) struct Begun {
    pub(crate) url: String,
    /// Which of a browser's attempts it is.
    pub(crate) name: String,
    pub(crate) secret: BrowserSecret,
}

/// How an attempt ends.
pub(crate) enum Finished {
    SignedIn {
        ticket: Ticket,
        secret: BrowserSecret,
    },
    /// It was finished before: the page says how it is.
    Already {
        ticket: Ticket,
    },
    NeedsApproval {
        ticket: Ticket,
        user: String,
    },
}

/// Whoever comes by a browser.
pub(crate) struct Visitor {
    pub(crate) address: IpAddr,
    pub(crate) agent: String,
    /// What the browser has been signed in by.
    pub(crate) session: Option<BrowserSecret>,
}

/// Why a page of sign-in is not what was asked for.
#[derive(Debug, Error)]
pub(crate) enum SignInError {
    #[error("the coordinator is busy, try again later")]
    Busy,
    /// Nothing is known of what it is about: it takes a new beginning on the device.
    #[error("nothing is known of it")]
    Lost,
    /// The form is not of a page that this browser was shown.
    #[error("the form is not of this page")]
    Foreign,
    /// In words, and where to try again.
    #[error("{reason}")]
    Refused { reason: String, ticket: Ticket },
}

impl SignIn {
    /// One with these providers. The error names the provider.
    pub(crate) fn new(server_url: Option<String>, providers: Vec<Described>) -> Result<Self, String> {
        let mut known = BTreeMap::new();
        for provider in providers {
            let name = provider.name.clone();
            let provider = Known::new(provider).map_err(|error| format!("oidc.{name}: {error}"))?;
            known.insert(name, Arc::new(provider));
        }
        Ok(Self { server_url: server_url.unwrap_or_default(), providers: known, attempts: Mutex::default() })
    }

    /// The providers, by name, and what people call them.
    pub(crate) fn providers(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.providers.iter().map(|(name, known)| (name.as_str(), known.described.title.as_str()))
    }

    /// Which providers nobody can sign in by, and why.
    pub(crate) fn faults(&self) -> impl Iterator<Item = String> {
        self.providers.values().filter_map(|known| known.fault())
    }

    /// How people reach this server, where there are providers.
    pub(crate) fn server_url(&self) -> &str {
        &self.server_url
    }

    /// Which of a browser's attempts a state is of.
    pub(crate) fn attempt_name(state: &str) -> String {
        state.chars().filter(char::is_ascii_alphanumeric).take(8).collect()
    }

    fn attempts(&self) -> std::sync::MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn callback(&self) -> String {
        format!("{}{CALLBACK}", self.server_url)
    }
}

impl Service {
    /// Sign-in by providers.
    pub(crate) fn sign_in(&self) -> &SignIn {
        &self.sign_in
    }

    /// Which machine waits at a ticket, and who is signed in.
    pub(crate) async fn visit(&self, ticket: Ticket, session: Option<BrowserSessionId>) -> Result<Option<Visit>, Busy> {
        let now = clock::now();
        let visit = move |state: &State| {
            let pending = state.pending_with(&ticket)?;
            let hostinfo: Hostinfo = serde_json::from_str(&pending.status.hostinfo).unwrap_or_default();
            let machine = WaitingMachine {
                code: pending.code.to_string(),
                hostname: pending.hostname.clone(),
                os: pending.os.clone(),
                version: hostinfo.ipn_version,
                tags: pending.requested_tags.clone(),
                site: pending.site,
                since: pending.since,
            };
            let user =
                session.and_then(|session| state.signed_in(&session, now)).map(|(_, user)| user.name.to_string());
            Some(Visit { machine, user })
        };
        self.hub.look(visit).await
    }

    /// Sends somebody who is at a machine's page to a provider.
    pub(crate) async fn begin_sign_in(
        &self,
        ticket: Ticket,
        provider: &str,
        site: IpAddr,
    ) -> Result<Begun, SignInError> {
        let name = provider.parse::<ProviderName>().ok();
        let provider = name.and_then(|name| self.sign_in.providers.get(&name)).ok_or(SignInError::Lost)?;
        if self.hub.look(move |state| state.pending_with(&ticket).is_none()).await? {
            return Err(SignInError::Lost);
        }
        let state = BASE64URL_NOPAD.encode(&rand::random::<[u8; 32]>());
        let asked = provider.ask(state.clone(), &self.sign_in.callback()).await;
        let (url, asked) = asked.map_err(|error| SignInError::Refused { reason: error.0, ticket })?;
        let secret = BrowserSecret::from_random(&rand::random());
        let now = clock::instant();
        let attempt = Attempt {
            ticket,
            provider: Arc::clone(provider),
            browser: secret.hash(),
            asked: Arc::new(tokio::sync::Mutex::new(Some(asked))),
            site,
            until: now + ATTEMPT_TIME,
        };
        let name = SignIn::attempt_name(&state);
        self.sign_in.attempts().begin(state, attempt, now);
        Ok(Begun { url: url.into(), name, secret })
    }

    /// Somebody comes back from a provider, with what the browser holds of the attempt.
    pub(crate) async fn finish_sign_in(
        &self,
        answer: Answer,
        held: Option<BrowserSecret>,
        visitor: Visitor,
    ) -> Result<Finished, SignInError> {
        let held = held.map(|held| held.hash());
        let attempt = self.sign_in.attempts().find(answer.state(), held, clock::instant());
        let Attempt { ticket, provider, asked, .. } = attempt.ok_or(SignInError::Lost)?;
        // Some browsers ask twice: the second waits for what becomes of the first.
        let mut asked = asked.lock().await;
        let Some(asked) = asked.take() else { return Ok(Finished::Already { ticket }) };
        let arrival = provider.named(answer, asked, &self.sign_in.callback()).await.map_err(|error| {
            warn!(provider = %provider.described.name, from = %visitor.address, "{}", error.0);
            SignInError::Refused { reason: error.0, ticket }
        })?;
        self.let_in(arrival, ticket, visitor).await
    }

    async fn let_in(&self, arrival: Arrival, ticket: Ticket, visitor: Visitor) -> Result<Finished, SignInError> {
        let identity = &arrival.identity;
        let called = identity.email.as_ref().map_or(identity.subject.as_str(), |email| email.address.as_str());
        let guest = Actor::guest(format!("{called} at {}", identity.provider), visitor.address);
        let secret = BrowserSecret::from_random(&rand::random());
        let browser = Browser {
            session: secret.session(),
            before: visitor.session.map(|before| before.session()),
            address: visitor.address,
            agent: visitor.agent,
        };
        let signed_in = self.hub.command(guest.clone(), move |commands| commands.sign_in(&arrival, &browser)).await;
        match signed_in.map_err(|error| refused(error.into(), ticket))? {
            SignedIn::Yes(user) => {
                info!(user = %user.name, from = %visitor.address, "signed in");
                Ok(Finished::SignedIn { ticket, secret })
            }
            SignedIn::NotYet(user) => {
                info!(user = %user.name, from = %visitor.address, "waits for approval: warren-coordinator user approve");
                Ok(Finished::NeedsApproval { ticket, user: user.name.to_string() })
            }
        }
    }

    /// Whoever is signed in says, by a form that was shown to them, that a machine is theirs.
    pub(crate) async fn add_machine(
        &self,
        ticket: Ticket,
        token: &str,
        visitor: Visitor,
    ) -> Result<Arc<NodeRecord>, SignInError> {
        let (actor, session) = self.by_form(ticket, token, &visitor).await?;
        let add = move |by: &warren_core::registry::Commands<'_>| by.add_machine(&session, &ticket, rand::random());
        let node = self.hub.command(actor.clone(), add).await.map_err(|error| refused(error.into(), ticket))?;
        info!(node = %node.label, by = %actor.who, from = %visitor.address, "a machine was added");
        Ok(node)
    }

    /// Whoever is signed in says, by a form that was shown to them, that they are not any more.
    pub(crate) async fn sign_out(&self, ticket: Ticket, token: &str, visitor: Visitor) -> Result<(), SignInError> {
        let (actor, session) = self.by_form(ticket, token, &visitor).await?;
        let out = self.hub.command(actor, move |by| Ok(by.sign_out(&session))).await;
        out.map_err(|error| refused(error.into(), ticket))
    }

    /// Who sends a form, if it was shown to them on the page of this ticket.
    async fn by_form(
        &self,
        ticket: Ticket,
        token: &str,
        visitor: &Visitor,
    ) -> Result<(Actor, BrowserSessionId), SignInError> {
        let secret = visitor.session.as_ref().filter(|secret| secret.made(token, &ticket.path()));
        let session = secret.ok_or(SignInError::Foreign)?.session();
        let (now, address) = (clock::now(), visitor.address);
        let who = move |state: &State| {
            state.signed_in(&session, now).map(|(_, user)| Actor::user(user, Door::SignIn, address))
        };
        let actor = self.hub.look(who).await?.ok_or(SignInError::Foreign)?;
        Ok((actor, session))
    }
}

impl From<Busy> for SignInError {
    fn from(Busy: Busy) -> Self {
        Self::Busy
    }
}

fn refused(refused: Refused, ticket: Ticket) -> SignInError {
    match refused.kind {
        super::RefusedKind::Busy => SignInError::Busy,
        super::RefusedKind::Invalid
        | super::RefusedKind::Forbidden
        | super::RefusedKind::NotFound
        | super::RefusedKind::Conflict
        | super::RefusedKind::Full
        | super::RefusedKind::Failed => SignInError::Refused { reason: refused.message, ticket },
    }
}
