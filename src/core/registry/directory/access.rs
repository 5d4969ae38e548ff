//! Who is signed in, and what programs show to give commands.

use std::collections::{BTreeMap, BTreeSet};

use crate::registry::record::{BrowserSession, BrowserSessionId, ClientId, ClientRecord, TokenId, TokenRecord};
use crate::types::{Timestamp, UserId};

/// Browsers in which somebody is signed in, tokens, and clients.
#[derive(Debug, Default)]
pub(in crate::registry) struct Access {
    sessions: BTreeMap<BrowserSessionId, BrowserSession>,
    /// When sessions end.
    ends: BTreeSet<(Timestamp, BrowserSessionId)>,
    tokens: BTreeMap<TokenId, TokenRecord>,
    clients: BTreeMap<ClientId, ClientRecord>,
}

impl Access {
    pub(in crate::registry) fn sessions(&self) -> impl ExactSizeIterator<Item = &BrowserSession> {
        self.sessions.values()
    }

    pub(in crate::registry) fn session(&self, id: &BrowserSessionId) -> Option<&BrowserSession> {
        self.sessions.get(id)
    }

    pub(in crate::registry) fn sessions_of(&self, user: UserId) -> impl Iterator<Item = &BrowserSession> {
        self.sessions.values().filter(move |session| session.user == user)
    }

    /// When sessions end, and which.
    pub(in crate::registry) fn ends(&self) -> impl Iterator<Item = &(Timestamp, BrowserSessionId)> {
        self.ends.iter()
    }

    pub(in crate::registry) fn put_session(&mut self, session: BrowserSession) {
        self.remove_session(&session.id);
        self.ends.insert((session.ends_at(), session.id));
        self.sessions.insert(session.id, session);
    }

    pub(in crate::registry) fn remove_session(&mut self, id: &BrowserSessionId) {
        if let Some(session) = self.sessions.remove(id) {
            self.ends.remove(&(session.ends_at(), *id));
        }
    }

    pub(in crate::registry) fn tokens(&self) -> impl ExactSizeIterator<Item = &TokenRecord> {
        self.tokens.values()
    }

    pub(in crate::registry) fn token(&self, id: TokenId) -> Option<&TokenRecord> {
        self.tokens.get(&id)
    }

    pub(in crate::registry) fn put_token(&mut self, token: TokenRecord) {
        self.tokens.insert(token.id, token);
    }

    pub(in crate::registry) fn remove_token(&mut self, id: TokenId) {
        self.tokens.remove(&id);
    }

    pub(in crate::registry) fn clients(&self) -> impl ExactSizeIterator<Item = &ClientRecord> {
        self.clients.values()
    }

    pub(in crate::registry) fn client(&self, id: ClientId) -> Option<&ClientRecord> {
        self.clients.get(&id)
    }

    pub(in crate::registry) fn put_client(&mut self, client: ClientRecord) {
        self.clients.insert(client.id, client);
    }

    pub(in crate::registry) fn remove_client(&mut self, id: ClientId) {
        self.clients.remove(&id);
    }
}
