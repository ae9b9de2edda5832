"""Errors: typed ones survive the wire whole, and others are mapped as well as can be."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pyarrow.flight as flight
import pytest

import drsdb
from drsdb._errors import error_of
from fakes import Behavior, FakeServer, error_detail

CLASSES = {
    "syntax_error": drsdb.ProgrammingError,
    "not_found": drsdb.ProgrammingError,
    "already_exists": drsdb.ProgrammingError,
    "type_mismatch": drsdb.ProgrammingError,
    "invalid_argument": drsdb.ProgrammingError,
    "invalid_value": drsdb.DataError,
    "constraint_violation": drsdb.IntegrityError,
    "unauthenticated": drsdb.OperationalError,
    "permission_denied": drsdb.OperationalError,
    "ticket_invalid": drsdb.OperationalError,
    "ticket_expired": drsdb.OperationalError,
    "unavailable": drsdb.OperationalError,
    "conflict": drsdb.ConflictError,
    "resource_exhausted": drsdb.OperationalError,
    "disk_full": drsdb.OperationalError,
    "unsupported": drsdb.NotSupportedError,
    "cancelled": drsdb.OperationalError,
    "timeout": drsdb.OperationalError,
    "corrupt": drsdb.InternalError,
    "internal": drsdb.InternalError,
}


def refusing(error: Exception, detail: bytes = b"") -> Behavior:
    def flight_info(_command: bytes) -> flight.FlightInfo:
        raise error

    return Behavior(flight_info=flight_info, detail=detail)


def test_every_code_has_a_class() -> None:
    assert CLASSES.keys() == {code.value for code in drsdb.ErrorCode}


@pytest.mark.parametrize("code", CLASSES)
def test_a_typed_error_survives_whole(
    code: str, fake: Callable[..., FakeServer], connect_fake: Callable[..., drsdb.Connection]
) -> None:
    detail = error_detail(code, "table ä does not exist", "did you mean a?", table="ä", line="3")
    db = connect_fake(fake(refusing(flight.FlightServerError("overwritten by the trailer"), detail)))
    with pytest.raises(drsdb.Error) as caught:
        db.query("SELECT 1")
    error = caught.value
    assert type(error) is CLASSES[code]
    assert (error.code, error.message, error.hint) == (code, "table ä does not exist", "did you mean a?")
    assert error.fields == {"table": "ä", "line": "3"}
    assert str(error) == "table ä does not exist. Hint: did you mean a?"
    assert isinstance(error.__cause__, flight.FlightError)


def test_a_code_from_the_future_is_internal(
    fake: Callable[..., FakeServer], connect_fake: Callable[..., drsdb.Connection]
) -> None:
    db = connect_fake(fake(refusing(flight.FlightServerError("x"), error_detail("brand_new", "what is this"))))
    with pytest.raises(drsdb.InternalError, match="what is this"):
        db.query("SELECT 1")


def test_a_broken_trailer_leaves_the_status(
    fake: Callable[..., FakeServer], connect_fake: Callable[..., drsdb.Connection]
) -> None:
    db = connect_fake(fake(refusing(flight.FlightUnauthorizedError("not for you"), b"\x0a\xff")))
    with pytest.raises(drsdb.OperationalError, match="not for you") as caught:
        db.query("SELECT 1")
    assert caught.value.code == drsdb.ErrorCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (flight.FlightUnauthorizedError("m"), "permission_denied"),
        (flight.FlightTimedOutError("m"), "timeout"),
        (flight.FlightCancelledError("m"), "cancelled"),
        (flight.FlightServerError("m"), "internal"),
        (NotImplementedError("m"), "unsupported"),
        (KeyError("m"), "not_found"),
        (ValueError("m"), "invalid_argument"),
    ],
)
def test_errors_of_other_servers(
    error: Exception,
    code: str,
    fake: Callable[..., FakeServer],
    connect_fake: Callable[..., drsdb.Connection],
) -> None:
    db = connect_fake(fake(refusing(error)))
    with pytest.raises(drsdb.Error, match="m") as caught:
        db.query("SELECT 1")
    assert caught.value.code == code
    assert "debug context" not in caught.value.message


def test_errors_can_be_pickled() -> None:
    error = error_of(drsdb.ErrorCode.SYNTAX_ERROR, "m", hint="h", fields={"line": "1"})
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), back.code, back.fields) == (type(error), str(error), error.code, error.fields)
