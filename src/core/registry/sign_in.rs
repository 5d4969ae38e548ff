//! People who sign in at a provider, and the machines that they add.
//!
//! Everything about an arrival was checked before it comes here; here it is decided who they are to this network, in one
//! decision with the browser's session, so that nothing is written of anybody who is not let in.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::commands::{Command, Commands, Decision};
use super::config::limit;
use super::people::{BrowserSession, BrowserSessionId, Identity, UserName, UserRecord, canonical_email};
use super::presence::add;
use super::record::{Change, NodeRecord, Tag};
use super::refusal::Refusal;
use super::register::Admission;
use super::state::State;
use super::welcome::Welcome;
use crate::policy::{looks_like, nearest_login};
use crate::types::{Limit, Ticket, Timestamp, UserId, UserStatus};

/// How long a browser stays signed in, however much it is used.
const SESSION: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Browsers of one user: those of a few devices, each of which forgot one now and then. The one unused longest makes room.
const SESSIONS_OF_USER: usize = 20;
/// What is kept of a text that a provider or a browser says.
const SHOWN: usize = 255;
/// What names a person to their provider; OpenID Connect has it no longer.
const SUBJECT: Limit = Limit::new("bytes of what a provider calls a person", 255);
/// How often a name is tried with another number behind it.
const NAMES: u32 = 1_000;

/// Somebody whom a provider names, checked.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub identity: Identity,
    pub display_name: String,
    pub picture: String,
    /// What the rules of the provider say of them.
    pub welcome: Welcome,
}

/// The browser that somebody arrives with.
#[derive(Clone, Debug)]
pub struct Browser {
    pub session: BrowserSessionId,
    /// The session that it had before.
    pub before: Option<BrowserSessionId>,
    pub address: IpAddr,
    pub agent: String,
}

/// Who signed in, and whether their browser has a session from here on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignedIn {
    Yes(UserRecord),
    /// Once somebody approved them.
    NotYet(UserRecord),
}

impl Commands<'_> {
    /// Lets somebody in whom a provider names: as the user that they are, as the one that waits for them, or as a new one.
    pub fn sign_in(&self, arrival: &Arrival, browser: &Browser) -> Result<Decision<SignedIn>, Refusal> {
        let (user, counters) = self.who_arrives(arrival)?;
        let mut changes: Vec<Change> = counters.into_iter().collect();
        if self.directory.user(user.id) != Some(&user) {
            changes.push(Change::User(user.clone()));
        }
        match user.status {
            UserStatus::Suspended => {
                let name = user.name;
                let told = format!("the user `{name}` is suspended in this network; ask its administrator");
                return Err(Refusal::forbidden(told));
            }
            // They are written down, for somebody to see that they wait.
            UserStatus::NeedsApproval => return Ok(self.decided(Command::SignIn, SignedIn::NotYet(user), changes)),
            UserStatus::Active => {}
        }
        let mut older: Vec<&BrowserSession> = self.sessions_of(user.id).collect();
        older.sort_by_key(|session| session.seen);
        let too_many = (older.len() + 1).saturating_sub(SESSIONS_OF_USER);
        let displaced = older.into_iter().take(too_many).map(|session| session.id);
        let before = browser.before.filter(|before| self.directory.access().session(before).is_some());
        changes.extend(displaced.chain(before).map(Change::SessionGone));
        changes.push(Change::Session(BrowserSession {
            id: browser.session,
            user: user.id,
            signed_in: self.now,
            seen: self.now,
            expires: add(self.now, SESSION),
            address: browser.address,
            agent: shown(&browser.agent),
        }));
        Ok(self.decided(Command::SignIn, SignedIn::Yes(user), changes))
    }

    /// The user that somebody is from here on, and the counters where they are new.
    fn who_arrives(&self, arrival: &Arrival) -> Result<(UserRecord, Option<Change>), Refusal> {
        let Arrival { identity, welcome, .. } = arrival;
        SUBJECT.check(identity.subject.len())?;
        if identity.subject.is_empty() {
            return Err(Refusal::invalid("the provider does not say who you are"));
        }
        let not_welcome = || {
            let provider = &identity.provider;
            Refusal::forbidden(format!("your account at {provider} may not join this network; ask its administrator"))
        };
        if let Some(user) = self.user_with(identity) {
            let mut user = arrival.tells(user);
            for known in user.identities.iter_mut().filter(|known| known.is(identity)) {
                known.email.clone_from(&identity.email);
                // Whom the operator invited needs no rule; whom a rule let in goes with it.
                if *welcome == Welcome::Refused && !known.invited {
                    return Err(not_welcome());
                }
            }
            return Ok((user, None));
        }
        if let Some(invited) = self.invited(identity) {
            let mut user = arrival.tells(invited);
            user.invitation = None;
            user.identities.push(Identity { invited: true, ..identity.clone() });
            return Ok((user, None));
        }
        if *welcome == Welcome::Refused {
            return Err(not_welcome());
        }
        limit::USERS.check(self.users().len() + 1)?;
        let mut counters = self.directory.counters();
        counters.user += 1;
        let name = self.free_name(identity)?;
        let mut user = arrival.tells(&UserRecord::new(UserId(counters.user), name, self.now));
        user.identities.push(Identity { invited: false, ..identity.clone() });
        if *welcome == Welcome::WithApproval || self.settings().user_approval {
            user.status = UserStatus::NeedsApproval;
        }
        Ok((user, Some(Change::Counters(counters))))
    }

    /// The user that waits for whoever has this verified address at this provider.
    fn invited(&self, identity: &Identity) -> Option<&UserRecord> {
        let email = canonical_email(verified(identity)?)?;
        self.users().find(|user| {
            user.invitation.as_ref().is_some_and(|wanted| wanted.provider == identity.provider && wanted.email == email)
        })
    }

    /// What a new user is called: their verified address, or what their provider calls them. What people choose for
    /// themselves is no name here: a policy may name somebody who has not come yet.
    fn free_name(&self, identity: &Identity) -> Result<UserName, Refusal> {
        let address = verified(identity).and_then(canonical_email).and_then(|address| address.parse().ok());
        let of_provider = nearest_login(&format!("{}-{}", identity.provider, identity.subject));
        let numbered = (2..NAMES).map(|number| format!("{of_provider}-{number}"));
        let others = std::iter::once(of_provider.clone()).chain(numbered).filter_map(|name| name.parse().ok());
        let is_free = |name: &UserName| {
            let alike = |other: &UserRecord| other.name == *name || looks_like(name.as_str(), other.name.as_str());
            !self.users().any(alike)
        };
        let found = address.into_iter().chain(others).find(is_free);
        found.ok_or_else(|| Refusal::full(format!("too many users are called like `{of_provider}`")))
    }

    /// Adds the machine that waits at this address to the network, as a node of whoever is signed in.
    pub fn add_machine(
        &self,
        session: &BrowserSessionId,
        ticket: &Ticket,
        entropy: [u8; 32],
    ) -> Result<Decision<Arc<NodeRecord>>, Refusal> {
        let (session, user) = self.signed_in(session, self.now).ok_or_else(not_signed_in)?;
        if !self.actor().is_user(user.id) {
            return Err(not_signed_in());
        }
        let pending = self.pending_with(ticket).ok_or_else(|| {
            Refusal::not_found("no machine waits here any more; start again on the machine for a new address")
        })?;
        let tags = self.tags_asked_for(user, &pending.requested_tags)?;
        let admission = Admission {
            machine: pending.machine,
            node_key: pending.key,
            user: user.id,
            tags: &tags,
            ephemeral: false,
            admitted_by: None,
            status: pending.status.clone(),
        };
        let (record, mut changes) = self.admit(admission, entropy)?;
        changes.push(Change::PendingGone(pending.code.clone()));
        changes.push(Change::Session(BrowserSession { seen: self.now, ..session.clone() }));
        Ok(self.decided(Command::AddMachine, record, changes))
    }

    /// The tags that a machine asks for, if its user may give all of them.
    fn tags_asked_for(&self, user: &UserRecord, requested: &[String]) -> Result<Vec<Tag>, Refusal> {
        let may_give = |tag: &Tag| self.compiled().is_some_and(|policy| policy.may_tag(user.id, &[], tag.as_str()));
        let mut tags = Vec::new();
        for text in requested {
            let tag: Tag = text.parse()?;
            if !may_give(&tag) {
                return Err(Refusal::forbidden(format!(
                    "the machine asks for the tag `{tag}`, which `{}` may not give: the policy's `tagOwners` says who may",
                    user.name
                )));
            }
            tags.push(tag);
        }
        tags.sort();
        tags.dedup();
        Ok(tags)
    }

    /// A browser is signed in no longer, by its own wish.
    pub fn sign_out(&self, session: &BrowserSessionId) -> Decision<()> {
        let gone = self.directory.access().session(session).map(|session| Change::SessionGone(session.id));
        self.decided(Command::SignOut, (), gone.into_iter().collect())
    }
}

impl State {
    /// Who is signed in with a browser, if they still may.
    pub fn signed_in(&self, id: &BrowserSessionId, now: Timestamp) -> Option<(&BrowserSession, &UserRecord)> {
        let session = self.directory.access().session(id).filter(|session| session.ends_at() > now)?;
        let user = self.directory.user(session.user).filter(|user| user.status == UserStatus::Active)?;
        Some((session, user))
    }
}

impl Arrival {
    /// The user, with what the provider says of them for people to look at.
    fn tells(&self, user: &UserRecord) -> UserRecord {
        UserRecord { display_name: shown(&self.display_name), picture: shown(&self.picture), ..user.clone() }
    }
}

fn verified(identity: &Identity) -> Option<&str> {
    identity.email.as_ref().filter(|email| email.verified).map(|email| email.address.as_str())
}

fn not_signed_in() -> Refusal {
    Refusal::forbidden("you are not signed in any more; sign in again")
}

/// What others say of themselves, cut to what a list can show.
fn shown(text: &str) -> String {
    let mut end = text.len().min(SHOWN);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
