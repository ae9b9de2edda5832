-- A view is a query with a name: it shows what its tables hold now.

CREATE TABLE sale (id BIGINT PRIMARY KEY, region TEXT, amount INT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO sale VALUES (1, 'north', 10), (2, 'south', 20), (3, 'north', 5);
--> 3 rows

CREATE VIEW totals AS SELECT region, sum(amount) AS total FROM sale GROUP BY region;
--> ok

SELECT * FROM totals ORDER BY region;
--> region | total
--> north  | 15
--> south  | 20

INSERT INTO sale VALUES (4, 'south', 1);
--> 1 row

SELECT total FROM totals WHERE region = 'south';
--> total
--> 21

CREATE VIEW totals AS SELECT 1 AS one;
--> error already_exists: totals

CREATE OR REPLACE VIEW totals AS SELECT region, sum(amount) AS total FROM sale WHERE amount > 4 GROUP BY region;
--> ok

SELECT total FROM totals WHERE region = 'south';
--> total
--> 20

-- Views stand on views.

CREATE VIEW best (place, amount) AS SELECT region, total FROM totals ORDER BY total DESC LIMIT 1;
--> ok

SELECT place, amount FROM best;
--> place | amount
--> south | 20

INSERT INTO totals VALUES ('east', 1);
--> error : totals

-- What others stand on is not dropped by accident.

DROP TABLE sale;
--> error : totals

DROP VIEW totals;
--> error : best

DROP VIEW best;
--> ok

DROP TABLE sale CASCADE;
--> ok

SELECT * FROM totals;
--> error not_found: totals

DROP VIEW totals;
--> error not_found: totals

DROP VIEW IF EXISTS totals;
--> ok
