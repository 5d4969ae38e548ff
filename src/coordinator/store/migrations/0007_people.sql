-- People: whether they may do anything, whom providers say they are, and the browsers that they are signed in with.
ALTER TABLE users ADD COLUMN picture TEXT NOT NULL DEFAULT '';
ALTER TABLE users ADD COLUMN status TEXT NOT NULL DEFAULT 'active';
ALTER TABLE users ADD COLUMN invited_provider TEXT;
ALTER TABLE users ADD COLUMN invited_email TEXT;
ALTER TABLE users ADD COLUMN key_lifetime TEXT;

-- Compared byte by byte: the three are never joined.
CREATE TABLE identities (
    provider       TEXT NOT NULL,
    issuer         TEXT NOT NULL,
    subject        TEXT NOT NULL,
    user_id        INTEGER NOT NULL REFERENCES users (id),
    email          TEXT,
    email_verified INTEGER NOT NULL,
    PRIMARY KEY (provider, issuer, subject)
) STRICT, WITHOUT ROWID;

CREATE INDEX identities_by_user ON identities (user_id);

CREATE TABLE sessions (
    id        BLOB PRIMARY KEY CHECK (length(id) = 32),
    user_id   INTEGER NOT NULL REFERENCES users (id),
    signed_in TEXT NOT NULL,
    seen      TEXT NOT NULL,
    expires   TEXT NOT NULL,
    address   TEXT NOT NULL,
    agent     TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Keys that older releases made let nodes in without anybody's approval, as they did then.
ALTER TABLE auth_keys ADD COLUMN description TEXT NOT NULL DEFAULT '';
ALTER TABLE auth_keys ADD COLUMN creator_kind TEXT;
ALTER TABLE auth_keys ADD COLUMN creator_id TEXT;
ALTER TABLE auth_keys ADD COLUMN creator_name TEXT;
ALTER TABLE auth_keys ADD COLUMN pre_approved INTEGER NOT NULL DEFAULT 1;
ALTER TABLE auth_keys ADD COLUMN revoked TEXT;

-- Nodes that are in the network are approved; of a key that does not end, when it would is kept.
ALTER TABLE nodes ADD COLUMN approved INTEGER NOT NULL DEFAULT 1;
ALTER TABLE nodes ADD COLUMN expiry_disabled INTEGER NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN attributes TEXT NOT NULL DEFAULT '{}';

-- What programs show to give commands.
CREATE TABLE clients (
    id           INTEGER PRIMARY KEY,
    secret_hash  BLOB NOT NULL UNIQUE,
    description  TEXT NOT NULL,
    creator_kind TEXT,
    creator_id   TEXT,
    creator_name TEXT,
    scopes       TEXT NOT NULL,
    tags         TEXT NOT NULL,
    created      TEXT NOT NULL,
    revoked      TEXT
) STRICT;

CREATE TABLE tokens (
    id           INTEGER PRIMARY KEY,
    user_id      INTEGER REFERENCES users (id),
    client_id    INTEGER REFERENCES clients (id),
    secret_hash  BLOB NOT NULL UNIQUE,
    description  TEXT NOT NULL,
    creator_kind TEXT,
    creator_id   TEXT,
    creator_name TEXT,
    scopes       TEXT NOT NULL,
    tags         TEXT NOT NULL,
    created      TEXT NOT NULL,
    expires      TEXT NOT NULL,
    revoked      TEXT,
    CHECK ((user_id IS NULL) <> (client_id IS NULL))
) STRICT;

ALTER TABLE counters ADD COLUMN token_id INTEGER NOT NULL DEFAULT 0;
ALTER TABLE counters ADD COLUMN client_id INTEGER NOT NULL DEFAULT 0;

-- What holds for the whole network and is set while it runs. JSON.
CREATE TABLE settings (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    value TEXT NOT NULL
) STRICT;

-- Machines that wait to be let in, and those that were turned away.
CREATE TABLE pending (
    code           TEXT PRIMARY KEY,
    ticket         TEXT NOT NULL UNIQUE,
    machine_key    TEXT NOT NULL UNIQUE,
    node_key       TEXT NOT NULL,
    hostname       TEXT NOT NULL,
    os             TEXT NOT NULL,
    requested_tags TEXT NOT NULL,
    status         TEXT NOT NULL,
    since          TEXT NOT NULL,
    expires        TEXT NOT NULL,
    site           TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE rejected (
    machine_key TEXT PRIMARY KEY,
    until       TEXT NOT NULL
) STRICT, WITHOUT ROWID;
