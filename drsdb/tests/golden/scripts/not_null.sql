-- NOT NULL comes when no row is in its way, and goes again.

CREATE TABLE lake (id BIGINT PRIMARY KEY, name TEXT, depth INT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO lake VALUES (1, 'Como', 425), (2, 'Garda', NULL), (3, 'Iseo', 251);
--> 3 rows

ALTER TABLE lake ALTER COLUMN name SET NOT NULL;
--> ok

ALTER TABLE lake ALTER COLUMN depth SET NOT NULL;
--> error constraint_violation: column depth of table public.lake cannot be NOT NULL, the row (id) = (2) has NULL in depth, UPDATE or DELETE

INSERT INTO lake VALUES (4, NULL, 143);
--> error constraint_violation: column name, NOT NULL

INSERT INTO lake (id, depth) VALUES (4, 143);
--> error constraint_violation: column name, NOT NULL

UPDATE lake SET name = NULL WHERE id = 1;
--> error constraint_violation: column name, NOT NULL

-- What was refused holds nobody.

UPDATE lake SET depth = NULL WHERE id = 3;
--> 1 row

UPDATE lake SET depth = 346 WHERE depth IS NULL;
--> 2 rows

ALTER TABLE lake ALTER COLUMN depth SET NOT NULL;
--> ok

INSERT INTO lake VALUES (4, 'Orta', NULL);
--> error constraint_violation: column depth, NOT NULL

-- Twice is as good as once.

ALTER TABLE lake ALTER COLUMN depth SET NOT NULL;
--> ok

ALTER TABLE lake ALTER COLUMN name DROP NOT NULL;
--> ok

ALTER TABLE lake ALTER COLUMN name DROP NOT NULL;
--> ok

INSERT INTO lake VALUES (4, NULL, 143);
--> 1 row

ALTER TABLE lake ALTER COLUMN name SET NOT NULL;
--> error constraint_violation: column name of table public.lake cannot be NOT NULL, the row (id) = (4) has NULL in name

ALTER TABLE lake ALTER COLUMN id DROP NOT NULL;
--> error invalid_argument: column id is part of the primary key of table public.lake

ALTER TABLE lake ALTER COLUMN area SET NOT NULL;
--> error not_found: area

SELECT * FROM lake ORDER BY id;
--> id | name  | depth
--> 1  | Como  | 425
--> 2  | Garda | 346
--> 3  | Iseo  | 346
--> 4  | NULL  | 143

SELECT column_name, is_nullable FROM information_schema.columns WHERE table_name = 'lake' ORDER BY ordinal_position;
--> column_name | is_nullable
--> id          | NO
--> name        | YES
--> depth       | NO

-- It is a constraint, and has a name.

ALTER TABLE lake RENAME CONSTRAINT lake_depth_not_null TO depth_known;
--> ok

INSERT INTO lake VALUES (5, 'Lugano', NULL);
--> error constraint_violation: column depth, depth_known

ALTER TABLE lake DROP CONSTRAINT depth_known;
--> ok

INSERT INTO lake VALUES (5, 'Lugano', NULL);
--> 1 row

SELECT count(*) AS n FROM lake WHERE depth IS NULL;
--> n
--> 1

-- A column that is new and NOT NULL needs a value for the rows that are there.

ALTER TABLE lake ADD COLUMN frozen BOOLEAN NOT NULL;
--> error unsupported: table public.lake has rows, frozen, DEFAULT

ALTER TABLE lake ADD COLUMN frozen BOOLEAN DEFAULT FALSE, ALTER COLUMN frozen SET NOT NULL;
--> ok

INSERT INTO lake VALUES (6, 'Baikal', 1642, NULL);
--> error constraint_violation: column frozen, NOT NULL

SELECT count(*) AS n FROM lake WHERE NOT frozen;
--> n
--> 5
