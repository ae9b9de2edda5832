"""The hand-written protocol buffers: exact bytes, and that no input makes the decoder misbehave."""

from __future__ import annotations

import random

import pytest

from drsdb import _proto
from fakes import error_detail, index_servers

SQL = "type.googleapis.com/arrow.flight.protocol.sql."


def wrapped(name: str, body: bytes) -> bytes:
    """An Any, put together byte by byte; both parts are shorter than 128 bytes."""
    url = (SQL + name).encode()
    return bytes([0x0A, len(url)]) + url + bytes([0x12, len(body)]) + body


def test_statements_are_exact() -> None:
    assert _proto.statement_query("SELECT 1") == wrapped("CommandStatementQuery", b"\x0a\x08SELECT 1")
    assert _proto.statement_update("DROP x") == wrapped("CommandStatementUpdate", b"\x0a\x06DROP x")


def test_prepared_statements_are_exact() -> None:
    request = wrapped("ActionCreatePreparedStatementRequest", b"\x0a\x08SELECT 1")
    assert _proto.create_prepared_statement("SELECT 1") == request
    assert _proto.prepared_statement_query(b"h\x00") == wrapped("CommandPreparedStatementQuery", b"\x0a\x02h\x00")
    assert _proto.prepared_statement_update(b"h") == wrapped("CommandPreparedStatementUpdate", b"\x0a\x01h")
    assert _proto.close_prepared_statement(b"h") == wrapped("ActionClosePreparedStatementRequest", b"\x0a\x01h")


def test_an_ingest_is_exact() -> None:
    command = _proto.statement_ingest(
        "t",
        schema="s",
        if_not_exist=_proto.TABLE_NOT_EXIST_FAIL,
        if_exists=_proto.TABLE_EXISTS_APPEND,
        options={"k": "v"},
    )
    # Field 1000 is the option map: key 1000 << 3 | 2 = 8002 = 0xc2 0x3e.
    body = b"\x0a\x04\x08\x02\x10\x02" + b"\x12\x01t" + b"\x1a\x01s" + b"\xc2\x3e\x06\x0a\x01k\x12\x01v"
    assert command == wrapped("CommandStatementIngest", body)


def test_transactions_are_exact() -> None:
    assert _proto.begin_transaction() == wrapped("ActionBeginTransactionRequest", b"")
    assert _proto.end_transaction(b"t", commit=True) == wrapped("ActionEndTransactionRequest", b"\x0a\x01t\x10\x01")
    assert _proto.end_transaction(b"t", commit=False) == wrapped("ActionEndTransactionRequest", b"\x0a\x01t\x10\x02")
    assert _proto.begin_savepoint(b"t", "s") == wrapped("ActionBeginSavepointRequest", b"\x0a\x01t\x12\x01s")
    assert _proto.end_savepoint(b"s", release=True) == wrapped("ActionEndSavepointRequest", b"\x0a\x01s\x10\x01")
    assert _proto.end_savepoint(b"s", release=False) == wrapped("ActionEndSavepointRequest", b"\x0a\x01s\x10\x02")
    assert _proto.read_transaction(wrapped("ActionBeginTransactionResult", b"\x0a\x01t")) == b"t"
    assert _proto.read_savepoint(wrapped("ActionBeginSavepointResult", b"\x0a\x01s")) == b"s"


def test_a_statement_names_its_transaction() -> None:
    for encoded, name in (
        (_proto.statement_query("S", b"t"), "CommandStatementQuery"),
        (_proto.statement_update("S", b"t"), "CommandStatementUpdate"),
        (_proto.create_prepared_statement("S", b"t"), "ActionCreatePreparedStatementRequest"),
    ):
        assert encoded == wrapped(name, b"\x0a\x01S\x12\x01t")
    ingest = _proto.statement_ingest("t", if_not_exist=0, if_exists=0, transaction=b"t")
    assert ingest == wrapped("CommandStatementIngest", b"\x0a\x00\x12\x01t\x32\x01t")


def test_a_long_text_has_a_long_length() -> None:
    sql = "SELECT '" + "é" * 10_000 + "'"
    encoded = _proto.statement_query(sql)
    fields = _proto._last(_proto._unwrap("CommandStatementQuery", encoded))
    assert fields == {1: sql.encode()}


def test_a_prepared_statement_is_read() -> None:
    answer = wrapped("ActionCreatePreparedStatementResult", b"\x0a\x01h\x12\x02ds\x1a\x02ps")
    assert _proto.read_prepared_statement(answer) == (b"h", b"ds", b"ps")
    assert _proto.read_prepared_statement(wrapped("ActionCreatePreparedStatementResult", b"")) == (b"", b"", b"")


def test_another_message_is_refused() -> None:
    with pytest.raises(_proto.MalformedMessageError, match="expected a ActionCreatePreparedStatementResult"):
        _proto.read_prepared_statement(wrapped("CommandStatementQuery", b""))


@pytest.mark.parametrize(
    ("data", "rows", "version"),
    [
        (b"", 0, 0),
        (b"\x08\x05", 5, 0),
        (b"\x08\xac\x02\x10\x07", 300, 7),
        (b"\x08" + b"\xff" * 9 + b"\x01", -1, 0),
        (b"\x08" + b"\xff" * 8 + b"\x7f", (1 << 63) - 1, 0),
    ],
)
def test_update_counts_are_read(data: bytes, rows: int, version: int) -> None:
    assert _proto.read_update_result(data) == (rows, version)


def test_unknown_fields_are_skipped() -> None:
    unknown = b"\x78\x01" + b"\x7d\x00\x00\x00\x00" + b"\x79" + b"\x00" * 8 + b"\x7a\x02xx"
    assert _proto.read_update_result(unknown + b"\x08\x05" + unknown) == (5, 0)


def test_of_a_repeated_scalar_the_last_counts() -> None:
    assert _proto.read_update_result(b"\x08\x05\x08\x06").rows == 6


def test_index_servers_are_read() -> None:
    assert _proto.read_index_servers(index_servers("https://a:1", "https://b:2")) == ["https://a:1", "https://b:2"]
    assert _proto.read_index_servers(b"") == []


def test_errors_are_read() -> None:
    data = error_detail("not_found", "table ä does not exist", "did you mean a?", table="ä", line="3")
    expected = ("not_found", "table ä does not exist", "did you mean a?", {"table": "ä", "line": "3"})
    assert _proto.read_error_detail(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",  # no length
        b"\x0a\x05abc",  # shorter than it says
        b"\x08\x80",  # a number without an end
        b"\x08" + b"\x80" * 11,  # a number that is too long
        b"\x00\x01",  # field 0
        b"\x0b",  # a group
        b"\x09\x01",  # 8 bytes that are not there
        b"\x08\x01",  # a number where text belongs
        b"\x0a\x01\xff",  # not UTF-8
        b"\x22\x03\x0a\x05a",  # a broken map entry
    ],
)
def test_broken_errors_are_refused(data: bytes) -> None:
    with pytest.raises(_proto.MalformedMessageError):
        _proto.read_error_detail(data)


def test_garbage_is_refused_or_read_but_never_crashes() -> None:
    rng = random.Random(1)
    whole = error_detail("syntax_error", "x" * 200, "hint", line="1", column="2")
    samples = [whole[:end] for end in range(len(whole))]
    samples += [rng.randbytes(rng.randrange(40)) for _ in range(2_000)]
    refused = 0
    for sample in samples:
        for read in (_proto.read_error_detail, _proto.read_index_servers, _proto.read_prepared_statement):
            try:
                read(sample)
            except _proto.MalformedMessageError:
                refused += 1
    assert refused > len(samples)


def test_only_answers_that_say_so_can_go_on() -> None:
    assert _proto.read_resume(_proto._text(3, "17-c0ffee")) == "17-c0ffee"
    write_result = _proto._number(1, 7) + _proto._number(2, 3)
    for none in (b"", write_result, _proto._text(3, "a\nb"), _proto._text(3, "ü")):
        assert _proto.read_resume(none) is None
    # Those who look for a write there find none.
    assert _proto.read_update_result(_proto._text(3, "17-c0ffee")) == (0, 0)
