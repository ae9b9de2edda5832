-- A query's rows become a table, with the query's columns.

CREATE TABLE part (id BIGINT PRIMARY KEY, kind TEXT, price DECIMAL(8, 2)) WITH (engine = '$ENGINE');
--> ok

INSERT INTO part VALUES (1, 'nut', 0.10), (2, 'bolt', 0.25), (3, 'nut', 0.15), (4, 'gear', 12.50);
--> 4 rows

CREATE TABLE dear WITH (engine = '$ENGINE') AS SELECT id, kind, price FROM part WHERE price > 0.2;
--> 2 rows

SELECT * FROM dear ORDER BY id;
--> id | kind | price
--> 2  | bolt | 0.25
--> 4  | gear | 12.50

CREATE TABLE kinds WITH (engine = '$ENGINE') AS SELECT kind, count(*) AS n FROM part GROUP BY kind;
--> 3 rows

SELECT * FROM kinds ORDER BY kind;
--> kind | n
--> bolt | 1
--> gear | 1
--> nut  | 2

-- It is a copy: what happens to the source does not happen to it.

DELETE FROM part WHERE kind = 'gear';
--> 1 row

SELECT count(*) AS n FROM dear;
--> n
--> 2

INSERT INTO dear VALUES (9, 'shaft', 99.99);
--> 1 row

CREATE TABLE dear AS SELECT 1 AS a;
--> error already_exists: dear

CREATE TABLE IF NOT EXISTS dear AS SELECT 1 AS a;
--> ok

-- One that fails leaves no table.

CREATE TABLE broken AS SELECT id / (id - id) AS x FROM part;
--> error invalid_value

SELECT * FROM broken;
--> error not_found: broken

-- One without rows is a table all the same.

CREATE TABLE scarce WITH (engine = '$ENGINE') AS SELECT id, kind FROM part WHERE id < 0;
--> ok

SELECT count(*) AS n FROM scarce;
--> n
--> 0
