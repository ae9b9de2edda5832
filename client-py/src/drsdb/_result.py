"""The rows of one query: as a table, a data frame, a stream of batches or Python tuples.

Here live the forms that a result takes; how its parts arrive is `_pull.py`'s matter.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.flight as flight

from drsdb._cluster import Cluster
from drsdb._errors import Error, ErrorCode, InterfaceError, cannot_go_on, error_of
from drsdb._ingest import WriteResult
from drsdb._proto import read_resume
from drsdb._pull import Pull, endpoints_of, may_be_elsewhere, schema_of

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

# Asks an index server for the query's plan, from its start or so that the answer goes on, and says when its rows were
# first pulled, if they were; also says who answered.
Plan: TypeAlias = Callable[[str | None, float | None], tuple[flight.FlightInfo, str]]

DEFAULT_BUFFER_BYTES: Final = 64 << 20

# Waits before a result is planned again. An index server suspects a storage server that was killed within two seconds,
# and one that has stopped within five: together they are longer than that. They begin short, since another plan may do
# without the dead server by chance. Rows that nobody had seen let them begin anew: a read of hours may lose several
# servers, one after the other, and needs as much patience for each.
_PLAN_AGAIN_AFTER_S: Final = (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 1.5)


class Result:
    """The rows of one query, pulled when they are asked for.

    `arrow`, `df` and `pl` keep the rows: they may be called in any order and more than once. `batches`, `reader` and
    `rows` stream: they hold a bounded buffer, and what they have handed out is gone. Close a result that is not read to
    its end, or use it in a `with` block: the servers then stop working on it.

    While none of its rows was handed out, a result that no server can give is planned again: then it is of a later
    snapshot, all of it. After that it is planned again at the same snapshot, if its order can be repeated, and goes on
    after the rows that were handed out. If it cannot, the error says so; outside of a transaction it is `retryable`.
    """

    def __init__(
        self,
        cluster: Cluster,
        info: flight.FlightInfo,
        origin: str,
        plan: Plan | None,
        *,
        in_transaction: bool,
    ) -> None:
        self._cluster = cluster
        self._plan = plan
        self._in_transaction = in_transaction
        self._planned_in_vain = 0
        self._written = WriteResult.decode(_metadata(info))
        self._resume = read_resume(_metadata(info))
        self._endpoints = endpoints_of(info, origin)
        self._ordered: bool = info.ordered
        self._schema = schema_of(info)
        self._table: pa.Table | None = None
        self._pulls: weakref.WeakSet[Pull] = weakref.WeakSet()
        self._streamed = False
        self._closed = False

    @property
    def schema(self) -> pa.Schema:
        """The columns' names and Arrow types; the field metadata `drsdb.sql_type` has the SQL type."""
        return self._schema

    @property
    def columns(self) -> list[str]:
        """The columns' names."""
        return list(self._schema.names)

    @property
    def endpoints(self) -> int:
        """How many parts the result is pulled in, in parallel."""
        return len(self._endpoints)

    @property
    def ordered(self) -> bool:
        """Whether the rows have an order, which every form keeps."""
        return self._ordered

    @property
    def written(self) -> WriteResult:
        """What the statement changed; zero rows for a query."""
        return self._written

    def arrow(self) -> pa.Table:
        """All rows as an Arrow table."""
        begun = time.monotonic()
        while self._table is None:
            pull = self._begin(None)
            try:
                self._table = pa.Table.from_batches(list(pull.batches()), self._schema)
            except Error as error:
                self._plan_again(error, begun)
        return self._table

    def df(self) -> pd.DataFrame:
        """All rows as a pandas data frame, which needs the package `pandas`."""
        _require("pandas")
        return self.arrow().to_pandas()

    def pl(self) -> pl.DataFrame:
        """All rows as a polars data frame, which needs the package `polars`."""
        polars = _require("polars")
        frame: pl.DataFrame = polars.from_arrow(self.arrow())
        return frame

    def batches(self, *, buffer_bytes: int = DEFAULT_BUFFER_BYTES) -> Iterator[pa.RecordBatch]:
        """The rows as record batches, as they arrive. At most about `buffer_bytes` wait for a slow reader."""
        if buffer_bytes < 1:
            raise InterfaceError("buffer_bytes is a positive number of bytes", code=ErrorCode.INVALID_ARGUMENT)
        if self._table is not None:
            return iter(self._table.to_batches())
        return self._stream(self._begin(buffer_bytes), buffer_bytes)

    def reader(self, *, buffer_bytes: int = DEFAULT_BUFFER_BYTES) -> pa.RecordBatchReader:
        """The rows as a reader, which other Arrow libraries take without a copy."""
        return pa.RecordBatchReader.from_batches(self._schema, self.batches(buffer_bytes=buffer_bytes))

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The Arrow PyCapsule interface: polars, DuckDB, pandas and others read a result directly."""
        return self.reader().__arrow_c_stream__(requested_schema)  # type: ignore[no-untyped-call]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The rows as tuples of Python values."""
        for batch in self.batches():
            yield from rows_of(batch)

    def close(self) -> None:
        """Stops pulling. Rows already taken as a table stay."""
        self._closed = True
        for pull in list(self._pulls):
            pull.stop()

    def __enter__(self) -> Result:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<drsdb.Result columns={self.columns} endpoints={self.endpoints}>"

    def _begin(self, buffer_bytes: int | None) -> Pull:
        if self._closed:
            raise InterfaceError("the result is closed", code=ErrorCode.INVALID_ARGUMENT)
        if self._streamed:
            hint = "call arrow() first and then as many forms as needed, or run the query again"
            raise InterfaceError("the result has been read already", code=ErrorCode.INVALID_ARGUMENT, hint=hint)
        self._streamed = buffer_bytes is not None
        return self._pull(buffer_bytes)

    def _pull(self, buffer_bytes: int | None) -> Pull:
        pull = Pull(self._cluster, self._endpoints, self._schema, ordered=self._ordered, buffer_bytes=buffer_bytes)
        self._pulls.add(pull)
        return pull

    def _stream(self, pull: Pull, buffer_bytes: int) -> Iterator[pa.RecordBatch]:
        handed_out = 0
        begun = time.monotonic()
        while True:
            passing_over = handed_out
            try:
                with closing(pull.batches()) as batches:
                    for batch in batches:
                        passed_over = min(passing_over, batch.num_rows)
                        passing_over -= passed_over
                        if passed_over < batch.num_rows:
                            handed_out += batch.num_rows - passed_over
                            self._planned_in_vain = 0
                            yield batch.slice(passed_over)
            except Error as error:
                self._plan_again(error, begun, goes_on=handed_out > 0)
            else:
                if passing_over:
                    raise error_of(ErrorCode.INTERNAL, "the rest of the result has fewer rows than the result")
                return
            pull = self._pull(buffer_bytes)

    def _plan_again(self, error: Error, begun: float, *, goes_on: bool = False) -> None:
        """Plans the query again, where that may help; more than once when no plan can be had for a moment. Where it
        does not help, raises what the caller is told.

        Its rows were first pulled when the clock was at `begun`: a `statement_timeout` goes on from there. Rows of a
        result that `goes_on` were handed out: then its order must be one that can be repeated.
        """
        if self._plan is None or not may_be_elsewhere(error):
            raise error
        resume = self._resume if goes_on else None
        if goes_on and resume is None:
            raise self._harmless(cannot_go_on(error)) from error
        answer: tuple[flight.FlightInfo, str] | None = None
        while answer is None:
            if self._closed or self._planned_in_vain == len(_PLAN_AGAIN_AFTER_S):
                raise self._harmless(error)
            time.sleep(_PLAN_AGAIN_AFTER_S[self._planned_in_vain])
            self._planned_in_vain += 1
            try:
                answer = self._plan(resume, begun)
            except Error as failure:
                if not may_be_elsewhere(failure):
                    raise
        if self._closed:
            raise self._harmless(error)
        info, origin = answer
        if not schema_of(info).equals(self._schema):
            message = "the query was planned again and has other columns now"
            raise self._harmless(error_of(ErrorCode.UNAVAILABLE, message)) from error
        offered = read_resume(_metadata(info))
        # A server that does not know what it was asked for has planned another result.
        if goes_on and offered != resume:
            message = "the query was planned again and would not go on where it was"
            raise error_of(ErrorCode.CONFLICT, message, hint="run it again") from error
        self._resume = offered
        self._endpoints = endpoints_of(info, origin)

    def _harmless(self, error: Error) -> Error:
        """The error of what only reads, which says that nothing took effect. Of what a transaction reads, nobody here
        knows whether the transaction is committed by now: then it does not say so."""
        if not self._in_transaction:
            error.fields["outcome"] = "none"
        return error


def _metadata(info: flight.FlightInfo) -> bytes:
    return bytes(info.app_metadata or b"")  # type: ignore[arg-type]


def rows_of(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """A batch's rows as tuples of Python values."""
    if not batch.num_columns:
        return iter([()] * batch.num_rows)
    return zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _require(package: str) -> Any:
    try:
        return __import__(package)
    except ImportError as error:
        raise InterfaceError(
            f"the package {package} is not installed",
            code=ErrorCode.UNSUPPORTED,
            hint=f"pip install 'drsdb[{package}]', or use arrow()",
        ) from error
