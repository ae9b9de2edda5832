"""Random statements on drsdb and on another database, where the dialects agree: answers and tables must be the same.

SQLite is asked about keys and conflicts; DuckDB, whose keys are checked too eagerly within a transaction, about tables
without a key. Statements come from a seed: a failure prints it with all statements so far.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing

import pytest

import drsdb
from local_cluster import LocalCluster
from oracles import Database, Drsdb, DuckDb, Pair, Sqlite

pytestmark = pytest.mark.cluster

SEEDS = range(4)
STATEMENTS = 60
KEYS = range(1, 25)
WORDS = ["ash", "beech", "cedar", "elm", "fir", "oak"]


class Statements:
    """Makes statements over the tables `t (k, a, b, s)` and `u (k, x)`, in words that all dialects understand alike."""

    def __init__(self, seed: int, prefix: str, keyed: bool) -> None:
        self._random = random.Random(seed)
        self._keyed = keyed
        self.t, self.u = f"{prefix}t", f"{prefix}u"

    def tables(self, options: str = "") -> list[str]:
        key = " PRIMARY KEY" if self._keyed else ""
        return [
            f"CREATE TABLE {self.t} (k BIGINT{key}, a INTEGER NOT NULL CHECK (a < 900), b INTEGER, s TEXT){options}",
            f"CREATE TABLE {self.u} (k BIGINT{key}, x INTEGER){options}",
        ]

    def next(self) -> str:
        """One statement."""
        makers = [self._insert, self._insert, self._insert_select, self._update, self._update, self._delete]
        makers += [self._update_from, self._delete_by_query, self._update_by_query]
        if self._keyed:
            makers += [self._upsert, self._insert_or_nothing, self._move_key]
        return self._random.choice(makers)()

    def transaction(self) -> tuple[list[str], str]:
        """Statements for one transaction, and how it ends."""
        body = [self.next() for _ in range(self._random.randint(1, 4))]
        return body, self._random.choice(["COMMIT", "COMMIT", "ROLLBACK"])

    def in_transaction(self) -> bool:
        return self._random.random() < 0.3

    def queries(self) -> list[str]:
        """What is compared after each statement. Ordered by all columns, NULL included, as each database likes."""
        joined = f"{self.t} t JOIN {self.u} u ON t.k = u.k"
        return [
            f"SELECT k, a, b, s FROM {self.t}",
            f"SELECT k, x FROM {self.u}",
            f"SELECT count(*), sum(t.a + u.x) FROM {joined} WHERE {self._predicate('t.')}",
        ]

    def _number(self) -> str:
        return "NULL" if self._random.random() < 0.15 else str(self._random.randint(-50, 50))

    def _word(self) -> str:
        return "NULL" if self._random.random() < 0.15 else f"'{self._random.choice(WORDS)}'"

    def _key(self) -> int:
        return self._random.choice(KEYS)

    def _row(self) -> str:
        # Now and then a value that the table refuses.
        a = self._random.choice([str(self._random.randint(-50, 50))] * 19 + ["NULL" if self._keyed else "900"])
        return f"({self._key()}, {a}, {self._number()}, {self._word()})"

    def _predicate(self, prefix: str = "", depth: int = 0) -> str:
        choice = self._random.randint(0, 9 if depth < 2 else 6)
        k, a, b, s = (f"{prefix}{column}" for column in "kabs")
        match choice:
            case 0:
                return f"{k} = {self._key()}"
            case 1:
                low = self._key()
                return f"{k} BETWEEN {low} AND {low + self._random.randint(0, 8)}"
            case 2:
                return f"{a} {self._random.choice(['<', '<=', '>', '<>'])} {self._random.randint(-40, 40)}"
            case 3:
                return f"{b} IS {self._random.choice(['', 'NOT '])}NULL"
            case 4:
                return f"{s} IN ('{self._random.choice(WORDS)}', '{self._random.choice(WORDS)}')"
            case 5:
                return f"{s} LIKE '%{self._random.choice('aeo')}%'"
            case 6:
                return f"{a} + coalesce({b}, 0) > {self._random.randint(-40, 40)}"
            case 7:
                return f"NOT ({self._predicate(prefix, depth + 1)})"
            case 8:
                return f"({self._predicate(prefix, depth + 1)} OR {self._predicate(prefix, depth + 1)})"
            case _:
                return f"({self._predicate(prefix, depth + 1)} AND {self._predicate(prefix, depth + 1)})"

    def _assignment(self) -> str:
        return self._random.choice(
            [
                f"a = a + {self._random.randint(-5, 5)}",
                "b = a, a = coalesce(b, 0)",
                f"b = {self._number()}",
                f"s = s || '{self._random.choice(WORDS)[0]}'",
                f"s = CASE WHEN a > 0 THEN {self._word()} ELSE s END",
                "b = b * 2 - a",
            ]
        )

    def _insert(self) -> str:
        if self._random.random() < 0.3:
            return f"INSERT INTO {self.u} VALUES ({self._key()}, {self._random.randint(-50, 50)})"
        rows = ", ".join(self._row() for _ in range(self._random.randint(1, 3)))
        return f"INSERT INTO {self.t} VALUES {rows}"

    def _insert_select(self) -> str:
        return (
            f"INSERT INTO {self.t} (k, a, s) SELECT k + {self._random.randint(1, 30)}, coalesce(x, 0), 'copy' "
            f"FROM {self.u} WHERE x > {self._random.randint(-40, 40)}"
        )

    def _update(self) -> str:
        return f"UPDATE {self.t} SET {self._assignment()} WHERE {self._predicate()}"

    def _delete(self) -> str:
        # Not too much at once.
        return f"DELETE FROM {self.t} WHERE {self._predicate()} AND {self._predicate()}"

    def _update_from(self) -> str:
        # At most one source row for each target row.
        source = f"(SELECT k, max(x) AS x FROM {self.u} GROUP BY k)"
        return (
            f"UPDATE {self.t} SET b = v.x FROM {source} AS v WHERE v.k = {self.t}.k AND {self._predicate(self.t + '.')}"
        )

    def _delete_by_query(self) -> str:
        return f"DELETE FROM {self.u} WHERE k IN (SELECT k FROM {self.t} WHERE {self._predicate()}) AND x < 0"

    def _update_by_query(self) -> str:
        inner = f"SELECT max(x) FROM {self.u} WHERE {self.u}.k = {self.t}.k"
        return f"UPDATE {self.t} SET b = ({inner}) WHERE {self._predicate()}"

    def _upsert(self) -> str:
        row = f"({self._key()}, {self._random.randint(-50, 50)}, {self._number()}, {self._word()})"
        return (
            f"INSERT INTO {self.t} VALUES {row} "
            f"ON CONFLICT (k) DO UPDATE SET a = {self.t}.a + excluded.a, s = excluded.s WHERE {self.t}.a < 40"
        )

    def _insert_or_nothing(self) -> str:
        rows = ", ".join(f"({self._key()}, {self._random.randint(0, 9)}, NULL, 'n')" for _ in range(3))
        return f"INSERT INTO {self.t} VALUES {rows} ON CONFLICT (k) DO NOTHING"

    def _move_key(self) -> str:
        return f"UPDATE {self.t} SET k = {self._key()} WHERE k = {self._key()}"


class Comparison:
    """Both databases, and what they are told."""

    def __init__(self, ours: Database, theirs: Database, statements: Statements, seed: object) -> None:
        self._pair, self._statements = Pair(ours, theirs, seed), statements

    def create(self, options: str) -> None:
        for ours, theirs in zip(self._statements.tables(options), self._statements.tables(), strict=True):
            self._pair.tell(ours, theirs)

    def step(self) -> None:
        if self._statements.in_transaction():
            body, end = self._statements.transaction()
            self._pair.tell("BEGIN")
            for sql in body:
                # After an error, what a transaction can still do differs: it ends.
                if self._pair.tell(sql) is None:
                    end = "ROLLBACK"
                    break
                self._compare()
            self._pair.tell(end)
        else:
            self._pair.tell(self._statements.next())
        self._compare()

    def _compare(self) -> None:
        self._pair.compare(self._statements.queries())


@pytest.fixture
def own(cluster: LocalCluster) -> Iterator[drsdb.Connection]:
    """A connection of its own, whose transactions are nobody else's."""
    with cluster.connect() as connection:
        yield connection


@pytest.mark.parametrize("engine", ["row", "column"])
@pytest.mark.parametrize("seed", SEEDS)
def test_sqlite_agrees(own: drsdb.Connection, seed: int, engine: str) -> None:
    statements = Statements(seed, f"lite_{engine}_{seed}_", keyed=True)
    with closing(Sqlite()) as sqlite:
        comparison = Comparison(Drsdb(own), sqlite, statements, f"{seed}, {engine} tables")
        comparison.create(f" WITH (engine = '{engine}')")
        for _ in range(STATEMENTS):
            comparison.step()
    own.execute(f"DROP TABLE {statements.t}")
    own.execute(f"DROP TABLE {statements.u}")


@pytest.mark.parametrize("engine", ["row", "column"])
@pytest.mark.parametrize("seed", SEEDS)
def test_duckdb_agrees(own: drsdb.Connection, seed: int, engine: str) -> None:
    statements = Statements(seed, f"duck_{engine}_{seed}_", keyed=False)
    with closing(DuckDb()) as duck:
        comparison = Comparison(Drsdb(own), duck, statements, f"{seed}, {engine} tables")
        comparison.create(f" WITH (engine = '{engine}')")
        for _ in range(STATEMENTS):
            comparison.step()
    own.execute(f"DROP TABLE {statements.t}")
    own.execute(f"DROP TABLE {statements.u}")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("keyed", [True, False])
def test_the_other_databases_agree_with_each_other(seed: int, keyed: bool) -> None:
    """The statements mean the same to both of them: only then do they say anything about drsdb."""
    statements = Statements(seed, "", keyed)
    with closing(Sqlite()) as sqlite, closing(DuckDb()) as duck:
        if keyed:
            # DuckDB's keys are what is not compared: here only that SQLite takes every statement.
            for sql in statements.tables():
                sqlite.run(sql)
            for _ in range(STATEMENTS):
                sqlite.run(statements.next())
            return
        comparison = Comparison(duck, sqlite, statements, seed)
        comparison.create("")
        for _ in range(STATEMENTS):
            comparison.step()
