-- Rows go away, by any predicate.

CREATE TABLE mail (id BIGINT PRIMARY KEY, sender TEXT, size INT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO mail VALUES (1, 'ann', 10), (2, 'bob', 20), (3, 'ann', 30), (4, NULL, 40), (5, 'cid', 50), (6, 'bob', 60);
--> 6 rows

DELETE FROM mail WHERE id = 1;
--> 1 row

DELETE FROM mail WHERE id = 1;
--> 0 rows

DELETE FROM mail WHERE sender = 'nobody' OR size > 55;
--> 1 row

-- NULL is not different from anything: the row stays.

DELETE FROM mail WHERE sender <> 'ann' AND size < 45;
--> 1 row

SELECT id FROM mail ORDER BY id;
--> id
--> 3
--> 4
--> 5

CREATE TABLE blocked (name TEXT PRIMARY KEY) WITH (engine = '$ENGINE');
--> ok

INSERT INTO blocked VALUES ('cid'), ('dee');
--> 2 rows

DELETE FROM mail WHERE sender IN (SELECT name FROM blocked);
--> 1 row

DELETE FROM mail USING blocked WHERE mail.sender = blocked.name;
--> 0 rows

DELETE FROM mail WHERE size = (SELECT max(size) FROM mail);
--> 1 row

-- A deleted key is free.

INSERT INTO mail VALUES (1, 'new', 1), (4, 'new', 4);
--> 2 rows

SELECT * FROM mail ORDER BY id;
--> id | sender | size
--> 1  | new    | 1
--> 3  | ann    | 30
--> 4  | new    | 4

DELETE FROM mail WHERE nonsense = 1;
--> error not_found: nonsense

DELETE FROM mail WHERE 1 / (id - 3) = 1;
--> error invalid_value

DELETE FROM mail;
--> 3 rows

SELECT count(*) AS n FROM mail;
--> n
--> 0
