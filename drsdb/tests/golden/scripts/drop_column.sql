-- A column goes alone. Who wants what stands on it to go as well says so.

CREATE TABLE trip (
    id BIGINT PRIMARY KEY,
    km_from INT,
    km_to INT,
    note TEXT,
    code BIGINT CONSTRAINT one_code UNIQUE,
    CONSTRAINT forward CHECK (km_to > km_from)
) WITH (engine = '$ENGINE');
--> ok

INSERT INTO trip VALUES (1, 0, 10, 'out', 7), (2, 10, 25, 'on', 8);
--> 2 rows

ALTER TABLE trip DROP COLUMN km_from;
--> error invalid_argument: column km_from of table public.trip is part of constraint forward, DROP COLUMN ... CASCADE

ALTER TABLE trip DROP COLUMN code RESTRICT;
--> error invalid_argument: column code of table public.trip is part of constraint one_code

ALTER TABLE trip DROP COLUMN id CASCADE;
--> error invalid_argument: column id of table public.trip is part of its primary key, INSERT ... SELECT

INSERT INTO trip VALUES (3, 25, 20, 'back', 9);
--> error constraint_violation: forward

ALTER TABLE trip DROP COLUMN km_from CASCADE;
--> ok

ALTER TABLE trip DROP COLUMN code CASCADE;
--> ok

INSERT INTO trip VALUES (3, -5, 'back');
--> 1 row

SELECT * FROM trip ORDER BY id;
--> id | km_to | note
--> 1  | 10    | out
--> 2  | 25    | on
--> 3  | -5    | back

ALTER TABLE trip DROP COLUMN km_to, DROP COLUMN IF EXISTS km_from, DROP COLUMN note;
--> ok

SELECT * FROM trip ORDER BY id;
--> id
--> 1
--> 2
--> 3

-- A table keeps a column.

CREATE TABLE thin (a INT) WITH (engine = '$ENGINE');
--> ok

ALTER TABLE thin DROP COLUMN a;
--> error invalid_argument: table public.thin would have no column left, drop the table

-- Views read columns, also those that they do not show.

CREATE TABLE depot (id BIGINT PRIMARY KEY, city TEXT, area INT, boss TEXT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO depot VALUES (1, 'Turin', 300, 'Anna'), (2, 'Pisa', 50, 'Bea');
--> 2 rows

CREATE VIEW large AS SELECT id, city FROM depot WHERE area > 100;
--> ok

CREATE VIEW large_city AS SELECT city AS place FROM large;
--> ok

ALTER TABLE depot DROP COLUMN city;
--> error constraint_violation: view public.large reads a column of table public.depot that is dropped, DROP COLUMN ... CASCADE

ALTER TABLE depot DROP COLUMN area RESTRICT;
--> error constraint_violation: view public.large reads

ALTER TABLE depot RENAME COLUMN city TO place;
--> error constraint_violation: view public.large reads column city of table public.depot by its name

ALTER TABLE depot RENAME TO store;
--> error constraint_violation: view public.large reads table public.depot by its name

ALTER TABLE depot DROP COLUMN boss;
--> ok

SELECT * FROM large_city;
--> place
--> Turin

ALTER TABLE depot DROP COLUMN area CASCADE;
--> ok

SELECT * FROM large;
--> error not_found: large

SELECT * FROM large_city;
--> error not_found: large_city

SELECT * FROM depot ORDER BY id;
--> id | city
--> 1  | Turin
--> 2  | Pisa

ALTER TABLE depot RENAME COLUMN city TO place;
--> ok

-- Also those that they name and do not need.

CREATE TABLE shed (id BIGINT PRIMARY KEY, area INT, note TEXT) WITH (engine = '$ENGINE');
--> ok

CREATE VIEW shed_ids AS SELECT id FROM (SELECT id, area FROM shed) AS measured;
--> ok

ALTER TABLE shed DROP COLUMN area;
--> error constraint_violation: view public.shed_ids reads a column of table public.shed that is dropped

ALTER TABLE shed DROP COLUMN note;
--> ok

-- Foreign keys: of the table that refers, and of the one that is referred to.

CREATE TABLE shelf (id BIGINT PRIMARY KEY, code TEXT CONSTRAINT one_shelf UNIQUE, label TEXT) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE box (
    id BIGINT PRIMARY KEY,
    lies_on TEXT CONSTRAINT box_shelf REFERENCES shelf (code),
    was_on BIGINT CONSTRAINT box_before REFERENCES shelf (id)
) WITH (engine = '$ENGINE');
--> ok

INSERT INTO shelf VALUES (1, 'a', 'left'), (2, 'b', 'right');
--> 2 rows

INSERT INTO box VALUES (10, 'a', 1), (20, 'b', NULL);
--> 2 rows

ALTER TABLE box DROP COLUMN was_on;
--> error invalid_argument: column was_on of table public.box is part of constraint box_before

ALTER TABLE box DROP COLUMN was_on CASCADE;
--> ok

ALTER TABLE shelf DROP COLUMN code;
--> error invalid_argument: column code of table public.shelf is part of constraint one_shelf

DELETE FROM shelf WHERE id = 1;
--> error constraint_violation: box_shelf

ALTER TABLE shelf DROP COLUMN code CASCADE;
--> ok

DELETE FROM shelf WHERE id = 1;
--> 1 row

INSERT INTO box VALUES (30, 'z');
--> 1 row

SELECT * FROM box ORDER BY id;
--> id | lies_on
--> 10 | a
--> 20 | b
--> 30 | z

SELECT * FROM shelf;
--> id | label
--> 2  | right
