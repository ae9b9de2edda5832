-- MERGE: each source row meets its target row, or does not.

CREATE TABLE stock (item TEXT PRIMARY KEY, amount INT NOT NULL) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE delivery (item TEXT PRIMARY KEY, amount INT NOT NULL) WITH (engine = '$ENGINE');
--> ok

INSERT INTO stock VALUES ('apple', 5), ('pear', 2), ('plum', 9);
--> 3 rows

INSERT INTO delivery VALUES ('apple', 10), ('pear', -2), ('fig', 4), ('nothing', 0);
--> 4 rows

MERGE INTO stock s USING delivery d ON s.item = d.item
WHEN MATCHED AND s.amount + d.amount = 0 THEN DELETE
WHEN MATCHED THEN UPDATE SET amount = s.amount + d.amount
WHEN NOT MATCHED AND d.amount > 0 THEN INSERT (item, amount) VALUES (d.item, d.amount);
--> 3 rows

SELECT * FROM stock ORDER BY item;
--> item  | amount
--> apple | 15
--> fig   | 4
--> plum  | 9

-- The source can be a query; rows that no branch wants stay as they are.

MERGE INTO stock USING (SELECT item, amount * 2 AS twice FROM delivery WHERE amount > 0) AS d ON stock.item = d.item
WHEN MATCHED AND stock.item <> 'fig' THEN UPDATE SET amount = d.twice
WHEN NOT MATCHED THEN INSERT VALUES (d.item, d.twice);
--> 1 row

SELECT * FROM stock ORDER BY item;
--> item  | amount
--> apple | 20
--> fig   | 4
--> plum  | 9

-- A row may not be changed by two source rows: which one would count?

MERGE INTO stock s USING (SELECT * FROM (VALUES ('plum', 1), ('plum', 2)) AS v (item, amount)) d ON s.item = d.item
WHEN MATCHED THEN UPDATE SET amount = d.amount;
--> error

MERGE INTO stock s USING (SELECT 'kiwi' AS item UNION ALL SELECT 'kiwi') d ON s.item = d.item
WHEN NOT MATCHED THEN INSERT VALUES (d.item, 1);
--> error constraint_violation: kiwi

SELECT sum(amount) AS all_of_it FROM stock;
--> all_of_it
--> 33

-- What was written comes back: new rows, changed ones as they are now, and deleted ones as they were.

MERGE INTO stock s USING (SELECT * FROM (VALUES ('apple', 1), ('fig', -4), ('kiwi', 6)) AS v (fruit, more)) d ON s.item = d.fruit
WHEN MATCHED AND s.amount + d.more = 0 THEN DELETE
WHEN MATCHED THEN UPDATE SET amount = s.amount + d.more
WHEN NOT MATCHED THEN INSERT VALUES (d.fruit, d.more)
RETURNING item, s.amount, amount * 2 AS twice;
--> item  | amount | twice
--> apple | 21     | 42
--> fig   | 4      | 8
--> kiwi  | 6      | 12

MERGE INTO stock s USING (SELECT 'lemon' AS fruit) d ON s.item = d.fruit
WHEN MATCHED THEN DELETE
RETURNING item, amount;
--> item | amount

MERGE INTO stock s USING (SELECT 'lemon' AS fruit) d ON s.item = d.fruit
WHEN NOT MATCHED THEN INSERT VALUES (d.fruit, 1)
RETURNING colour;
--> error not_found: colour

SELECT * FROM stock ORDER BY item;
--> item  | amount
--> apple | 21
--> kiwi  | 6
--> plum  | 9
