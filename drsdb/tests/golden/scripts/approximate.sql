-- DOUBLE and REAL beside exact numbers: what is approximate stays so, in conditions, values and constraints.

CREATE TABLE reading (
    id BIGINT PRIMARY KEY,
    f DOUBLE CHECK (f > -1.5),
    r REAL DEFAULT 1e-1,
    d DECIMAL(10, 2) CONSTRAINT near CHECK (d <> f)
) WITH (engine = '$ENGINE');
--> ok

INSERT INTO reading VALUES (1, 1e-20, 0.1, 0), (2, 0.5, 0.5, 0.25), (3, 1e300, 1e30, 10), (4, 0.25, DEFAULT, NULL);
--> 4 rows

INSERT INTO reading VALUES (5, -1.5000001, 0, 0);
--> error constraint_violation: reading

INSERT INTO reading VALUES (5, 0.75, 0, 0.75);
--> error constraint_violation: near

SELECT id FROM reading WHERE f = 0.0;
--> id

SELECT id FROM reading WHERE f > 0.25 ORDER BY id;
--> id
--> 2
--> 3

SELECT id FROM reading WHERE r = 0.1 ORDER BY id;
--> id
--> 1
--> 4

SELECT id FROM reading WHERE f IN (0.5, 0.0) OR f BETWEEN 1e299 AND 1e301 ORDER BY id;
--> id
--> 2
--> 3

DELETE FROM reading WHERE f = 0.0;
--> 0 rows

UPDATE reading SET f = coalesce(f, 0.0) WHERE f < 0.1;
--> 1 row

UPDATE reading SET f = CASE WHEN r > 0.4 THEN f ELSE 0.125 END WHERE id IN (3, 4);
--> 2 rows

SELECT id, f FROM reading ORDER BY id;
--> id | f
--> 1  | 1e-20
--> 2  | 0.5
--> 3  | 1e300
--> 4  | 0.125

SELECT a.id, b.id AS other FROM reading AS a JOIN reading AS b ON a.f = b.d * 2;
--> id | other
--> 2  | 2

SELECT f FROM reading WHERE id = 3 UNION ALL SELECT d FROM reading WHERE id = 2 ORDER BY f;
--> f
--> 0.25
--> 1e300

CREATE VIEW positive AS SELECT id, greatest(f, 0.25) AS g FROM reading;
--> ok

SELECT g FROM positive WHERE g > 0.3 ORDER BY g;
--> g
--> 0.5
--> 1e300

MERGE INTO reading AS t USING (SELECT 2 AS id, 0.5 AS x) AS s ON t.id = s.id
WHEN MATCHED AND t.f = s.x THEN UPDATE SET f = t.f + s.x;
--> 1 row

INSERT INTO reading (id, f) VALUES (2, 7) ON CONFLICT (id) DO UPDATE SET f = nullif(excluded.f, 7.0) WHERE reading.f = 1.0;
--> 1 row

SELECT id, f FROM reading WHERE f IS NULL;
--> id | f
--> 2  | NULL
