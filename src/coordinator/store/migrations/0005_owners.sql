-- A node with tags goes on without the user who registered it.
CREATE TABLE nodes_of_whom (
    id              INTEGER PRIMARY KEY,
    stable_id       TEXT NOT NULL UNIQUE,
    user_id         INTEGER REFERENCES users (id),
    machine_key     TEXT NOT NULL,
    node_key        TEXT NOT NULL UNIQUE,
    key_expiry      TEXT,
    logged_out      INTEGER NOT NULL,
    ipv4            TEXT NOT NULL UNIQUE,
    ipv6            TEXT NOT NULL UNIQUE,
    label           TEXT NOT NULL,
    label_fixed     INTEGER NOT NULL,
    tags            TEXT NOT NULL,
    ephemeral       INTEGER NOT NULL,
    created         TEXT NOT NULL,
    last_seen       TEXT,
    -- No reference: the key may be forgotten before the node.
    admitted_by     INTEGER,
    approved_routes TEXT NOT NULL,
    -- What the node last said of itself.
    disco_key       TEXT NOT NULL,
    endpoints       TEXT NOT NULL,
    home_derp       INTEGER NOT NULL,
    cap             INTEGER NOT NULL,
    routes          TEXT NOT NULL,
    hostinfo        TEXT NOT NULL,
    CHECK (user_id IS NOT NULL OR tags <> '[]')
) STRICT;

INSERT INTO nodes_of_whom SELECT id, stable_id, user_id, machine_key, node_key, key_expiry, logged_out, ipv4, ipv6, label,
    label_fixed, tags, ephemeral, created, last_seen, admitted_by, approved_routes, disco_key, endpoints, home_derp, cap,
    routes, hostinfo FROM nodes;
DROP TABLE nodes;
ALTER TABLE nodes_of_whom RENAME TO nodes;

-- Places in the address ranges that may not be given again yet.
CREATE TABLE freed_hosts (
    host INTEGER PRIMARY KEY,
    at   TEXT NOT NULL
) STRICT;
