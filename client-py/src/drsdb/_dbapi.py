"""DB-API 2.0 (PEP 249): the cursor, and the module's constants and constructors.

Here lives what that standard adds to a connection; a cursor runs everything through one.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.types as pat

from drsdb._errors import ErrorCode, InterfaceError, ProgrammingError
from drsdb._result import Result, rows_of

if TYPE_CHECKING:
    from drsdb._session import Session

apilevel: Final = "2.0"
threadsafety: Final = 2  # Threads may share the module and connections.
paramstyle: Final = "qmark"

Date = datetime.date
Time = datetime.time
Timestamp = datetime.datetime
Binary = bytes

# name, type_code, display_size, internal_size, precision, scale, null_ok
ColumnDescription: TypeAlias = tuple[str, pa.DataType, None, None, int | None, int | None, bool]


def DateFromTicks(ticks: float) -> datetime.date:  # noqa: N802
    """The local date at a Unix time."""
    return Date(*time.localtime(ticks)[:3])


def TimeFromTicks(ticks: float) -> datetime.time:  # noqa: N802
    """The local time of day at a Unix time."""
    return Time(*time.localtime(ticks)[3:6])


def TimestampFromTicks(ticks: float) -> datetime.datetime:  # noqa: N802
    """The local date and time at a Unix time."""
    return Timestamp(*time.localtime(ticks)[:6])


class _TypeObject:
    """Compares equal to every Arrow type of one kind, as `description`'s type codes are compared."""

    def __init__(self, name: str, *kinds: Callable[[pa.DataType], bool]) -> None:
        self._name = name
        self._kinds = kinds

    def __eq__(self, other: object) -> bool:
        if isinstance(other, pa.DataType):
            return any(kind(other) for kind in self._kinds)
        return self is other

    def __hash__(self) -> int:
        return hash(self._name)

    def __repr__(self) -> str:
        return f"drsdb.{self._name}"


STRING: Final = _TypeObject("STRING", pat.is_string, pat.is_large_string)
BINARY: Final = _TypeObject("BINARY", pat.is_binary, pat.is_large_binary, pat.is_fixed_size_binary)
NUMBER: Final = _TypeObject("NUMBER", pat.is_integer, pat.is_floating, pat.is_decimal)
DATETIME: Final = _TypeObject("DATETIME", pat.is_date, pat.is_time, pat.is_timestamp, pat.is_interval)
ROWID: Final = _TypeObject("ROWID")


class Cursor:
    """Runs statements and fetches their rows. Made by the `cursor` of a connection or a transaction; used by one thread
    at a time.

    Rows are streamed: a cursor holds a bounded buffer, whatever the size of the result.
    """

    def __init__(self, connection: Session) -> None:
        self._connection = connection
        self._result: Result | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rows: Iterator[tuple[Any, ...]] = iter(())
        self._description: list[ColumnDescription] | None = None
        self._rowcount = -1
        self._streaming = False
        self._closed = False
        self.arraysize = 1

    @property
    def connection(self) -> Session:
        """The connection or transaction it belongs to."""
        return self._connection

    @property
    def description(self) -> list[ColumnDescription] | None:
        """The columns of the last query; None after a statement without rows."""
        return self._description

    @property
    def rowcount(self) -> int:
        """The rows that the last statement changed; -1 after a query, whose rows are not counted in advance, and where
        the server does not say."""
        return self._rowcount

    def execute(self, operation: str, parameters: Sequence[Any] = ()) -> Cursor:
        """Runs a statement, with `?` for each parameter."""
        self._reset()
        if parameters:
            outcome = self._connection._run_prepared(operation, [parameters], wants_rows=None)
        else:
            outcome = self._connection._plan(operation)
        if isinstance(outcome, Result):
            if not outcome.columns:
                # It has been carried out, and there are no rows.
                self._rowcount = -1 if outcome.written.rows is None else outcome.written.rows
                return self
            self._result = outcome
            self._description = [_describe(field) for field in outcome.schema]
        else:
            self._rowcount = -1 if outcome.rows is None else outcome.rows
        return self

    def executemany(self, operation: str, seq_of_parameters: Iterable[Sequence[Any]]) -> Cursor:
        """Runs a statement without rows once for each sequence of parameters, all in one transaction."""
        self._reset()
        rows = list(seq_of_parameters)
        if not rows:
            self._rowcount = 0
            return self
        outcome = self._connection._run_prepared(operation, rows, wants_rows=False)
        assert not isinstance(outcome, Result), "asked for no rows"
        self._rowcount = -1 if outcome.rows is None else outcome.rows
        return self

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row, or None at the end."""
        self._begin_rows()
        while (row := next(self._rows, None)) is None:
            batch = next(self._batches, None)
            if batch is None:
                return None
            self._rows = rows_of(batch)
        return row

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        """Up to `size` rows (`arraysize` by default); fewer only at the end."""
        rows: list[tuple[Any, ...]] = []
        for _ in range(self.arraysize if size is None else size):
            row = self.fetchone()
            if row is None:
                break
            rows.append(row)
        return rows

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows that are left."""
        self._begin_rows()
        rows = list(self._rows)
        for batch in self._batches:
            rows.extend(rows_of(batch))
        return rows

    def fetch_arrow_table(self) -> pa.Table:
        """All rows as an Arrow table; before any other fetch."""
        return self._open_result().arrow()

    def setinputsizes(self, sizes: Sequence[Any]) -> None:
        """Does nothing, as DB-API 2.0 allows."""

    def setoutputsize(self, size: int, column: int | None = None) -> None:
        """Does nothing, as DB-API 2.0 allows."""

    def close(self) -> None:
        """Stops pulling rows. The cursor cannot be used after it."""
        if not self._closed:
            self._reset()
            self._closed = True

    def __iter__(self) -> Cursor:
        return self

    def __next__(self) -> tuple[Any, ...]:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def __enter__(self) -> Cursor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reset(self) -> None:
        if self._closed:
            raise InterfaceError("the cursor is closed", code=ErrorCode.INVALID_ARGUMENT, hint="make a new one")
        if self._result is not None:
            self._result.close()
        self._result = None
        self._batches, self._rows = iter(()), iter(())
        self._streaming = False
        self._description = None
        self._rowcount = -1

    def _open_result(self) -> Result:
        if self._closed:
            raise InterfaceError("the cursor is closed", code=ErrorCode.INVALID_ARGUMENT, hint="make a new one")
        if self._result is None:
            raise ProgrammingError(
                "there are no rows to fetch", code=ErrorCode.INVALID_ARGUMENT, hint="execute a query first"
            )
        return self._result

    def _begin_rows(self) -> None:
        result = self._open_result()
        if not self._streaming:
            self._batches = result.batches()
            self._streaming = True


def _describe(field: pa.Field[Any]) -> ColumnDescription:
    decimal = pat.is_decimal(field.type)
    precision = field.type.precision if decimal else None
    scale = field.type.scale if decimal else None
    return (field.name, field.type, None, None, precision, scale, field.nullable)
