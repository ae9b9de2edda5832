-- A savepoint takes a part of a transaction back.

CREATE TABLE step (id BIGINT PRIMARY KEY, what TEXT NOT NULL) WITH (engine = '$ENGINE');
--> ok

INSERT INTO step VALUES (1, 'start');
--> 1 row

BEGIN;
--> ok

INSERT INTO step VALUES (2, 'kept');
--> 1 row

SAVEPOINT a;
--> ok

INSERT INTO step VALUES (3, 'undone');
--> 1 row

UPDATE step SET what = 'undone' WHERE id = 1;
--> 1 row

DELETE FROM step WHERE id = 2;
--> 1 row

SELECT * FROM step ORDER BY id;
--> id | what
--> 1  | undone
--> 3  | undone

ROLLBACK TO SAVEPOINT a;
--> ok

SELECT * FROM step ORDER BY id;
--> id | what
--> 1  | start
--> 2  | kept

-- The savepoint is still there, and the keys are free.

INSERT INTO step VALUES (3, 'again');
--> 1 row

ROLLBACK TO a;
--> ok

INSERT INTO step VALUES (3, 'third');
--> 1 row

SAVEPOINT b;
--> ok

UPDATE step SET what = 'fourth' WHERE id = 3;
--> 1 row

RELEASE SAVEPOINT b;
--> ok

-- A statement that fails is taken back with the savepoint before it.

SAVEPOINT c;
--> ok

INSERT INTO step VALUES (4, 'new'), (1, 'there already');
--> error constraint_violation: 1

ROLLBACK TO c;
--> ok

INSERT INTO step VALUES (5, 'last');
--> 1 row

COMMIT;
--> ok

SELECT * FROM step ORDER BY id;
--> id | what
--> 1  | start
--> 2  | kept
--> 3  | fourth
--> 5  | last

-- Without a transaction there is none.

SAVEPOINT d;
--> error

BEGIN;
--> ok

ROLLBACK TO nowhere;
--> error : nowhere

ROLLBACK;
--> ok
