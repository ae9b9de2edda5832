"""A connection to a cluster: queries, statements and loads.

Here lives the Flight SQL conversation with the index servers. What DB-API 2.0 adds is in `_dbapi.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.flight as flight

from drsdb import _config, _errors, _ingest, _parameters, _proto, _statements
from drsdb._cluster import Answer, Cluster, Repeat
from drsdb._errors import CallErrors, Error, ErrorCode, InterfaceError, NotSupportedError, error_of
from drsdb._ingest import Mode, Source, WriteResult
from drsdb._result import Result

if TYPE_CHECKING:
    from drsdb._dbapi import Cursor


def connect(
    index_servers: Sequence[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    user: str | None = None,
    password: str | None = None,
    ca: str | bytes | os.PathLike[str] | None = None,
) -> Connection:
    """Connects to a cluster and logs in.

    `index_servers` are URLs (`https://host:port`); one that answers is enough, the others are learned from it. `ca` is
    the path or content of a PEM file with the certificates to trust; without it, the system's are. `config` names a
    `client.toml`, as `drsdb local` writes it, for whatever is not passed; `drsdb-data/client.toml` is read when neither
    it nor `index_servers` is given.
    """
    cluster = Cluster(_config.resolve(index_servers, config, user, password, ca))
    try:
        cluster.open()
    except BaseException:
        cluster.close()
        raise
    return Connection(cluster)


class Connection:
    """A logged-in client of a cluster; made by `connect`. Thread-safe: threads may share it, each with its own results.

    Every statement is its own transaction and has been committed when its call returns.
    """

    # DB-API 2.0 wants the exceptions to be reachable from a connection.
    Warning = _errors.Warning
    Error = _errors.Error
    InterfaceError = _errors.InterfaceError
    DatabaseError = _errors.DatabaseError
    DataError = _errors.DataError
    OperationalError = _errors.OperationalError
    IntegrityError = _errors.IntegrityError
    InternalError = _errors.InternalError
    ProgrammingError = _errors.ProgrammingError
    NotSupportedError = _errors.NotSupportedError

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @property
    def index_servers(self) -> tuple[str, ...]:
        """The index servers in use, the current one first."""
        return self._cluster.index_servers

    @property
    def autocommit(self) -> bool:
        """Always true."""
        return True

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> Result:
        """Plans a query; its rows are pulled from the storage servers when the result is read.

        Placeholders are `?` (or `$1`, `$2`, ...), for which `parameters` has the values in order.
        """
        if not parameters:
            command = _proto.statement_query(sql)
            repeat = Repeat.ALWAYS if _statements.is_repeatable(sql) else Repeat.UNSENT
            return self._cluster.request(lambda answer: self._flight_info(answer, command), repeat)
        outcome = self._run_prepared(sql, [parameters], wants_rows=True)
        assert isinstance(outcome, Result), "asked for rows"
        return outcome

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> WriteResult:
        """Runs a statement that returns no rows."""
        if not parameters:
            command = _proto.statement_update(sql)
            return self._cluster.request(lambda answer: _put(answer, command, None), Repeat.UNSENT)
        outcome = self._run_prepared(sql, [parameters], wants_rows=False)
        assert isinstance(outcome, WriteResult), "asked for no rows"
        return outcome

    def ingest(
        self,
        table: str,
        data: Any,
        *,
        mode: Mode = "append",
        schema: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> WriteResult:
        """Loads rows into a table, in one transaction: all of them or none.

        `data` is a pyarrow table, batch or reader, anything with the Arrow PyCapsule interface (data frames, DuckDB
        relations, results), or an iterable of batches. Columns are matched by name. `mode`: "append" to a table that is
        there, "create" one that is not, "create_append" whichever it is; "replace" is refused by servers so far.
        `options` are of the table that is made, such as `{"primary_key": "id"}`.
        """
        source = data if isinstance(data, Source) else Source(data)
        command = _ingest.command(table, schema, mode, options or {})
        # A stream can be sent once: first find a server that answers, and renew the login.
        self._cluster.ping()

        def upload(answer: Answer) -> WriteResult:
            try:
                return _ingest.upload(answer, command, source)
            except Error as error:
                error._sent = error._sent or not source.can_begin
                raise

        return self._cluster.request(upload, Repeat.UNSENT)

    def cursor(self) -> Cursor:
        """A DB-API 2.0 cursor."""
        from drsdb._dbapi import Cursor

        return Cursor(self)

    def commit(self) -> None:
        """Does nothing: every statement has been committed already."""

    def rollback(self) -> None:
        """Refused: every statement has been committed already."""
        raise NotSupportedError(
            "there is no transaction to roll back: every statement is committed on its own",
            code=ErrorCode.UNSUPPORTED,
        )

    def close(self) -> None:
        """Closes all connections to servers. Closing twice is harmless."""
        self._cluster.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<drsdb.Connection index_servers={list(self.index_servers)}>"

    def _flight_info(self, answer: Answer, command: bytes) -> Result:
        with CallErrors(answer.location).translated():
            info = answer.client.get_flight_info(flight.FlightDescriptor.for_command(command), answer.options)
        return Result(self._cluster, info, answer.location)

    def _run_prepared(
        self, sql: str, rows: Iterable[Sequence[Any]], *, wants_rows: bool | None
    ) -> Result | WriteResult:
        """Prepares, binds and runs a statement; without `wants_rows`, the statement decides what comes back."""
        numbered, count = _statements.number_placeholders(sql)
        materialized = [_checked(row) for row in rows]
        if not count:
            # Numbered placeholders of the caller's own, or none: the server checks.
            numbered, count = sql, len(materialized[0]) if materialized else 0

        def run(answer: Answer) -> Result | WriteResult:
            with _Prepared(answer, numbered) as prepared:
                batch = _parameters.to_batch(materialized, count, prepared.parameters)
                if wants_rows if wants_rows is not None else prepared.returns_rows:
                    handle = prepared.bind(batch)
                    return self._flight_info(answer, _proto.prepared_statement_query(handle))
                return _put(answer, _proto.prepared_statement_update(prepared.handle), batch)

        repeat = Repeat.ALWAYS if _statements.is_repeatable(sql) else Repeat.UNSENT
        return self._cluster.request(run, repeat)


def _checked(row: Sequence[Any]) -> tuple[Any, ...]:
    """The values of one execution; text, which is a sequence as well, is surely meant to be one value."""
    if isinstance(row, (str, bytes, Mapping)) or not isinstance(row, Iterable):
        raise InterfaceError(
            f"parameters are a sequence of values, not a {type(row).__name__}",
            code=ErrorCode.INVALID_ARGUMENT,
            hint="write [value] for a single one",
        )
    return tuple(row)


class _Schemas(NamedTuple):
    dataset: pa.Schema | None
    parameters: pa.Schema | None


class _Prepared:
    """A prepared statement at one server, closed at the end of a `with` block."""

    def __init__(self, answer: Answer, sql: str) -> None:
        self._answer = answer
        reply = self._action("CreatePreparedStatement", _proto.create_prepared_statement(sql))
        if not reply:
            raise error_of(ErrorCode.INTERNAL, f"server {answer.location} gave no prepared statement")
        self.handle, dataset, parameters = _proto.read_prepared_statement(reply[0])
        self._schemas = _Schemas(_read_schema(dataset), _read_schema(parameters))

    @property
    def returns_rows(self) -> bool:
        return self._schemas.dataset is not None and len(self._schemas.dataset) > 0

    @property
    def parameters(self) -> pa.Schema | None:
        return self._schemas.parameters

    def bind(self, batch: pa.RecordBatch) -> bytes:
        """Binds parameters for a query; returns the handle that stands for both."""
        command = _proto.prepared_statement_query(self.handle)
        reply = _put_metadata(self._answer, command, batch)
        return (_proto.read_bound_handle(reply) if reply else b"") or self.handle

    def __enter__(self) -> _Prepared:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A handle that was not closed costs a server nothing that it would not reclaim.
        with suppress(Error):
            self._action("ClosePreparedStatement", _proto.close_prepared_statement(self.handle))

    def _action(self, name: str, body: bytes) -> list[bytes]:
        with CallErrors(self._answer.location).translated():
            results = self._answer.client.do_action(flight.Action(name, body), self._answer.options)
            return [result.body.to_pybytes() for result in results]


def _read_schema(data: bytes) -> pa.Schema | None:
    return pa.ipc.read_schema(pa.py_buffer(data)) if data else None


def _put(answer: Answer, command: bytes, parameters: pa.RecordBatch | None) -> WriteResult:
    reply = _put_metadata(answer, command, parameters)
    return WriteResult.decode(reply) if reply is not None else WriteResult(None, None)


def _put_metadata(answer: Answer, command: bytes, parameters: pa.RecordBatch | None) -> bytes | None:
    """Makes a DoPut with at most one batch; returns the metadata of the answer."""
    schema = parameters.schema if parameters is not None else pa.schema([])
    with CallErrors(answer.location).translated():
        descriptor = flight.FlightDescriptor.for_command(command)
        writer, reader = answer.client.do_put(descriptor, schema, answer.options)
        try:
            if parameters is not None:
                writer.write_batch(parameters)
            writer.done_writing()
            message = reader.read()  # type: ignore[attr-defined]
        finally:
            # The close raises the server's error, which the steps before it only hint at.
            writer.close()
    return message.to_pybytes() if message is not None else None
