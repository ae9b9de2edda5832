-- TRUNCATE leaves a table without rows, and a table.

CREATE TABLE log (id BIGINT PRIMARY KEY, line TEXT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO log VALUES (1, 'a'), (2, 'b'), (3, 'c');
--> 3 rows

COMMENT ON TABLE log IS 'what happened';
--> ok

COMMENT ON COLUMN log.line IS 'in words';
--> ok

COMMENT ON TABLE nobody IS 'x';
--> error not_found: nobody

TRUNCATE TABLE log;
--> ok

SELECT count(*) AS n FROM log;
--> n
--> 0

-- The keys are free again.

INSERT INTO log VALUES (1, 'd');
--> 1 row

SELECT * FROM log;
--> id | line
--> 1  | d

TRUNCATE nobody;
--> error not_found: nobody

-- Tables that refer to each other go together.

CREATE TABLE shelf (id INT PRIMARY KEY) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE book (
    id INT PRIMARY KEY,
    shelf INT REFERENCES shelf,
    follows INT REFERENCES book
) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE loan (shelf INT REFERENCES shelf, book INT REFERENCES book) WITH (engine = '$ENGINE');
--> ok

INSERT INTO shelf VALUES (1), (2);
--> 2 rows

INSERT INTO book VALUES (1, 1, NULL), (2, 1, 1), (3, 2, 2);
--> 3 rows

INSERT INTO loan VALUES (1, 1), (1, 3);
--> 2 rows

TRUNCATE shelf;
--> error constraint_violation: shelf

TRUNCATE shelf, book;
--> error constraint_violation: loan

SELECT (SELECT count(*) FROM shelf) AS shelves, (SELECT count(*) FROM book) AS books;
--> shelves | books
--> 2       | 3

TRUNCATE loan;
--> ok

TRUNCATE book, shelf;
--> ok

INSERT INTO shelf VALUES (1);
--> 1 row

INSERT INTO book VALUES (1, 1, NULL), (2, 1, 1);
--> 2 rows

INSERT INTO loan VALUES (1, 2);
--> 1 row

TRUNCATE shelf CASCADE;
--> ok

SELECT (SELECT count(*) FROM shelf) AS shelves, (SELECT count(*) FROM book) AS books, (SELECT count(*) FROM loan) AS loans;
--> shelves | books | loans
--> 0       | 0     | 0
