"""Prepared statements, and the calls that they are made of. A handle holds the statement: servers remember nothing."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

import pyarrow as pa
import pyarrow.flight as flight

from drsdb import _proto
from drsdb._cluster import Answer
from drsdb._errors import CallErrors, Error, ErrorCode, error_of
from drsdb._ingest import WriteResult


class _Schemas(NamedTuple):
    dataset: pa.Schema | None
    parameters: pa.Schema | None


class Prepared:
    """A prepared statement at one server, closed at the end of a `with` block."""

    def __init__(self, answer: Answer, sql: str, transaction: bytes | None) -> None:
        self._answer = answer
        reply = act(answer, "CreatePreparedStatement", _proto.create_prepared_statement(sql, transaction))
        if not reply:
            raise error_of(ErrorCode.INTERNAL, f"server {answer.location} gave no prepared statement")
        self.handle, dataset, parameters = _proto.read_prepared_statement(reply[0])
        self._schemas = _Schemas(_read_schema(dataset), _read_schema(parameters))

    @property
    def returns_rows(self) -> bool:
        """Whether it is a query, or returns what it wrote."""
        return self._schemas.dataset is not None and len(self._schemas.dataset) > 0

    @property
    def parameters(self) -> pa.Schema | None:
        """The types of its parameters, where the server knows them."""
        return self._schemas.parameters

    def bind(self, batch: pa.RecordBatch) -> bytes:
        """Binds parameters for a query; returns the handle that stands for both."""
        command = _proto.prepared_statement_query(self.handle)
        reply = _put_metadata(self._answer, command, batch)
        return (_proto.read_bound_handle(reply) if reply else b"") or self.handle

    def __enter__(self) -> Prepared:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A handle that was not closed costs a server nothing that it would not reclaim.
        with suppress(Error):
            act(self._answer, "ClosePreparedStatement", _proto.close_prepared_statement(self.handle))


def act(answer: Answer, name: str, body: bytes) -> list[bytes]:
    """Makes a DoAction; returns the bodies of its results."""
    with CallErrors(answer.location).translated():
        results = answer.client.do_action(flight.Action(name, body), answer.options)
        return [result.body.to_pybytes() for result in results]


def put(answer: Answer, command: bytes, parameters: pa.RecordBatch | None) -> WriteResult:
    """Runs a statement without rows, once for each row of `parameters`."""
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


def _read_schema(data: bytes) -> pa.Schema | None:
    return pa.ipc.read_schema(pa.py_buffer(data)) if data else None
