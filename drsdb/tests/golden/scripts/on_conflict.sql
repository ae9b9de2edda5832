-- What to do with a row whose key is there already.

CREATE TABLE counter (name TEXT PRIMARY KEY, hits INT NOT NULL, seen TEXT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO counter VALUES ('home', 1, 'mon'), ('news', 5, 'mon');
--> 2 rows

INSERT INTO counter VALUES ('home', 100, 'tue'), ('blog', 1, 'tue') ON CONFLICT DO NOTHING;
--> 1 row

INSERT INTO counter VALUES ('home', 100, 'tue') ON CONFLICT (name) DO NOTHING;
--> 0 rows

SELECT * FROM counter ORDER BY name;
--> name | hits | seen
--> blog | 1    | tue
--> home | 1    | mon
--> news | 5    | mon

INSERT INTO counter VALUES ('home', 10, 'wed'), ('shop', 10, 'wed')
ON CONFLICT (name) DO UPDATE SET hits = counter.hits + excluded.hits, seen = excluded.seen;
--> 2 rows

SELECT * FROM counter ORDER BY name;
--> name | hits | seen
--> blog | 1    | tue
--> home | 11   | wed
--> news | 5    | mon
--> shop | 10   | wed

-- A condition: the row that does not meet it stays as it is, and does not count.

INSERT INTO counter VALUES ('home', 0, 'thu'), ('news', 0, 'thu')
ON CONFLICT (name) DO UPDATE SET hits = 0 WHERE counter.hits < 10;
--> 1 row

SELECT name, hits FROM counter WHERE name IN ('home', 'news') ORDER BY name;
--> name | hits
--> home | 11
--> news | 0

INSERT INTO counter SELECT name, 1, 'fri' FROM counter ON CONFLICT (name) DO UPDATE SET seen = 'fri';
--> 4 rows

SELECT DISTINCT seen FROM counter;
--> seen
--> fri

-- One row twice in a statement: the second finds the first and leaves it, but may not change it.

INSERT INTO counter VALUES ('wiki', 1, 'sat'), ('wiki', 2, 'sat') ON CONFLICT DO NOTHING;
--> 1 row

SELECT hits FROM counter WHERE name = 'wiki';
--> hits
--> 1

INSERT INTO counter VALUES ('tags', 1, 'sat'), ('tags', 2, 'sat') ON CONFLICT (name) DO UPDATE SET hits = 9;
--> error

SELECT count(*) AS n FROM counter WHERE name = 'tags';
--> n
--> 0

-- Other constraints are not excused.

INSERT INTO counter VALUES ('home', NULL, 'sun') ON CONFLICT (name) DO NOTHING;
--> error constraint_violation: hits

INSERT INTO counter VALUES ('home', 1, 'sun') ON CONFLICT (hits) DO NOTHING;
--> error : hits

-- Keys may be changed, and change places, but two rows cannot have one.

CREATE TABLE slot (id INT PRIMARY KEY, code TEXT, CONSTRAINT slot_code UNIQUE (code)) WITH (engine = '$ENGINE');
--> ok

INSERT INTO slot VALUES (1, 'a'), (2, 'b'), (3, 'c');
--> 3 rows

INSERT INTO slot VALUES (1, 'x'), (2, 'y') ON CONFLICT (id) DO UPDATE SET id = 3 - slot.id;
--> 2 rows

SELECT * FROM slot ORDER BY id;
--> id | code
--> 1  | b
--> 2  | a
--> 3  | c

INSERT INTO slot VALUES (1, 'x'), (2, 'y') ON CONFLICT (id) DO UPDATE SET id = 9;
--> error constraint_violation: slot_pkey, 9

INSERT INTO slot VALUES (1, 'x'), (8, 'y') ON CONFLICT (id) DO UPDATE SET id = 8;
--> error constraint_violation: slot_pkey, 8

INSERT INTO slot VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET id = 3;
--> error constraint_violation: slot_pkey, 3

INSERT INTO slot VALUES (7, 'a'), (8, 'b') ON CONFLICT (code) DO UPDATE SET code = 'z';
--> error constraint_violation: slot_code, z

INSERT INTO slot VALUES (7, 'a'), (8, 'z') ON CONFLICT (code) DO UPDATE SET code = 'z';
--> error constraint_violation: slot_code, z

INSERT INTO slot VALUES (7, 'a') ON CONFLICT (code) DO UPDATE SET code = 'c';
--> error constraint_violation: slot_code, c

SELECT * FROM slot ORDER BY id;
--> id | code
--> 1  | b
--> 2  | a
--> 3  | c

-- So it is with UPDATE.

UPDATE slot SET id = 4 WHERE id < 3;
--> error constraint_violation: slot_pkey, 4

UPDATE slot SET id = 3 WHERE id = 1;
--> error constraint_violation: slot_pkey, 3

UPDATE slot SET id = 3 - id WHERE id < 3;
--> 2 rows

SELECT * FROM slot ORDER BY id;
--> id | code
--> 1  | a
--> 2  | b
--> 3  | c
