-- A child has its parent, at every moment.

CREATE TABLE author (id BIGINT PRIMARY KEY, name TEXT NOT NULL) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE book (
    id BIGINT PRIMARY KEY,
    title TEXT NOT NULL,
    author BIGINT CONSTRAINT book_author REFERENCES author (id)
) WITH (engine = '$ENGINE');
--> ok

INSERT INTO author VALUES (1, 'Austen'), (2, 'Borges'), (3, 'Calvino');
--> 3 rows

INSERT INTO book VALUES (10, 'Emma', 1), (20, 'Ficciones', 2), (30, 'Anonymous', NULL);
--> 3 rows

INSERT INTO book VALUES (40, 'Lost', 9);
--> error constraint_violation: book_author, 9

INSERT INTO book VALUES (40, 'Found', 1), (50, 'Lost', 9);
--> error constraint_violation: book_author

UPDATE book SET author = 9 WHERE id = 10;
--> error constraint_violation: book_author

-- A parent with children stays.

DELETE FROM author WHERE id = 1;
--> error constraint_violation: book_author, 1

UPDATE author SET id = 7 WHERE id = 1;
--> error constraint_violation: book_author

DELETE FROM author WHERE id = 3;
--> 1 row

UPDATE author SET name = 'Jane Austen' WHERE id = 1;
--> 1 row

DELETE FROM book WHERE id = 10;
--> 1 row

DELETE FROM author WHERE id = 1;
--> 1 row

SELECT * FROM author;
--> id | name
--> 2  | Borges

-- Both in one transaction, in the right order.

BEGIN;
--> ok

INSERT INTO author VALUES (4, 'Duras');
--> 1 row

INSERT INTO book VALUES (60, 'The Lover', 4);
--> 1 row

COMMIT;
--> ok

-- Actions: children go with their parent, or let go of it.

CREATE TABLE chapter (
    book BIGINT REFERENCES book (id) ON DELETE CASCADE,
    number INT,
    editor BIGINT CONSTRAINT chapter_editor REFERENCES author (id) ON DELETE SET NULL,
    PRIMARY KEY (book, number)
) WITH (engine = '$ENGINE');
--> ok

INSERT INTO author VALUES (5, 'Eco');
--> 1 row

INSERT INTO chapter VALUES (20, 1, 5), (20, 2, 5), (60, 1, 4), (60, 2, NULL);
--> 4 rows

DELETE FROM author WHERE id = 5;
--> 1 row

SELECT * FROM chapter ORDER BY book, number;
--> book | number | editor
--> 20   | 1      | NULL
--> 20   | 2      | NULL
--> 60   | 1      | 4
--> 60   | 2      | NULL

DELETE FROM book WHERE id = 20;
--> 1 row

SELECT * FROM chapter ORDER BY book, number;
--> book | number | editor
--> 60   | 1      | 4
--> 60   | 2      | NULL

-- A table that points to itself; cascades go all the way down.

CREATE TABLE folder (id BIGINT PRIMARY KEY, parent BIGINT REFERENCES folder (id) ON DELETE CASCADE) WITH (engine = '$ENGINE');
--> ok

INSERT INTO folder VALUES (1, NULL), (2, 1), (3, 2), (4, 3), (5, NULL);
--> 5 rows

INSERT INTO folder VALUES (6, 6);
--> 1 row

DELETE FROM folder WHERE id = 2;
--> 1 row

SELECT * FROM folder ORDER BY id;
--> id | parent
--> 1  | NULL
--> 5  | NULL
--> 6  | 6

-- Keys of several columns.

CREATE TABLE seat (hall INT, number INT, PRIMARY KEY (hall, number)) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE ticket (
    id BIGINT PRIMARY KEY,
    hall INT,
    number INT,
    CONSTRAINT ticket_seat FOREIGN KEY (hall, number) REFERENCES seat (hall, number)
) WITH (engine = '$ENGINE');
--> ok

INSERT INTO seat VALUES (1, 1), (1, 2);
--> 2 rows

INSERT INTO ticket VALUES (1, 1, 2), (2, NULL, 99);
--> 2 rows

INSERT INTO ticket VALUES (3, 2, 1);
--> error constraint_violation: ticket_seat

DELETE FROM seat WHERE number = 1;
--> 1 row

DELETE FROM seat;
--> error constraint_violation: ticket_seat

-- A table that others point to is not dropped or emptied by accident.

DROP TABLE seat;
--> error : ticket

TRUNCATE seat;
--> error : ticket

DROP TABLE seat CASCADE;
--> ok

INSERT INTO ticket VALUES (3, 2, 1);
--> 1 row

-- How far CASCADE leads is bounded, and what is too far is not begun.

CREATE TABLE chain (id INT PRIMARY KEY, follows INT REFERENCES chain (id) ON DELETE CASCADE) WITH (engine = '$ENGINE');
--> ok

INSERT INTO chain SELECT value, nullif(value - 1, 0) FROM generate_series(1, 70);
--> 70 rows

DELETE FROM chain WHERE id = 1;
--> error resource_exhausted: 64 levels

DELETE FROM chain WHERE id = 11;
--> 1 row

SELECT count(*) AS n FROM chain;
--> n
--> 10

-- Rows follow the row that they refer to, also when another one has its key by the end of the statement.

CREATE TABLE dock (id INT PRIMARY KEY) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE boat (id INT PRIMARY KEY, dock INT REFERENCES dock (id) ON UPDATE SET NULL ON DELETE SET NULL)
WITH (engine = '$ENGINE');
--> ok

CREATE TABLE crane (id INT PRIMARY KEY, dock INT REFERENCES dock (id) ON UPDATE CASCADE ON DELETE CASCADE)
WITH (engine = '$ENGINE');
--> ok

CREATE TABLE lamp (id INT PRIMARY KEY, dock INT CONSTRAINT lamp_dock REFERENCES dock (id)) WITH (engine = '$ENGINE');
--> ok

INSERT INTO dock VALUES (1), (2);
--> 2 rows

INSERT INTO boat VALUES (10, 1), (20, 2), (30, NULL);
--> 3 rows

INSERT INTO crane VALUES (10, 1), (20, 2);
--> 2 rows

-- Who only asks that the key be there has it.

INSERT INTO lamp VALUES (20, 2);
--> 1 row

UPDATE dock SET id = id + 1;
--> 2 rows

SELECT * FROM boat ORDER BY id;
--> id | dock
--> 10 | NULL
--> 20 | NULL
--> 30 | NULL

SELECT * FROM crane ORDER BY id;
--> id | dock
--> 10 | 2
--> 20 | 3

SELECT * FROM lamp;
--> id | dock
--> 20 | 2

UPDATE boat SET dock = 2 WHERE id = 10;
--> 1 row

UPDATE boat SET dock = 3 WHERE id = 20;
--> 1 row

MERGE INTO dock d USING (SELECT * FROM (VALUES (2), (0)) AS v (id)) s ON d.id = s.id
WHEN MATCHED THEN DELETE
WHEN NOT MATCHED THEN INSERT VALUES (s.id + 2);
--> 2 rows

SELECT * FROM dock ORDER BY id;
--> id
--> 2
--> 3

SELECT * FROM boat ORDER BY id;
--> id | dock
--> 10 | NULL
--> 20 | 3
--> 30 | NULL

SELECT * FROM crane;
--> id | dock
--> 20 | 3

SELECT * FROM lamp;
--> id | dock
--> 20 | 2
