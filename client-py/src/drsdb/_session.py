"""What runs statements: the base of connections and transactions.

Here lives the Flight SQL conversation with the index servers; which server a request goes to is `_route.py`'s matter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pyarrow.flight as flight

from drsdb import _ingest, _parameters, _proto, _statements
from drsdb._cluster import Answer, Cluster
from drsdb._errors import CallErrors, Error, ErrorCode, InterfaceError
from drsdb._ingest import Mode, Source, WriteResult
from drsdb._prepared import Prepared, put
from drsdb._result import Plan, Result
from drsdb._route import Repeat, Route, single_write, write

if TYPE_CHECKING:
    from drsdb._dbapi import Cursor

T = TypeVar("T")


class Scope(NamedTuple):
    """The transaction that a statement belongs to: its id, and the index server where it lives."""

    transaction: bytes | None = None
    server: str | None = None

    def route(self, *, reads: bool, once: bool = False) -> Route:
        """The way of a statement; `once`: it cannot be sent again."""
        if reads:
            return Route(Repeat.ALWAYS, server=self.server, pinned=self.server is not None)
        if self.server is not None:
            # Within a transaction nothing remembers a statement's id before the commit.
            return Route(Repeat.UNSENT, single_write().statement, self.server, pinned=True)
        return single_write() if once else write()


class Session(ABC):
    """Runs statements. Thread-safe: threads may share it, each with its own results."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> Result:
        """Plans a query; its rows are pulled from the storage servers when the result is read.

        Placeholders are `?` (or `$1`, `$2`, ...), for which `parameters` has the values in order. A statement with
        RETURNING is carried out, and its rows are the result.
        """
        if not parameters:
            return self._plan(sql)
        outcome = self._run_prepared(sql, [parameters], wants_rows=True)
        assert isinstance(outcome, Result), "asked for rows"
        return outcome

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> WriteResult:
        """Runs a statement that returns no rows."""
        if not parameters:
            scope = self._scope()
            command = _proto.statement_update(sql, scope.transaction)
            return self._write(sql, lambda answer: put(answer, command, None), scope.route(reads=False))
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
        """Loads rows into a table: all of them or none, in a transaction of its own where none is open.

        `data` is a pyarrow table, batch or reader, anything with the Arrow PyCapsule interface (data frames, DuckDB
        relations, results), or an iterable of batches. Columns are matched by name. `mode`: "append" to a table that is
        there, "create" one that is not, "create_append" whichever it is; "replace" is refused by servers so far.
        `options` are of the table that is made, such as `{"primary_key": "id"}`.

        When the answer is lost, a table or batch is sent again, and loaded once. A stream is there once: then the error
        says that the outcome is unknown.
        """
        source = data if isinstance(data, Source) else Source(data)
        scope = self._scope()
        command = _ingest.command(table, schema, mode, options or {}, scope.transaction)
        # A stream can be sent once: first find a server that answers, and renew the login.
        if scope.server is None:
            self._cluster.ping()

        def upload(answer: Answer) -> WriteResult:
            try:
                return _ingest.upload(answer, command, source)
            except Error as error:
                error._sent = error._sent or not source.can_begin
                raise

        return self._write("", upload, scope.route(reads=False, once=not source.can_repeat))

    def cursor(self) -> Cursor:
        """A DB-API 2.0 cursor."""
        from drsdb._dbapi import Cursor

        return Cursor(self)

    @abstractmethod
    def _scope(self) -> Scope:
        """The transaction for a statement that is about to run."""

    @abstractmethod
    def _transaction_lost(self) -> None:
        """The transaction's index server is lost, and so is the transaction."""

    def _request(self, _sql: str, ask: Callable[[Answer], T], route: Route) -> T:
        try:
            return self._cluster.request(ask, route)
        except Error as error:
            if error.fields.get("transaction") == "lost":
                self._transaction_lost()
            raise

    def _write(self, sql: str, ask: Callable[[Answer], WriteResult], route: Route) -> WriteResult:
        result = self._request(sql, ask, route)
        self._cluster.has_seen(result.version)
        return result

    def _plan(self, sql: str) -> Result:
        """Plans a query or, of a statement that returns no rows, has it carried out: then the result has no columns."""
        scope = self._scope()
        return self._result(
            sql, _proto.statement_query(sql, scope.transaction), scope.route(reads=_statements.is_repeatable(sql))
        )

    def _result(self, sql: str, command: bytes, route: Route) -> Result:
        """Plans a command; what only reads may be planned again."""
        plan = self._planner(sql, command, route)
        info, origin = plan(None, None)
        again = plan if route.statement is None else None
        result = Result(self._cluster, info, origin, again, in_transaction=route.pinned)
        self._cluster.has_seen(result.written.version)
        return result

    def _planner(self, sql: str, command: bytes, route: Route) -> Plan:
        def plan(resume: str | None, begun: float | None) -> tuple[flight.FlightInfo, str]:
            def ask(answer: Answer) -> tuple[flight.FlightInfo, str]:
                return _flight_info(answer, command), answer.location

            return self._request(sql, ask, replace(route, resume=resume, begun=begun))

        return plan

    def _run_prepared(
        self, sql: str, rows: Iterable[Sequence[Any]], *, wants_rows: bool | None
    ) -> Result | WriteResult:
        """Prepares, binds and runs a statement; without `wants_rows`, the statement decides what comes back."""
        numbered, count = _statements.number_placeholders(sql)
        materialized = [_checked(row) for row in rows]
        if not count:
            # Numbered placeholders of the caller's own, or none: the server checks.
            numbered, count = sql, len(materialized[0]) if materialized else 0
        scope = self._scope()

        def run(answer: Answer) -> WriteResult | tuple[flight.FlightInfo, str, bytes]:
            with Prepared(answer, numbered, scope.transaction) as prepared:
                batch = _parameters.to_batch(materialized, count, prepared.parameters)
                if wants_rows if wants_rows is not None else prepared.returns_rows:
                    command = _proto.prepared_statement_query(prepared.bind(batch))
                    return _flight_info(answer, command), answer.location, command
                return put(answer, _proto.prepared_statement_update(prepared.handle), batch)

        route = scope.route(reads=_statements.is_repeatable(sql))
        outcome = self._request(sql, run, route)
        if isinstance(outcome, WriteResult):
            self._cluster.has_seen(outcome.version)
            return outcome
        info, origin, command = outcome
        again = self._planner(sql, command, route) if route.statement is None else None
        result = Result(self._cluster, info, origin, again, in_transaction=route.pinned)
        self._cluster.has_seen(result.written.version)
        return result


def _flight_info(answer: Answer, command: bytes) -> flight.FlightInfo:
    with CallErrors(answer.location).translated():
        return answer.client.get_flight_info(flight.FlightDescriptor.for_command(command), answer.options)


def _checked(row: Sequence[Any]) -> tuple[Any, ...]:
    """The values of one execution; text, which is a sequence as well, is surely meant to be one value."""
    if isinstance(row, (str, bytes, Mapping)) or not isinstance(row, Iterable):
        raise InterfaceError(
            f"parameters are a sequence of values, not a {type(row).__name__}",
            code=ErrorCode.INVALID_ARGUMENT,
            hint="write [value] for a single one",
        )
    return tuple(row)
