"""Random sequences of definitions, and of the changes that they are about, on drsdb and on another database.

SQLite is asked about tables that refer to each other: FOREIGN KEY with its actions, UNIQUE, upserts and savepoints.
DuckDB is asked about MERGE. Both are asked about CHECK, DEFAULT, RETURNING, columns that come and go, new names of
columns and tables, views, TRUNCATE and CREATE TABLE AS. Statements come from a seed: a failure prints it with all of
them so far.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pytest

import drsdb
from local_cluster import LocalCluster
from oracles import Drsdb, DuckDb, Pair, Sqlite

pytestmark = pytest.mark.cluster

# Numbers of storage servers, and seeds.
RUNS = [(3, 0), (3, 1), (1, 2), (1, 3)]
STEPS = 30
KEYS = range(1, 10)
WORDS = ["ash", "beech", "cedar", "elm", "fir", "oak"]
ACTIONS = ["NO ACTION", "RESTRICT", "CASCADE", "SET NULL"]


@dataclass
class Column:
    name: str
    # key: a small number that may be somebody's key; number, word
    kind: str
    definition: str
    # Whether it was added later and nothing is said about its values, so that it can go.
    loose: bool = False


@dataclass
class Table:
    name: str
    columns: list[Column]
    # In these columns only one row at a time changes: SQLite looks at UNIQUE after each row.
    unique: set[int] = field(default_factory=set)
    # Rows refer to others of the same table. Which of them are looked at first is each database's own: only one row at
    # a time goes, and only its key is asked for.
    refers_to_itself: bool = False

    def sql(self, options: str) -> str:
        columns = ", ".join(f"{column.name} {column.definition}" for column in self.columns)
        return f"CREATE TABLE {self.name} ({columns}){options}"

    def all(self) -> str:
        return ", ".join(column.name for column in self.columns)

    def query(self) -> str:
        return f"SELECT {self.all()} FROM {self.name}"


class Story(ABC):
    """Tells two databases random statements about tables, whose columns and names it keeps in mind as they change."""

    def __init__(self, pair: Pair, seed: int, prefix: str, options: str) -> None:
        self.random = random.Random(seed)
        self.pair, self.prefix, self.options = pair, prefix, options
        self.tables: list[Table] = []
        self.views: list[str] = []
        self._names = 0

    def name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}{self._names}"

    @abstractmethod
    def step(self) -> None:
        """A statement, or a few that belong together."""

    def create(self, tables: list[Table]) -> None:
        self.tables = tables
        for table in tables:
            self.pair.tell(table.sql(self.options), table.sql(""))

    def compare(self) -> None:
        self.pair.compare(table.query() for table in self.tables)
        self.pair.compare(f"SELECT * FROM {view}" for view in self.views)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    # Values and conditions.

    def value(self, column: Column) -> str:
        if self.chance(0.03 if "NOT NULL" in column.definition else 0.12):
            return "NULL"
        match column.kind:
            case "key":
                return str(self.random.choice(KEYS))
            case "number":
                # Now and then one that CHECK refuses.
                return str(self.random.randint(-50, 53))
            case _:
                return f"'{self.random.choice(WORDS)}'"

    def condition(self, table: Table) -> str:
        column = self.random.choice(table.columns)
        match self.random.randint(0, 3), column.kind:
            case 0, _:
                return f"{column.name} IS {self.random.choice(['', 'NOT '])}NULL"
            case 1, "word":
                return f"{column.name} LIKE '%{self.random.choice('aeo')}%'"
            case 2, _:
                return f"NOT ({self.condition(table)})"
            case _, "number":
                return f"{column.name} {self.random.choice(['<', '>'])} {self.random.randint(-40, 40)}"
            case _:
                return f"{column.name} IN ({self.value(column)}, {self.value(column)})"

    # Changes.

    def insert(self, table: Table) -> str:
        if self.chance(0.02 if "KEY" in table.columns[0].definition else 0.2):
            return f"INSERT INTO {table.name} DEFAULT VALUES"
        # The first column is the key, where there is one.
        columns = [column for at, column in enumerate(table.columns) if at == 0 or self.chance(0.85)]
        return f"INSERT INTO {table.name} {self.rows(columns, self.random.choice([1, 1, 1, 2, 3]))}"

    def rows(self, columns: list[Column], count: int) -> str:
        rows = [f"({', '.join(self.value(column) for column in columns)})" for _ in range(count)]
        return f"({', '.join(column.name for column in columns)}) VALUES {', '.join(rows)}"

    def update(self, table: Table) -> str:
        at = self.random.randrange(len(table.columns))
        column = table.columns[at]
        value = self.value(column)
        if column.kind == "number" and self.chance(0.5):
            value = f"{column.name} + {self.random.randint(-5, 5)}"
        where = self.condition(table)
        if at in table.unique:
            where = f"{table.columns[0].name} = {self.random.choice(KEYS)}"
        return f"UPDATE {table.name} SET {column.name} = {value} WHERE {where}"

    def delete(self, table: Table) -> str:
        if table.refers_to_itself:
            return f"DELETE FROM {table.name} WHERE {table.columns[0].name} = {self.random.choice(KEYS)}"
        conditions = [self.condition(table) for _ in range(self.random.choice([1, 2, 2]))]
        return f"DELETE FROM {table.name} WHERE {' AND '.join(conditions)}"

    def returning(self, table: Table, sql: str) -> str:
        """The statement, which may give its rows back."""
        if self.chance(0.6):
            return sql
        if table.refers_to_itself:
            return f"{sql} RETURNING {table.columns[0].name}"
        column = self.random.choice(table.columns)
        more = f"upper({column.name})" if column.kind == "word" else f"{column.name} * 2 + 1"
        return f"{sql} RETURNING {self.random.choice(['*', f'{column.name}, {more} AS more'])}"

    def change(self) -> str:
        table = self.random.choice(self.tables)
        make = self.random.choices([self.insert, self.update, self.delete], [3, 4, 2])[0]
        return self.returning(table, make(table))

    # Definitions.

    def drop_views(self) -> None:
        """What they stand on could not change otherwise."""
        while self.views:
            self.pair.tell(f"DROP VIEW {self.views.pop()}")

    def add_column(self) -> None:
        table = self.random.choice(self.tables)
        kind, definition = self.random.choice(
            [
                ("number", "INT"),
                ("number", "INT DEFAULT 5"),
                ("number", "INT DEFAULT -3"),
                ("word", "TEXT"),
                ("word", "TEXT DEFAULT 'then'"),
            ]
        )
        column = Column(self.name("c"), kind, definition, loose=True)
        self.pair.tell(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {definition}")
        table.columns.append(column)

    def drop_column(self) -> None:
        table = self.random.choice(self.tables)
        loose = [column for column in table.columns if column.loose]
        if loose:
            column = self.random.choice(loose)
            self.pair.tell(f"ALTER TABLE {table.name} DROP COLUMN {column.name}")
            table.columns.remove(column)

    def rename_column(self) -> None:
        table = self.random.choice(self.tables)
        column = self.random.choice(table.columns)
        name = self.name("c")
        self.pair.tell(f"ALTER TABLE {table.name} RENAME COLUMN {column.name} TO {name}")
        column.name = name

    def rename_table(self) -> None:
        table = self.random.choice(self.tables)
        name = self.prefix + self.name("t")
        self.pair.tell(f"ALTER TABLE {table.name} RENAME TO {name}")
        table.name = name

    def create_view(self) -> None:
        table = self.random.choice(self.tables)
        view = self.prefix + self.name("v")
        column = self.random.choice(table.columns)
        query = self.random.choice(
            [
                f"{table.query()} WHERE {self.condition(table)}",
                f"SELECT {column.name} AS what, count(*) AS n FROM {table.name} GROUP BY {column.name}",
                *(f"SELECT count(*) AS n FROM {other}" for other in self.views[-1:]),
            ]
        )
        self.pair.tell(f"CREATE VIEW {view} AS {query}")
        self.views.append(view)

    def copy_table(self) -> None:
        """A table of a query's rows, changed and gone again."""
        table = self.random.choice(self.tables)
        copy = Table(self.prefix + self.name("t"), table.columns)
        query = f"{table.query()} WHERE {self.condition(table)}"
        self.pair.tell_uncounted(
            f"CREATE TABLE {copy.name}{self.options} AS {query}", f"CREATE TABLE {copy.name} AS {query}"
        )
        for _ in range(2):
            self.pair.tell(self.returning(copy, self.random.choice([self.insert, self.update, self.delete])(copy)))
            self.pair.compare([copy.query()])
        self.pair.tell(f"DROP TABLE {copy.name}")

    def truncate(self, theirs: str) -> None:
        table = self.random.choice(self.tables)
        self.pair.tell_uncounted(f"TRUNCATE TABLE {table.name}", f"{theirs} {table.name}")

    def tell(self) -> None:
        for _ in range(STEPS):
            self.step()
            self.compare()
        self.drop_views()
        for table in reversed(self.tables):
            self.pair.tell(f"DROP TABLE {table.name}")


class References(Story):
    """Tables with keys, each of which refers to another one: told to SQLite."""

    def begin(self) -> None:
        p = self.prefix
        number = Column("n", "number", "INT NOT NULL DEFAULT 7 CHECK (n < 50)")
        parent = Table(f"{p}parent", [self._key(), Column("code", "key", "INT UNIQUE"), number], {0, 1})
        child = Table(f"{p}child", [self._key(), self._reference(f"{p}parent (k)"), self._word()], {0})
        # Also a key, by which a change goes on to who refers to it.
        other = Table(f"{p}other", [self._key(), self._reference(f"{p}parent (code)", " UNIQUE")], {0, 1})
        grandchild = Table(f"{p}grandchild", [self._key(), self._reference(f"{p}child (k)"), self._word()], {0})
        follower = Table(f"{p}follower", [self._reference(f"{p}other (ref)"), self._word()])
        # RESTRICT would look at rows that go with it.
        folder = Table(f"{p}folder", [self._key(), self._reference(f"{p}folder (k)", without="RESTRICT")], {0}, True)
        self.create([parent, child, other, grandchild, follower, folder])
        rows = ", ".join(f"({key}, {key % 9 + 1})" for key in KEYS)
        self.pair.tell(f"INSERT INTO {parent.name} (k, code) VALUES {rows}")
        for table in (child, other, grandchild, folder):
            self.pair.tell(f"INSERT INTO {table.name} (k, ref) SELECT k, k FROM {parent.name} WHERE k > 2")

    def step(self) -> None:
        if self.chance(0.25):
            self.transaction()
        elif self.chance(0.3):
            self._definition()()
        else:
            self.pair.tell(self.change())

    def change(self) -> str:
        return self._upsert() if self.chance(0.1) else super().change()

    def transaction(self) -> None:
        """Statements between savepoints; one that is refused has done nothing, and the others go on."""
        self.pair.tell("BEGIN")
        savepoints: list[str] = []
        for _ in range(self.random.randint(2, 7)):
            match self.random.randint(0, 5):
                case 0:
                    savepoints.append(self.name("s"))
                    self.pair.tell(f"SAVEPOINT {savepoints[-1]}")
                case 1 if savepoints:
                    at = self.random.randrange(len(savepoints))
                    self.pair.tell(f"ROLLBACK TO SAVEPOINT {savepoints[at]}")
                    del savepoints[at + 1 :]
                case 2 if savepoints:
                    at = self.random.randrange(len(savepoints))
                    self.pair.tell(f"RELEASE SAVEPOINT {savepoints[at]}")
                    del savepoints[at:]
                case _:
                    self.pair.tell(self.change())
            self.compare()
        self.pair.tell(self.random.choice(["COMMIT", "COMMIT", "ROLLBACK"]))

    def _definition(self) -> Callable[[], None]:
        alter = [self.add_column, self.add_column, self.drop_column, self.rename_column, self.rename_table]
        make = self.random.choice([*alter, self.create_view, self.copy_table, lambda: self.truncate("DELETE FROM")])
        if make in alter:
            self.drop_views()
        return make

    def _key(self) -> Column:
        # SQLite lets NULL into a primary key.
        return Column("k", "key", "INT NOT NULL PRIMARY KEY")

    def _word(self) -> Column:
        return Column("s", "word", "TEXT DEFAULT 'new' CHECK (s <> 'elm')")

    def _reference(self, to: str, more: str = "", without: str = "") -> Column:
        able = [action for action in ACTIONS if action != without]
        actions = f"ON DELETE {self.random.choice(able)} ON UPDATE {self.random.choice(able)}"
        needed = " NOT NULL" if "NULL" not in actions and self.chance(0.4) else ""
        return Column("ref", "key", f"INT{needed}{more} REFERENCES {to} {actions}")

    def _upsert(self) -> str:
        parent = self.tables[0]
        key, code, number = (column.name for column in parent.columns[:3])
        row = f"({self.random.choice(KEYS)}, NULL, {self.random.randint(-50, 53)})"
        target, action = self.random.choice(
            [
                ("", "NOTHING"),
                (f" ({key})", "NOTHING"),
                (f" ({key})", f"UPDATE SET {number} = excluded.{number} - 1"),
                (f" ({key})", f"UPDATE SET {code} = {self.random.choice(KEYS)}"),
                (f" ({key})", f"UPDATE SET {key} = {self.random.choice(KEYS)}"),
            ]
        )
        sql = f"INSERT INTO {parent.name} ({key}, {code}, {number}) VALUES {row} ON CONFLICT{target} DO {action}"
        return self.returning(parent, sql)


class Merges(Story):
    """Two tables, one of which is merged into the other: told to DuckDB. The other one may have a key."""

    def begin(self, keyed: bool) -> None:
        self._keyed = keyed
        number = Column("n", "number", "INT NOT NULL DEFAULT 7 CHECK (n < 50)")
        word = Column("s", "word", "TEXT DEFAULT 'new' CHECK (s <> 'elm')")
        key = Column("k", "key", "INT NOT NULL PRIMARY KEY" if keyed else "INT")
        target = Table(f"{self.prefix}target", [key, number, word], {0} if keyed else set())
        source = Table(f"{self.prefix}source", [Column("k", "key", "INT DEFAULT 3"), Column("x", "number", "INT")])
        self.create([target, source])
        rows = ", ".join(f"({key}, {self.random.randint(-50, 49)})" for key in KEYS)
        self.pair.tell(f"INSERT INTO {source.name} VALUES {rows}, (2, 0)")
        self.pair.tell(f"INSERT INTO {target.name} (k, n) SELECT k, x FROM {source.name} WHERE k > 3")

    def step(self) -> None:
        # DuckDB looks at keys too early in a transaction.
        if self.chance(0.2) and not self._keyed:
            self.transaction()
        elif self.chance(0.35):
            self._definition()()
        else:
            self.pair.tell(self.change())

    def change(self) -> str:
        return self._merge() if self.chance(0.35) else super().change()

    def transaction(self) -> None:
        self.pair.tell("BEGIN")
        end = self.random.choice(["COMMIT", "COMMIT", "ROLLBACK"])
        for _ in range(self.random.randint(1, 4)):
            if self.pair.tell(self.change()) is None:
                # DuckDB's transaction has ended.
                end = "ROLLBACK"
                break
            self.compare()
        self.pair.tell(end)

    def _definition(self) -> Callable[[], None]:
        alter = [self.add_column, self.add_column, self.drop_column, self.rename_column, self.rename_table]
        alter += [self._change_default, self._set_not_null]
        make = self.random.choice([*alter, self.create_view, self.copy_table, lambda: self.truncate("TRUNCATE")])
        if make in alter:
            self.drop_views()
        return make

    def _change_default(self) -> None:
        table = self.random.choice(self.tables)
        column = self.random.choice(table.columns[1:])
        to = self.random.choice(["DROP DEFAULT", f"SET DEFAULT {self.value(column)}"])
        self.pair.tell(f"ALTER TABLE {table.name} ALTER COLUMN {column.name} {to}")

    def _set_not_null(self) -> None:
        table = self.random.choice(self.tables)
        column = self.random.choice(table.columns[1:])
        change = self.random.choice(["SET", "DROP"])
        self.pair.tell(f"ALTER TABLE {table.name} ALTER COLUMN {column.name} {change} NOT NULL")

    def _merge(self) -> str:
        target, source = self.tables
        key, number, word = (column.name for column in target.columns[:3])
        by, x = (column.name for column in source.columns[:2])
        # At most one source row for each target row.
        rows = f"(SELECT {by} AS k, max({x}) AS x FROM {source.name} GROUP BY {by})"
        matched = [
            "DELETE",
            f"UPDATE SET {number} = m.x",
            f"UPDATE SET {word} = '{self.random.choice(WORDS)}', {number} = t.{number} + 1",
            *([] if self._keyed else [f"UPDATE SET {key} = m.k + 1"]),
        ]
        absent = [
            f"INSERT ({key}, {number}) VALUES (m.k, m.x)",
            f"INSERT VALUES (m.k, m.x, 'oak'{', DEFAULT' * (len(target.columns) - 3)})",
            *([] if self._keyed else [f"INSERT ({number}, {word}) VALUES (-1, 'oak')"]),
        ]
        greater = f" AND m.x > {self.random.randint(-30, 30)}"
        branches = [f"WHEN NOT MATCHED{self.random.choice(['', greater])} THEN {self.random.choice(absent)}"]
        if self.chance(0.8):
            branches.append(f"WHEN MATCHED AND t.{word} IS NOT NULL THEN {self.random.choice(matched)}")
        if self.chance(0.8):
            branches.append(f"WHEN MATCHED{self.random.choice(['', greater])} THEN {self.random.choice(matched)}")
        branches = branches[self.random.randint(0, 1 if len(branches) > 1 else 0) :]
        sql = f"MERGE INTO {target.name} AS t USING {rows} AS m ON t.{key} = m.k {' '.join(branches)}"
        return self.returning(target, sql)


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster with one storage server."""
    running = LocalCluster(tmp_path_factory.mktemp("one"), storage_servers=1)
    yield running
    running.stop()


@pytest.fixture
def own(request: pytest.FixtureRequest, storage: int) -> Iterator[drsdb.Connection]:
    """A connection of its own to a cluster with so many storage servers."""
    running: LocalCluster = request.getfixturevalue("cluster" if storage == 3 else "one_server")
    with running.connect() as connection:
        yield connection


@pytest.mark.parametrize("engine", ["row", "column"])
@pytest.mark.parametrize(("storage", "seed"), RUNS)
def test_sqlite_agrees(own: drsdb.Connection, storage: int, seed: int, engine: str) -> None:
    with closing(Sqlite()) as sqlite:
        pair = Pair(Drsdb(own), sqlite, f"{seed}, {engine} tables, {storage} storage servers")
        story = References(pair, seed, f"refer_{engine}_{seed}_", f" WITH (engine = '{engine}')")
        story.begin()
        story.tell()


@pytest.mark.parametrize("engine", ["row", "column"])
@pytest.mark.parametrize(("storage", "seed"), RUNS)
def test_duckdb_agrees(own: drsdb.Connection, storage: int, seed: int, engine: str) -> None:
    with closing(DuckDb()) as duck:
        pair = Pair(Drsdb(own), duck, f"{seed}, {engine} tables, {storage} storage servers")
        story = Merges(pair, seed, f"merge_{engine}_{seed}_", f" WITH (engine = '{engine}')")
        story.begin(keyed=seed % 2 == 1)
        story.tell()
