-- What a statement wrote comes back with it.

CREATE TABLE task (id BIGINT PRIMARY KEY, title TEXT NOT NULL, done BOOLEAN NOT NULL DEFAULT FALSE) WITH (engine = '$ENGINE');
--> ok

INSERT INTO task (id, title) VALUES (1, 'wash'), (2, 'cook') RETURNING id, done;
--> id | done
--> 1  | false
--> 2  | false

INSERT INTO task (id, title) VALUES (3, 'shop') RETURNING *;
--> id | title | done
--> 3  | shop  | false

-- New values, and expressions over them.

UPDATE task SET done = TRUE WHERE id < 3 RETURNING id, upper(title) AS shout, done;
--> id | shout | done
--> 1  | WASH  | true
--> 2  | COOK  | true

UPDATE task SET done = TRUE WHERE id = 77 RETURNING id;
--> id

-- Old values of what is gone.

DELETE FROM task WHERE id = 2 RETURNING title, done;
--> title | done
--> cook  | true

INSERT INTO task VALUES (1, 'again', FALSE), (4, 'rest', FALSE) ON CONFLICT (id) DO NOTHING RETURNING id;
--> id
--> 4

INSERT INTO task VALUES (4, 'sleep', FALSE) ON CONFLICT (id) DO UPDATE SET title = excluded.title RETURNING id, title;
--> id | title
--> 4  | sleep

INSERT INTO task VALUES (3, 'twice', FALSE) RETURNING id;
--> error constraint_violation: 3

SELECT * FROM task ORDER BY id;
--> id | title | done
--> 1  | wash  | true
--> 3  | shop  | false
--> 4  | sleep | false

DELETE FROM task RETURNING nonsense;
--> error not_found: nonsense

SELECT count(*) AS n FROM task;
--> n
--> 3
