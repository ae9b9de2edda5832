-- Window functions: which rows they are about, and in which order, however many servers have the rows.

CREATE TABLE m (id BIGINT PRIMARY KEY, g TEXT, a BIGINT, s TEXT) WITH (engine = '$ENGINE', shards = 5);
--> ok

INSERT INTO m VALUES (1, 'x', 10, 'v'), (2, 'y', NULL, 'w'), (3, 'x', 5, NULL), (4, 'y', NULL, 'y'), (5, 'x', 7, 'z');
--> 5 rows

-- FILTER.

SELECT id, count(*) FILTER (WHERE a > 5) OVER () AS n FROM m ORDER BY id;
--> id | n
--> 1  | 2
--> 2  | 2
--> 3  | 2
--> 4  | 2
--> 5  | 2

SELECT id, sum(id) FILTER (WHERE a IS NOT NULL) OVER (ORDER BY id) AS n, sum(id) OVER (ORDER BY id) AS every
FROM m ORDER BY id;
--> id | n | every
--> 1  | 1 | 1
--> 2  | 1 | 3
--> 3  | 4 | 6
--> 4  | 4 | 10
--> 5  | 9 | 15

SELECT id, count(*) FILTER (WHERE a > 5) OVER (PARTITION BY g ORDER BY id) AS n,
       min(a) FILTER (WHERE id > 1) OVER (PARTITION BY g) AS low,
       string_agg(s, '+') FILTER (WHERE id <> 5) OVER (PARTITION BY g ORDER BY id) AS texts
FROM m ORDER BY id;
--> id | n | low  | texts
--> 1  | 1 | 5    | v
--> 2  | 0 | NULL | w
--> 3  | 1 | 5    | v
--> 4  | 0 | NULL | w+y
--> 5  | 2 | 5    | v

SELECT id, sum(id) FILTER (WHERE id <> 3) OVER (ORDER BY id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS n,
       count(DISTINCT g) FILTER (WHERE a > 5) OVER () AS groups
FROM m ORDER BY id;
--> id | n | groups
--> 1  | 1 | 1
--> 2  | 3 | 1
--> 3  | 2 | 1
--> 4  | 4 | 1
--> 5  | 9 | 1

SELECT id, count(*) FILTER (WHERE a > 5) OVER w AS n FROM m WINDOW w AS (ORDER BY id DESC) ORDER BY id;
--> id | n
--> 1  | 2
--> 2  | 1
--> 3  | 1
--> 4  | 1
--> 5  | 1

SELECT g, sum(count(*)) FILTER (WHERE g = 'x') OVER () AS n FROM m GROUP BY g ORDER BY g;
--> g | n
--> x | 3
--> y | 3

SELECT id FROM (SELECT id, avg(id) FILTER (WHERE a IS NULL) OVER () AS mean FROM m) AS x WHERE id = mean;
--> id
--> 3

SELECT array_agg(a) FILTER (WHERE id > 2) OVER () FROM m;
--> error unsupported: FILTER of array_agg, subquery

SELECT lag(DISTINCT a) OVER (ORDER BY id) FROM m;
--> error unsupported: DISTINCT of lag

-- A function of one row has none of this.

SELECT abs(id) FILTER (WHERE id > 2) FROM m;
--> error unsupported: FILTER, CASE WHEN

SELECT abs(DISTINCT id) FROM m;
--> error unsupported: DISTINCT

SELECT abs(id) OVER (ORDER BY id) FROM m;
--> error unsupported: OVER

-- Two orders in one query.

SELECT id, max(a) OVER (ORDER BY id DESC) AS m, lag(id) OVER (ORDER BY id) AS lag, lead(id) OVER (ORDER BY id) AS lead,
       nth_value(id, 2) OVER (ORDER BY id) AS second
FROM m ORDER BY id;
--> id | m  | lag  | lead | second
--> 1  | 10 | NULL | 2    | NULL
--> 2  | 7  | 1    | 3    | 2
--> 3  | 7  | 2    | 4    | 2
--> 4  | 7  | 3    | 5    | 2
--> 5  | 7  | 4    | NULL | 2

SELECT id, lag(id, 2, 0) OVER (ORDER BY id DESC) AS lag, lead(id) OVER (ORDER BY id) AS lead,
       first_value(id) OVER (ORDER BY id DESC) AS top, last_value(id) OVER (ORDER BY id) AS this,
       row_number() OVER (ORDER BY id DESC) AS n
FROM m ORDER BY id;
--> id | lag | lead | top | this | n
--> 1  | 3   | 2    | 5   | 1    | 5
--> 2  | 4   | 3    | 5   | 2    | 4
--> 3  | 5   | 4    | 5   | 3    | 3
--> 4  | 0   | 5    | 5   | 4    | 2
--> 5  | 0   | NULL | 5   | 5    | 1

SELECT id, max(a) OVER (PARTITION BY g ORDER BY id DESC) AS m, lag(id) OVER (PARTITION BY g ORDER BY id) AS lag
FROM m ORDER BY id;
--> id | m    | lag
--> 1  | 10   | NULL
--> 2  | NULL | NULL
--> 3  | 7    | 1
--> 4  | NULL | 2
--> 5  | 7    | 3

SELECT id, max(a) OVER (ORDER BY id DESC) AS m, array_agg(id) OVER (ORDER BY id) AS ids,
       string_agg(s, '+') OVER (ORDER BY id) AS texts, bit_or(id) OVER (ORDER BY id) AS bits
FROM m ORDER BY id;
--> id | m  | ids             | texts   | bits
--> 1  | 10 | [1]             | v       | 1
--> 2  | 7  | [1, 2]          | v+w     | 3
--> 3  | 7  | [1, 2, 3]       | v+w     | 3
--> 4  | 7  | [1, 2, 3, 4]    | v+w+y   | 7
--> 5  | 7  | [1, 2, 3, 4, 5] | v+w+y+z | 7

-- IGNORE NULLS.

SELECT id, a, lag(a) IGNORE NULLS OVER (ORDER BY id) AS lag, lead(a) IGNORE NULLS OVER (ORDER BY id) AS lead,
       lead(a, 2, 0) IGNORE NULLS OVER (ORDER BY id) AS second, last_value(a) IGNORE NULLS OVER (ORDER BY id) AS last,
       nth_value(a, 2) IGNORE NULLS OVER (ORDER BY id) AS nth, lag(a) RESPECT NULLS OVER (ORDER BY id) AS plain
FROM m ORDER BY id;
--> id | a    | lag  | lead | second | last | nth  | plain
--> 1  | 10   | NULL | 5    | 7      | 10   | NULL | NULL
--> 2  | NULL | 10   | 5    | 7      | 10   | NULL | 10
--> 3  | 5    | 10   | 7    | 0      | 5    | 5    | NULL
--> 4  | NULL | 5    | 7    | 0      | 5    | 5    | 5
--> 5  | 7    | 5    | NULL | 0      | 7    | 5    | NULL

SELECT id, first_value(a) IGNORE NULLS OVER (ORDER BY id ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING) AS near
FROM m WHERE id > 1 ORDER BY id;
--> id | near
--> 2  | 5
--> 3  | 5
--> 4  | 5
--> 5  | 7

CREATE VIEW known AS SELECT id, last_value(a) IGNORE NULLS OVER (ORDER BY id) AS a FROM m;
--> ok

SELECT * FROM known WHERE a = 5 ORDER BY id;
--> id | a
--> 3  | 5
--> 4  | 5

SELECT rank() IGNORE NULLS OVER (ORDER BY id) FROM m;
--> error unsupported: IGNORE NULLS of rank

-- A limit keeps the rows that are read ahead.

SELECT id, lag(id, -1) OVER (ORDER BY id) AS next, lead(id, 2) OVER (ORDER BY id) AS second FROM m ORDER BY id LIMIT 2;
--> id | next | second
--> 1  | 2    | 3
--> 2  | 3    | 4

SELECT id, lead(a) IGNORE NULLS OVER (ORDER BY id) AS a FROM m ORDER BY id LIMIT 2;
--> id | a
--> 1  | 5
--> 2  | 5
