-- The branches of CASE and the parts of set operations have one type, which has room for all of them.

CREATE TABLE mixed (id INTEGER PRIMARY KEY, f BOOLEAN, a INTEGER, b BIGINT, n DECIMAL(10,2), x DOUBLE)
WITH (engine = '$ENGINE', shards = 4);
--> ok

INSERT INTO mixed VALUES (1, false, 7, 70000000000, 1.25, 2.5), (2, true, 8, 80000000000, 3.75, 4.5);
--> 2 rows

SELECT id, CASE WHEN f THEN 0 ELSE n END AS n, CASE WHEN f THEN a ELSE x END AS x, CASE WHEN f THEN a ELSE b END AS b
FROM mixed ORDER BY id;
--> id | n    | x   | b
--> 1  | 1.25 | 2.5 | 70000000000
--> 2  | 0.00 | 8.0 | 8

SELECT sum(CASE WHEN f THEN 0 ELSE n END) AS n FROM mixed;
--> n
--> 1.25

SELECT id, CASE WHEN f THEN a ELSE 0 END + a + a AS sum, b + 1 + CASE WHEN f THEN 0 ELSE n END AS mixed FROM mixed ORDER BY id;
--> id | sum | mixed
--> 1  | 14  | 70000000002.25
--> 2  | 24  | 80000000001.00

SELECT v + 1 + 1 AS v FROM (SELECT 1 AS v UNION ALL SELECT 2.5) AS u ORDER BY v;
--> v
--> 3.0
--> 4.5

SELECT 1 AS v UNION ALL SELECT 1.5 ORDER BY v;
--> v
--> 1.0
--> 1.5

SELECT id AS v FROM mixed UNION SELECT b FROM mixed ORDER BY v;
--> v
--> 1
--> 2
--> 70000000000
--> 80000000000

SELECT NULL AS v UNION SELECT 1 ORDER BY v;
--> v
--> 1
--> NULL

CREATE TABLE united WITH (engine = '$ENGINE') AS SELECT 1 AS v UNION ALL SELECT 2.5;
--> 2 rows

SELECT v FROM united ORDER BY v;
--> v
--> 1.0
--> 2.5

INSERT INTO mixed (id, a) SELECT 3, 2 UNION ALL SELECT 4.7, 3;
--> error invalid_value: 4.7

CREATE TABLE finer WITH (engine = '$ENGINE') AS SELECT n FROM mixed UNION ALL SELECT 0.125;
--> 3 rows

SELECT n FROM finer ORDER BY n;
--> n
--> 0.125
--> 1.250
--> 3.750

-- Several aggregates of all rows, of which some see NULLs only in parts of the table.

CREATE TABLE sparse (id INTEGER PRIMARY KEY, b BIGINT) WITH (engine = '$ENGINE', shards = 8);
--> ok

INSERT INTO sparse VALUES (0, NULL), (5, -3), (6, 4), (7, 4), (8, NULL), (9, NULL), (10, NULL);
--> 7 rows

SELECT min(b) AS least, max(id) AS last FROM sparse;
--> least | last
--> -3    | 10

SELECT min(b) AS least, min(id) AS first, max(b) AS most FROM sparse;
--> least | first | most
--> -3    | 0     | 4

CREATE VIEW either AS SELECT id, CASE WHEN f THEN a ELSE n END AS v FROM mixed;
--> ok

SELECT id, v FROM either ORDER BY id;
--> id | v
--> 1  | 1.25
--> 2  | 8.00

-- A condition on the side that an outer join fills with NULLs stays above the join, whichever side is read first.

CREATE TABLE l (id INTEGER PRIMARY KEY, a INTEGER) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE r (id INTEGER PRIMARY KEY, a INTEGER) WITH (engine = '$ENGINE');
--> ok

INSERT INTO l SELECT value, CASE WHEN value % 3 = 0 THEN NULL ELSE value % 5 END FROM generate_series(0, 24);
--> 25 rows

INSERT INTO r SELECT id, a FROM l;
--> 25 rows

SELECT count(*) AS rows FROM (SELECT l.id, r.id AS other FROM l RIGHT JOIN r ON l.id = r.a WHERE l.a IS NULL) AS j;
--> rows
--> 15

SELECT count(*) AS rows FROM (SELECT l.id, r.id AS other FROM r LEFT JOIN l ON l.id = r.a WHERE l.a IS NULL) AS j;
--> rows
--> 15

SELECT count(*) AS rows FROM l JOIN r ON l.id = r.a JOIN l AS again ON again.id = r.id WHERE l.a IS NOT NULL AND again.a = 4;
--> rows
--> 3

-- Intervals are compared by how long they are.

SELECT INTERVAL '48 hours' > INTERVAL '1 day' AS longer, INTERVAL '1 day' = INTERVAL '24 hours' AS same,
       INTERVAL '40 days' > INTERVAL '1 month' AS month,
       TIMESTAMP '2024-02-01 00:00:00' - TIMESTAMP '2024-01-01 00:00:00' > INTERVAL '1 day' AS apart,
       INTERVAL '36 hours' BETWEEN INTERVAL '1 day' AND INTERVAL '2 days' AS between,
       INTERVAL '24 hours' IN (INTERVAL '2 days', INTERVAL '1 day') AS among;
--> longer | same | month | apart | between | among
--> true   | true | true  | true  | true    | true

CREATE TABLE job (id INTEGER PRIMARY KEY, began TIMESTAMP, ended TIMESTAMP, due TIMESTAMP,
                  CONSTRAINT in_time CHECK (ended - began <= due - began))
WITH (engine = '$ENGINE');
--> ok

INSERT INTO job VALUES (1, TIMESTAMP '2024-01-01 00:00:00', TIMESTAMP '2024-01-02 00:00:00', TIMESTAMP '2024-01-03 00:00:00');
--> 1 rows

INSERT INTO job VALUES (2, TIMESTAMP '2024-01-01 00:00:00', TIMESTAMP '2024-01-04 00:00:00', TIMESTAMP '2024-01-03 00:00:00');
--> error constraint_violation: in_time

SELECT id FROM job WHERE ended - began = INTERVAL '24 hours' AND ended - began < due - TIMESTAMP '1900-01-01 00:00:00';
--> id
--> 1

-- A filter that a sort makes is not taken to the other side of a semi join by its name.

SELECT l.id FROM l WHERE EXISTS (SELECT 1 FROM r WHERE r.a = l.id AND r.id > l.id + 2) ORDER BY l.id LIMIT 3;
--> id
--> 0
--> 1
--> 2
