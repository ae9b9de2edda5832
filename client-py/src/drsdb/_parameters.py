"""Python values as the parameters of a prepared statement: one Arrow batch with a row for each execution.

Here lives the conversion only; the types that the server expects win over what the values look like.
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Final

import pyarrow as pa

from drsdb._errors import ErrorCode, error_of

_NUMBERED: Final = re.compile(r"\$([1-9]\d*)")
_ID: Final = pa.binary(16)
_ULID_DIGITS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_INTERVAL: Final = pa.month_day_nano_interval()
_ANY_TYPE: Final = b"drsdb.any_type"
"""In a field's metadata: nothing in the statement says of which type the parameter is."""


def to_batch(rows: Iterable[Sequence[Any]], count: int, expected: pa.Schema | None) -> pa.RecordBatch:
    """The batch with columns `$1`, `$2`, ...; `expected` are the types that the server inferred, where it did."""
    materialized = [tuple(row) for row in rows]
    for number, row in enumerate(materialized):
        if len(row) != count:
            raise error_of(
                ErrorCode.INVALID_ARGUMENT,
                f"the statement has {count} parameters, and row {number} of the values has {len(row)}",
                hint="pass one value for each placeholder",
            )
    types = _types(expected, count)
    columns = [_column([row[at] for row in materialized], types[at], at + 1) for at in range(count)]
    return pa.RecordBatch.from_arrays(columns, names=[f"${number}" for number in range(1, count + 1)])


def _types(expected: pa.Schema | None, count: int) -> list[pa.DataType | None]:
    """The expected type of each parameter. Numbered names count, whatever the order of the fields."""
    types: list[pa.DataType | None] = [None] * count
    for position, field in enumerate(expected or ()):
        numbered = _NUMBERED.fullmatch(field.name)
        at = int(numbered.group(1)) - 1 if numbered else position
        if at < count and not pa.types.is_null(field.type) and _ANY_TYPE not in (field.metadata or {}):
            types[at] = field.type
    return types


def _column(values: list[Any], expected: pa.DataType | None, number: int) -> pa.Array[Any]:
    try:
        return _array([_plain(value, expected) for value in values], expected)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        wanted = f"the {expected} that it should be" if expected is not None else "one type"
        raise error_of(
            ErrorCode.TYPE_MISMATCH,
            f"the values of parameter {number} do not fit {wanted}: {error}",
            fields={"parameter": str(number)},
        ) from error


def _array(values: list[Any], expected: pa.DataType | None) -> pa.Array[Any]:
    if expected is not None and not (pa.types.is_integer(expected) and any(map(_has_fraction, values))):
        # pyarrow converts Python values to an extension's storage only.
        array: pa.Array[Any] = pa.array(values, _storage(expected))
        return array
    first = next((value for value in values if value is not None), None)
    if isinstance(first, pa.MonthDayNano):
        return pa.array(values, _INTERVAL)
    inferred: pa.Array[Any] = pa.array(values)
    return inferred


def _has_fraction(value: Any) -> bool:
    """Whether pyarrow would cut a part off to make an integer of it. The server compares such a value as it is."""
    return isinstance(value, (float, decimal.Decimal)) and (not math.isfinite(value) or value % 1 != 0)


def _plain(value: Any, expected: pa.DataType | None) -> Any:
    """The value in a form that pyarrow converts."""
    if isinstance(value, uuid.UUID):
        text = expected is not None and (pa.types.is_string(expected) or pa.types.is_large_string(expected))
        return str(value) if text else value.bytes
    if isinstance(value, datetime.timedelta) and (expected is None or expected == _INTERVAL):
        nanoseconds = (value.seconds * 1_000_000 + value.microseconds) * 1_000
        return pa.MonthDayNano((0, value.days, nanoseconds))  # type: ignore[call-arg, arg-type]
    if isinstance(value, str) and expected is not None and _storage(expected) == _ID:
        return _id_bytes(value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if expected is not None and pa.types.is_decimal(expected) and isinstance(value, (int, float)):
        return decimal.Decimal(str(value))
    if isinstance(value, pa.Scalar):
        return value.as_py()
    return value


def _storage(expected: pa.DataType) -> pa.DataType:
    return expected.storage_type if isinstance(expected, pa.BaseExtensionType) else expected


def _id_bytes(text: str) -> bytes:
    """The bytes of a ULID (26 characters, the first at most 7) or of a UUID (any form that Python reads)."""
    if len(text) != 26:
        return uuid.UUID(text).bytes
    number = 0
    for character in text.upper():
        number = number << 5 | _ULID_DIGITS.index(character)
    return number.to_bytes(16)
