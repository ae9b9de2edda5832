-- Rows come in by values, by a query, by defaults; a statement that fails leaves none.

CREATE TABLE stock (
    id BIGINT,
    name TEXT NOT NULL,
    amount INT NOT NULL DEFAULT 7,
    note TEXT DEFAULT 'new',
    CONSTRAINT stock_key PRIMARY KEY (id)
) WITH (engine = '$ENGINE');
--> ok

INSERT INTO stock VALUES (1, 'nail', 100, NULL);
--> 1 row

INSERT INTO stock (id, name) VALUES (2, 'screw'), (3, 'hook');
--> 2 rows

INSERT INTO stock (id, name, amount, note) VALUES (4, 'ring', DEFAULT, DEFAULT), (5, 'chain', 2 + 3, 'a' || 'b');
--> 2 rows

SELECT * FROM stock ORDER BY id;
--> id | name  | amount | note
--> 1  | nail  | 100    | NULL
--> 2  | screw | 7      | new
--> 3  | hook  | 7      | new
--> 4  | ring  | 7      | new
--> 5  | chain | 5      | ab

INSERT INTO stock SELECT id + 10, upper(name), amount * 2, note FROM stock WHERE id <= 2;
--> 2 rows

INSERT INTO stock (name, id) SELECT 'spare ' || name, id + 20 FROM stock WHERE id = 3;
--> 1 row

SELECT id, name, amount FROM stock WHERE id > 10 ORDER BY id;
--> id | name       | amount
--> 11 | NAIL       | 200
--> 12 | SCREW      | 14
--> 23 | spare hook | 7

-- A column may come twice.

INSERT INTO stock SELECT 50, name, amount, name FROM stock WHERE id = 1;
--> 1 row

SELECT id, id, note, amount, CAST(amount AS BIGINT) FROM stock WHERE id = 50;
--> id | id_1 | note | amount | amount_1
--> 50 | 50   | nail | 100    | 100

DELETE FROM stock WHERE id = 50;
--> 1 row

-- A query may read the table that it is written to: it sees it as it was.

INSERT INTO stock SELECT id + 100, name, amount, note FROM stock;
--> 8 rows

SELECT count(*) AS n FROM stock;
--> n
--> 16

DELETE FROM stock WHERE id > 5;
--> 11 rows

-- All or nothing.

INSERT INTO stock VALUES (6, 'bar', 1, NULL), (1, 'nail again', 1, NULL);
--> error constraint_violation: stock_key, 1

INSERT INTO stock VALUES (6, 'bar', 1, NULL), (6, 'twin', 1, NULL);
--> error constraint_violation: stock_key, 6

INSERT INTO stock VALUES (6, 'bar', 1, NULL), (7, NULL, 1, NULL);
--> error constraint_violation: column name of table public.stock, row 2, (id) = (7), give it a value

INSERT INTO stock (name) VALUES ('keyless');
--> error constraint_violation: id

INSERT INTO stock VALUES (6, 'bar', 'many', NULL);
--> error : many

INSERT INTO stock VALUES (6, 'bar', 3000000000, NULL);
--> error invalid_value: amount, from -2147483648 to 2147483647

INSERT INTO stock (id, nonsense) VALUES (6, 1);
--> error not_found: nonsense

INSERT INTO stock (id, name) VALUES (6, 'bar', 3);
--> error

INSERT INTO nobody VALUES (1);
--> error not_found: nobody

SELECT count(*) AS n FROM stock;
--> n
--> 5

-- A value may be a query of its own, which sees the table as it was.

INSERT INTO stock VALUES (
    (SELECT max(id) + 1 FROM stock), (SELECT name FROM stock WHERE id = 1), DEFAULT, (SELECT note FROM stock WHERE id = 99)
);
--> 1 row

INSERT INTO stock (id, name) VALUES
    (10 + (SELECT count(*) FROM stock), 'nut'),
    ((SELECT min(id) FROM stock) - 1, concat('spare ', (SELECT name FROM stock WHERE id = 2)));
--> 2 rows

SELECT * FROM stock WHERE id IN (0, 6, 16) ORDER BY id;
--> id | name        | amount | note
--> 0  | spare screw | 7      | new
--> 6  | nail        | 7      | NULL
--> 16 | nut         | 7      | new

INSERT INTO stock (id, name) VALUES ((SELECT max(id) FROM stock), 'twin') ON CONFLICT DO NOTHING;
--> 0 rows

INSERT INTO stock (id, name) VALUES ((SELECT id FROM stock), 'bar');
--> error invalid_argument: several rows, one value

INSERT INTO stock (id, name) VALUES ((SELECT id, amount FROM stock WHERE id = 1), 'bar');
--> error invalid_argument: 2 columns

INSERT INTO stock (id, name) VALUES (8, (SELECT nonsense FROM stock));
--> error not_found: nonsense

INSERT INTO stock (id, name) VALUES (8, (SELECT name FROM nobody));
--> error not_found: nobody

INSERT INTO stock (id, name) VALUES (8, CASE WHEN EXISTS (SELECT 1 FROM stock) THEN 'bar' END);
--> error unsupported: INSERT INTO table

INSERT INTO stock (id, name) VALUES (8, 'bar') RETURNING (SELECT max(id) FROM stock);
--> error unsupported: subquery

-- Only defaults.

CREATE TABLE defaults (a INT DEFAULT 1, b TEXT DEFAULT 'x', c DATE) WITH (engine = '$ENGINE');
--> ok

INSERT INTO defaults DEFAULT VALUES;
--> 1 row

SELECT * FROM defaults;
--> a | b | c
--> 1 | x | NULL

INSERT INTO defaults SELECT * FROM defaults WHERE FALSE;
--> 0 rows
