"""Bulk loads: what can be loaded, in which messages it travels, and what becomes of the table.

Here live the source's forms and the upload. Rows are split by shard on the servers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, Literal, NamedTuple

import pyarrow as pa
import pyarrow.flight as flight

from drsdb import _proto
from drsdb._cluster import Answer
from drsdb._errors import CallErrors, Error, ErrorCode, InterfaceError, error_of

Mode = Literal["append", "create", "create_append", "replace"]

# Far below the 16 MiB that no message of the cluster exceeds.
_MESSAGE_BYTES: Final = 2 << 20

_ABANDONED: Final = b"the client gives this load up"

_TABLE_OPTIONS: Final[dict[str, tuple[int, int]]] = {
    "append": (_proto.TABLE_NOT_EXIST_FAIL, _proto.TABLE_EXISTS_APPEND),
    "create": (_proto.TABLE_NOT_EXIST_CREATE, _proto.TABLE_EXISTS_FAIL),
    "create_append": (_proto.TABLE_NOT_EXIST_CREATE, _proto.TABLE_EXISTS_APPEND),
    "replace": (_proto.TABLE_NOT_EXIST_CREATE, _proto.TABLE_EXISTS_REPLACE),
}


class WriteResult(NamedTuple):
    """What a statement or a load did: the rows it changed and the commit version, each None where not known."""

    rows: int | None
    version: int | None

    @classmethod
    def decode(cls, data: bytes) -> WriteResult:
        """From the metadata that a server answers with."""
        rows, version = _proto.read_update_result(data)
        return cls(rows if rows >= 0 else None, version or None)


class Source:
    """Rows to load. Tables can be read again by a second attempt; streams cannot."""

    def __init__(self, data: Any) -> None:
        self._table: pa.Table | None = None
        self._reader: pa.RecordBatchReader | None = None
        if isinstance(data, pa.Table):
            self._table = data
        elif isinstance(data, pa.RecordBatch):
            self._table = pa.Table.from_batches([data])
        elif isinstance(data, pa.RecordBatchReader):
            self._reader = data
        elif hasattr(data, "__arrow_c_stream__"):
            self._reader = pa.RecordBatchReader.from_stream(data)
        elif isinstance(data, Iterable):
            self._reader = _reader_of(data)
        else:
            raise _not_a_source(data)
        self._begun = False

    @property
    def schema(self) -> pa.Schema:
        """The columns that are loaded."""
        source = self._table if self._table is not None else self._reader
        assert source is not None, "one of the two is always set"
        return source.schema

    @property
    def can_begin(self) -> bool:
        """Whether all rows are still there."""
        return self._table is not None or not self._begun

    @property
    def can_repeat(self) -> bool:
        """Whether all rows will be there after they were sent."""
        return self._table is not None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in batches that fit a message."""
        if not self.can_begin:
            raise InterfaceError(
                "the rows of the stream are used up by an earlier attempt to load them",
                code=ErrorCode.INVALID_ARGUMENT,
                hint="pass a new stream, or a table",
            )
        self._begun = True
        for batch in self._table.to_batches() if self._table is not None else self._reader or ():
            yield from _slices(batch)


def command(table: str, schema: str | None, mode: Mode, options: Mapping[str, str], transaction: bytes | None) -> bytes:
    """The ingest command."""
    if mode not in _TABLE_OPTIONS:
        hint = f"use one of {', '.join(_TABLE_OPTIONS)}"
        raise InterfaceError(f"unknown ingest mode {mode!r}", code=ErrorCode.INVALID_ARGUMENT, hint=hint)
    if_not_exist, if_exists = _TABLE_OPTIONS[mode]
    return _proto.statement_ingest(
        table,
        schema=schema,
        if_not_exist=if_not_exist,
        if_exists=if_exists,
        options=options,
        transaction=transaction,
    )


def upload(answer: Answer, command: bytes, source: Source) -> WriteResult:
    """Sends all rows and waits until they are committed."""
    errors = CallErrors(answer.location)
    with errors.translated():
        descriptor = flight.FlightDescriptor.for_command(command)
        writer, reader = answer.client.do_put(descriptor, source.schema, answer.options)
    result: WriteResult | None = None
    try:
        batches = source.batches()
        # The source is the caller's code: its errors pass through untranslated.
        while (batch := next(batches, None)) is not None:
            with errors.translated():
                writer.write_batch(batch)
        with errors.translated():
            writer.done_writing()
            message = reader.read()  # type: ignore[attr-defined]
            result = WriteResult.decode(message.to_pybytes()) if message is not None else None
    except BaseException as failure:
        _abandon(writer, errors, failure)
    with errors.translated():
        writer.close()
    if result is None:
        raise error_of(ErrorCode.INTERNAL, f"server {answer.location} ended a load without saying how many rows it has")
    return result


def _abandon(writer: flight.FlightStreamWriter, errors: CallErrors, failure: BaseException) -> None:
    """Ends a load so that no row of it is committed, and raises why it failed.

    pyarrow can only finish an upload, not cancel it, and what is finished is committed. So a message that is no Arrow
    data goes first: it breaks the stream, and a server takes all rows of a stream or none.
    """
    with suppress(Exception):
        writer.write_metadata(pa.py_buffer(_ABANDONED))
    try:
        with errors.translated():
            writer.close()
    except Error as verdict:
        # Of a load that the server refused, the steps before hint at it and the close says why.
        if isinstance(failure, Error) and verdict._answered and not failure._answered:
            raise verdict from failure
    else:
        failure.add_note("The server took the rows that were sent before this error into the table.")
    raise failure


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    messages = max(1, -(-batch.nbytes // _MESSAGE_BYTES))
    rows = max(1, -(-batch.num_rows // messages))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _reader_of(data: Iterable[Any]) -> pa.RecordBatchReader:
    """A reader over an iterable of batches or tables; the first tells the schema."""
    parts = _batches_of(data)
    first = next(parts, None)
    if first is None:
        raise InterfaceError(
            "an empty iterable says nothing about its columns",
            code=ErrorCode.INVALID_ARGUMENT,
            hint="pass a pyarrow.RecordBatchReader, which has a schema",
        )

    def all_parts() -> Iterator[pa.RecordBatch]:
        yield first
        yield from parts

    return pa.RecordBatchReader.from_batches(first.schema, all_parts())


def _batches_of(data: Iterable[Any]) -> Iterator[pa.RecordBatch]:
    for part in data:
        if isinstance(part, pa.Table):
            yield from part.to_batches()
        elif isinstance(part, pa.RecordBatch):
            yield part
        else:
            raise _not_a_source(part)


def _not_a_source(data: Any) -> InterfaceError:
    return InterfaceError(
        f"a {type(data).__name__} cannot be loaded",
        code=ErrorCode.INVALID_ARGUMENT,
        hint="pass a pyarrow table, batch or reader, a data frame, or an iterable of batches",
    )
