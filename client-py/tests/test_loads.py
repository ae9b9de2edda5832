"""Bulk loads into a real cluster: all rows or none, and the errors of rows that do not fit."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
import pyarrow as pa
import pytest

import drsdb

pytestmark = pytest.mark.cluster


def count(db: drsdb.Connection, table: str) -> int:
    """Counts rows that were read: `count(*)` alone is what the catalog believes."""
    known = db.query(f"SELECT count(*) FROM {table}").arrow()[0][0].as_py()
    read = db.query(f"SELECT * FROM {table}").arrow().num_rows
    assert known == read
    return read


def test_a_load_makes_its_table(db: drsdb.Connection, table: str) -> None:
    rows = pa.table({"id": [1, 2, 3], "name": ["a", None, "c"]})
    done = db.ingest(table, rows, mode="create", options={"primary_key": "id"})
    assert done.rows == 3
    assert done.version is not None
    assert db.query(f"SELECT * FROM {table} ORDER BY id").arrow().to_pydict() == rows.to_pydict()
    with pytest.raises(drsdb.ProgrammingError) as caught:
        db.ingest(table, rows, mode="create")
    assert caught.value.code == drsdb.ErrorCode.ALREADY_EXISTS
    assert db.ingest(table, pa.table({"id": [4], "name": ["d"]}), mode="create_append").rows == 1
    assert count(db, table) == 4


def test_a_load_appends_to_a_table_that_is_there(db: drsdb.Connection, table: str) -> None:
    with pytest.raises(drsdb.ProgrammingError) as caught:
        db.ingest(table, pa.table({"x": [1]}))
    assert caught.value.code == drsdb.ErrorCode.NOT_FOUND
    db.execute(f"CREATE TABLE {table} (x BIGINT)")
    for _ in range(3):
        db.ingest(table, pa.table({"x": [1, 2]}))
    assert count(db, table) == 6


def test_columns_are_matched_by_name(db: drsdb.Connection, table: str) -> None:
    db.execute(f"CREATE TABLE {table} (a BIGINT, b TEXT, c DOUBLE)")
    db.ingest(table, pa.table({"b": ["x"], "a": pa.array([1], pa.int16())}))
    assert db.query(f"SELECT a, b, c FROM {table}").arrow().to_pylist() == [{"a": 1, "b": "x", "c": None}]
    with pytest.raises(drsdb.ProgrammingError, match="bb"):
        db.ingest(table, pa.table({"bb": ["x"]}))


def test_a_stream_is_loaded(db: drsdb.Connection, table: str) -> None:
    db.execute(f"CREATE TABLE {table} (x BIGINT PRIMARY KEY)")

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, 500_000, 10_000):
            yield pa.record_batch({"x": range(start, start + 10_000)})

    assert db.ingest(table, batches()).rows == 500_000
    summary = db.query(f"SELECT count(*) AS n, sum(x) AS s, min(x) AS a, max(x) AS b FROM {table}").arrow()
    assert summary.to_pylist() == [{"n": 500_000, "s": sum(range(500_000)), "a": 0, "b": 499_999}]


def test_results_and_frames_can_be_loaded(db: drsdb.Connection, table: str) -> None:
    db.execute(f"CREATE TABLE {table} (x BIGINT)")
    assert db.ingest(table, db.query("SELECT CAST(7 AS BIGINT) AS x")).rows == 1
    assert db.ingest(table, pl.DataFrame({"x": [8, 9]})).rows == 2
    assert db.query(f"SELECT x FROM {table} ORDER BY x").arrow()["x"].to_pylist() == [7, 8, 9]


def test_no_rows(db: drsdb.Connection, table: str) -> None:
    db.execute(f"CREATE TABLE {table} (x BIGINT)")
    assert db.ingest(table, pa.table({"x": pa.array([], pa.int64())})).rows == 0
    assert count(db, table) == 0


@pytest.mark.parametrize("engine", ["row", "column"])
def test_a_row_that_breaks_a_rule_undoes_the_load(db: drsdb.Connection, table: str, engine: str) -> None:
    db.execute(f"CREATE TABLE {table} (x BIGINT NOT NULL, s VARCHAR(3)) WITH (engine = '{engine}')")

    def rows(x: list[int | None], s: list[str]) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([pa.array(x, pa.int64()), pa.array(s)], names=["x", "s"])

    good = [rows([*range(10_000)], ["abc"] * 10_000)] * 30
    for bad, code in ((rows([None], ["abc"]), "constraint_violation"), (rows([1], ["abcd"]), "invalid_value")):
        with pytest.raises(drsdb.DatabaseError) as caught:
            db.ingest(table, iter([*good, bad]))
        assert caught.value.code == code
        assert count(db, table) == 0


def test_a_source_that_fails_undoes_the_load(db: drsdb.Connection, table: str) -> None:
    db.execute(f"CREATE TABLE {table} (x BIGINT)")

    def broken() -> Iterator[pa.RecordBatch]:
        for _ in range(20):
            yield pa.record_batch({"x": range(100_000)})
        raise ZeroDivisionError("while making rows")

    with pytest.raises(ZeroDivisionError):
        db.ingest(table, broken())
    assert count(db, table) == 0


def test_a_value_that_does_not_fit_its_column_is_refused(db: drsdb.Connection, table: str) -> None:
    db.execute(f"CREATE TABLE {table} (x SMALLINT)")
    with pytest.raises(drsdb.DataError) as caught:
        db.ingest(table, pa.table({"x": [1 << 20]}))
    assert caught.value.code == drsdb.ErrorCode.INVALID_VALUE
    assert count(db, table) == 0


@pytest.mark.parametrize("engine", ["row", "column"])
def test_many_rows_meet_others(db: drsdb.Connection, table: str, engine: str) -> None:
    db.execute(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, n BIGINT, note TEXT) WITH (engine = '{engine}')")
    there = pa.table({"id": range(0, 40_000, 2), "n": [0] * 20_000, "note": ["there"] * 20_000})
    db.ingest(table, there)
    # Out of order, and with rows so large that fewer of them are looked up at a time.
    ids = [number * 7919 % 30_000 for number in range(30_000)]
    notes = ["x" * 100_000 if position in range(9_000, 9_200) else "new" for position in range(30_000)]
    source = f"{table}_source"
    db.ingest(source, pa.table({"id": ids, "n": range(30_000), "note": notes}), mode="create")
    done = db.execute(
        f"INSERT INTO {table} SELECT * FROM {source} "
        f"ON CONFLICT (id) DO UPDATE SET n = {table}.n + excluded.n, note = excluded.note"
    )
    assert done.rows == 30_000
    rows = db.query(f"SELECT id, n, note FROM {table}").arrow().to_pylist()
    expected = {row["id"]: row for row in there.to_pylist()}
    expected |= {key: {"id": key, "n": n, "note": note} for n, (key, note) in enumerate(zip(ids, notes, strict=True))}
    assert len(rows) == len(expected)
    assert all(expected[row["id"]] == row for row in rows)
    db.execute(f"DROP TABLE {source}")
