"""Every SQL type with NULLs and extreme values: loaded, selected, and used as a parameter, in both engines."""

from __future__ import annotations

import datetime
import struct
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

import drsdb
from fakes import interval

pytestmark = pytest.mark.cluster

I16, I32, I64 = (1 << 15, 1 << 31, 1 << 63)


def bits32(*patterns: int) -> list[float]:
    return [struct.unpack("<f", struct.pack("<I", pattern))[0] for pattern in patterns]


def bits64(*patterns: int) -> list[float]:
    return [struct.unpack("<d", struct.pack("<Q", pattern))[0] for pattern in patterns]


@dataclass
class Case:
    """A SQL type, its Arrow type at the edge, values, and one value to look for with a parameter."""

    sql: str
    arrow: pa.DataType
    values: list[Any]
    parameter: Any = field(default=None)


CASES = [
    Case("BOOLEAN", pa.bool_(), [True, False], True),
    Case("SMALLINT", pa.int16(), [-I16, I16 - 1, 0, -1], -I16),
    Case("INTEGER", pa.int32(), [-I32, I32 - 1, 0, -1], I32 - 1),
    Case("BIGINT", pa.int64(), [-I64, I64 - 1, 0, -1], I64 - 1),
    # Zero, minus zero, infinities, a NaN, the largest, the smallest normal and the smallest value.
    Case(
        "REAL",
        pa.float32(),
        bits32(0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 0x00800000, 1),
        bits32(0x7F7FFFFF)[0],
    ),
    Case(
        "DOUBLE",
        pa.float64(),
        bits64(0, 1 << 63, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48, 0x7FEFFFFFFFFFFFFF, 1 << 52, 1),
        bits64(0x7FEFFFFFFFFFFFFF)[0],
    ),
    Case(
        "DECIMAL(38, 10)",
        pa.decimal128(38, 10),
        [Decimal("9" * 28 + "." + "9" * 10), Decimal("-" + "9" * 28 + "." + "9" * 10), Decimal("1e-10"), Decimal(0)],
        Decimal("9" * 28 + "." + "9" * 10),
    ),
    Case("DECIMAL(38, 0)", pa.decimal128(38, 0), [Decimal("9" * 38), Decimal("-" + "9" * 38)], Decimal("-" + "9" * 38)),
    Case("DECIMAL(5, 2)", pa.decimal128(5, 2), [Decimal("-999.99"), Decimal("0.01")], Decimal("0.01")),
    Case("DECIMAL(1, 1)", pa.decimal128(1, 1), [Decimal("0.9"), Decimal("-0.9")], Decimal("0.9")),
    Case("CHAR(3)", pa.string(), ["abc", "äöü", "", "a"], "äöü"),
    Case("VARCHAR(5)", pa.string(), ["", "12345", "日本語文字", " a ", "\t\n"], "日本語文字"),
    Case("VARCHAR", pa.string(), ["", "x" * 70_000], ""),
    Case("TEXT", pa.string(), ["", "🦀 'quoted' \\ \u0000 end", "x" * 3_000_000, "NULL"], "🦀 'quoted' \\ \u0000 end"),
    Case(
        "DATE",
        pa.date32(),
        [datetime.date.min, datetime.date.max, datetime.date(1970, 1, 1), datetime.date(1969, 12, 31)],
        datetime.date.min,
    ),
    Case("TIME", pa.time64("us"), [datetime.time.min, datetime.time.max, datetime.time(12, 30)], datetime.time.max),
    Case("TIMESTAMP", pa.timestamp("us"), [-I64, I64 - 1, 0, -1], datetime.datetime(1970, 1, 1)),
    Case(
        "TIMESTAMP WITH TIME ZONE",
        pa.timestamp("us", "UTC"),
        [-I64, I64 - 1, 0, -1],
        datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC),
    ),
    Case(
        "INTERVAL",
        pa.month_day_nano_interval(),
        [interval(-I32, -I32, -I64), interval(I32 - 1, I32 - 1, I64 - 1), interval(0, 0, 0), interval(1, -1, 1)],
        interval(1, -1, 1),
    ),
    Case("BYTEA", pa.binary(), [b"", bytes(range(256)), b"\xff" * 3_000_000], bytes(range(256))),
    Case("VARBINARY", pa.binary(), [b"", b"\x00"], b"\x00"),
    Case("UUID", pa.uuid(), [bytes(16), b"\xff" * 16, bytes(range(16))], b"\xff" * 16),
    Case(
        "ULID",
        pa.string(),
        ["0" * 26, "7" + "Z" * 25, "01ARZ3NDEKTSV4RRFFQ69G5FAV"],
        "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    ),
]


def rows_of(case: Case) -> pa.Table:
    """The case's values between NULLs, numbered."""
    values = [None, *case.values, None]
    storage = case.arrow.storage_type if isinstance(case.arrow, pa.BaseExtensionType) else case.arrow
    column: pa.Array[Any] = pa.array(values, storage)
    if isinstance(case.arrow, pa.BaseExtensionType):
        column = pa.ExtensionArray.from_storage(case.arrow, column)
    return pa.table({"id": pa.array(range(len(values)), pa.int64()), "v": column})


def exact(column: pa.ChunkedArray[Any]) -> pa.ChunkedArray[Any]:
    """The column in a form whose equality tells -0.0 from 0.0, and NaN equals itself."""
    if pa.types.is_float32(column.type):
        return pa.chunked_array([chunk.view(pa.int32()) for chunk in column.chunks], pa.int32())
    if pa.types.is_float64(column.type):
        return pa.chunked_array([chunk.view(pa.int64()) for chunk in column.chunks], pa.int64())
    return column


def stored(column: pa.ChunkedArray[Any]) -> pa.ChunkedArray[Any]:
    """The column as it is kept: -0.0 is 0.0."""
    if not pa.types.is_floating(column.type):
        return column
    values = [0.0 if value == 0 else value for value in column.to_pylist()]
    return pa.chunked_array([pa.array(values, column.type)])


@pytest.mark.parametrize("engine", ["row", "column"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sql)
def test_a_type_survives(db: drsdb.Connection, table: str, case: Case, engine: str) -> None:
    db.execute(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, v {case.sql}) WITH (engine = '{engine}')")
    loaded = rows_of(case)
    assert db.ingest(table, loaded).rows == loaded.num_rows
    selected = db.query(f"SELECT id, v FROM {table} ORDER BY id").arrow()
    assert selected.schema.field("v").type == case.arrow
    assert selected["id"].to_pylist() == list(range(loaded.num_rows))
    assert exact(selected["v"]).equals(exact(stored(loaded["v"])))
    assert db.query(f"SELECT count(*) AS n, count(v) AS v FROM {table}").arrow().to_pylist() == [
        {"n": loaded.num_rows, "v": len(case.values)}
    ]


@pytest.mark.parametrize("engine", ["row", "column"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sql)
def test_a_parameter_finds_its_row(db: drsdb.Connection, table: str, case: Case, engine: str) -> None:
    db.execute(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, v {case.sql}) WITH (engine = '{engine}')")
    loaded = rows_of(case)
    db.ingest(table, loaded)
    column = pa.array([case.parameter], loaded.schema.field("v").type if case.sql != "UUID" else pa.binary(16))
    storage = loaded["v"].combine_chunks()
    plain = storage.storage if isinstance(storage, pa.ExtensionArray) else storage
    expected = [row for row, value in enumerate(plain) if value.equals(column[0])]
    assert len(expected) == 1
    found = db.query(f"SELECT id FROM {table} WHERE v = ?", [case.parameter]).arrow()
    assert found["id"].to_pylist() == expected


@pytest.mark.parametrize("engine", ["row", "column"])
def test_a_type_can_be_inserted_by_parameters(db: drsdb.Connection, table: str, engine: str) -> None:
    cases = [case for case in CASES if case.sql != "UUID"]
    columns = ", ".join(f"c{number} {case.sql}" for number, case in enumerate(cases))
    db.execute(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, {columns}) WITH (engine = '{engine}')")
    marks = ", ".join("?" for _ in cases)
    values = [case.parameter for case in cases]
    with db.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {table} VALUES (?, {marks})", [[1, *values], [2, *(None for _ in cases)], [3, *values]]
        )
        assert cursor.rowcount == 3
    rows = db.query(f"SELECT * FROM {table} ORDER BY id").arrow()
    for number, case in enumerate(cases):
        expected: pa.Array[Any] = pa.array([case.parameter, None, case.parameter], case.arrow)
        assert exact(rows[f"c{number}"]).equals(exact(pa.chunked_array([expected]))), case.sql


@pytest.mark.parametrize("engine", ["row", "column"])
def test_ids_are_compared_with_text(db: drsdb.Connection, table: str, engine: str) -> None:
    db.execute(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, u ULID, w UUID) WITH (engine = '{engine}')")
    ulid, uuid = "01ARZ3NDEKTSV4RRFFQ69G5FAV", "00000000-0000-0000-0000-000000000001"
    db.execute(f"INSERT INTO {table} VALUES (1, '{ulid}', '{uuid}'), (2, NULL, NULL)")
    assert list(db.query(f"SELECT id FROM {table} WHERE u = '{ulid}'").rows()) == [(1,)]
    assert list(db.query(f"SELECT id FROM {table} WHERE w = '{uuid}'").rows()) == [(1,)]
    assert list(db.query(f"SELECT id FROM {table} WHERE w = ?", [uuid]).rows()) == [(1,)]
