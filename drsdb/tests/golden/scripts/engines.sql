-- Both engines in one transaction: all of it or nothing.

CREATE TABLE hot (id BIGINT PRIMARY KEY, v INT) WITH (engine = 'row');
--> ok

CREATE TABLE cold (id BIGINT PRIMARY KEY, v INT) WITH (engine = 'column');
--> ok

BEGIN;
--> ok

INSERT INTO hot VALUES (1, 1), (2, 2);
--> 2 rows

INSERT INTO cold SELECT id, v * 10 FROM hot;
--> 2 rows

UPDATE hot SET v = cold.v FROM cold WHERE cold.id = hot.id AND hot.id = 2;
--> 1 row

COMMIT;
--> ok

SELECT hot.id, hot.v AS hot, cold.v AS cold FROM hot JOIN cold ON hot.id = cold.id ORDER BY 1;
--> id | hot | cold
--> 1  | 1   | 10
--> 2  | 20  | 20

BEGIN;
--> ok

DELETE FROM cold WHERE id = 1;
--> 1 row

INSERT INTO hot VALUES (2, 0);
--> error constraint_violation: 2

ROLLBACK;
--> ok

SELECT count(*) AS n FROM cold;
--> n
--> 2
