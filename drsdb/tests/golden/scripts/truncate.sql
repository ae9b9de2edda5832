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
