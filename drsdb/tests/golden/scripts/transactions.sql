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

-- What a transaction may do can be said when it has begun.

BEGIN;
--> ok

SET TRANSACTION READ ONLY;
--> ok

SELECT count(*) AS n FROM account;
--> n
--> 4

UPDATE account SET balance = 7;
--> error invalid_argument: the transaction is READ ONLY

INSERT INTO account VALUES (9, 'nil', 0);
--> error invalid_argument: the transaction is READ ONLY

ROLLBACK;
--> ok

BEGIN READ ONLY;
--> ok

SET TRANSACTION READ WRITE;
--> ok

DELETE FROM account WHERE id = 4;
--> 1 row

COMMIT;
--> ok

SELECT count(*) AS n FROM account;
--> n
--> 3

-- It is about this transaction only.

BEGIN;
--> ok

INSERT INTO account VALUES (4, 'eve', 1);
--> 1 row

COMMIT;
--> ok

-- A snapshot is as much as these levels ask for, and more than the first two do.

BEGIN;
--> ok

SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
--> ok

SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;
--> ok

SELECT balance FROM account WHERE id = 1;
--> balance
--> 0

--@ bob
UPDATE account SET balance = 5 WHERE id = 1;
--> 1 row

--@ ann
SELECT balance FROM account WHERE id = 1;
--> balance
--> 0

DELETE FROM account WHERE id = 1;
--> error invalid_argument: the transaction is READ ONLY

COMMIT;
--> ok

SELECT balance FROM account WHERE id = 1;
--> balance
--> 5

START TRANSACTION ISOLATION LEVEL READ UNCOMMITTED, READ WRITE;
--> ok

SET TRANSACTION ISOLATION LEVEL SERIALIZABLE;
--> error unsupported: SERIALIZABLE, REPEATABLE READ

UPDATE account SET balance = 6 WHERE id = 1;
--> 1 row

COMMIT;
--> ok

BEGIN ISOLATION LEVEL SERIALIZABLE;
--> error unsupported: SERIALIZABLE, REPEATABLE READ

-- None was begun.

COMMIT;
--> error invalid_argument: no transaction is open

SET TRANSACTION READ ONLY;
--> error invalid_argument: no transaction is open

SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY;
--> error unsupported: this form of SET

-- Definitions change by themselves.

BEGIN;
--> ok

CREATE TABLE later (id BIGINT);
--> error unsupported: cannot be a part of a transaction

COMMENT ON TABLE account IS 'money';
--> error unsupported: cannot be a part of a transaction

ROLLBACK;
--> ok

SELECT id, balance FROM account ORDER BY id;
--> id | balance
--> 1  | 6
--> 2  | 0
--> 3  | 5
--> 4  | 1
