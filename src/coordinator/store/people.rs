//! Users in an SQLite file, whom providers say they are, and the browsers that they are signed in with.

use std::collections::BTreeMap;

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::StoreError;
use super::connection::failed;
use super::sqlite::{integer, malformed, number, parsed, readable, refused};
use warren_core::registry::{BrowserSession, BrowserSessionId, Email, Identity, Invitation, UserName, UserRecord};
use warren_core::types::UserId;

/// A user is, from here on, this, with these identities and no others.
pub(super) async fn keep(connection: &mut SqliteConnection, user: &UserRecord) -> Result<(), StoreError> {
    let refused = |error| refused(format!("keep user {}", user.name), &error);
    let invitation = user.invitation.as_ref();
    sqlx::query(
        "INSERT INTO users (id, name, display_name, created, role, picture, status, invited_provider, invited_email, key_lifetime)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, display_name = excluded.display_name, role = excluded.role,
         picture = excluded.picture, status = excluded.status, invited_provider = excluded.invited_provider,
         invited_email = excluded.invited_email, key_lifetime = excluded.key_lifetime",
    )
    .bind(integer(user.id.0))
    .bind(user.name.to_string())
    .bind(user.display_name.clone())
    .bind(user.created.to_string())
    .bind(user.role.name())
    .bind(user.picture.clone())
    .bind(user.status.name())
    .bind(invitation.map(|invitation| invitation.provider.to_string()))
    .bind(invitation.map(|invitation| invitation.email.clone()))
    .bind(user.key_lifetime.map(|lifetime| lifetime.to_string()))
    .execute(&mut *connection)
    .await
    .map_err(refused)?;
    forget_identities(connection, user.id).await?;
    for identity in &user.identities {
        let email = identity.email.as_ref();
        sqlx::query(
            "INSERT INTO identities (provider, issuer, subject, user_id, email, email_verified, invited)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(identity.provider.to_string())
        .bind(identity.issuer.clone())
        .bind(identity.subject.clone())
        .bind(integer(user.id.0))
        .bind(email.map(|email| email.address.clone()))
        .bind(email.is_some_and(|email| email.verified))
        .bind(identity.invited)
        .execute(&mut *connection)
        .await
        .map_err(refused)?;
    }
    Ok(())
}

/// A user is gone, and with them whom they are to others.
pub(super) async fn forget(connection: &mut SqliteConnection, id: UserId) -> Result<(), StoreError> {
    forget_identities(connection, id).await?;
    let gone = sqlx::query("DELETE FROM users WHERE id = ?").bind(integer(id.0)).execute(connection).await;
    gone.map(drop).map_err(|error| failed(format!("delete user {id}"), error))
}

async fn forget_identities(connection: &mut SqliteConnection, id: UserId) -> Result<(), StoreError> {
    let gone = sqlx::query("DELETE FROM identities WHERE user_id = ?").bind(integer(id.0)).execute(connection).await;
    gone.map(drop).map_err(|error| failed(format!("forget the identities of user {id}"), error))
}

/// Everybody.
pub(super) async fn all(connection: &mut SqliteConnection) -> sqlx::Result<Vec<UserRecord>> {
    let users = sqlx::query("SELECT * FROM users ORDER BY id").fetch_all(&mut *connection).await?;
    let identities = sqlx::query("SELECT * FROM identities ORDER BY user_id, provider, issuer, subject");
    let mut of_users: BTreeMap<i64, Vec<Identity>> = BTreeMap::new();
    for row in identities.fetch_all(connection).await? {
        // One that cannot be read is nobody's: whoever comes with it is told so by the database.
        match identity_of(&row) {
            Ok(identity) => of_users.entry(row.try_get("user_id")?).or_default().push(identity),
            Err(error) => tracing::error!("an identity in the database cannot be read and is left out: {error}"),
        }
    }
    let user = |row: &SqliteRow| {
        Ok(UserRecord { identities: of_users.get(&row.try_get("id")?).cloned().unwrap_or_default(), ..user_of(row)? })
    };
    Ok(readable("user", &users, user))
}

fn user_of(row: &SqliteRow) -> sqlx::Result<UserRecord> {
    let (provider, email): (Option<&str>, Option<String>) =
        (row.try_get("invited_provider")?, row.try_get("invited_email")?);
    let provider =
        provider.map(|name| name.parse().map_err(|error| malformed("invited_provider", error))).transpose()?;
    let lifetime: Option<&str> = row.try_get("key_lifetime")?;
    Ok(UserRecord {
        id: UserId(number(row, "id")?),
        name: UserName::kept(row.try_get("name")?),
        display_name: row.try_get("display_name")?,
        picture: row.try_get("picture")?,
        role: parsed(row, "role")?,
        status: parsed(row, "status")?,
        identities: Vec::new(),
        invitation: provider.zip(email).map(|(provider, email)| Invitation { provider, email }),
        key_lifetime: lifetime
            .map(|text| text.parse().map_err(|error| malformed("key_lifetime", error)))
            .transpose()?,
        created: parsed(row, "created")?,
    })
}

fn identity_of(row: &SqliteRow) -> sqlx::Result<Identity> {
    let (address, verified): (Option<String>, bool) = (row.try_get("email")?, row.try_get("email_verified")?);
    Ok(Identity {
        provider: parsed(row, "provider")?,
        issuer: row.try_get("issuer")?,
        subject: row.try_get("subject")?,
        invited: row.try_get("invited")?,
        email: address.map(|address| Email { address, verified }),
    })
}

// ---- browsers ----

pub(super) async fn keep_session(
    connection: &mut SqliteConnection,
    session: &BrowserSession,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO sessions (id, user_id, signed_in, seen, expires, address, agent) VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET signed_in = excluded.signed_in, seen = excluded.seen, expires = excluded.expires",
    )
    .bind(session.id.0.to_vec())
    .bind(integer(session.user.0))
    .bind(session.signed_in.to_string())
    .bind(session.seen.to_string())
    .bind(session.expires.to_string())
    .bind(session.address.to_string())
    .bind(session.agent.clone())
    .execute(connection)
    .await
    .map(drop)
    .map_err(|error| refused("keep a browser's session".to_owned(), &error))
}

pub(super) async fn forget_session(connection: &mut SqliteConnection, id: &BrowserSessionId) -> Result<(), StoreError> {
    let gone = sqlx::query("DELETE FROM sessions WHERE id = ?").bind(id.0.to_vec()).execute(connection).await;
    gone.map(drop).map_err(|error| failed("end a browser's session", error))
}

pub(super) async fn sessions(connection: &mut SqliteConnection) -> sqlx::Result<Vec<BrowserSession>> {
    let rows = sqlx::query("SELECT * FROM sessions ORDER BY id").fetch_all(connection).await?;
    Ok(readable("session", &rows, |row| {
        let id: Vec<u8> = row.try_get("id")?;
        Ok(BrowserSession {
            id: BrowserSessionId(id.try_into().map_err(|_| malformed("id", "it is not 32 bytes"))?),
            user: UserId(number(row, "user_id")?),
            signed_in: parsed(row, "signed_in")?,
            seen: parsed(row, "seen")?,
            expires: parsed(row, "expires")?,
            address: parsed(row, "address")?,
            agent: row.try_get("agent")?,
        })
    }))
}
