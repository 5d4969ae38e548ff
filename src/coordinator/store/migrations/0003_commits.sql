-- Counts commits: after one that failed it tells whether that reached the disk all the same.
CREATE TABLE commits (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    serial INTEGER NOT NULL
) STRICT;

INSERT INTO commits (one, serial) VALUES (1, 0);

-- What is written to find out whether there is room for a commit. Says nothing.
CREATE TABLE proof (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    filler BLOB NOT NULL
) STRICT;

INSERT INTO proof (one, filler) VALUES (1, x'');
