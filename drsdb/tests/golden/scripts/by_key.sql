-- A row that is named by its primary key is changed as one that any other predicate finds.

CREATE TABLE item (
    shelf TEXT,
    place SMALLINT,
    amount INT NOT NULL CHECK (amount >= 0),
    price DECIMAL(8, 2),
    note TEXT,
    PRIMARY KEY (shelf, place)
) WITH (engine = '$ENGINE');
--> ok

INSERT INTO item VALUES
    ('a', 1, 10, 1.50, 'x'), ('a', 2, 20, 2.50, NULL), ('b', 1, 30, NULL, 'y'), ('b', 2, 40, 4.50, 'z');
--> 4 rows

UPDATE item SET amount = amount + 1, note = upper(note) || '!' WHERE shelf = 'a' AND place = 1;
--> 1 row

UPDATE item SET price = price * 2 WHERE (2 = place) AND (item.shelf = 'b' AND amount > 5);
--> 1 row

UPDATE item SET amount = 0 WHERE shelf = 'b' AND place = 2 AND amount < 5;
--> 0 rows

UPDATE item SET amount = 0 WHERE shelf = 'b' AND place = 2 AND note = 'z' AND price IS NULL;
--> 0 rows

UPDATE item SET amount = 0 WHERE shelf = 'b' AND place = 99;
--> 0 rows

UPDATE item SET amount = 0 WHERE shelf = 'b' AND place = 99999999999;
--> 0 rows

UPDATE item SET amount = 0 WHERE shelf = 'b' AND place = NULL;
--> 0 rows

UPDATE item SET note = 'cast' WHERE shelf = 'b' AND place = 1.0;
--> 1 row

UPDATE item SET place = place + 5 WHERE shelf = 'a' AND place = 2;
--> 1 row

SELECT * FROM item ORDER BY shelf, place;
--> shelf | place | amount | price | note
--> a     | 1     | 11     | 1.50  | X!
--> a     | 7     | 20     | 2.50  | NULL
--> b     | 1     | 30     | NULL  | cast
--> b     | 2     | 40     | 9.00  | z

UPDATE item AS i SET amount = -1 WHERE i.shelf = 'a' AND i.place = 1;
--> error constraint_violation: (shelf, place) = (a, 1)

UPDATE item SET amount = NULL WHERE shelf = 'a' AND place = 1;
--> error constraint_violation: amount, (shelf, place) = (a, 1), NOT NULL

UPDATE item SET amount = 'many' WHERE shelf = 'a' AND place = 1;
--> error invalid_value: many

UPDATE item SET amount = 1 / 0 WHERE shelf = 'a' AND place = 1;
--> error invalid_value: division by zero

UPDATE item SET nothing = 1 WHERE shelf = 'a' AND place = 1;
--> error not_found: nothing

UPDATE item SET amount = 1 WHERE shelf = 'a' AND place = 1 AND other.note = 'x';
--> error not_found: other.note

UPDATE item SET amount = max(amount) WHERE shelf = 'a' AND place = 1;
--> error invalid_argument: aggregate

DELETE FROM item WHERE shelf = 'a' AND place = 7 AND note IS NOT NULL;
--> 0 rows

DELETE FROM item WHERE shelf = 'a' AND place = 7;
--> 1 row

-- In a transaction: with its own changes.

BEGIN;
--> ok

INSERT INTO item VALUES ('c', 1, 1, 1, 'new');
--> 1 row

UPDATE item SET amount = amount + 1 WHERE shelf = 'c' AND place = 1;
--> 1 row

UPDATE item SET amount = amount + 1 WHERE shelf = 'c' AND place = 1;
--> 1 row

DELETE FROM item WHERE shelf = 'b' AND place = 1;
--> 1 row

DELETE FROM item WHERE shelf = 'b' AND place = 1;
--> 0 rows

COMMIT;
--> ok

SELECT shelf, place, amount FROM item ORDER BY shelf, place;
--> shelf | place | amount
--> a     | 1     | 11
--> b     | 2     | 40
--> c     | 1     | 3

-- Ids and times.

CREATE TABLE event (id ULID PRIMARY KEY, at TIMESTAMP, n INT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO event VALUES ('01ARZ3NDEKTSV4RRFFQ69G5FAV', '2020-01-01 00:00:00', 1), ('01BX5ZZKBKACTAV9WEVGEMMVRZ', NULL, 2);
--> 2 rows

UPDATE event SET n = n + 10, at = TIMESTAMP '2021-05-06 07:08:09.123456' WHERE id = '01ARZ3NDEKTSV4RRFFQ69G5FAV';
--> 1 row

DELETE FROM event WHERE id = '01bx5zzkbkactav9wevgemmvrz';
--> 1 row

SELECT * FROM event;
--> id                         | at                         | n
--> 01ARZ3NDEKTSV4RRFFQ69G5FAV | 2021-05-06 07:08:09.123456 | 11

CREATE TABLE day (id DATE PRIMARY KEY, n INT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO day VALUES ('2024-02-29', 1), ('2024-03-01', 2);
--> 2 rows

UPDATE day SET n = 5 WHERE id = DATE '2024-02-29';
--> 1 row

UPDATE day SET n = 6 WHERE id = '2024-03-01';
--> 1 row

SELECT * FROM day ORDER BY id;
--> id         | n
--> 2024-02-29 | 5
--> 2024-03-01 | 6

CREATE TABLE odd (id BIGINT PRIMARY KEY, n BIGINT, "Ä" BIGINT, "N" BIGINT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO odd VALUES (1, 1, 5, 7), (2, 2, 6, 8);
--> 2 rows

UPDATE odd SET n = n + "Ä", "Ä" = "Ä" + 1, "N" = "N" * n WHERE id = 1 AND "N" = 7;
--> 1 row

DELETE FROM odd WHERE id = 2 AND "Ä" = 6 AND id = 2;
--> 1 row

DELETE FROM odd WHERE id = 1 AND id = 2;
--> 0 rows

UPDATE odd SET n = abs(1 / 0) WHERE id = 99;
--> 0 rows

SELECT * FROM odd;
--> id | n | Ä | N
--> 1  | 6 | 6 | 7
