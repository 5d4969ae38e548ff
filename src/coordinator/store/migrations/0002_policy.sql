ALTER TABLE users ADD COLUMN role TEXT NOT NULL DEFAULT 'member';

CREATE TABLE policies (
    version INTEGER PRIMARY KEY,
    text    TEXT NOT NULL,
    author  TEXT NOT NULL,
    at      TEXT NOT NULL
) STRICT;
