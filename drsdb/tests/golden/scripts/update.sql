-- Rows change in place, by any predicate.

CREATE TABLE worker (id BIGINT PRIMARY KEY, name TEXT, team INT, pay DECIMAL(8, 2), bonus DECIMAL(8, 2))
WITH (engine = '$ENGINE');
--> ok

INSERT INTO worker VALUES
    (1, 'Ann', 1, 100, 1), (2, 'Bob', 1, 200, 2), (3, 'Cid', 2, 300, 3), (4, 'Dee', 2, 400, NULL), (5, 'Eve', NULL, 500, 5);
--> 5 rows

UPDATE worker SET pay = 110 WHERE id = 1;
--> 1 row

UPDATE worker SET pay = pay * 2, name = upper(name) WHERE team = 2 AND pay > 300;
--> 1 row

UPDATE worker SET pay = 0 WHERE id = 99;
--> 0 rows

SELECT id, name, pay FROM worker ORDER BY id;
--> id | name | pay
--> 1  | Ann  | 110.00
--> 2  | Bob  | 200.00
--> 3  | Cid  | 300.00
--> 4  | DEE  | 800.00
--> 5  | Eve  | 500.00

-- The right sides see the row as it was: two columns can be exchanged.

UPDATE worker SET pay = bonus, bonus = pay WHERE id = 2;
--> 1 row

SELECT pay, bonus FROM worker WHERE id = 2;
--> pay  | bonus
--> 2.00 | 200.00

UPDATE worker SET (pay, bonus) = (bonus, 2) WHERE id = 2;
--> 1 row

UPDATE worker SET team = NULL WHERE bonus IS NULL;
--> 1 row

UPDATE worker SET bonus = DEFAULT WHERE id = 5;
--> 1 row

SELECT id FROM worker WHERE team IS NULL AND bonus IS NULL ORDER BY id;
--> id
--> 4
--> 5

-- Subqueries and other tables.

CREATE TABLE team (id INT PRIMARY KEY, name TEXT, factor INT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO team VALUES (1, 'red', 10), (2, 'blue', 20), (3, 'green', 30);
--> 3 rows

UPDATE worker SET bonus = (SELECT factor FROM team WHERE team.id = worker.team);
--> 5 rows

SELECT id, bonus FROM worker ORDER BY id;
--> id | bonus
--> 1  | 10.00
--> 2  | 10.00
--> 3  | 20.00
--> 4  | NULL
--> 5  | NULL

UPDATE worker SET pay = 1 WHERE team IN (SELECT id FROM team WHERE name = 'red');
--> 2 rows

UPDATE worker SET pay = 2 WHERE NOT EXISTS (SELECT 1 FROM team WHERE team.id = worker.team);
--> 2 rows

UPDATE worker SET name = t.name || ' ' || worker.name, pay = pay + t.factor FROM team t WHERE t.id = worker.team;
--> 3 rows

SELECT id, name, pay FROM worker ORDER BY id;
--> id | name     | pay
--> 1  | red Ann  | 11.00
--> 2  | red Bob  | 11.00
--> 3  | blue Cid | 320.00
--> 4  | DEE      | 2.00
--> 5  | Eve      | 2.00

UPDATE worker AS w SET pay = w.pay + 1 WHERE w.id = 5;
--> 1 row

-- Keys can change, as long as they stay keys. Each row is checked against all rows as they are afterwards.

UPDATE worker SET id = 50 WHERE id = 5;
--> 1 row

UPDATE worker SET id = id + 1 WHERE id < 10;
--> 4 rows

SELECT id, pay FROM worker ORDER BY id;
--> id | pay
--> 2  | 11.00
--> 3  | 11.00
--> 4  | 320.00
--> 5  | 2.00
--> 50 | 3.00

UPDATE worker SET id = 2 WHERE id = 50;
--> error constraint_violation: 2

UPDATE worker SET id = 7 WHERE pay < 12;
--> error constraint_violation: 7

UPDATE worker SET id = NULL WHERE id = 50;
--> error constraint_violation: id

-- Mistakes change nothing.

UPDATE worker SET nonsense = 1;
--> error not_found: nonsense

UPDATE worker SET pay = 1, pay = 2;
--> error : pay

UPDATE worker SET pay = 100 / (id - 50);
--> error invalid_value

UPDATE worker SET team = 'blue';
--> error

UPDATE nobody SET a = 1;
--> error not_found: nobody

SELECT count(*) AS n, sum(pay) AS pay FROM worker;
--> n | pay
--> 5 | 347.00

UPDATE worker SET pay = 0;
--> 5 rows

-- A constant that its column cannot have is a mistake whatever rows there are, and even if there are none.

CREATE TABLE counter (id INT PRIMARY KEY, n BIGINT NOT NULL, small SMALLINT, price DECIMAL(8, 2), at DATE, ok BOOLEAN)
WITH (engine = '$ENGINE');
--> ok

UPDATE counter SET n = 'abc';
--> error invalid_value: abc

UPDATE counter SET n = 99999999999999999999;
--> error invalid_value: 99999999999999999999

UPDATE counter SET small = -40000 WHERE id = 1;
--> error invalid_value: 40000

UPDATE counter SET n = 1 + 1, price = 12345678.5;
--> error invalid_value: price

UPDATE counter SET (id, at) = (id + 1, '2024-02-30');
--> error invalid_value: 2024-02-30

UPDATE counter SET n = 1 / 0;
--> error invalid_value

UPDATE counter SET ok = DATE '2024-01-01';
--> error type_mismatch: ok

UPDATE counter SET at = id > 5;
--> error type_mismatch: at

-- What can be right for some rows is not looked at without any.

UPDATE counter SET n = 100 / (id - id), small = small * 1000, at = NULL, price = '1.50';
--> 0 rows

UPDATE counter SET n = NULL;
--> 0 rows
