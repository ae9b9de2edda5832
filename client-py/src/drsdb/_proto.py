"""The protocol-buffer messages that the client sends and reads, encoded by hand.

Here live the Flight SQL commands of `FlightSql.proto` (pyarrow speaks Flight, not Flight SQL), and drsdb's own
`client.proto` and `error.proto`: a dozen flat messages, for which generated code and a protobuf runtime would be the
client's largest dependency. What the messages are used for is not known here.

Wire format: https://protobuf.dev/programming-guides/encoding/. A field is a varint key (number << 3 | wire type) and a
value; unknown fields are skipped, and a default value is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5

_FLIGHT_SQL: Final = "type.googleapis.com/arrow.flight.protocol.sql."

# CommandStatementIngest.TableDefinitionOptions: what to do when the table does not exist, and when it does.
TABLE_NOT_EXIST_CREATE: Final = 1
TABLE_NOT_EXIST_FAIL: Final = 2
TABLE_EXISTS_FAIL: Final = 1
TABLE_EXISTS_APPEND: Final = 2
TABLE_EXISTS_REPLACE: Final = 3


class MalformedMessageError(ValueError):
    """Bytes that are not the protocol-buffer message they should be."""


class PreparedStatementResult(NamedTuple):
    """Answer of the CreatePreparedStatement action. The schemas are Arrow IPC messages, or empty."""

    handle: bytes
    dataset_schema: bytes
    parameter_schema: bytes


class UpdateResult(NamedTuple):
    """Answer of a finished statement or load: rows (-1: unknown) and commit version (0: none)."""

    rows: int
    version: int


class ErrorDetail(NamedTuple):
    """The typed error that rides in a status' trailer."""

    code: str
    message: str
    hint: str
    fields: dict[str, str]


def statement_query(sql: str, transaction: bytes | None = None) -> bytes:
    """CommandStatementQuery: a statement that returns rows."""
    return _any("CommandStatementQuery", _text(1, sql) + _optional_bytes(2, transaction))


def statement_update(sql: str, transaction: bytes | None = None) -> bytes:
    """CommandStatementUpdate: a statement that returns a count."""
    return _any("CommandStatementUpdate", _text(1, sql) + _optional_bytes(2, transaction))


def statement_ingest(
    table: str,
    *,
    if_not_exist: int,
    if_exists: int,
    schema: str | None = None,
    catalog: str | None = None,
    options: Mapping[str, str] | None = None,
    transaction: bytes | None = None,
) -> bytes:
    """CommandStatementIngest: a bulk load."""
    definition = _number(1, if_not_exist) + _number(2, if_exists)
    body = _bytes(1, definition) + _text(2, table)
    if schema is not None:
        body += _bytes(3, schema.encode())
    if catalog is not None:
        body += _bytes(4, catalog.encode())
    body += _optional_bytes(6, transaction)
    for key, value in (options or {}).items():
        body += _bytes(1000, _text(1, key) + _text(2, value))
    return _any("CommandStatementIngest", body)


def begin_transaction() -> bytes:
    """ActionBeginTransactionRequest."""
    return _any("ActionBeginTransactionRequest", b"")


def end_transaction(transaction: bytes, *, commit: bool) -> bytes:
    """ActionEndTransactionRequest."""
    return _any("ActionEndTransactionRequest", _bytes(1, transaction) + _number(2, 1 if commit else 2))


def begin_savepoint(transaction: bytes, name: str) -> bytes:
    """ActionBeginSavepointRequest."""
    return _any("ActionBeginSavepointRequest", _bytes(1, transaction) + _text(2, name))


def end_savepoint(savepoint: bytes, *, release: bool) -> bytes:
    """ActionEndSavepointRequest."""
    return _any("ActionEndSavepointRequest", _bytes(1, savepoint) + _number(2, 1 if release else 2))


def create_prepared_statement(sql: str, transaction: bytes | None = None) -> bytes:
    """ActionCreatePreparedStatementRequest."""
    return _any("ActionCreatePreparedStatementRequest", _text(1, sql) + _optional_bytes(2, transaction))


def close_prepared_statement(handle: bytes) -> bytes:
    """ActionClosePreparedStatementRequest."""
    return _any("ActionClosePreparedStatementRequest", _bytes(1, handle))


def prepared_statement_query(handle: bytes) -> bytes:
    """CommandPreparedStatementQuery: binds parameters (DoPut) and runs a query (GetFlightInfo)."""
    return _any("CommandPreparedStatementQuery", _bytes(1, handle))


def prepared_statement_update(handle: bytes) -> bytes:
    """CommandPreparedStatementUpdate: binds parameters and runs a statement that returns a count (DoPut)."""
    return _any("CommandPreparedStatementUpdate", _bytes(1, handle))


def read_prepared_statement(data: bytes) -> PreparedStatementResult:
    """Decodes ActionCreatePreparedStatementResult inside its Any."""
    fields = _last(_unwrap("ActionCreatePreparedStatementResult", data))
    return PreparedStatementResult(_as_bytes(fields, 1), _as_bytes(fields, 2), _as_bytes(fields, 3))


def read_transaction(data: bytes) -> bytes:
    """Decodes ActionBeginTransactionResult inside its Any: the transaction's id."""
    return _as_bytes(_last(_unwrap("ActionBeginTransactionResult", data)), 1)


def read_savepoint(data: bytes) -> bytes:
    """Decodes ActionBeginSavepointResult inside its Any: the savepoint's id."""
    return _as_bytes(_last(_unwrap("ActionBeginSavepointResult", data)), 1)


def read_bound_handle(data: bytes) -> bytes:
    """Decodes DoPutPreparedStatementResult: the handle that replaces the statement's; empty: keep the old one."""
    return _as_bytes(_last(data), 1)


def read_update_result(data: bytes) -> UpdateResult:
    """Decodes DoPutUpdateResult, or drsdb's WriteResult, which has the commit version beside the same count."""
    fields = _last(data)
    rows = _as_number(fields, 1)
    return UpdateResult(rows - (1 << 64) if rows >= 1 << 63 else rows, _as_number(fields, 2))


def read_resume(data: bytes) -> str | None:
    """Decodes drsdb.v1.RepeatableAnswer: where an answer can go on; None: nowhere."""
    text = _decode_text(_last(data).get(3, b""))
    return text if text.isascii() and text.isprintable() and text else None


def read_index_servers(data: bytes) -> list[str]:
    """Decodes drsdb.v1.IndexServers."""
    return [_decode_text(value) for number, value in _fields(data) if number == 1]


def read_error_detail(data: bytes) -> ErrorDetail:
    """Decodes drsdb.v1.ErrorDetail."""
    details = {}
    for number, value in _fields(data):
        if number == 4:
            entry = _last(_expect_bytes(value))
            details[_decode_text(entry.get(1, b""))] = _decode_text(entry.get(2, b""))
    fields = _last(data)
    code, message, hint = (_decode_text(fields.get(number, b"")) for number in (1, 2, 3))
    return ErrorDetail(code, message, hint, details)


def _any(name: str, body: bytes) -> bytes:
    return _text(1, _FLIGHT_SQL + name) + _bytes(2, body)


def _unwrap(name: str, data: bytes) -> bytes:
    fields = _last(data)
    url = _decode_text(fields.get(1, b""))
    if url.rpartition("/")[2] != (_FLIGHT_SQL + name).rpartition("/")[2]:
        raise MalformedMessageError(f"expected a {name} message, got {url!r}")
    return _as_bytes(fields, 2)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value) if value else b""


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _optional_bytes(number: int, value: bytes | None) -> bytes:
    return b"" if value is None else _bytes(number, value)


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode()) if value else b""


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise MalformedMessageError("the message ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise MalformedMessageError("a number is longer than ten bytes")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The message's fields in order; repeated ones repeat."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise MalformedMessageError("a field has the number 0")
        if wire_type == _VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, at = _read_varint(data, at)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise MalformedMessageError(f"field {number} has the unknown wire type {wire_type}")
        if at + length > len(data):
            raise MalformedMessageError(f"the message ends inside field {number}")
        yield number, data[at : at + length]
        at += length


def _last(data: bytes) -> dict[int, int | bytes]:
    """The message's fields by number; of a field that repeats, the last counts."""
    return dict(_fields(data))


def _expect_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise MalformedMessageError("a field that holds bytes holds a number")
    return value


def _as_bytes(fields: Mapping[int, int | bytes], number: int) -> bytes:
    return _expect_bytes(fields.get(number, b""))


def _as_number(fields: Mapping[int, int | bytes], number: int) -> int:
    value = fields.get(number, 0)
    if not isinstance(value, int):
        raise MalformedMessageError("a field that holds a number holds bytes")
    return value


def _decode_text(value: int | bytes) -> str:
    try:
        return _expect_bytes(value).decode()
    except UnicodeDecodeError as error:
        raise MalformedMessageError("a text field is not UTF-8") from error
