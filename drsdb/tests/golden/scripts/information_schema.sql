-- What there is, as tables.

CREATE SCHEMA zoo;
--> ok

CREATE TABLE zoo.house (id INT CONSTRAINT house_key PRIMARY KEY, name VARCHAR(30) NOT NULL CONSTRAINT one_house UNIQUE)
WITH (engine = '$ENGINE');
--> ok

CREATE TABLE zoo.animal (
    house INT,
    number INT,
    name TEXT DEFAULT 'nameless',
    weight DECIMAL(7, 1) CONSTRAINT has_weight CHECK (weight > 0),
    CONSTRAINT animal_key PRIMARY KEY (house, number),
    CONSTRAINT animal_house FOREIGN KEY (house) REFERENCES zoo.house (id) ON DELETE CASCADE
) WITH (engine = '$ENGINE');
--> ok

CREATE VIEW zoo.heavy AS SELECT * FROM zoo.animal WHERE weight > 1000;
--> ok

SELECT schema_name FROM information_schema.schemata WHERE schema_name IN ('public', 'zoo', 'information_schema');
--> schema_name
--> public
--> zoo
--> information_schema

SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = 'zoo' ORDER BY table_name;
--> table_name | table_type
--> animal     | BASE TABLE
--> heavy      | VIEW
--> house      | BASE TABLE

SELECT column_name, ordinal_position, is_nullable FROM information_schema.columns
WHERE table_schema = 'zoo' AND table_name = 'animal' ORDER BY ordinal_position;
--> column_name | ordinal_position | is_nullable
--> house       | 1                | NO
--> number      | 2                | NO
--> name        | 3                | YES
--> weight      | 4                | YES

SELECT table_name, constraint_name, constraint_type FROM information_schema.table_constraints
WHERE table_schema = 'zoo' AND constraint_name IN ('house_key', 'one_house', 'animal_key', 'animal_house', 'has_weight')
ORDER BY table_name, constraint_name;
--> table_name | constraint_name | constraint_type
--> animal     | animal_house    | FOREIGN KEY
--> animal     | animal_key      | PRIMARY KEY
--> animal     | has_weight      | CHECK
--> house      | house_key       | PRIMARY KEY
--> house      | one_house       | UNIQUE

SELECT constraint_name, column_name, ordinal_position FROM information_schema.key_column_usage
WHERE table_schema = 'zoo' AND table_name = 'animal' ORDER BY constraint_name, ordinal_position;
--> constraint_name | column_name | ordinal_position
--> animal_house    | house       | 1
--> animal_key      | house       | 1
--> animal_key      | number      | 2

SELECT constraint_name, unique_constraint_name, delete_rule, update_rule FROM information_schema.referential_constraints
WHERE constraint_schema = 'zoo';
--> constraint_name | unique_constraint_name | delete_rule | update_rule
--> animal_house    | house_key              | CASCADE     | NO ACTION

SELECT constraint_name FROM information_schema.check_constraints WHERE constraint_name = 'has_weight';
--> constraint_name
--> has_weight

SELECT table_name FROM information_schema.views WHERE table_schema = 'zoo';
--> table_name
--> heavy

-- Hidden columns are nobody's business.

CREATE TABLE zoo.diary (line TEXT) WITH (engine = '$ENGINE');
--> ok

SELECT column_name FROM information_schema.columns WHERE table_schema = 'zoo' AND table_name = 'diary';
--> column_name
--> line

DROP SCHEMA zoo CASCADE;
--> ok

SELECT count(*) AS n FROM information_schema.tables WHERE table_schema = 'zoo';
--> n
--> 0
