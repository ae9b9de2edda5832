"""drsdb and the databases that it is compared with, behind one face; and two of them that are told the same.

What they are told is the tests' matter.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import duckdb

import drsdb

Row = tuple[Any, ...]
# Rows, of a query or of RETURNING; how many rows were written; None where a constraint refused the statement.
Answer = list[Row] | int | None


class Database(Protocol):
    """Runs one statement. Errors that are about no constraint are raised."""

    def run(self, sql: str) -> Answer: ...


class Drsdb:
    def __init__(self, connection: drsdb.Connection) -> None:
        self._connection = connection

    def run(self, sql: str) -> Answer:
        try:
            with self._connection.query(sql) as result:
                return list(result.rows()) if result.columns else result.written.rows or 0
        except drsdb.IntegrityError:
            return None


class Sqlite:
    """A database in memory, with foreign keys."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.execute("PRAGMA foreign_keys = ON")

    def run(self, sql: str) -> Answer:
        try:
            cursor = self._connection.execute(sql)
            # Only reading to the end carries a statement with RETURNING out.
            return cursor.fetchall() if cursor.description else max(cursor.rowcount, 0)
        except sqlite3.IntegrityError:
            return None

    def close(self) -> None:
        self._connection.close()


class DuckDb:
    """A session of a database in memory: of a new one, or of the one that another session is of."""

    def __init__(self, beside: DuckDb | None = None) -> None:
        self._connection: duckdb.DuckDBPyConnection = (
            beside._connection.cursor() if beside else duckdb.connect(":memory:")
        )

    def run(self, sql: str) -> Answer:
        try:
            rows = self._connection.execute(sql).fetchall()
        except duckdb.ConstraintException:
            return None
        # What returns no rows of its own answers with how many it wrote, where it wrote some, or that it was done.
        match [column[0] for column in self._connection.description or []]:
            case ["Count"] | ["Success"]:
                return int(rows[0][0]) if rows else 0
            case _:
                return rows

    def close(self) -> None:
        self._connection.close()


class Pair:
    """Two databases that are told the same and must answer the same, rows in any order."""

    def __init__(self, ours: Database, theirs: Database, seed: object) -> None:
        self._ours, self._theirs = ours, theirs
        self._told = [f"-- seed {seed}"]

    def tell(self, sql: str, theirs: str | None = None) -> Answer:
        """Runs a statement, which the other database may need in other words."""
        self._told.append(f"{sql};")
        return self._answer(sql, theirs or sql)

    def tell_uncounted(self, sql: str, theirs: str | None = None) -> None:
        """Runs a statement whose rows are not counted alike."""
        self._told.append(f"{sql};")
        with self._story():
            ours, other = self._ours.run(sql), self._theirs.run(theirs or sql)
            assert (ours is None) == (other is None), f"{sql}\nanswers {ours}, and should answer {other}"

    def compare(self, queries: Iterable[str]) -> None:
        for sql in queries:
            self._answer(sql, sql)

    def _answer(self, sql: str, theirs: str) -> Answer:
        with self._story():
            ours, other = ordered(self._ours.run(sql)), ordered(self._theirs.run(theirs))
            assert ours == other, f"{sql}\nanswers {ours}, and should answer {other}"
            return ours

    @contextmanager
    def _story(self) -> Iterator[None]:
        """Adds to whatever fails what both have been told."""
        try:
            yield
        except Exception as error:
            error.add_note("\n".join(["after", *self._told]))
            raise


def ordered(answer: Answer) -> Answer:
    return sorted(answer, key=repr) if isinstance(answer, list) else answer
