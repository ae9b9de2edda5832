"""Loads: every kind of source, messages that stay small, and what is said when one fails. Against fake servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.flight as flight
import pytest

import drsdb
from drsdb import _proto
from fakes import Behavior, FakeServer, batch, error_detail

Start = Callable[..., FakeServer]
Connect = Callable[..., drsdb.Connection]


class Sink:
    """Takes loads and remembers what it got."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []
        self.batches: list[pa.RecordBatch] = []

    def __call__(self, command: bytes, reader: Any) -> bytes:
        self.commands.append(command)
        self.batches = []
        for chunk in reader:
            if chunk.data is None:
                raise flight.FlightServerError("the stream of rows is broken")
            self.batches.append(chunk.data)
        rows = sum(part.num_rows for part in self.batches)
        return _proto._number(1, rows) + _proto._number(2, 42)

    def behavior(self) -> Behavior:
        return Behavior(put=self, action=lambda _name, _body: [])


SOURCES: dict[str, Callable[[], Any]] = {
    "table": lambda: pa.table({"x": [1, 2, 3]}),
    "table in chunks": lambda: pa.concat_tables([pa.table({"x": [1]}), pa.table({"x": [2, 3]})]),
    "batch": lambda: batch(1, 2, 3),
    "reader": lambda: pa.RecordBatchReader.from_batches(batch().schema, [batch(1), batch(2, 3)]),
    "batches": lambda: (batch(number) for number in (1, 2, 3)),
    "tables": lambda: [pa.table({"x": [1]}), pa.table({"x": [2, 3]})],
    "polars": lambda: pl.DataFrame({"x": [1, 2, 3]}),
    "pandas": lambda: pd.DataFrame({"x": [1, 2, 3]}),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source(fake: Start, connect_fake: Connect, kind: str) -> None:
    sink = Sink()
    assert connect_fake(fake(sink.behavior())).ingest("t", SOURCES[kind]()) == (3, 42)
    assert pa.Table.from_batches(sink.batches).to_pydict() == {"x": [1, 2, 3]}


def test_no_rows_are_a_load_too(fake: Start, connect_fake: Connect) -> None:
    sink = Sink()
    assert connect_fake(fake(sink.behavior())).ingest("t", batch()).rows == 0
    assert sink.commands


@pytest.mark.parametrize("mode", ["append", "create", "create_append", "replace"])
def test_modes(fake: Start, connect_fake: Connect, mode: Any) -> None:
    sink = Sink()
    connect_fake(fake(sink.behavior())).ingest("t", batch(1), mode=mode, schema="s", options={"primary_key": "x"})
    if_not_exist = _proto.TABLE_NOT_EXIST_FAIL if mode == "append" else _proto.TABLE_NOT_EXIST_CREATE
    if_exists = {"create": _proto.TABLE_EXISTS_FAIL, "replace": _proto.TABLE_EXISTS_REPLACE}
    assert sink.commands == [
        _proto.statement_ingest(
            "t",
            schema="s",
            if_not_exist=if_not_exist,
            if_exists=if_exists.get(mode, _proto.TABLE_EXISTS_APPEND),
            options={"primary_key": "x"},
        )
    ]


def test_big_batches_travel_in_small_messages(fake: Start, connect_fake: Connect) -> None:
    sink = Sink()
    table = pa.table({"x": range(3_000_000)})
    assert connect_fake(fake(sink.behavior())).ingest("t", table).rows == 3_000_000
    assert max(part.nbytes for part in sink.batches) <= 2 << 20
    assert pa.Table.from_batches(sink.batches).equals(table)


def test_an_iterator_is_read_as_it_is_sent(fake: Start, connect_fake: Connect) -> None:
    read = 0

    def rows() -> Iterator[pa.RecordBatch]:
        nonlocal read
        for number in range(100):
            read += 1
            yield batch(number)

    source = rows()

    def put(_command: bytes, reader: Any) -> bytes:
        next(reader)
        raise flight.FlightServerError("refused after one batch")

    server = fake(Behavior(put=put, action=lambda _name, _body: []))
    db = connect_fake(server)
    with pytest.raises(drsdb.OperationalError, match=r"outcome .* is unknown: .*refused after one batch"):
        db.ingest("t", source)
    # What an attempt has taken from a stream is gone: a second one is refused rather than short.
    reader = pa.RecordBatchReader.from_batches(batch().schema, rows())
    with pytest.raises(drsdb.OperationalError, match=r"outcome .* is unknown: .*refused after one batch"):
        db.ingest("t", reader)


def test_the_servers_error_survives(fake: Start, connect_fake: Connect) -> None:
    def put(_command: bytes, reader: Any) -> bytes:
        reader.read_all()
        raise flight.FlightServerError("overwritten by the trailer")

    server = fake(Behavior(put=put, action=lambda _name, _body: []))
    db = connect_fake(server)
    server.behavior.detail = error_detail("constraint_violation", "x is NULL", "give it a value", column="x")
    with pytest.raises(drsdb.IntegrityError, match=r"x is NULL\. Hint: give it a value") as caught:
        db.ingest("t", batch(1))
    assert caught.value.fields == {"column": "x"}


def test_the_sources_own_error_passes_through(fake: Start, connect_fake: Connect) -> None:
    sink = Sink()

    def broken() -> Iterator[pa.RecordBatch]:
        yield batch(1)
        raise ZeroDivisionError("while making rows")

    db = connect_fake(fake(sink.behavior()))
    with pytest.raises(ZeroDivisionError, match="while making rows") as caught:
        db.ingest("t", broken())
    # A server that does not refuse a broken stream is told on.
    assert not hasattr(caught.value, "__notes__")
    db = connect_fake(fake(Behavior(put=lambda _, reader: b"" * len(list(reader)), action=lambda _name, _body: [])))
    with pytest.raises(ZeroDivisionError, match="while making rows") as caught:
        db.ingest("t", broken())
    assert "took the rows" in caught.value.__notes__[0]


def test_a_load_goes_to_a_server_that_answers(fake: Start, connect_fake: Connect) -> None:
    sink = Sink()
    gone, here = fake(Behavior()), fake(sink.behavior())
    db = connect_fake(gone, here)
    gone.shutdown()
    assert db.ingest("t", (batch(number) for number in range(3))).rows == 3


@pytest.mark.parametrize("source", [7, [1, 2], ["x"], None])
def test_what_cannot_be_loaded_is_refused(fake: Start, connect_fake: Connect, source: Any) -> None:
    with pytest.raises(drsdb.InterfaceError, match=r"cannot be loaded\. Hint: pass a pyarrow table"):
        connect_fake(fake(Sink().behavior())).ingest("t", source)


def test_an_empty_iterable_and_an_unknown_mode_are_refused(fake: Start, connect_fake: Connect) -> None:
    db = connect_fake(fake(Sink().behavior()))
    with pytest.raises(drsdb.InterfaceError, match="says nothing about its columns"):
        db.ingest("t", [])
    mode: Any = "upsert"
    with pytest.raises(drsdb.InterfaceError, match="unknown ingest mode 'upsert'"):
        db.ingest("t", batch(1), mode=mode)
