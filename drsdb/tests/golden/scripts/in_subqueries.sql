-- IN (subquery) has three values: it is NULL when nothing is equal, and something is NULL.

CREATE TABLE x1 (a INT, b INT) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE y1 (a INT, b INT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO x1 VALUES (1, 1), (2, 2), (NULL, 3);
--> 3 rows

INSERT INTO y1 VALUES (1, 1), (NULL, 2);
--> 2 rows

-- Alone, where NULL is as good as false.

SELECT b FROM x1 WHERE a IN (SELECT a FROM y1) ORDER BY b;
--> b
--> 1

SELECT b FROM x1 WHERE a IN (SELECT a FROM y1) OR b = 3 ORDER BY b;
--> b
--> 1
--> 3

SELECT b FROM x1 WHERE b IN (SELECT b FROM y1) OR b > 100 ORDER BY b;
--> b
--> 1
--> 2

SELECT b FROM x1 WHERE a NOT IN (SELECT a FROM y1) ORDER BY b;
--> b

SELECT b FROM x1 WHERE a NOT IN (SELECT a FROM y1 WHERE a IS NOT NULL) ORDER BY b;
--> b
--> 2

SELECT b FROM x1 WHERE a + 1 NOT IN (SELECT a FROM y1) ORDER BY b;
--> b

SELECT b FROM x1 WHERE 5 NOT IN (SELECT a FROM y1) ORDER BY b;
--> b

SELECT b FROM x1 WHERE 5 NOT IN (SELECT b FROM y1) ORDER BY b;
--> b
--> 1
--> 2
--> 3

-- Inside of something that tells NULL from false.

SELECT a FROM x1 WHERE a NOT IN (SELECT a FROM y1) OR a > 100 ORDER BY a;
--> a

SELECT b FROM x1 WHERE NOT (a IN (SELECT a FROM y1) AND b < 100) ORDER BY b;
--> b

SELECT b FROM x1 WHERE NOT (a IN (SELECT a FROM y1) AND b < 2) ORDER BY b;
--> b
--> 2
--> 3

SELECT b FROM x1 WHERE (a IN (SELECT a FROM y1)) IS NULL ORDER BY b;
--> b
--> 2
--> 3

SELECT b FROM x1 WHERE (a IN (SELECT a FROM y1)) = (b = 1) ORDER BY b;
--> b
--> 1

SELECT b FROM x1 WHERE coalesce(a IN (SELECT a FROM y1), true) ORDER BY b;
--> b
--> 1
--> 2
--> 3

SELECT b FROM x1 WHERE CASE WHEN a IN (SELECT a FROM y1) THEN false ELSE (a NOT IN (SELECT a FROM y1)) IS NULL END
ORDER BY b;
--> b
--> 2
--> 3

-- The subquery reads the same table.

SELECT b FROM x1 WHERE (a IN (SELECT a FROM x1)) IS NULL ORDER BY b;
--> b
--> 3

-- An empty subquery: nothing is in it, not even maybe.

SELECT b FROM x1 WHERE a NOT IN (SELECT a FROM y1 WHERE b > 100) OR b > 100 ORDER BY b;
--> b
--> 1
--> 2
--> 3

-- Subqueries of each row.

SELECT b FROM x1 WHERE a NOT IN (SELECT a FROM y1 WHERE y1.b = x1.b) ORDER BY b;
--> b
--> 3

SELECT b FROM x1 WHERE a NOT IN (SELECT a FROM y1 WHERE y1.b = x1.b) OR b > 100 ORDER BY b;
--> b
--> 3

SELECT b FROM x1 WHERE (a IN (SELECT a FROM y1 WHERE y1.b <= x1.b)) IS NULL ORDER BY b;
--> b
--> 2
--> 3

SELECT b FROM x1 WHERE 0 IN (SELECT count(*) FROM y1 WHERE y1.b = x1.b) ORDER BY b;
--> b
--> 3

SELECT b FROM x1 WHERE a IN (SELECT a FROM y1 WHERE y1.b = x1.b LIMIT 1);
--> error unsupported: outer columns, join

-- Subqueries of all kinds.

SELECT b FROM x1 WHERE (a IN (SELECT DISTINCT a FROM y1)) IS NULL ORDER BY b;
--> b
--> 2
--> 3

SELECT b FROM x1 WHERE (a IN (SELECT a FROM y1 UNION ALL SELECT b FROM y1)) IS NULL ORDER BY b;
--> b
--> 3

SELECT b FROM x1 WHERE (a IN (SELECT a FROM y1 ORDER BY b LIMIT 1)) IS NULL ORDER BY b;
--> b
--> 3

SELECT b FROM x1 WHERE (a IN (SELECT max(a) FROM y1)) IS NULL ORDER BY b;
--> b
--> 3

SELECT b FROM x1 WHERE (a IN (SELECT max(a) FROM y1 GROUP BY b)) IS NULL ORDER BY b;
--> b
--> 2
--> 3

SELECT b FROM x1 WHERE b IN (SELECT b FROM y1 WHERE NOT (a IN (SELECT a FROM x1 WHERE a > 1) AND b < 100)) ORDER BY b;
--> b
--> 1

-- HAVING and joins.

SELECT b, max(a) AS most FROM x1 GROUP BY b HAVING max(a) NOT IN (SELECT a FROM y1) OR b = 3 ORDER BY b;
--> b | most
--> 3 | NULL

SELECT x1.b FROM x1 JOIN y1 ON x1.b = y1.b AND (x1.a NOT IN (SELECT b FROM y1 WHERE b > 1) OR y1.a IS NULL)
ORDER BY x1.b;
--> b
--> 1
--> 2

SELECT x1.b, y1.b AS other FROM x1 LEFT JOIN y1 ON x1.b = y1.b AND (y1.a NOT IN (SELECT a FROM x1) OR x1.b > 1);
--> error unsupported: outer join

-- In a select list.

SELECT b, a IN (SELECT a FROM y1) AS found, a NOT IN (SELECT a FROM y1 WHERE y1.b = x1.b) AS absent FROM x1 ORDER BY b;
--> b | found | absent
--> 1 | true  | false
--> 2 | NULL  | NULL
--> 3 | NULL  | true

SELECT b, EXISTS (SELECT 1 FROM y1 WHERE y1.b = x1.b) AS seen, NOT EXISTS (SELECT 1 FROM y1 WHERE a > 1) AS small
FROM x1 ORDER BY b;
--> b | seen  | small
--> 1 | true  | true
--> 2 | true  | true
--> 3 | false | true

SELECT b, CASE WHEN a IN (SELECT b FROM y1) THEN 'known' ELSE 'other' END AS kind FROM x1 ORDER BY b;
--> b | kind
--> 1 | known
--> 2 | known
--> 3 | other

SELECT sum(CASE WHEN a IN (SELECT a FROM y1) THEN 1 ELSE 0 END) AS n FROM x1;
--> error unsupported: subquery, join

-- What is compared has several types.

CREATE TABLE price (id BIGINT PRIMARY KEY, f DOUBLE, d DECIMAL(6, 2) NOT NULL) WITH (engine = '$ENGINE');
--> ok

INSERT INTO price VALUES (1, 0.5, 2), (2, 1, 0.5), (3, NULL, 1);
--> 3 rows

SELECT id FROM price WHERE (d IN (SELECT f FROM price)) IS NULL ORDER BY id;
--> id
--> 1

SELECT id FROM price WHERE f NOT IN (SELECT d FROM price WHERE d > 0.75) OR id > 100 ORDER BY id;
--> id
--> 1

SELECT id FROM price WHERE id NOT IN (SELECT a FROM x1 WHERE a > 1) OR f > 100 ORDER BY id;
--> id
--> 1
--> 3

-- What is written depends on it.

DELETE FROM x1 WHERE a NOT IN (SELECT a FROM y1) OR a > 100;
--> 0 rows

UPDATE x1 SET b = 0 WHERE NOT (a IN (SELECT a FROM y1) AND b < 100);
--> 0 rows

UPDATE x1 SET b = b + 10 WHERE (a IN (SELECT a FROM y1)) IS NULL AND b < 3;
--> 1 row

DELETE FROM x1 WHERE a NOT IN (SELECT a FROM y1 WHERE y1.b = x1.b);
--> 2 rows

SELECT * FROM x1 ORDER BY b;
--> a | b
--> 1 | 1

INSERT INTO x1 SELECT 7, b FROM y1 WHERE (a IN (SELECT a FROM x1)) IS NULL;
--> 1 row

UPDATE x1 SET b = CASE WHEN a IN (SELECT b FROM y1) THEN 100 ELSE 200 END;
--> 2 rows

SELECT * FROM x1 ORDER BY b;
--> a | b
--> 1 | 100
--> 7 | 200

-- Columns of one name from two tables are compared each with its own.

CREATE TABLE customer (id INTEGER PRIMARY KEY) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE account (id INTEGER PRIMARY KEY, customer INTEGER) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE entry (n INTEGER PRIMARY KEY, account INTEGER, customer INTEGER) WITH (engine = '$ENGINE');
--> ok

INSERT INTO customer VALUES (7), (8);
--> 2 rows

INSERT INTO account VALUES (3, 7), (4, 8);
--> 2 rows

INSERT INTO entry VALUES (1, 3, 7), (2, 4, 7), (3, 4, 8);
--> 3 rows

SELECT n FROM entry AS e
WHERE EXISTS (SELECT 1 FROM customer AS c JOIN account AS a ON a.customer = c.id WHERE a.id = e.account AND c.id = e.customer)
ORDER BY n;
--> n
--> 1
--> 3

SELECT n FROM entry AS e
WHERE customer IN (SELECT c.id FROM customer AS c JOIN account AS a ON a.customer = c.id WHERE a.id = e.account) ORDER BY n;
--> n
--> 1
--> 3

-- What a subquery has a row of, whatever is compared.

SELECT n FROM entry AS e WHERE EXISTS (SELECT max(a.id) FROM account AS a WHERE a.customer = e.n) ORDER BY n;
--> n
--> 1
--> 2
--> 3

SELECT n FROM entry AS e WHERE EXISTS (SELECT 1 FROM account AS a WHERE a.customer = e.customer LIMIT 1) ORDER BY n;
--> n
--> 1
--> 2
--> 3

SELECT n FROM entry AS e WHERE EXISTS (SELECT 1 FROM account AS a WHERE a.customer = e.customer OFFSET 1);
--> error unsupported: join

-- A subquery without a row is NULL on either side.

SELECT n FROM entry WHERE (SELECT id FROM customer WHERE id = 99) NOT IN (SELECT id FROM account);
--> n

SELECT n FROM entry WHERE customer IN (SELECT s.customer FROM (SELECT * FROM account WHERE account.id = entry.account) AS s)
ORDER BY n;
--> n
--> 1
--> 3

SELECT n FROM entry AS e WHERE e.account > ALL (SELECT max(a.id) FROM account AS a WHERE a.customer = e.n);
--> error unsupported: ALL

-- Compared with ANY or ALL rows of the same table.

CREATE TABLE level (id INTEGER PRIMARY KEY, i INTEGER, g INTEGER) WITH (engine = '$ENGINE');
--> ok

INSERT INTO level VALUES (1, 10, 1), (2, 20, 2), (3, 30, 1), (4, NULL, 1), (5, 40, NULL);
--> 5 rows

SELECT id FROM level WHERE i >= ALL (SELECT i FROM level WHERE g = 1 AND i IS NOT NULL) ORDER BY id;
--> id
--> 3
--> 5

SELECT id FROM level WHERE i > ANY (SELECT i FROM level WHERE g = 1 AND i IS NOT NULL) ORDER BY id;
--> id
--> 2
--> 3
--> 5

SELECT x.id FROM level AS x WHERE NOT x.i < ALL (SELECT x.i FROM level AS x WHERE x.g = 1 AND x.i IS NOT NULL) ORDER BY 1;
--> id
--> 1
--> 2
--> 3
--> 5

SELECT id FROM level WHERE i = ANY (SELECT i FROM level WHERE g = 2);
--> id
--> 2

SELECT id FROM level WHERE i <> ALL (SELECT i FROM level WHERE g = 1);
--> id

DELETE FROM level WHERE level.i >= ALL (SELECT i FROM level WHERE g = 1 AND i IS NOT NULL);
--> 2 rows

SELECT id FROM level ORDER BY id;
--> id
--> 1
--> 2
--> 4
