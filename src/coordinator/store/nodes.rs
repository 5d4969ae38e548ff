//! Nodes in an SQLite file: whole, by the fields that somebody decided about, and by what they report.

use sqlx::sqlite::SqliteConnection;
use sqlx::{QueryBuilder, Sqlite};
use warren_core::registry::{NodeFields, NodeRecord, NodeReport};
use warren_core::types::NodeId;

use super::StoreError;
use super::sqlite::{integer, json, refused};

/// A node is, from here on, this.
pub(super) async fn keep(connection: &mut SqliteConnection, node: &NodeRecord) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO nodes (id, stable_id, user_id, machine_key, node_key, key_expiry, logged_out, ipv4, ipv6, label,
         label_fixed, tags, ephemeral, created, last_seen, admitted_by, approved_routes, disco_key, endpoints, home_derp, cap, routes,
         hostinfo, version, approved, expiry_disabled, attributes, gateway)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET user_id = excluded.user_id, machine_key = excluded.machine_key, node_key = excluded.node_key,
         key_expiry = excluded.key_expiry, logged_out = excluded.logged_out, label = excluded.label, label_fixed = excluded.label_fixed,
         tags = excluded.tags, ephemeral = excluded.ephemeral, last_seen = excluded.last_seen,
         admitted_by = excluded.admitted_by, approved_routes = excluded.approved_routes,
         disco_key = excluded.disco_key, endpoints = excluded.endpoints, home_derp = excluded.home_derp,
         cap = excluded.cap, routes = excluded.routes, hostinfo = excluded.hostinfo, version = excluded.version,
         approved = excluded.approved, expiry_disabled = excluded.expiry_disabled, attributes = excluded.attributes,
         gateway = excluded.gateway",
    )
    .bind(integer(node.id.0))
    .bind(node.stable_id.to_string())
    .bind(node.user.map(|id| integer(id.0)))
    .bind(node.machine.to_string())
    .bind(node.key.to_string())
    .bind(node.key_expiry.map(|at| at.to_string()))
    .bind(node.logged_out)
    .bind(node.ipv4.to_string())
    .bind(node.ipv6.to_string())
    .bind(node.label.to_string())
    .bind(node.label_fixed)
    .bind(json(&node.tags))
    .bind(node.ephemeral)
    .bind(node.created.to_string())
    .bind(node.last_seen.map(|at| at.to_string()))
    .bind(node.admitted_by.map(|id| integer(id.0)))
    .bind(json(&node.approved_routes))
    .bind(node.status.disco.to_string())
    .bind(json(&node.status.endpoints))
    .bind(i64::from(node.status.home_derp.0))
    .bind(i64::from(node.status.cap.0))
    .bind(json(&node.status.routes))
    .bind(node.status.hostinfo.to_string())
    .bind(integer(node.version))
    .bind(node.approved)
    .bind(node.expiry_disabled)
    .bind(json(&node.attributes))
    .bind(node.gateway.map(|id| integer(id.0)))
    .execute(connection)
    .await
    .map(drop)
    .map_err(|error| refused(format!("keep node {}", node.id), &error))
}

/// Changes these fields of a node and no other, if its version is still this one.
pub(super) async fn change(
    connection: &mut SqliteConnection,
    id: NodeId,
    version: u64,
    fields: &NodeFields,
) -> Result<(), StoreError> {
    let NodeFields {
        user,
        key,
        key_expiry,
        expiry_disabled,
        logged_out,
        label,
        label_fixed,
        tags,
        ephemeral,
        admitted_by,
        approved,
        attributes,
        approved_routes,
    } = fields;
    let mut sql = QueryBuilder::<Sqlite>::new("UPDATE nodes SET version = version + 1");
    if let Some(user) = user {
        sql.push(", user_id = ").push_bind(user.map(|id| integer(id.0)));
    }
    if let Some(key) = key {
        sql.push(", node_key = ").push_bind(key.to_string());
    }
    if let Some(expiry) = key_expiry {
        sql.push(", key_expiry = ").push_bind(expiry.map(|at| at.to_string()));
    }
    if let Some(label) = label {
        sql.push(", label = ").push_bind(label.to_string());
    }
    if let Some(tags) = tags {
        sql.push(", tags = ").push_bind(json(tags));
    }
    if let Some(key) = admitted_by {
        sql.push(", admitted_by = ").push_bind(key.map(|id| integer(id.0)));
    }
    if let Some(routes) = approved_routes {
        sql.push(", approved_routes = ").push_bind(json(routes));
    }
    if let Some(attributes) = attributes {
        sql.push(", attributes = ").push_bind(json(attributes));
    }
    let flags = [
        ("logged_out", logged_out),
        ("label_fixed", label_fixed),
        ("ephemeral", ephemeral),
        ("approved", approved),
        ("expiry_disabled", expiry_disabled),
    ];
    for (column, flag) in flags {
        if let Some(flag) = flag {
            sql.push(format!(", {column} = ")).push_bind(*flag);
        }
    }
    sql.push(" WHERE id = ").push_bind(integer(id.0)).push(" AND version = ").push_bind(integer(version));
    let operation = format!("change node {id}");
    let done = sql.build().execute(connection).await.map_err(|error| refused(operation, &error))?;
    match done.rows_affected() {
        0 => Err(StoreError::Conflict(format!("node {id} was changed or deleted meanwhile"))),
        _ => Ok(()),
    }
}

/// Keeps what a node reported. Of one that is gone there is nothing to keep.
pub(super) async fn report(connection: &mut SqliteConnection, report: &NodeReport) -> Result<(), StoreError> {
    let NodeReport { id, status, last_seen, label } = report;
    sqlx::query(
        "UPDATE nodes SET disco_key = ?, endpoints = ?, home_derp = ?, cap = ?, routes = ?, hostinfo = ?, last_seen = ?,
         label = CASE WHEN label_fixed THEN label ELSE ? END WHERE id = ?",
    )
    .bind(status.disco.to_string())
    .bind(json(&status.endpoints))
    .bind(i64::from(status.home_derp.0))
    .bind(i64::from(status.cap.0))
    .bind(json(&status.routes))
    .bind(status.hostinfo.to_string())
    .bind(last_seen.map(|at| at.to_string()))
    .bind(label.to_string())
    .bind(integer(id.0))
    .execute(connection)
    .await
    .map(drop)
    .map_err(|error| refused(format!("keep what node {id} reported"), &error))
}
