"""DB-API 2.0 on a real cluster: what PEP 249 asks of a driver."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pytest

import drsdb
from local_cluster import LocalCluster

pytestmark = pytest.mark.cluster

PEOPLE = [
    (1, "Ada", Decimal("1.50"), datetime.date(1815, 12, 10)),
    (2, "Charles", None, datetime.date(1791, 12, 26)),
    (3, None, Decimal("-3.25"), None),
]


@pytest.fixture
def people(db: drsdb.Connection, table: str) -> str:
    db.execute(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, name TEXT, debt DECIMAL(8, 2), born DATE)")
    with db.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?)", PEOPLE)
        assert cursor.rowcount == 3
        assert cursor.description is None
    return table


@pytest.fixture
def cursor(db: drsdb.Connection) -> Iterator[drsdb.Cursor]:
    with db.cursor() as cursor:
        yield cursor


def test_the_modules_constants() -> None:
    assert (drsdb.apilevel, drsdb.threadsafety, drsdb.paramstyle) == ("2.0", 2, "qmark")


def test_the_exceptions_form_the_hierarchy(db: drsdb.Connection) -> None:
    for name in ("Data", "Operational", "Integrity", "Internal", "Programming", "NotSupported"):
        kind = getattr(drsdb, f"{name}Error")
        assert issubclass(kind, drsdb.DatabaseError)
        assert getattr(db, f"{name}Error") is kind
    assert issubclass(drsdb.InterfaceError, drsdb.Error)
    assert not issubclass(drsdb.InterfaceError, drsdb.DatabaseError)
    assert not issubclass(drsdb.Warning, drsdb.Error)


def test_fetching(cursor: drsdb.Cursor, people: str) -> None:
    select = f"SELECT * FROM {people} ORDER BY id"
    assert cursor.execute(select).fetchall() == PEOPLE
    assert cursor.fetchall() == []
    assert cursor.fetchone() is None
    cursor.execute(select)
    assert cursor.rowcount == -1
    assert cursor.fetchone() == PEOPLE[0]
    assert cursor.fetchmany() == [PEOPLE[1]]
    assert cursor.fetchmany(5) == [PEOPLE[2]]
    assert cursor.fetchmany(5) == []
    cursor.arraysize = 2
    assert cursor.execute(select).fetchmany() == PEOPLE[:2]
    assert list(cursor) == PEOPLE[2:]
    assert cursor.execute(select).fetch_arrow_table().num_rows == 3


def test_the_description(cursor: drsdb.Cursor, people: str) -> None:
    cursor.execute(f"SELECT id, name, debt, born, name = 'Ada' AS ada FROM {people}")
    assert cursor.description is not None
    assert [column[0] for column in cursor.description] == ["id", "name", "debt", "born", "ada"]
    assert [len(column) for column in cursor.description] == [7] * 5
    codes = [column[1] for column in cursor.description]
    assert codes[0] == drsdb.NUMBER
    assert codes[1] == drsdb.STRING
    assert codes[2] == drsdb.NUMBER
    assert codes[3] == drsdb.DATETIME
    assert codes[4] == pa.bool_()
    assert codes[1] != drsdb.NUMBER
    assert cursor.description[2][4:6] == (8, 2)


def test_parameters(cursor: drsdb.Cursor, people: str) -> None:
    cursor.execute(f"SELECT id FROM {people} WHERE name = ? OR born < ?", ["Ada", drsdb.Date(1800, 1, 1)])
    assert sorted(cursor.fetchall()) == [(1,), (2,)]
    cursor.execute(f"SELECT id FROM {people} WHERE debt = ?", [Decimal("-3.25")])
    assert cursor.fetchall() == [(3,)]


def test_counts(cursor: drsdb.Cursor, people: str) -> None:
    cursor.execute(f"INSERT INTO {people} (id) VALUES (4), (5)")
    assert cursor.rowcount == 2
    cursor.execute(f"INSERT INTO {people} (id) VALUES (?)", [6])
    assert cursor.rowcount == 1
    cursor.executemany(f"INSERT INTO {people} (id) VALUES (?)", [])
    assert cursor.rowcount == 0
    assert cursor.execute(f"SELECT count(*) FROM {people}").fetchone() == (6,)


def test_many_rows_are_streamed(cursor: drsdb.Cursor) -> None:
    cursor.execute("SELECT value FROM generate_series(1, 100000) ORDER BY value")
    assert [row[0] for row in cursor] == list(range(1, 100_001))


def test_misuse(db: drsdb.Connection, people: str) -> None:
    cursor = db.cursor()
    with pytest.raises(drsdb.ProgrammingError, match="execute a query first"):
        cursor.fetchone()
    cursor.execute(f"INSERT INTO {people} (id) VALUES (7)")
    with pytest.raises(drsdb.ProgrammingError, match="execute a query first"):
        cursor.fetchall()
    cursor.close()
    cursor.close()
    for use in (cursor.fetchone, cursor.fetchall, lambda: cursor.execute("SELECT 1")):
        with pytest.raises(drsdb.InterfaceError, match="the cursor is closed"):
            use()


def test_an_error_leaves_the_cursor_usable(cursor: drsdb.Cursor) -> None:
    with pytest.raises(drsdb.ProgrammingError):
        cursor.execute("SELECT * FROM nowhere")
    assert cursor.execute("SELECT 1").fetchall() == [(1,)]


def test_transactions_are_single_statements(db: drsdb.Connection) -> None:
    assert db.autocommit
    db.commit()
    with pytest.raises(drsdb.NotSupportedError, match="committed on its own"):
        db.rollback()


def test_a_closed_connection(cluster: LocalCluster) -> None:
    with cluster.connect() as connection:
        cursor = connection.cursor()
        assert cursor.connection is connection
    with pytest.raises(drsdb.InterfaceError, match="the connection is closed"):
        cursor.execute("SELECT 1")


def test_constructors() -> None:
    assert drsdb.Date(2024, 2, 29) == datetime.date(2024, 2, 29)
    assert drsdb.Binary(b"x") == b"x"
    ticks = datetime.datetime(2024, 2, 29, 12, 30, 15).timestamp()
    assert drsdb.DateFromTicks(ticks) == drsdb.Date(2024, 2, 29)
    assert drsdb.TimeFromTicks(ticks) == drsdb.Time(12, 30, 15)
    assert drsdb.TimestampFromTicks(ticks) == drsdb.Timestamp(2024, 2, 29, 12, 30, 15)


@pytest.mark.filterwarnings("ignore:pandas only supports SQLAlchemy:UserWarning")
def test_pandas_reads_through_it(db: drsdb.Connection, people: str) -> None:
    frame = pd.read_sql(f"SELECT id, name FROM {people} ORDER BY id", db)
    assert frame["id"].to_list() == [1, 2, 3]
