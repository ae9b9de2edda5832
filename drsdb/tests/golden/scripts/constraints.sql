-- Constraints hold for every statement that writes, and say which they are and which row broke them.

CREATE TABLE product (
    shop INT,
    code TEXT,
    name TEXT CONSTRAINT product_name_there NOT NULL,
    price DECIMAL(8, 2) CONSTRAINT price_positive CHECK (price > 0),
    sale DECIMAL(8, 2),
    barcode BIGINT CONSTRAINT one_barcode UNIQUE,
    CONSTRAINT product_key PRIMARY KEY (shop, code),
    CONSTRAINT sale_is_cheaper CHECK (sale < price),
    CONSTRAINT one_name UNIQUE (shop, name)
) WITH (engine = '$ENGINE');
--> ok

INSERT INTO product VALUES (1, 'a', 'lamp', 10, 9, 111), (1, 'b', 'desk', 99, NULL, NULL), (2, 'a', 'lamp', 11, 8, NULL);
--> 3 rows

-- The whole key counts.

INSERT INTO product VALUES (1, 'a', 'other', 1, NULL, NULL);
--> error constraint_violation: product_key, 1, a

INSERT INTO product VALUES (NULL, 'a', 'other', 1, NULL, NULL);
--> error constraint_violation: shop

INSERT INTO product VALUES (3, 'a', NULL, 1, NULL, NULL);
--> error constraint_violation: name

-- CHECK: false is refused, unknown is not.

INSERT INTO product VALUES (3, 'a', 'pen', 0, NULL, NULL);
--> error constraint_violation: price_positive

INSERT INTO product VALUES (3, 'a', 'pen', NULL, NULL, NULL);
--> 1 row

INSERT INTO product VALUES (3, 'b', 'cup', 5, 6, NULL);
--> error constraint_violation: sale_is_cheaper

UPDATE product SET price = 9 WHERE shop = 1 AND code = 'a';
--> error constraint_violation: sale_is_cheaper

UPDATE product SET price = price - 50 WHERE code = 'b';
--> 1 row

-- UNIQUE: NULL is like nothing, not even another NULL.

INSERT INTO product VALUES (3, 'c', 'mug', 5, NULL, 111);
--> error constraint_violation: one_barcode, 111

INSERT INTO product VALUES (1, 'c', 'lamp', 5, NULL, NULL);
--> error constraint_violation: one_name, lamp

INSERT INTO product VALUES (3, 'c', 'mug', 5, NULL, 222), (3, 'd', 'jug', 5, NULL, 222);
--> error constraint_violation: one_barcode, 222

UPDATE product SET barcode = 111 WHERE code = 'b';
--> error constraint_violation: one_barcode, 111

UPDATE product SET name = 'lamp' WHERE shop = 1 AND code = 'b';
--> error constraint_violation: one_name

-- What is given up is free for others.

UPDATE product SET barcode = 333 WHERE shop = 1 AND code = 'a';
--> 1 row

INSERT INTO product VALUES (3, 'c', 'mug', 5, NULL, 111);
--> 1 row

DELETE FROM product WHERE barcode = 333;
--> 1 row

INSERT INTO product VALUES (1, 'a', 'lamp', 10, 9, 333);
--> 1 row

SELECT shop, code, barcode FROM product ORDER BY shop, code;
--> shop | code | barcode
--> 1    | a    | 333
--> 1    | b    | NULL
--> 2    | a    | NULL
--> 3    | a    | NULL
--> 3    | c    | 111

-- Values may change places in one statement.

UPDATE product SET barcode = CASE WHEN barcode = 333 THEN 111 ELSE 333 END WHERE barcode IS NOT NULL;
--> 2 rows

SELECT code, barcode FROM product WHERE barcode IS NOT NULL ORDER BY code;
--> code | barcode
--> a    | 111
--> c    | 333

-- In a transaction, each statement is checked, with what the transaction did before.

BEGIN;
--> ok

DELETE FROM product WHERE barcode = 111;
--> 1 row

INSERT INTO product VALUES (7, 'z', 'lamp', 1, NULL, 111);
--> 1 row

COMMIT;
--> ok

SELECT shop, code FROM product WHERE barcode = 111;
--> shop | code
--> 7    | z

-- IS DISTINCT FROM compares what is beside it, and not all that follows.

CREATE TABLE pair (a INT, b INT, CONSTRAINT pair_differs CHECK (a IS DISTINCT FROM b AND a > 0)) WITH (engine = '$ENGINE');
--> ok

INSERT INTO pair VALUES (1, 2), (3, NULL);
--> 2 rows

INSERT INTO pair VALUES (-1, 2);
--> error constraint_violation: pair_differs

INSERT INTO pair VALUES (2, 2);
--> error constraint_violation: pair_differs

SELECT a FROM pair WHERE (a > 1) IS DISTINCT FROM TRUE AND a < 9 OR b IS NULL ORDER BY a;
--> a
--> 1
--> 3

CREATE VIEW lone AS SELECT a FROM pair WHERE NOT a IS NOT DISTINCT FROM 1 AND b IS NULL;
--> ok

SELECT * FROM lone;
--> a
--> 3

SELECT a IS DISTINCT FROM b IS NULL FROM pair;
--> error : IS DISTINCT FROM
