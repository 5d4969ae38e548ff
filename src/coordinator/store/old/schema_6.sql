-- A network as the release with schema 6 left it: its own commands made it, and `sqlite3 FILE .dump` wrote it down.
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL
);
INSERT INTO _sqlx_migrations VALUES(1,'first','2026-11-30 18:48:59',1,X'7b777420aa8ccfa2e7026d8ecd8ba602699e468e9b065277e12215c324bf5b4a92af8acf67119620aa141c97bdc024eb',12020402);
INSERT INTO _sqlx_migrations VALUES(2,'policy','2026-11-30 18:48:59',1,X'd16eb8a19e1759f2872ef9a13006c4834d16f6fc5dd8f18b9d2afc7ffe52e941cdfe7f88e976b060e06d13b14ad59333',8753322);
INSERT INTO _sqlx_migrations VALUES(3,'commits','2026-11-30 18:48:59',1,X'3211e7eb20d83d85414589225cfc839adad91b73ce4ef054127ba81348cfcdb3ef729ecd4830a49bcfaea40c7c4edab8',6625086);
INSERT INTO _sqlx_migrations VALUES(4,'rights','2026-11-30 18:48:59',1,X'a907f136a8142262b994434c7de221d6fda517fc897e07572ea9762a31cac013106884f70c27a6d50d1bb448c91dca8a',7987893);
INSERT INTO _sqlx_migrations VALUES(5,'owners','2026-11-30 18:48:59',1,X'f28066874d88091733d374428d5af76684178a0a3310668cef5d1e300af4442e524ebe4a683762628ae5821c8c7cd292',1279313);
INSERT INTO _sqlx_migrations VALUES(6,'journal','2026-11-30 18:48:59',1,X'0c4ca0153da5362845c22a307fc2c427ff30c94f00f9eb227a47969c90a295e8f6ecf9be2b979739cf7793502962ae74',9731227);
CREATE TABLE counters (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    user_id INTEGER NOT NULL,
    key_id  INTEGER NOT NULL,
    node_id INTEGER NOT NULL,
    host    INTEGER NOT NULL
) STRICT;
INSERT INTO counters VALUES(1,2,2,5,5);
CREATE TABLE users (
    id           INTEGER PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    display_name TEXT NOT NULL,
    created      TEXT NOT NULL
, role TEXT NOT NULL DEFAULT 'member') STRICT;
INSERT INTO users VALUES(1,'ada','','2026-01-01T00:00:00Z','member');
INSERT INTO users VALUES(2,'rob','Bob','2026-01-01T00:00:00Z','admin');
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
, readmits INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO auth_keys VALUES(2,1,X'3191ff9688cad7cc5fd9ccfffaa1c6797b76293daeaf793b3def05a1702e2386',0,1,'[]','2026-01-01T00:00:00Z',NULL,'2026-01-01T00:00:00Z',0);
CREATE TABLE policies (
    version INTEGER PRIMARY KEY,
    text    TEXT NOT NULL,
    author  TEXT NOT NULL,
    at      TEXT NOT NULL
) STRICT;
INSERT INTO policies VALUES(1,'{}','ada','2026-01-01T00:00:00Z');
INSERT INTO policies VALUES(2,'{"acls": []}','ada','2026-01-01T00:00:00Z');
CREATE TABLE commits (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    serial INTEGER NOT NULL
) STRICT;
INSERT INTO commits VALUES(1,24);
CREATE TABLE proof (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    filler BLOB NOT NULL
) STRICT;
INSERT INTO proof VALUES(1,X'00');
CREATE TABLE IF NOT EXISTS "nodes" (
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
    hostinfo        TEXT NOT NULL, version INTEGER NOT NULL DEFAULT 0,
    CHECK (user_id IS NOT NULL OR tags <> '[]')
) STRICT;
INSERT INTO nodes VALUES(1,'nAEAQCAIBAEAQCAIB',1,'mkey:0101010101010101010101010101010101010101010101010101010101010101','nodekey:0101010101010101010101010101010101010101010101010101010101010101','2026-01-01T00:00:00Z',0,'100.64.0.1','fd7a:115c:a1e0::1','door',1,'[]',0,'2026-01-01T00:00:00Z',NULL,1,'[]','discokey:0000000000000000000000000000000000000000000000000000000000000000','["192.0.2.1:9"]',0,145,'[]','{}',3);
INSERT INTO nodes VALUES(2,'nAIBAEAQCAIBAEAQC',2,'mkey:0202020202020202020202020202020202020202020202020202020202020202','nodekey:0202020202020202020202020202020202020202020202020202020202020202','2026-01-01T00:00:00Z',0,'100.64.0.2','fd7a:115c:a1e0::2','node-1',0,'["tag:web"]',0,'2026-01-01T00:00:00Z',NULL,1,'["10.0.0.0/8"]','discokey:0000000000000000000000000000000000000000000000000000000000000000','[]',0,145,'[]','{}',4);
INSERT INTO nodes VALUES(5,'nAYDAMBQGAYDAMBQG',2,'mkey:0505050505050505050505050505050505050505050505050505050505050505','nodekey:0505050505050505050505050505050505050505050505050505050505050505',NULL,0,'100.64.0.5','fd7a:115c:a1e0::5','node-4',0,'[]',0,'2026-01-01T00:00:00Z',NULL,NULL,'[]','discokey:0000000000000000000000000000000000000000000000000000000000000000','[]',0,145,'[]','{}',0);
CREATE TABLE freed_hosts (
    host INTEGER PRIMARY KEY,
    at   TEXT NOT NULL
) STRICT;
INSERT INTO freed_hosts VALUES(3,'2026-01-01T00:00:00Z');
INSERT INTO freed_hosts VALUES(4,'2026-01-01T01:00:00Z');
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
INSERT INTO journal VALUES(1,1,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'create-user','create','user','1','ada','{}','{"created":"2026-01-01T00:00:00Z","display_name":"","id":1,"name":"ada","role":"member"}');
INSERT INTO journal VALUES(2,2,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'create-key','create','key','1','','{}','{"created":"2026-01-01T00:00:00Z","ephemeral":false,"expires":null,"id":1,"readmits":false,"reusable":true,"tags":[],"used":null,"user":1}');
INSERT INTO journal VALUES(3,3,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'create-user','create','user','2','bob','{}','{"created":"2026-01-01T00:00:00Z","display_name":"Bob","id":2,"name":"bob","role":"member"}');
INSERT INTO journal VALUES(4,4,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'rename-user','update','user','2','rob','{"name":"bob"}','{"name":"rob"}');
INSERT INTO journal VALUES(5,5,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'set-role','update','user','2','rob','{"role":"member"}','{"role":"admin"}');
INSERT INTO journal VALUES(6,6,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'create-key','create','key','2','','{}','{"created":"2026-01-01T00:00:00Z","ephemeral":true,"expires":null,"id":2,"readmits":false,"reusable":false,"tags":[],"used":null,"user":1}');
INSERT INTO journal VALUES(7,7,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'register','create','node','1','node','{}','{"admitted_by":1,"approved_routes":[],"created":"2026-01-01T00:00:00Z","ephemeral":false,"id":1,"ipv4":"100.64.0.1","ipv6":"fd7a:115c:a1e0::1","key":"nodekey:0101010101010101010101010101010101010101010101010101010101010101","key_expiry":null,"label":"node","label_fixed":false,"logged_out":false,"machine":"mkey:0101010101010101010101010101010101010101010101010101010101010101","offered_routes":[],"stable_id":"nAEAQCAIBAEAQCAIB","tags":[],"user":1}');
INSERT INTO journal VALUES(8,7,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'register','update','key','1','','{"used":null}','{"used":"2026-01-01T00:00:00Z"}');
INSERT INTO journal VALUES(9,9,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'register','create','node','2','node-1','{}','{"admitted_by":1,"approved_routes":[],"created":"2026-01-01T00:00:00Z","ephemeral":false,"id":2,"ipv4":"100.64.0.2","ipv6":"fd7a:115c:a1e0::2","key":"nodekey:0202020202020202020202020202020202020202020202020202020202020202","key_expiry":null,"label":"node-1","label_fixed":false,"logged_out":false,"machine":"mkey:0202020202020202020202020202020202020202020202020202020202020202","offered_routes":[],"stable_id":"nAIBAEAQCAIBAEAQC","tags":[],"user":1}');
INSERT INTO journal VALUES(10,10,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'register','create','node','3','node-2','{}','{"admitted_by":1,"approved_routes":[],"created":"2026-01-01T00:00:00Z","ephemeral":false,"id":3,"ipv4":"100.64.0.3","ipv6":"fd7a:115c:a1e0::3","key":"nodekey:0303030303030303030303030303030303030303030303030303030303030303","key_expiry":null,"label":"node-2","label_fixed":false,"logged_out":false,"machine":"mkey:0303030303030303030303030303030303030303030303030303030303030303","offered_routes":[],"stable_id":"nAMBQGAYDAMBQGAYD","tags":[],"user":1}');
INSERT INTO journal VALUES(11,11,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'register','create','node','4','node-3','{}','{"admitted_by":2,"approved_routes":[],"created":"2026-01-01T00:00:00Z","ephemeral":true,"id":4,"ipv4":"100.64.0.4","ipv6":"fd7a:115c:a1e0::4","key":"nodekey:0404040404040404040404040404040404040404040404040404040404040404","key_expiry":null,"label":"node-3","label_fixed":false,"logged_out":false,"machine":"mkey:0404040404040404040404040404040404040404040404040404040404040404","offered_routes":[],"stable_id":"nAQCAIBAEAQCAIBAE","tags":[],"user":1}');
INSERT INTO journal VALUES(12,11,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'register','update','key','2','','{"used":null}','{"used":"2026-01-01T00:00:00Z"}');
INSERT INTO journal VALUES(13,13,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'approve','create','node','5','node-4','{}','{"admitted_by":null,"approved_routes":[],"created":"2026-01-01T00:00:00Z","ephemeral":false,"id":5,"ipv4":"100.64.0.5","ipv6":"fd7a:115c:a1e0::5","key":"nodekey:0505050505050505050505050505050505050505050505050505050505050505","key_expiry":null,"label":"node-4","label_fixed":false,"logged_out":false,"machine":"mkey:0505050505050505050505050505050505050505050505050505050505050505","offered_routes":[],"stable_id":"nAYDAMBQGAYDAMBQG","tags":[],"user":2}');
INSERT INTO journal VALUES(14,14,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'rename-node','update','node','1','door','{"label":"node","label_fixed":false}','{"label":"door","label_fixed":true}');
INSERT INTO journal VALUES(15,15,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'set-tags','update','node','2','node-1','{"tags":[]}','{"tags":["tag:web"]}');
INSERT INTO journal VALUES(16,16,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'move-node','update','node','2','node-1','{"user":1}','{"user":2}');
INSERT INTO journal VALUES(17,17,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'approve-routes','update','node','2','node-1','{"approved_routes":[]}','{"approved_routes":["10.0.0.0/8"]}');
INSERT INTO journal VALUES(18,18,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'expire-node','update','node','3','node-2','{"key_expiry":null}','{"key_expiry":"2026-01-01T00:00:00Z"}');
INSERT INTO journal VALUES(19,19,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'delete-node','delete','node','3','node-2','{"admitted_by":1,"approved_routes":[],"created":"2026-01-01T00:00:00Z","ephemeral":false,"id":3,"ipv4":"100.64.0.3","ipv6":"fd7a:115c:a1e0::3","key":"nodekey:0303030303030303030303030303030303030303030303030303030303030303","key_expiry":"2026-01-01T00:00:00Z","label":"node-2","label_fixed":false,"logged_out":false,"machine":"mkey:0303030303030303030303030303030303030303030303030303030303030303","offered_routes":[],"stable_id":"nAMBQGAYDAMBQGAYD","tags":[],"user":1}','{}');
INSERT INTO journal VALUES(20,20,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'set-policy','create','policy','1','','{}','{"by":"ada","bytes":2,"sha256":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}');
INSERT INTO journal VALUES(21,21,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'set-policy','create','policy','2','','{}','{"by":"ada","bytes":12,"sha256":"1b8c553ce101d752c20b3b3ae6e74a3fd56276c663be94385c671c86185ac3bb"}');
INSERT INTO journal VALUES(22,22,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'extend-node','update','node','1','door','{"key_expiry":null}','{"key_expiry":"2026-01-01T00:01:00Z"}');
INSERT INTO journal VALUES(23,23,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'expire-key','update','node','1','door','{"key_expiry":"2026-01-01T00:01:00Z"}','{"key_expiry":"2026-01-01T00:00:00Z"}');
INSERT INTO journal VALUES(24,23,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'expire-key','update','node','2','node-1','{"key_expiry":null}','{"key_expiry":"2026-01-01T00:00:00Z"}');
INSERT INTO journal VALUES(25,23,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'expire-key','update','key','1','','{"expires":null}','{"expires":"2026-01-01T00:00:00Z"}');
INSERT INTO journal VALUES(26,26,'2026-01-01T00:00:00Z','coordinator','','','inside',NULL,'delete-key','delete','key','1','','{"created":"2026-01-01T00:00:00Z","ephemeral":false,"expires":"2026-01-01T00:00:00Z","id":1,"readmits":false,"reusable":true,"tags":[],"used":"2026-01-01T00:00:00Z","user":1}','{}');
INSERT INTO journal VALUES(27,27,'2026-01-01T01:00:00Z','coordinator','','','inside',NULL,'clean-up','delete','node','4','node-3','{"admitted_by":2,"approved_routes":[],"created":"2026-01-01T00:00:00Z","ephemeral":true,"id":4,"ipv4":"100.64.0.4","ipv6":"fd7a:115c:a1e0::4","key":"nodekey:0404040404040404040404040404040404040404040404040404040404040404","key_expiry":null,"label":"node-3","label_fixed":false,"logged_out":false,"machine":"mkey:0404040404040404040404040404040404040404040404040404040404040404","offered_routes":[],"stable_id":"nAQCAIBAEAQCAIBAE","tags":[],"user":1}','{}');
CREATE TABLE revision (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    n   INTEGER NOT NULL
) STRICT;
INSERT INTO revision VALUES(1,27);
CREATE INDEX journal_by_object ON journal (object_kind, object_id, n);
CREATE UNIQUE INDEX nodes_by_label ON nodes (label);
COMMIT;
