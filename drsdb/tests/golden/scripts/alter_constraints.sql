-- Constraints come, go and change their names. Who adds one is told when the rows that are there are not like that.

CREATE TABLE room (id BIGINT PRIMARY KEY, name TEXT, beds INT, price DECIMAL(8, 2)) WITH (engine = '$ENGINE');
--> ok

INSERT INTO room VALUES (1, 'blue', 2, 80), (2, 'green', 4, 120), (3, 'attic', NULL, NULL);
--> 3 rows

-- CHECK: what is unknown is not false, of rows that are there as of new ones.

ALTER TABLE room ADD CONSTRAINT some_beds CHECK (beds > 0);
--> ok

INSERT INTO room VALUES (4, 'hall', 0, 10);
--> error constraint_violation: some_beds of table public.room, (id) = (4), beds > 0

UPDATE room SET beds = beds - 2 WHERE id = 1;
--> error constraint_violation: some_beds, (id) = (1)

INSERT INTO room VALUES (4, 'tower', 1, 500);
--> 1 row

ALTER TABLE room ADD CONSTRAINT cheap CHECK (price < 200);
--> error constraint_violation: cheap of table public.room does not hold, the row (id) = (4) does not have price < 200, UPDATE or DELETE

-- So nothing was added.

UPDATE room SET price = 300 WHERE id = 2;
--> 1 row

UPDATE room SET price = 199 WHERE price >= 200;
--> 2 rows

ALTER TABLE room ADD CONSTRAINT cheap CHECK (price < 200);
--> ok

UPDATE room SET price = 200 WHERE id = 2;
--> error constraint_violation: cheap, (id) = (2)

-- All that a statement says is done, or nothing.

ALTER TABLE room ADD CONSTRAINT has_name CHECK (name <> ''), ADD CONSTRAINT for_two CHECK (beds > 1);
--> error constraint_violation: for_two of table public.room does not hold, (id) = (4)

INSERT INTO room VALUES (5, '', 3, 1);
--> 1 row

-- A column that has another one's name from now on is not the one whose rows are looked at.

CREATE TABLE swap (id BIGINT PRIMARY KEY, a INT, b INT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO swap VALUES (1, 5, -5);
--> 1 row

ALTER TABLE swap RENAME COLUMN a TO old, RENAME COLUMN b TO a, ADD CONSTRAINT positive CHECK (a > 0);
--> error unsupported: constraint positive is about a column that is added or renamed with it

ALTER TABLE swap DROP COLUMN a, ADD COLUMN a INT DEFAULT -1, ADD CONSTRAINT positive CHECK (a > 0);
--> error unsupported: constraint positive is about a column that is added or renamed with it

SELECT * FROM swap;
--> id | a | b
--> 1  | 5 | -5

-- One that is given no name has one all the same.

ALTER TABLE room ADD CHECK (beds < 10);
--> ok

INSERT INTO room VALUES (6, 'dormitory', 10, 10);
--> error constraint_violation: room_beds_check

ALTER TABLE room ADD CONSTRAINT cheap CHECK (beds < 10);
--> error already_exists: two constraints of table public.room are called cheap

ALTER TABLE room ADD CONSTRAINT low CHECK (storey < 3);
--> error not_found: table public.room has no column storey

-- A constraint goes with its column through a new name.

ALTER TABLE room RENAME COLUMN beds TO places;
--> ok

INSERT INTO room VALUES (6, 'dormitory', 10, 10);
--> error constraint_violation: room_beds_check, places < 10

-- What is dropped holds no more.

ALTER TABLE room DROP CONSTRAINT cheap;
--> ok

UPDATE room SET price = 200 WHERE id = 2;
--> 1 row

ALTER TABLE room DROP CONSTRAINT cheap;
--> error not_found: table public.room has no constraint cheap

ALTER TABLE room DROP CONSTRAINT IF EXISTS cheap;
--> ok

ALTER TABLE room DROP CONSTRAINT some_bed;
--> error not_found: did you mean some_beds?

ALTER TABLE room DROP CONSTRAINT room_pkey;
--> error unsupported: primary key room_pkey, INSERT ... SELECT

-- What has another name holds as before.

ALTER TABLE room RENAME CONSTRAINT some_beds TO beds_there;
--> ok

INSERT INTO room VALUES (6, 'cellar', 0, 10);
--> error constraint_violation: beds_there of table public.room

ALTER TABLE room RENAME CONSTRAINT room_pkey TO room_number;
--> ok

INSERT INTO room VALUES (1, 'blue again', 2, 80);
--> error constraint_violation: room_number of table public.room, (id) = (1)

ALTER TABLE room RENAME CONSTRAINT room_beds_check TO beds_there;
--> error already_exists: table public.room has a constraint beds_there already

ALTER TABLE room RENAME CONSTRAINT some_beds TO any_beds;
--> error not_found: table public.room has no constraint some_beds

SELECT constraint_name, constraint_type FROM information_schema.table_constraints
WHERE table_name = 'room' ORDER BY constraint_name;
--> constraint_name | constraint_type
--> beds_there      | CHECK
--> room_beds_check | CHECK
--> room_number     | PRIMARY KEY

SELECT check_clause FROM information_schema.check_constraints WHERE constraint_name = 'beds_there';
--> check_clause
--> places > 0

SELECT * FROM room ORDER BY id;
--> id | name  | places | price
--> 1  | blue  | 2      | 80.00
--> 2  | green | 4      | 200.00
--> 3  | attic | NULL   | NULL
--> 4  | tower | 1      | 199.00
--> 5  |       | 3      | 1.00

-- Keys: rows that are there have none, and new ones are not gathered.

ALTER TABLE room ADD CONSTRAINT one_name UNIQUE (name);
--> error unsupported: table public.room has rows, one_name, INSERT ... SELECT

ALTER TABLE room ADD PRIMARY KEY (name);
--> error invalid_argument: more than one primary key

CREATE TABLE card (code BIGINT, opens BIGINT) WITH (engine = '$ENGINE');
--> ok

ALTER TABLE card ADD PRIMARY KEY (code);
--> error unsupported: PRIMARY KEY, UNIQUE

ALTER TABLE card ADD CONSTRAINT one_code UNIQUE (code);
--> ok

INSERT INTO card VALUES (1, 1), (2, NULL), (NULL, 3), (NULL, 4);
--> 4 rows

INSERT INTO card VALUES (1, 2);
--> error constraint_violation: one_code of table public.card, (code) = (1)

ALTER TABLE card RENAME CONSTRAINT one_code TO card_code;
--> ok

INSERT INTO card VALUES (2, 2);
--> error constraint_violation: card_code of table public.card, (code) = (2)

ALTER TABLE card DROP CONSTRAINT card_code;
--> ok

INSERT INTO card VALUES (2, 2);
--> 1 row

-- A row of a table without a key is not told by one.

ALTER TABLE card ADD CONSTRAINT opens_some CHECK (opens < 4);
--> error constraint_violation: opens_some of table public.card does not hold, a row does not have opens < 4

SELECT code, opens FROM card ORDER BY code, opens;
--> code | opens
--> 1    | 1
--> 2    | 2
--> 2    | NULL
--> NULL | 3
--> NULL | 4

-- FOREIGN KEY.

CREATE TABLE guest (id BIGINT PRIMARY KEY, sleeps_in BIGINT, note TEXT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO guest VALUES (10, 1, NULL), (20, 2, NULL), (30, NULL, NULL), (40, 99, NULL);
--> 4 rows

ALTER TABLE guest ADD CONSTRAINT guest_room FOREIGN KEY (sleeps_in) REFERENCES room (id);
--> error constraint_violation: guest_room of table public.guest does not hold, the row (id) = (40) refers to a row that is not in table public.room, UPDATE or DELETE

INSERT INTO guest VALUES (50, 98, NULL);
--> 1 row

DELETE FROM guest WHERE sleeps_in > 90;
--> 2 rows

ALTER TABLE guest ADD CONSTRAINT guest_room FOREIGN KEY (sleeps_in) REFERENCES room (id);
--> ok

INSERT INTO guest VALUES (50, 98, NULL);
--> error constraint_violation: guest_room of table public.guest: (sleeps_in) = (98) is not in table public.room

UPDATE guest SET sleeps_in = 97 WHERE id = 30;
--> error constraint_violation: guest_room, 97

DELETE FROM room WHERE id = 1;
--> error constraint_violation: guest_room of table public.guest: rows still refer to (id) = (1) of table public.room

ALTER TABLE guest RENAME CONSTRAINT guest_room TO guest_bed;
--> ok

UPDATE room SET id = 7 WHERE id = 1;
--> error constraint_violation: guest_bed

ALTER TABLE guest DROP CONSTRAINT guest_bed;
--> ok

DELETE FROM room WHERE id = 1;
--> 1 row

DELETE FROM guest WHERE sleeps_in = 1;
--> 1 row

-- It may act from then on.

ALTER TABLE guest ADD FOREIGN KEY (sleeps_in) REFERENCES room (id) ON DELETE CASCADE;
--> ok

INSERT INTO guest VALUES (50, 98, NULL);
--> error constraint_violation: guest_sleeps_in_fkey

DELETE FROM room WHERE id = 2;
--> 1 row

SELECT id, sleeps_in FROM guest;
--> id | sleeps_in
--> 30 | NULL

-- What it refers to must be a key, and of the same type.

ALTER TABLE guest ADD FOREIGN KEY (sleeps_in) REFERENCES room (places);
--> error invalid_argument: the primary key or a UNIQUE key of table public.room, its primary key is (id)

ALTER TABLE guest ADD FOREIGN KEY (note) REFERENCES room (id);
--> error type_mismatch: column note is TEXT and cannot reference public.room.id

ALTER TABLE guest ADD FOREIGN KEY (sleeps_in) REFERENCES nowhere (id);
--> error not_found: nowhere

ALTER TABLE guest ADD FOREIGN KEY (bed) REFERENCES room (id);
--> error not_found: table public.guest has no column bed

-- A table that comes to refer to itself.

CREATE TABLE task (id BIGINT PRIMARY KEY, waits_for BIGINT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO task VALUES (1, NULL), (2, 1), (3, 7);
--> 3 rows

ALTER TABLE task ADD CONSTRAINT task_order FOREIGN KEY (waits_for) REFERENCES task (id);
--> error constraint_violation: task_order of table public.task does not hold, the row (id) = (3)

UPDATE task SET waits_for = 2 WHERE id = 3;
--> 1 row

ALTER TABLE task ADD CONSTRAINT task_order FOREIGN KEY (waits_for) REFERENCES task (id);
--> ok

DELETE FROM task WHERE id = 2;
--> error constraint_violation: task_order

INSERT INTO task VALUES (4, 8);
--> error constraint_violation: task_order, 8

-- A key that others refer to is not dropped by accident.

CREATE TABLE land (id BIGINT PRIMARY KEY, code TEXT CONSTRAINT one_land UNIQUE) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE town (id BIGINT PRIMARY KEY, lies_in TEXT CONSTRAINT town_land REFERENCES land (code)) WITH (engine = '$ENGINE');
--> ok

INSERT INTO land VALUES (1, 'IT'), (2, 'NO');
--> 2 rows

INSERT INTO town VALUES (1, 'IT');
--> 1 row

ALTER TABLE land DROP CONSTRAINT one_land;
--> error constraint_violation: a foreign key of table public.town refers to a key of public.land, CASCADE

INSERT INTO town VALUES (2, 'FR');
--> error constraint_violation: town_land

ALTER TABLE land DROP CONSTRAINT one_land CASCADE;
--> ok

INSERT INTO town VALUES (2, 'FR');
--> 1 row

INSERT INTO land VALUES (3, 'IT');
--> 1 row

DELETE FROM land WHERE code = 'IT';
--> 2 rows

-- Columns that come with a constraint.

CREATE TABLE port (id BIGINT PRIMARY KEY, name TEXT) WITH (engine = '$ENGINE');
--> ok

CREATE TABLE ship (id BIGINT PRIMARY KEY, name TEXT) WITH (engine = '$ENGINE');
--> ok

INSERT INTO port VALUES (1, 'Genoa'), (2, 'Trieste');
--> 2 rows

INSERT INTO ship VALUES (1, 'Aurora'), (2, 'Borea');
--> 2 rows

ALTER TABLE ship ADD COLUMN home BIGINT CONSTRAINT ship_home REFERENCES port (id);
--> ok

SELECT * FROM ship ORDER BY id;
--> id | name   | home
--> 1  | Aurora | NULL
--> 2  | Borea  | NULL

UPDATE ship SET home = 1 WHERE id = 1;
--> 1 row

UPDATE ship SET home = 9 WHERE id = 2;
--> error constraint_violation: ship_home, 9

INSERT INTO ship VALUES (3, 'Cima', 9);
--> error constraint_violation: ship_home of table public.ship: (home) = (9) is not in table public.port

DELETE FROM port WHERE id = 1;
--> error constraint_violation: ship_home of table public.ship: rows still refer to (id) = (1) of table public.port

DELETE FROM port WHERE id = 2;
--> 1 row

SELECT s.name, p.name AS home FROM ship s LEFT JOIN port p ON p.id = s.home ORDER BY s.id;
--> name   | home
--> Aurora | Genoa
--> Borea  | NULL

-- With a value for the rows that are there, it is refused.

ALTER TABLE ship ADD COLUMN last_seen BIGINT DEFAULT 1 REFERENCES port (id);
--> error unsupported: table public.ship has rows, DEFAULT

ALTER TABLE ship ADD COLUMN masts INT CHECK (masts > 0);
--> error unsupported: table public.ship has rows, add the column first

ALTER TABLE ship ADD COLUMN masts INT;
--> ok

ALTER TABLE ship ADD CHECK (masts > 0);
--> ok

UPDATE ship SET masts = 0 WHERE id = 1;
--> error constraint_violation: ship_masts_check

-- A table without rows takes all of them.

CREATE TABLE barge (id BIGINT PRIMARY KEY) WITH (engine = '$ENGINE');
--> ok

ALTER TABLE barge ADD COLUMN home BIGINT NOT NULL DEFAULT 1 REFERENCES port (id) ON DELETE CASCADE,
                  ADD COLUMN masts INT CHECK (masts < 2), ADD COLUMN mark TEXT CONSTRAINT one_mark UNIQUE;
--> ok

INSERT INTO barge (id, mark) VALUES (1, 'x');
--> 1 row

INSERT INTO barge (id, mark) VALUES (2, 'x');
--> error constraint_violation: one_mark

INSERT INTO barge VALUES (2, 1, 2, 'y');
--> error constraint_violation: barge_masts_check

INSERT INTO barge VALUES (2, 5, 1, 'y');
--> error constraint_violation: barge_home_fkey, 5

SELECT * FROM barge;
--> id | home | masts | mark
--> 1  | 1    | NULL  | x
