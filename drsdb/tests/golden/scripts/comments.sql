-- Tables, views and columns have comments, for people.

CREATE TABLE tool (id BIGINT PRIMARY KEY, name TEXT NOT NULL DEFAULT 'thing', made_by TEXT) WITH (engine = '$ENGINE');
--> ok

CREATE VIEW tool_list AS SELECT id, name AS called FROM tool;
--> ok

COMMENT ON TABLE tool IS 'What hangs on the wall';
--> ok

COMMENT ON COLUMN tool.name IS 'It''s what one asks for';
--> ok

COMMENT ON COLUMN public.tool.id IS 'Written on its back';
--> ok

SELECT comment FROM drsdb.tables WHERE table_name = 'tool';
--> comment
--> What hangs on the wall

DESCRIBE tool;
--> column_name | data_type | is_nullable | key         | default | comment
--> id          | BIGINT    | false       | primary key | NULL    | Written on its back
--> name        | TEXT      | false       | NULL        | 'thing' | It's what one asks for
--> made_by     | TEXT      | true        | NULL        | NULL    | NULL

-- A view's columns have their own.

COMMENT ON VIEW tool_list IS 'What there is';
--> ok

COMMENT ON COLUMN tool_list.called IS 'As it is called';
--> ok

DESCRIBE tool_list;
--> column_name | data_type | is_nullable | key  | default | comment
--> id          | BIGINT    | true        | NULL | NULL    | NULL
--> called      | TEXT      | true        | NULL | NULL    | As it is called

DROP VIEW tool_list;
--> ok

-- A comment stays with what it is about, under any name, and is replaced by another one.

ALTER TABLE tool RENAME COLUMN name TO title;
--> ok

ALTER TABLE tool RENAME TO implement;
--> ok

COMMENT ON TABLE implement IS 'What hung on the wall';
--> ok

SELECT table_name, comment FROM drsdb.tables WHERE table_name IN ('tool', 'implement');
--> table_name | comment
--> implement  | What hung on the wall

SHOW COLUMNS FROM implement;
--> column_name | data_type | is_nullable | key         | default | comment
--> id          | BIGINT    | false       | primary key | NULL    | Written on its back
--> title       | TEXT      | false       | NULL        | 'thing' | It's what one asks for
--> made_by     | TEXT      | true        | NULL        | NULL    | NULL

-- NULL is none, and so is an empty one.

COMMENT ON TABLE implement IS NULL;
--> ok

COMMENT ON COLUMN implement.title IS '';
--> ok

SELECT comment FROM drsdb.tables WHERE table_name = 'implement';
--> comment
--> NULL

DESCRIBE implement;
--> column_name | data_type | is_nullable | key         | default | comment
--> id          | BIGINT    | false       | primary key | NULL    | Written on its back
--> title       | TEXT      | false       | NULL        | 'thing' | NULL
--> made_by     | TEXT      | true        | NULL        | NULL    | NULL

-- A column that goes takes its comment along.

COMMENT ON COLUMN implement.made_by IS 'A name';
--> ok

ALTER TABLE implement DROP COLUMN made_by;
--> ok

ALTER TABLE implement ADD COLUMN made_by TEXT;
--> ok

DESCRIBE implement;
--> column_name | data_type | is_nullable | key         | default | comment
--> id          | BIGINT    | false       | primary key | NULL    | Written on its back
--> title       | TEXT      | false       | NULL        | 'thing' | NULL
--> made_by     | TEXT      | true        | NULL        | NULL    | NULL

-- What is not there has none.

CREATE VIEW implement_list AS SELECT id FROM implement;
--> ok

COMMENT ON TABLE nobody IS 'x';
--> error not_found: table public.nobody does not exist

COMMENT IF EXISTS ON TABLE nobody IS 'x';
--> ok

COMMENT ON VIEW nobody IS 'x';
--> error not_found: view public.nobody does not exist

COMMENT ON COLUMN implement.colour IS 'x';
--> error not_found: public.implement has no column colour

COMMENT ON COLUMN implement_list.made_by IS 'x';
--> error not_found: public.implement_list has no column made_by

COMMENT ON TABLE implement_list IS 'x';
--> error invalid_argument: public.implement_list is a view

COMMENT ON VIEW implement IS 'x';
--> error invalid_argument: public.implement is a table

COMMENT ON SCHEMA public IS 'x';
--> error unsupported: COMMENT ON SCHEMA
