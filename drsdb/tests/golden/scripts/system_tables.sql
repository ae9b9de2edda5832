-- The cluster as its tables show it.

CREATE TABLE crate (id BIGINT PRIMARY KEY, label TEXT CONSTRAINT one_label UNIQUE)
WITH (engine = '$ENGINE', shards = 4, replicas = 1);
--> ok

-- A UNIQUE constraint keeps its keys in a table of its own, that is sharded like the other.

SELECT table_schema, table_name, kind, shards, replicas, rows, definition_version FROM drsdb.tables
WHERE table_name IN ('crate', 'one_label') ORDER BY table_name;
--> table_schema | table_name | kind         | shards | replicas | rows | definition_version
--> public       | crate      | table        | 4      | 1        | 0    | 0
--> public       | one_label  | unique index | 4      | 1        | 0    | 0

SELECT engine = '$ENGINE' AS as_said FROM drsdb.tables WHERE table_name = 'crate';
--> as_said
--> true

SELECT shard, rows, replicas, current_replicas FROM drsdb.shards WHERE table_name = 'crate' ORDER BY shard;
--> shard | rows | replicas | current_replicas
--> 0     | 0    | 1        | 1
--> 1     | 0    | 1        | 1
--> 2     | 0    | 1        | 1
--> 3     | 0    | 1        | 1

SELECT table_name, state, is_first, count(*) AS n FROM drsdb.replicas WHERE table_name IN ('crate', 'one_label')
GROUP BY table_name, state, is_first ORDER BY table_name;
--> table_name | state   | is_first | n
--> crate      | current | true     | 4
--> one_label  | current | true     | 4

-- Rows are counted as they come and go; keys with a NULL in them are not kept.

INSERT INTO crate VALUES (1, 'a'), (2, 'b'), (3, NULL), (4, 'd'), (5, NULL);
--> 5 rows

DELETE FROM crate WHERE id IN (1, 3);
--> 2 rows

UPDATE crate SET label = 'e' WHERE id = 5;
--> 1 row

SELECT table_name, rows FROM drsdb.tables WHERE table_name IN ('crate', 'one_label') ORDER BY table_name;
--> table_name | rows
--> crate      | 3
--> one_label  | 3

SELECT sum(rows) AS rows FROM drsdb.shards WHERE table_name = 'crate';
--> rows
--> 3

-- A change of the definition is a new version of it.

ALTER TABLE crate ADD COLUMN weight INT;
--> ok

ALTER TABLE crate DROP CONSTRAINT one_label;
--> ok

SELECT table_name, definition_version FROM drsdb.tables WHERE table_name IN ('crate', 'one_label');
--> table_name | definition_version
--> crate      | 2

SELECT count(*) AS n FROM drsdb.replicas WHERE table_name = 'one_label';
--> n
--> 0

-- Replicas lie on servers that are there.

SELECT s.kind, s.state, count(*) AS n FROM drsdb.replicas r JOIN drsdb.servers s ON s.id = r.server AND s.url = r.url
WHERE r.table_name = 'crate' GROUP BY s.kind, s.state;
--> kind    | state  | n
--> storage | active | 4

SELECT count(*) AS leaders FROM drsdb.raft WHERE role = 'leader';
--> leaders
--> 1

SELECT state FROM drsdb.servers WHERE kind = 'index' AND state <> 'follower';
--> state
--> leader

-- An open transaction is seen by others; what it wrote is not.

--@ holder
BEGIN;
--> ok

INSERT INTO crate VALUES (6, 'f', 1);
--> 1 row

SELECT count(*) AS n FROM crate;
--> n
--> 4

--@ main
SELECT user_name, state, statements, read_only FROM drsdb.transactions;
--> user_name | state | statements | read_only
--> admin     | idle  | 2          | false

SELECT rows FROM drsdb.tables WHERE table_name = 'crate';
--> rows
--> 3

--@ holder
SET TRANSACTION READ ONLY;
--> ok

--@ main
SELECT read_only FROM drsdb.transactions;
--> read_only
--> true

--@ holder
ROLLBACK;
--> ok

--@ main
SELECT count(*) AS n FROM drsdb.transactions;
--> n
--> 0

-- Settings are the session's.

SET time_zone = '+02:00';
--> ok

SELECT value FROM drsdb.settings WHERE name = 'time_zone';
--> value
--> +02:00

--@ holder
SELECT value FROM drsdb.settings WHERE name = 'time_zone';
--> value
--> +00:00

--@ main
RESET time_zone;
--> ok

-- They are the server's own: nobody writes them, or makes others beside them.

DELETE FROM drsdb.tables;
--> error not_found: the schema is the server's own

DROP TABLE drsdb.shards;
--> error not_found: the schema is the server's own

CREATE TABLE drsdb.mine (id INT);
--> error not_found: the name is the server's own

CREATE SCHEMA drsdb;
--> error invalid_argument: schema drsdb is reserved

DROP TABLE crate;
--> ok

SELECT table_name FROM drsdb.tables WHERE table_name = 'crate';
--> table_name

SELECT shard FROM drsdb.shards WHERE table_name = 'crate';
--> shard

SELECT shard FROM drsdb.replicas WHERE table_name = 'crate';
--> shard
