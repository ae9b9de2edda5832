-- 0.0 and -0.0 are one value, and so are all NaNs: they are stored as one, so that keys and groups take them for one.

CREATE TABLE measure (f DOUBLE PRIMARY KEY, r REAL, note TEXT, CONSTRAINT measure_r UNIQUE (r))
WITH (engine = '$ENGINE', shards = 5);
--> ok

INSERT INTO measure VALUES (-0.0, -0.0, 'zero'), (1.5, 1.5, 'some');
--> 2 rows

SELECT * FROM measure ORDER BY f;
--> f   | r   | note
--> 0.0 | 0.0 | zero
--> 1.5 | 1.5 | some

INSERT INTO measure VALUES (0.0, 2, 'again');
--> error constraint_violation: measure_pkey, 0.0

INSERT INTO measure VALUES (2, CAST('-0.0' AS REAL), 'again');
--> error constraint_violation: measure_r, 0.0

SELECT note FROM measure WHERE f = 0.0;
--> note
--> zero

SELECT note FROM measure WHERE f = -0.0 AND r = -0.0;
--> note
--> zero

SELECT note FROM measure WHERE f IN (-0.0, 7);
--> note
--> zero

UPDATE measure SET note = 'nought' WHERE f = -0.0;
--> 1 row

UPDATE measure SET note = note || '!' WHERE f = CAST(0 AS DOUBLE);
--> 1 row

INSERT INTO measure VALUES (CAST('-0' AS DOUBLE), 9, 'new')
ON CONFLICT (f) DO UPDATE SET f = -measure.f, note = measure.note || '?';
--> 1 row

UPDATE measure SET r = -r WHERE f < 1;
--> 1 row

MERGE INTO measure USING (SELECT -f AS f, -r AS r FROM measure WHERE note LIKE 'nought%') AS s ON measure.f = 0
WHEN MATCHED THEN UPDATE SET f = s.f, r = s.r;
--> 1 row

SELECT * FROM measure WHERE note LIKE 'nought%';
--> f   | r   | note
--> 0.0 | 0.0 | nought!?

-- Foreign keys.

CREATE TABLE reading (id INT PRIMARY KEY, f DOUBLE REFERENCES measure (f)) WITH (engine = '$ENGINE');
--> ok

INSERT INTO reading VALUES (1, -0.0), (2, 0.0), (3, 1.5);
--> 3 rows

SELECT id FROM reading JOIN measure ON reading.f = measure.f ORDER BY id;
--> id
--> 1
--> 2
--> 3

SELECT f, count(*) AS n FROM reading GROUP BY f ORDER BY f;
--> f   | n
--> 0.0 | 2
--> 1.5 | 1

DELETE FROM measure WHERE f = -0.0;
--> error constraint_violation: reading_f_fkey

-- Whatever way a value comes.

CREATE TABLE mirror WITH (engine = '$ENGINE') AS SELECT id, -f AS f FROM reading WHERE f = 0;
--> 2 rows

INSERT INTO mirror SELECT id + 10, -f FROM mirror;
--> 2 rows

ALTER TABLE mirror ADD COLUMN g DOUBLE DEFAULT -CAST(0 AS DOUBLE);
--> ok

INSERT INTO mirror (id) VALUES (20);
--> 1 row

SELECT DISTINCT f, g FROM mirror ORDER BY f;
--> f    | g
--> 0.0  | 0.0
--> NULL | 0.0

DELETE FROM mirror WHERE g = 0;
--> 5 rows

-- NaNs.

CREATE TABLE odd (f DOUBLE PRIMARY KEY, note TEXT) WITH (engine = '$ENGINE', shards = 5);
--> ok

INSERT INTO odd VALUES ('NaN', 'none'), (1, 'one');
--> 2 rows

INSERT INTO odd VALUES (-CAST('NaN' AS DOUBLE), 'again');
--> error constraint_violation: odd_pkey, NaN

INSERT INTO odd SELECT -f, 'again' FROM odd WHERE note = 'none' ON CONFLICT (f) DO UPDATE SET note = excluded.note;
--> 1 row

SELECT * FROM odd ORDER BY f;
--> f   | note
--> 1.0 | one
--> NaN | again
