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

-- Rows are decided in their order, and one that is left out is in nobody's way.

CREATE TABLE badge (
    id INT PRIMARY KEY,
    code INT,
    level INT,
    CONSTRAINT badge_code UNIQUE (code),
    CONSTRAINT badge_level CHECK (level > 0)
) WITH (engine = '$ENGINE');
--> ok

INSERT INTO badge VALUES (6, 6, 1);
--> 1 row

INSERT INTO badge VALUES (7, 6, 1), (7, NULL, 1) ON CONFLICT DO NOTHING;
--> 1 row

INSERT INTO badge VALUES (8, 8, 1), (9, 8, 1), (9, 9, 1), (8, 10, 1), (10, 10, 1) ON CONFLICT DO NOTHING;
--> 3 rows

INSERT INTO badge VALUES (6, 11, 1), (11, 11, 1), (11, 12, 1) ON CONFLICT (id) DO NOTHING;
--> 1 row

SELECT id, code FROM badge ORDER BY id;
--> id | code
--> 6  | 6
--> 7  | NULL
--> 8  | 8
--> 9  | 9
--> 10 | 10
--> 11 | 11

-- The constraint that is not named still holds.

INSERT INTO badge VALUES (12, 6, 1) ON CONFLICT (id) DO NOTHING;
--> error constraint_violation: badge_code, 6

-- So does CHECK, for rows that would be left out as well.

INSERT INTO badge VALUES (7, 7, 0) ON CONFLICT DO NOTHING;
--> error constraint_violation: badge_level

-- A row that does not meet the condition stays as it was, and a later one may change it; nothing changes twice.

INSERT INTO badge VALUES (6, NULL, 5), (6, NULL, 50)
ON CONFLICT (id) DO UPDATE SET level = excluded.level WHERE excluded.level > 10;
--> 1 row

INSERT INTO badge VALUES (6, NULL, 1), (6, NULL, 2) ON CONFLICT (id) DO UPDATE SET level = excluded.level;
--> error invalid_argument: badge_pkey, 6

SELECT level FROM badge WHERE id = 6;
--> level
--> 50

-- A key that is given up is free.

INSERT INTO badge VALUES (6, 60, 1), (6, 61, 2) ON CONFLICT (id) DO UPDATE SET id = 12;
--> 2 rows

SELECT * FROM badge WHERE id IN (6, 12) ORDER BY id;
--> id | code | level
--> 6  | 61   | 2
--> 12 | 6    | 50
