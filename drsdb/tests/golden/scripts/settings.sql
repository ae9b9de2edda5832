-- Settings belong to the session.

SHOW statement_timeout;
--> name              | value | description
--> statement_timeout | 0     | how long a statement may take: '30s'; 0: for ever

SET statement_timeout = '1500ms';
--> ok

SHOW statement_timeout;
--> name              | value  | description
--> statement_timeout | 1500ms | how long a statement may take: '30s'; 0: for ever

SET statement_timeout = '2 weeks';
--> error invalid_argument: 30s

-- A statement that takes longer ends, and says what to change.

SET statement_timeout = '200ms';
--> ok

SELECT sum(v) FROM generate_series(1, 1000000000000) g(v);
--> error timeout: statement_timeout, 200ms

EXPLAIN ANALYZE SELECT sum(v) FROM generate_series(1, 1000000000000) g(v);
--> error timeout: SET statement_timeout

RESET statement_timeout;
--> ok

-- How new what is read must be.

SET read_consistency = 'bounded 5s';
--> ok

SHOW read_consistency;
--> name             | value      | description
--> read_consistency | bounded 5s | how new what is read must be: 'linearizable', or 'bounded 5s': at most so old

-- What the session wrote itself is there, however old a read may be.

CREATE TABLE noted (id INT PRIMARY KEY) WITH (engine = '$ENGINE');
--> ok

INSERT INTO noted VALUES (1), (2);
--> 2 rows

SELECT count(*) AS n FROM noted;
--> n
--> 2

SET read_consistency = 'eventual';
--> error invalid_argument: write 'linearizable', or 'bounded' and a time

SET read_consistency = 'bounded 0';
--> error invalid_argument: bounded 5s

SET read_consistency = linearizable;
--> ok

SHOW read_consistency;
--> name             | value        | description
--> read_consistency | linearizable | how new what is read must be: 'linearizable', or 'bounded 5s': at most so old
