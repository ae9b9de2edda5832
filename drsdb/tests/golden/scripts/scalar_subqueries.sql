-- A subquery that stands for a value gives one row: none is NULL, and a second one is a mistake.

CREATE TABLE item (id BIGINT PRIMARY KEY, kind INT, price BIGINT NOT NULL, note TEXT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO item VALUES (1, 1, 10, 'one'), (2, 2, 20, NULL), (3, 2, 21, 'three'), (4, 9, 90, 'four'), (5, 9, 91, NULL);
--> 5 rows

CREATE TABLE shelf (id BIGINT PRIMARY KEY, kind INT, best BIGINT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO shelf VALUES (0, 0, NULL), (1, 1, 10), (3, 3, 30);
--> 3 rows

SELECT (SELECT id FROM item WHERE id < 3);
--> error invalid_value: more than one row, LIMIT 1

SELECT (SELECT 1 UNION ALL SELECT 2);
--> error invalid_value: more than one row

SELECT (SELECT kind FROM item WHERE kind = 9);
--> error invalid_value: more than one row

SELECT id FROM shelf WHERE id = (SELECT id FROM item);
--> error invalid_value: more than one row

SELECT id FROM shelf WHERE id IN (SELECT 1 + (SELECT price FROM item WHERE kind = 2));
--> error invalid_value: more than one row

SELECT count(*) AS n FROM shelf GROUP BY kind HAVING count(*) > (SELECT kind FROM item);
--> error invalid_value: more than one row

-- A key that is compared with another column is none.

SELECT (SELECT id FROM item WHERE id = kind + 0);
--> error invalid_value: more than one row

SELECT (SELECT id FROM item WHERE id = 2) AS a, (SELECT price FROM item WHERE kind = 1) AS b,
       (SELECT id FROM item WHERE kind = 7) AS c, (SELECT note FROM item WHERE price = 20) AS d,
       (SELECT note FROM item WHERE price = 21) || '!' AS e, (SELECT 1 UNION SELECT 1) AS f;
--> a | b  | c    | d    | e      | f
--> 2 | 10 | NULL | NULL | three! | 1

SELECT (SELECT price FROM item WHERE kind = 7) IS NULL AS missing;
--> missing
--> true

SELECT (SELECT price FROM item ORDER BY price DESC LIMIT 1) AS most, (SELECT min(price) FROM item) AS least;
--> most | least
--> 91   | 10

SELECT id FROM shelf WHERE best = (SELECT price FROM item WHERE kind = 1);
--> id
--> 1

SELECT id FROM shelf WHERE best > (SELECT price FROM item WHERE kind = 7);
--> id

SELECT (SELECT best FROM shelf WHERE id = (SELECT kind FROM item WHERE price = 10)) AS inner_one;
--> inner_one
--> 10

-- About the row around it. Two rows of kind 9 are no mistake while no shelf is for them.

SELECT id, (SELECT price FROM item WHERE item.kind = shelf.kind) AS price FROM shelf ORDER BY id;
--> id | price
--> 0  | NULL
--> 1  | 10
--> 3  | NULL

SELECT id, coalesce((SELECT kind + 1 AS kind FROM item WHERE item.kind = shelf.kind), 0) AS n FROM shelf ORDER BY id;
--> id | n
--> 0  | 0
--> 1  | 2
--> 3  | 0

SELECT id FROM shelf WHERE best = (SELECT price FROM item WHERE item.kind = shelf.kind AND price < 21);
--> id
--> 1

-- By columns of other types than those that they are compared with.

SELECT id, (SELECT note FROM item WHERE item.kind = shelf.id) AS note FROM shelf ORDER BY id;
--> id | note
--> 0  | NULL
--> 1  | one
--> 3  | NULL

INSERT INTO shelf VALUES (9, 9, 90);
--> 1 row

SELECT id, (SELECT price FROM item WHERE item.kind = shelf.kind) AS price FROM shelf ORDER BY id;
--> error invalid_value: more than one row

SELECT id, (SELECT price FROM item WHERE item.kind = shelf.kind) AS price FROM shelf WHERE id < 9 ORDER BY id;
--> id | price
--> 0  | NULL
--> 1  | 10
--> 3  | NULL

SELECT id, (SELECT price FROM item WHERE item.kind = shelf.kind AND item.price = shelf.best) AS price FROM shelf
ORDER BY id;
--> id | price
--> 0  | NULL
--> 1  | 10
--> 3  | NULL
--> 9  | 90

SELECT id, (SELECT price FROM item WHERE item.id = shelf.id) AS by_key FROM shelf ORDER BY id;
--> id | by_key
--> 0  | NULL
--> 1  | 10
--> 3  | 21
--> 9  | NULL

-- There may be no row, however little the column can be NULL.

SELECT (SELECT id FROM item WHERE id = 99) IS NULL AS missing, (SELECT count(*) FROM item WHERE id = 99) IS NULL AS counted;
--> missing | counted
--> true    | false

SELECT id FROM shelf WHERE (SELECT item.id FROM item WHERE item.id = shelf.id) IS NULL ORDER BY id;
--> id
--> 0
--> 9

SELECT id, (SELECT price FROM item WHERE item.kind < shelf.kind) AS price FROM shelf;
--> error unsupported: join

SELECT id, (SELECT price FROM item WHERE item.kind = shelf.kind ORDER BY price LIMIT 1) AS price FROM shelf;
--> error unsupported: LIMIT, max

-- In statements that change rows.

DELETE FROM shelf WHERE id = (SELECT id FROM item WHERE id > 2);
--> error invalid_value: more than one row

UPDATE shelf SET best = (SELECT price FROM item) WHERE id = 0;
--> error invalid_value: more than one row

UPDATE shelf SET best = (SELECT price FROM item WHERE item.kind = shelf.kind);
--> error invalid_value: more than one row

SELECT * FROM shelf ORDER BY id;
--> id | kind | best
--> 0  | 0    | NULL
--> 1  | 1    | 10
--> 3  | 3    | 30
--> 9  | 9    | 90

UPDATE shelf SET best = (SELECT price + 1 FROM item WHERE item.kind = shelf.kind) WHERE id < 9;
--> 3 rows

UPDATE shelf SET kind = (SELECT kind FROM item WHERE note = 'three') WHERE id = 0;
--> 1 row

DELETE FROM shelf WHERE id = (SELECT kind FROM item WHERE note = 'four');
--> 1 row

DELETE FROM shelf WHERE id = (SELECT kind FROM item WHERE note = 'nobody');
--> 0 rows

SELECT * FROM shelf ORDER BY id;
--> id | kind | best
--> 0  | 2    | NULL
--> 1  | 1    | 11
--> 3  | 3    | NULL

INSERT INTO shelf SELECT 10, 10, (SELECT price FROM item);
--> error invalid_value: more than one row

INSERT INTO shelf SELECT 10, 10, (SELECT price FROM item WHERE kind = 1);
--> 1 row

-- A view has its subqueries checked as well.

CREATE VIEW priced AS SELECT id, (SELECT price FROM item WHERE kind = 2) AS price FROM shelf;
--> ok

SELECT * FROM priced;
--> error invalid_value: more than one row

DELETE FROM item WHERE id = 3;
--> 1 row

SELECT * FROM priced WHERE id < 3 ORDER BY id;
--> id | price
--> 0  | 20
--> 1  | 20
