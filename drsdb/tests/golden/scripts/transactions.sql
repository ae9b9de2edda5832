-- A transaction sees its own writes; nobody else does before its commit.

CREATE TABLE account (id BIGINT PRIMARY KEY, owner TEXT, balance INT NOT NULL) WITH (engine = '$ENGINE');
--> ok

INSERT INTO account VALUES (1, 'ann', 100), (2, 'bob', 50);
--> 2 rows

--@ ann
BEGIN;
--> ok

UPDATE account SET balance = balance - 30 WHERE id = 1;
--> 1 row

UPDATE account SET balance = balance + 30 WHERE id = 2;
--> 1 row

INSERT INTO account VALUES (3, 'cid', 0);
--> 1 row

SELECT id, balance FROM account ORDER BY id;
--> id | balance
--> 1  | 70
--> 2  | 80
--> 3  | 0

UPDATE account SET balance = balance + 1 WHERE id = 3;
--> 1 row

DELETE FROM account WHERE id = 3;
--> 1 row

INSERT INTO account VALUES (3, 'dee', 5);
--> 1 row

SELECT * FROM account WHERE id = 3;
--> id | owner | balance
--> 3  | dee   | 5

--@ bob
SELECT id, balance FROM account ORDER BY id;
--> id | balance
--> 1  | 100
--> 2  | 50

--@ ann
COMMIT;
--> ok

--@ bob
SELECT id, owner, balance FROM account ORDER BY id;
--> id | owner | balance
--> 1  | ann   | 70
--> 2  | bob   | 80
--> 3  | dee   | 5

-- ROLLBACK leaves nothing.

--@ ann
BEGIN;
--> ok

DELETE FROM account;
--> 3 rows

SELECT count(*) AS n FROM account;
--> n
--> 0

ROLLBACK;
--> ok

SELECT count(*) AS n FROM account;
--> n
--> 3

-- A transaction reads one snapshot, whatever others commit meanwhile.

--@ ann
BEGIN;
--> ok

SELECT balance FROM account WHERE id = 1;
--> balance
--> 70

--@ bob
UPDATE account SET balance = 1000 WHERE id = 1;
--> 1 row

INSERT INTO account VALUES (4, 'new', 1);
--> 1 row

--@ ann
SELECT balance FROM account WHERE id = 1;
--> balance
--> 70

SELECT count(*) AS n FROM account;
--> n
--> 3

COMMIT;
--> ok

SELECT balance FROM account WHERE id = 1;
--> balance
--> 1000

-- The first to commit wins: who would overwrite what it has not seen is refused, and may try again.

--@ ann
BEGIN;
--> ok

SELECT balance FROM account WHERE id = 2;
--> balance
--> 80

--@ bob
UPDATE account SET balance = balance + 1 WHERE id = 2;
--> 1 row

--@ ann
UPDATE account SET balance = 80 - 10 WHERE id = 2;
--> error conflict

ROLLBACK;
--> ok

SELECT balance FROM account WHERE id = 2;
--> balance
--> 81

-- A key that the transaction wrote itself, in an earlier statement or in the same one, is named as that.

--@ ann
BEGIN;
--> ok

INSERT INTO account (id, balance) VALUES (900, 1);
--> 1 row

INSERT INTO account (id, balance) VALUES (900, 2);
--> error constraint_violation: (900) is written twice

INSERT INTO account (id, balance) VALUES (901, 1), (901, 2);
--> error constraint_violation: (901) is written twice

ROLLBACK;
--> ok

-- Write skew is not a conflict: each writes what the other only reads.

--@ ann
BEGIN;
--> ok

SELECT sum(balance) AS s FROM account WHERE id IN (1, 2);
--> s
--> 1081

UPDATE account SET balance = 0 WHERE id = 1;
--> 1 row

--@ bob
BEGIN;
--> ok

SELECT sum(balance) AS s FROM account WHERE id IN (1, 2);
--> s
--> 1081

UPDATE account SET balance = 0 WHERE id = 2;
--> 1 row

COMMIT;
--> ok

--@ ann
COMMIT;
--> ok

SELECT sum(balance) AS s FROM account WHERE id IN (1, 2);
--> s
--> 0

-- A transaction that may not write.

--@ ann
BEGIN TRANSACTION READ ONLY;
--> ok

SELECT count(*) AS n FROM account;
--> n
--> 4

DELETE FROM account;
--> error

ROLLBACK;
--> ok

SELECT count(*) AS n FROM account;
--> n
--> 4

START TRANSACTION;
--> ok

COMMIT;
--> ok
