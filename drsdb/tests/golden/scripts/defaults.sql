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
