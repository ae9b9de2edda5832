-- Defaults are evaluated for each row; time stands still in a statement.

CREATE TABLE event (
    id ULID PRIMARY KEY DEFAULT ulid(),
    at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now(),
    day DATE DEFAULT current_date,
    kind TEXT DEFAULT 'k' || 1,
    n INT DEFAULT 2 * 3 + 1
) WITH (engine = '$ENGINE');
--> ok

INSERT INTO event (kind) VALUES ('a'), ('b'), (DEFAULT);
--> 3 rows

INSERT INTO event DEFAULT VALUES;
--> 1 row

SELECT count(*) AS n, count(DISTINCT id) AS ids, count(DISTINCT kind) AS kinds, min(n) AS low, max(n) AS high FROM event;
--> n | ids | kinds | low | high
--> 4 | 4   | 3     | 7   | 7

SELECT count(*) AS n FROM event WHERE at > now() OR day IS NULL;
--> n
--> 0

SELECT count(DISTINCT at) AS times FROM event WHERE kind IN ('a', 'b');
--> times
--> 1

-- They do not depend on other columns, and they have the column's type.

CREATE TABLE wrong (a INT, b INT DEFAULT a + 1) WITH (engine = '$ENGINE');
--> error

CREATE TABLE wrong (a INT DEFAULT 'many') WITH (engine = '$ENGINE');
--> error

-- The time of the statement has as many digits as columns keep.

CREATE TABLE stamped (id BIGINT PRIMARY KEY, at TIMESTAMP WITH TIME ZONE, plain TIMESTAMP, clock TIME) WITH (engine = '$ENGINE');
--> ok

INSERT INTO stamped SELECT 1, now(), CAST(now() AS TIMESTAMP), current_time;
--> 1 row

UPDATE stamped SET at = now() - INTERVAL '1 day', plain = CAST(current_timestamp AS TIMESTAMP), clock = current_time WHERE id = 1;
--> 1 row

SELECT count(*) AS n FROM stamped WHERE at < now() AND at > now() - INTERVAL '2 days' AND plain > TIMESTAMP '2020-01-01 00:00:00';
--> n
--> 1

CREATE TABLE stamped_too AS SELECT id, now() AS at FROM stamped;
--> 1 row

SELECT data_type FROM information_schema.columns WHERE table_name = 'stamped_too' AND column_name = 'at';
--> data_type
--> timestamp with time zone
