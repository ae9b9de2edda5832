-- Tables are made once, and are gone when they are dropped.

CREATE TABLE city (
    id BIGINT PRIMARY KEY,
    name VARCHAR(20) NOT NULL,
    area DECIMAL(9, 2),
    founded DATE,
    capital BOOLEAN DEFAULT FALSE
) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE city (id BIGINT) WITH (engine = '$ENGINE');
--> error already_exists: city

CREATE TABLE IF NOT EXISTS city (other TEXT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO city VALUES (1, 'Rome', 1285.31, DATE '0753-04-21', TRUE), (2, 'Oslo', NULL, NULL, NULL);
--> 2 rows

INSERT INTO city (name, id) VALUES ('Bern', 3);
--> 1 row

SELECT * FROM city ORDER BY id;
--> id | name | area    | founded    | capital
--> 1  | Rome | 1285.31 | 0753-04-21 | true
--> 2  | Oslo | NULL    | NULL       | NULL
--> 3  | Bern | NULL    | NULL       | false

-- A table without a primary key is one all the same, and may have the same row twice.

CREATE TABLE note (text TEXT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO note VALUES ('a'), ('a'), ('b');
--> 3 rows

SELECT * FROM note ORDER BY text;
--> text
--> a
--> a
--> b

UPDATE note SET text = 'c' WHERE text = 'a';
--> 2 rows

DELETE FROM note WHERE text = 'b';
--> 1 row

SELECT text, count(*) AS n FROM note GROUP BY text;
--> text | n
--> c    | 2

-- Mistakes.

CREATE TABLE twice (a INT, a INT);
--> error : a

CREATE TABLE keyless (a INT, PRIMARY KEY (b));
--> error not_found: b

DROP TABLE nobody;
--> error not_found: nobody

DROP TABLE IF EXISTS nobody;
--> ok

DROP TABLE city, note;
--> ok

SELECT * FROM city;
--> error not_found: city
