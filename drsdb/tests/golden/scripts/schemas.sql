-- Schemas keep names apart.

CREATE SCHEMA shop;
--> ok

CREATE SCHEMA shop;
--> error already_exists: shop

CREATE SCHEMA IF NOT EXISTS shop;
--> ok

CREATE TABLE item (id BIGINT PRIMARY KEY, name TEXT) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE shop.item (id BIGINT PRIMARY KEY, price DECIMAL(6, 2)) WITH (engine = '$ENGINE');
--> ok

INSERT INTO item VALUES (1, 'chair');
--> 1 row

INSERT INTO shop.item VALUES (1, 49.90), (2, 19.90);
--> 2 rows

SELECT i.name, s.price FROM public.item i JOIN shop.item s ON i.id = s.id;
--> name  | price
--> chair | 49.90

UPDATE shop.item SET price = price - 10 WHERE id = 2;
--> 1 row

SELECT price FROM shop.item ORDER BY id;
--> price
--> 49.90
--> 9.90

CREATE TABLE nowhere.item (id BIGINT);
--> error not_found: nowhere

-- A schema with something in it is not dropped by accident.

DROP SCHEMA shop;
--> error : item

DROP SCHEMA shop RESTRICT;
--> error : item

SELECT count(*) AS n FROM shop.item;
--> n
--> 2

DROP SCHEMA shop CASCADE;
--> ok

SELECT * FROM shop.item;
--> error not_found

SELECT name FROM item;
--> name
--> chair

DROP SCHEMA shop;
--> error not_found: shop

DROP SCHEMA IF EXISTS shop;
--> ok

-- The server's own schemas are there, but not every table of them.

SELECT * FROM drsdb.nosuch;
--> error not_found: table drsdb.nosuch does not exist

SELECT * FROM information_schema.tabels;
--> error not_found: did you mean information_schema.tables

INSERT INTO drsdb.nosuch VALUES (1);
--> error not_found: table drsdb.nosuch does not exist
