//! Pre-authentication keys, tokens and clients in an SQLite file: never a secret, only its hash.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::StoreError;
use super::connection::failed;
use super::sqlite::{integer, json, list, malformed, number, optional, parsed, readable, refused};
use warren_core::registry::{ClientId, ClientRecord, KeyId, KeyRecord, TokenHolder, TokenId, TokenRecord, Who};
use warren_core::types::{Timestamp, UserId};

pub(super) async fn keep_key(connection: &mut SqliteConnection, key: &KeyRecord) -> Result<(), StoreError> {
    let creator = Creator::of(key.creator.as_ref());
    sqlx::query(
        "INSERT INTO auth_keys (id, user_id, secret_hash, reusable, ephemeral, tags, readmits, created, expires, used,
         description, creator_kind, creator_id, creator_name, pre_approved, revoked)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET user_id = excluded.user_id, expires = excluded.expires,
         description = excluded.description, revoked = excluded.revoked",
    )
    .bind(integer(key.id.0))
    .bind(integer(key.user.0))
    .bind(key.secret_hash.to_vec())
    .bind(key.reusable)
    .bind(key.ephemeral)
    .bind(json(&key.tags))
    .bind(key.readmits)
    .bind(key.created.to_string())
    .bind(key.expires.map(|at| at.to_string()))
    .bind(key.used.map(|at| at.to_string()))
    .bind(key.description.clone())
    .bind(creator.kind)
    .bind(creator.id)
    .bind(creator.name)
    .bind(key.pre_approved)
    .bind(key.revoked.map(|at| at.to_string()))
    .execute(connection)
    .await
    .map(drop)
    .map_err(|error| failed(format!("keep key {}", key.id), error))
}

pub(super) async fn use_key(connection: &mut SqliteConnection, id: KeyId, at: Timestamp) -> Result<(), StoreError> {
    let done =
        sqlx::query("UPDATE auth_keys SET used = ? WHERE id = ? AND revoked IS NULL AND (reusable OR used IS NULL)")
            .bind(at.to_string())
            .bind(integer(id.0))
            .execute(connection)
            .await
            .map_err(|error| failed(format!("use key {id}"), error))?;
    match done.rows_affected() {
        0 => Err(StoreError::Conflict(format!("the pre-authentication key {id} was used or deleted meanwhile"))),
        _ => Ok(()),
    }
}

pub(super) async fn keys(connection: &mut SqliteConnection) -> sqlx::Result<Vec<KeyRecord>> {
    let rows = sqlx::query("SELECT * FROM auth_keys ORDER BY id").fetch_all(connection).await?;
    Ok(readable("key", &rows, |row| {
        Ok(KeyRecord {
            id: KeyId(number(row, "id")?),
            user: UserId(number(row, "user_id")?),
            secret_hash: hash_of(row)?,
            description: row.try_get("description")?,
            creator: creator_of(row)?,
            reusable: row.try_get("reusable")?,
            ephemeral: row.try_get("ephemeral")?,
            pre_approved: row.try_get("pre_approved")?,
            tags: list(row, "tags")?,
            readmits: row.try_get("readmits")?,
            created: parsed(row, "created")?,
            expires: optional(row, "expires")?,
            used: optional(row, "used")?,
            revoked: optional(row, "revoked")?,
        })
    }))
}

pub(super) async fn keep_token(connection: &mut SqliteConnection, token: &TokenRecord) -> Result<(), StoreError> {
    let creator = Creator::of(token.creator.as_ref());
    let (user, client) = match token.holder {
        TokenHolder::User(id) => (Some(integer(id.0)), None),
        TokenHolder::Client(id) => (None, Some(integer(id.0))),
    };
    sqlx::query(
        "INSERT INTO tokens (id, user_id, client_id, secret_hash, description, creator_kind, creator_id, creator_name, scopes, tags,
         created, expires, revoked) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET description = excluded.description, expires = excluded.expires, revoked = excluded.revoked",
    )
    .bind(integer(token.id.0))
    .bind(user)
    .bind(client)
    .bind(token.secret_hash.to_vec())
    .bind(token.description.clone())
    .bind(creator.kind)
    .bind(creator.id)
    .bind(creator.name)
    .bind(json(&token.scopes))
    .bind(json(&token.tags))
    .bind(token.created.to_string())
    .bind(token.expires.to_string())
    .bind(token.revoked.map(|at| at.to_string()))
    .execute(connection)
    .await
    .map(drop)
    .map_err(|error| refused(format!("keep token {}", token.id.0), &error))
}

pub(super) async fn tokens(connection: &mut SqliteConnection) -> sqlx::Result<Vec<TokenRecord>> {
    let rows = sqlx::query("SELECT * FROM tokens ORDER BY id").fetch_all(connection).await?;
    Ok(readable("token", &rows, |row| {
        let user: Option<i64> = row.try_get("user_id")?;
        let holder = match user {
            Some(_) => TokenHolder::User(UserId(number(row, "user_id")?)),
            None => TokenHolder::Client(ClientId(number(row, "client_id")?)),
        };
        Ok(TokenRecord {
            id: TokenId(number(row, "id")?),
            holder,
            secret_hash: hash_of(row)?,
            description: row.try_get("description")?,
            creator: creator_of(row)?,
            scopes: list(row, "scopes")?,
            tags: list(row, "tags")?,
            created: parsed(row, "created")?,
            expires: parsed(row, "expires")?,
            revoked: optional(row, "revoked")?,
        })
    }))
}

pub(super) async fn keep_client(connection: &mut SqliteConnection, client: &ClientRecord) -> Result<(), StoreError> {
    let creator = Creator::of(client.creator.as_ref());
    sqlx::query(
        "INSERT INTO clients (id, secret_hash, description, creator_kind, creator_id, creator_name, scopes, tags, created, revoked)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET description = excluded.description, scopes = excluded.scopes, tags = excluded.tags,
         revoked = excluded.revoked",
    )
    .bind(integer(client.id.0))
    .bind(client.secret_hash.to_vec())
    .bind(client.description.clone())
    .bind(creator.kind)
    .bind(creator.id)
    .bind(creator.name)
    .bind(json(&client.scopes))
    .bind(json(&client.tags))
    .bind(client.created.to_string())
    .bind(client.revoked.map(|at| at.to_string()))
    .execute(connection)
    .await
    .map(drop)
    .map_err(|error| refused(format!("keep client {}", client.id.0), &error))
}

pub(super) async fn clients(connection: &mut SqliteConnection) -> sqlx::Result<Vec<ClientRecord>> {
    let rows = sqlx::query("SELECT * FROM clients ORDER BY id").fetch_all(connection).await?;
    Ok(readable("client", &rows, |row| {
        Ok(ClientRecord {
            id: ClientId(number(row, "id")?),
            secret_hash: hash_of(row)?,
            description: row.try_get("description")?,
            creator: creator_of(row)?,
            scopes: list(row, "scopes")?,
            tags: list(row, "tags")?,
            created: parsed(row, "created")?,
            revoked: optional(row, "revoked")?,
        })
    }))
}

/// Who made something, as three columns.
struct Creator {
    kind: Option<&'static str>,
    id: Option<String>,
    name: Option<String>,
}

impl Creator {
    fn of(who: Option<&Who>) -> Self {
        Self { kind: who.map(Who::kind), id: who.map(Who::id), name: who.map(|who| who.name().to_owned()) }
    }
}

fn creator_of(row: &SqliteRow) -> sqlx::Result<Option<Who>> {
    let kind: Option<&str> = row.try_get("creator_kind")?;
    let Some(kind) = kind else { return Ok(None) };
    let who = Who::kept(kind, row.try_get("creator_id")?, row.try_get("creator_name")?);
    who.map(Some).ok_or_else(|| malformed("creator_kind", "it names nobody"))
}

fn hash_of(row: &SqliteRow) -> sqlx::Result<[u8; 32]> {
    let hash: Vec<u8> = row.try_get("secret_hash")?;
    hash.try_into().map_err(|_| malformed("secret_hash", "it is not 32 bytes"))
}
