-- Columns come, go and change their names; rows that were there before follow.

CREATE TABLE person (id BIGINT PRIMARY KEY, name TEXT NOT NULL, born INT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO person VALUES (1, 'Ada', 1815), (2, 'Grace', 1906);
--> 2 rows

ALTER TABLE person ADD COLUMN email TEXT;
--> ok

ALTER TABLE person ADD COLUMN active BOOLEAN NOT NULL DEFAULT TRUE;
--> ok

INSERT INTO person (id, name, email) VALUES (3, 'Alan', 'alan@example.org');
--> 1 row

SELECT * FROM person ORDER BY id;
--> id | name  | born | email            | active
--> 1  | Ada   | 1815 | NULL             | true
--> 2  | Grace | 1906 | NULL             | true
--> 3  | Alan  | NULL | alan@example.org | true

UPDATE person SET active = FALSE WHERE id = 1;
--> 1 row

-- A changed default is for rows to come; those that are there keep what they have.

ALTER TABLE person ALTER COLUMN active SET DEFAULT FALSE;
--> ok

INSERT INTO person (id, name) VALUES (4, 'Edsger');
--> 1 row

ALTER TABLE person ALTER COLUMN active DROP DEFAULT;
--> ok

INSERT INTO person (id, name) VALUES (5, 'Barbara');
--> error constraint_violation: active

SELECT id, active FROM person ORDER BY id;
--> id | active
--> 1  | false
--> 2  | true
--> 3  | true
--> 4  | false

ALTER TABLE person RENAME COLUMN born TO birth_year;
--> ok

SELECT birth_year FROM person WHERE id = 1;
--> birth_year
--> 1815

SELECT born FROM person;
--> error not_found: born

ALTER TABLE person DROP COLUMN birth_year;
--> ok

SELECT * FROM person WHERE id = 2;
--> id | name  | email | active
--> 2  | Grace | NULL  | true

-- A column of the same name is a new one, and empty.

ALTER TABLE person ADD COLUMN birth_year BIGINT;
--> ok

SELECT id, birth_year FROM person WHERE id <= 2 ORDER BY id;
--> id | birth_year
--> 1  | NULL
--> 2  | NULL

ALTER TABLE person RENAME TO people;
--> ok

SELECT count(*) AS n FROM people;
--> n
--> 4

SELECT * FROM person;
--> error not_found: person

-- What cannot be done.

ALTER TABLE people ADD COLUMN must TEXT NOT NULL;
--> error : must

ALTER TABLE people ADD COLUMN name TEXT;
--> error already_exists: name

ALTER TABLE people ADD COLUMN IF NOT EXISTS name TEXT;
--> ok

ALTER TABLE people DROP COLUMN nothing;
--> error not_found: nothing

ALTER TABLE people DROP COLUMN IF EXISTS nothing;
--> ok

ALTER TABLE nobody ADD COLUMN a INT;
--> error not_found: nobody

-- What rows are not, a definition does not make them.

ALTER TABLE people ALTER COLUMN email SET NOT NULL;
--> error constraint_violation: column email of table public.people, the row (id) = (, UPDATE or DELETE

ALTER TABLE people ADD CONSTRAINT few_people CHECK (id < 4);
--> error constraint_violation: few_people of table public.people, the row (id) = (4), UPDATE or DELETE
