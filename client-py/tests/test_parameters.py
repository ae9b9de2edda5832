"""Python values as parameters: types of the server, types of the values, and complaints."""

from __future__ import annotations

import datetime
import uuid
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

import drsdb
from drsdb._parameters import to_batch
from fakes import interval

INTERVAL = pa.month_day_nano_interval()
ID = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("value", "expected", "arrow"),
    [
        (1, pa.int16(), pa.scalar(1, pa.int16())),
        (1, pa.float64(), pa.scalar(1.0)),
        ("x", pa.string(), pa.scalar("x")),
        (b"x", pa.binary(), pa.scalar(b"x")),
        (bytearray(b"x"), pa.binary(), pa.scalar(b"x")),
        (memoryview(b"x"), pa.binary(), pa.scalar(b"x")),
        (Decimal("1.50"), pa.decimal128(10, 2), pa.scalar(Decimal("1.50"), pa.decimal128(10, 2))),
        (3, pa.decimal128(10, 2), pa.scalar(Decimal("3.00"), pa.decimal128(10, 2))),
        (0.1, pa.decimal128(10, 2), pa.scalar(Decimal("0.10"), pa.decimal128(10, 2))),
        (datetime.date(2024, 2, 29), pa.date32(), pa.scalar(datetime.date(2024, 2, 29))),
        (ID, pa.binary(16), pa.scalar(ID.bytes, pa.binary(16))),
        (ID, pa.uuid(), pa.scalar(ID.bytes, pa.binary(16))),
        (ID, pa.string(), pa.scalar(str(ID))),
        (str(ID), pa.uuid(), pa.scalar(ID.bytes, pa.binary(16))),
        (str(ID), pa.binary(16), pa.scalar(ID.bytes, pa.binary(16))),
        ("7" + "Z" * 25, pa.binary(16), pa.scalar(b"\xff" * 16, pa.binary(16))),
        ("01ARZ3NDEKTSV4RRFFQ69G5FAV", pa.string(), pa.scalar("01ARZ3NDEKTSV4RRFFQ69G5FAV")),
        ("0" * 25 + "z", pa.binary(16), pa.scalar(bytes(15) + b"\x1f", pa.binary(16))),
        (datetime.timedelta(days=-1, microseconds=5), INTERVAL, pa.scalar(interval(0, -1, 5000), INTERVAL)),
        (pa.scalar(5), pa.int32(), pa.scalar(5, pa.int32())),
        (None, pa.int32(), pa.scalar(None, pa.int32())),
        # Without an expectation the value decides.
        (1, None, pa.scalar(1, pa.int64())),
        (1.5, None, pa.scalar(1.5)),
        (True, None, pa.scalar(True)),
        ("x", pa.null(), pa.scalar("x")),
        (datetime.timedelta(1), None, pa.scalar(interval(0, 1, 0), INTERVAL)),
        (None, None, pa.scalar(None, pa.null())),
    ],
)
def test_a_value_becomes_a_scalar(value: Any, expected: pa.DataType | None, arrow: pa.Scalar[Any]) -> None:
    schema = pa.schema([pa.field("$1", expected)]) if expected is not None else None
    batch = to_batch([[value]], 1, schema)
    assert batch.schema.names == ["$1"]
    assert batch.column(0)[0].equals(arrow)


def test_each_row_is_an_execution() -> None:
    batch = to_batch(([number, str(number)] for number in range(3)), 2, None)
    assert batch.to_pylist() == [{"$1": number, "$2": str(number)} for number in range(3)]


def test_expected_types_are_matched_by_number() -> None:
    types: dict[str, pa.DataType] = {"$10": pa.string(), "$2": pa.int16(), "$1": pa.float32()}
    expected = pa.schema(types)
    batch = to_batch([[1] + [2] * 8 + ["x"]], 10, expected)
    assert batch.schema.types[:3] == [pa.float32(), pa.int16(), pa.int64()]
    assert batch.schema.types[9] == pa.string()


@pytest.mark.parametrize("value", [1.5, Decimal("1.5"), float("nan"), float("inf")])
def test_nothing_is_cut_off_to_make_an_integer(value: Any) -> None:
    given = to_batch([(value,), (2,)], 1, pa.schema([("$1", pa.int32())])).column(0)
    assert not pa.types.is_integer(given.type)
    assert str(given[0].as_py()) == str(value)


def test_a_parameter_of_any_type_has_its_values_type() -> None:
    field = pa.field("$1", pa.string(), metadata={"drsdb.any_type": "true"})
    assert to_batch([(7,)], 1, pa.schema([field])).column(0).type == pa.int64()


def test_expected_types_without_numbers_are_matched_by_place() -> None:
    batch = to_batch([[1, 2]], 2, pa.schema([("a", pa.int8()), ("b", pa.int16())]))
    assert batch.schema.types == [pa.int8(), pa.int16()]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1 << 40, pa.int32()),
        ("x", pa.int32()),
        (1, pa.string()),
        (Decimal("1.234"), pa.decimal128(4, 2)),
        (b"x", pa.binary(16)),
        ("8" + "0" * 25, pa.binary(16)),
        ("U" * 26, pa.binary(16)),
        ("no", pa.uuid()),
    ],
)
def test_a_value_that_does_not_fit_is_refused(value: Any, expected: pa.DataType) -> None:
    with pytest.raises(drsdb.ProgrammingError, match="parameter 2 do not fit") as caught:
        to_batch([[1, value]], 2, pa.schema([pa.field("$1", pa.int64()), pa.field("$2", expected)]))
    assert caught.value.code == drsdb.ErrorCode.TYPE_MISMATCH
    assert caught.value.fields == {"parameter": "2"}


def test_a_wrong_number_of_values_is_refused() -> None:
    with pytest.raises(drsdb.ProgrammingError, match="2 parameters, and row 1 of the values has 1"):
        to_batch([[1, 2], [3]], 2, None)
