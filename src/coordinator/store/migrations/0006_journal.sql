-- Every lasting change, numbered without a gap: who, by which door, what for, and which fields of what, before and after.
CREATE TABLE journal (
    n           INTEGER PRIMARY KEY,
    -- The number of the first entry of the decision that it is part of.
    decision    INTEGER NOT NULL,
    at          TEXT NOT NULL,
    actor_kind  TEXT NOT NULL,
    actor_id    TEXT NOT NULL,
    actor_name  TEXT NOT NULL,
    door        TEXT NOT NULL,
    address     TEXT,
    command     TEXT NOT NULL,
    action      TEXT NOT NULL,
    object_kind TEXT NOT NULL,
    object_id   TEXT NOT NULL,
    object_name TEXT NOT NULL,
    -- JSON objects of the fields that differ.
    before      TEXT NOT NULL,
    after       TEXT NOT NULL
) STRICT;

CREATE INDEX journal_by_object ON journal (object_kind, object_id, n);

-- The number of the last entry. Whoever commits names the one that they decided on.
CREATE TABLE revision (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    n   INTEGER NOT NULL
) STRICT;

INSERT INTO revision (one, n) VALUES (1, 0);

-- A name is one node's alone. Where a crash left two with the same, the later is called by its number too.
UPDATE nodes SET label = substr(label, 1, 40) || '-' || id
    WHERE EXISTS (SELECT 1 FROM nodes AS other WHERE other.label = nodes.label AND other.id < nodes.id);
CREATE UNIQUE INDEX nodes_by_label ON nodes (label);

-- How often somebody decided about a node: whoever decided on an older version decides again.
ALTER TABLE nodes ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
