-- Lists over the same column, with SQL's three values: `a IN (...)` is NULL when nothing is equal, and a or a member is NULL.

CREATE TABLE q (k INT PRIMARY KEY) WITH (engine = '$ENGINE');
--> ok

INSERT INTO q VALUES (7), (8);
--> 2 rows

SELECT k FROM q WHERE k IN (7, 8) AND k NOT IN (NULL, 3) ORDER BY k;
--> k

SELECT k FROM q WHERE k NOT IN (NULL, 3) AND k IN (7, 8) ORDER BY k;
--> k

SELECT k FROM q WHERE k IN (7, 8) AND k NOT IN (8, 3) ORDER BY k;
--> k
--> 7

SELECT k FROM q WHERE k NOT IN (7, 9) OR k NOT IN (8, NULL) ORDER BY k;
--> k
--> 8

SELECT k FROM q WHERE NOT (k IN (7, NULL) AND k IN (7, 8)) ORDER BY k;
--> k

-- In a view and in the query over it.

CREATE VIEW of_q AS SELECT k FROM q WHERE k IN (7, 8);
--> ok

SELECT k FROM of_q WHERE k NOT IN (NULL, 3);
--> k

DELETE FROM q WHERE k IN (7, 8) AND k NOT IN (NULL, 3);
--> 0 rows

SELECT count(*) AS n FROM q;
--> n
--> 2

CREATE TABLE r (id INT PRIMARY KEY, k INT, other INT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO r VALUES (1, 7, 7), (2, 8, 7), (3, NULL, 7);
--> 3 rows

SELECT id FROM r WHERE k NOT IN (1, 2) OR k NOT IN (3, 4) ORDER BY id;
--> id
--> 1
--> 2

SELECT id FROM r WHERE NOT (k IN (1, 2) AND k IN (3, 4)) ORDER BY id;
--> id
--> 1
--> 2

SELECT id FROM r WHERE NOT ((k = 1 OR k = 2) AND (k = 3 OR k = 4)) ORDER BY id;
--> id
--> 1
--> 2

SELECT id FROM r WHERE NOT (k IN (1, 2, 3, 4) AND k IN (5.0, 6.0, 7.0, 8.0)) ORDER BY id;
--> id
--> 1
--> 2

SELECT id FROM r WHERE CASE WHEN NOT (k IN (1, 2) AND k IN (3, 4)) THEN 1 ELSE 0 END IN (1, 5) ORDER BY id;
--> id
--> 1
--> 2

SELECT k IN (1, 7) AS a, k IN (3, 8) AS b, count(*) AS n FROM r GROUP BY ROLLUP (k IN (1, 7), k IN (3, 8))
ORDER BY a NULLS LAST, b NULLS LAST, n;
--> a | b | n
--> false | true | 1
--> false | NULL | 1
--> true | false | 1
--> true | NULL | 1
--> NULL | NULL | 1
--> NULL | NULL | 1
--> NULL | NULL | 3

SELECT id FROM r WHERE (k IN (1, 2) AND k IN (3, 4)) IS NULL;
--> id
--> 3

SELECT id, k IN (1, 2) AND k IN (3, 4) AS b FROM r ORDER BY id;
--> id | b
--> 1 | false
--> 2 | false
--> 3 | NULL

-- Columns that are equal are no constants that differ.

SELECT id FROM r WHERE k IN (other, 100) AND k IN (7, 200) ORDER BY id;
--> id
--> 1

SELECT id FROM r WHERE k IN (other, 100, 101, 102) AND k NOT IN (7, 200, 201, 202) ORDER BY id;
--> id

-- A CHECK that is NULL holds.

CREATE TABLE c (id INT PRIMARY KEY, k INT, CONSTRAINT twice CHECK (k IN (1, 2) AND k IN (2, 3))) WITH (engine = '$ENGINE');
--> ok

INSERT INTO c VALUES (1, 2), (2, NULL);
--> 2 rows

INSERT INTO c VALUES (3, 1);
--> error constraint_violation: twice
