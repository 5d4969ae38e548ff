-- Times are RFC 3339 text, keys their protocol's text, lists JSON: a person with `sqlite3` can read them.

CREATE TABLE counters (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    user_id INTEGER NOT NULL,
    key_id  INTEGER NOT NULL,
    node_id INTEGER NOT NULL,
    host    INTEGER NOT NULL
) STRICT;

CREATE TABLE users (
    id           INTEGER PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    display_name TEXT NOT NULL,
    created      TEXT NOT NULL
) STRICT;

CREATE TABLE auth_keys (
    id          INTEGER PRIMARY KEY,
    user_id     INTEGER NOT NULL REFERENCES users (id),
    secret_hash BLOB NOT NULL,
    reusable    INTEGER NOT NULL,
    ephemeral   INTEGER NOT NULL,
    tags        TEXT NOT NULL,
    created     TEXT NOT NULL,
    expires     TEXT,
    used        TEXT
) STRICT;

CREATE TABLE nodes (
    id              INTEGER PRIMARY KEY,
    stable_id       TEXT NOT NULL UNIQUE,
    user_id         INTEGER NOT NULL REFERENCES users (id),
    machine_key     TEXT NOT NULL,
    node_key        TEXT NOT NULL UNIQUE,
    key_expiry      TEXT,
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
    hostinfo        TEXT NOT NULL
) STRICT;
