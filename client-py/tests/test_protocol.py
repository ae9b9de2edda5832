"""Calls of Flight SQL that this client does not make and others do: GetSchema, and PollFlightInfo by ADBC's driver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from adbc_driver_manager import Error as AdbcError
from adbc_driver_manager import StatementOptions

import drsdb
from drsdb import _proto
from drsdb._cluster import Answer
from drsdb._errors import CallErrors
from drsdb._prepared import Prepared
from drsdb._route import READ
from local_cluster import LocalCluster
from test_adbc import connect

pytestmark = pytest.mark.cluster

ROWS = 20_000


@pytest.fixture(scope="module")
def stock(db: drsdb.Connection) -> Iterator[str]:
    db.execute("CREATE TABLE stock (id BIGINT PRIMARY KEY, name VARCHAR(20) NOT NULL, price DECIMAL(10, 2))")
    names = [f"item {number}" for number in range(ROWS)]
    db.ingest("stock", pa.table({"id": pa.array(range(ROWS), pa.int64()), "name": names}))
    yield "stock"
    db.execute("DROP TABLE stock")


def get_schema(db: drsdb.Connection, command: bytes) -> pa.Schema:
    return db._cluster.request(lambda answer: schema_at(answer, command), READ)


def schema_at(answer: Answer, command: bytes) -> pa.Schema:
    with CallErrors(answer.location).translated():
        result: Any = answer.client.get_schema(flight.FlightDescriptor.for_command(command), answer.options)
    schema: pa.Schema = result.schema
    return schema


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM {}",
        "SELECT name, count(*) AS items, sum(price) AS total FROM {} GROUP BY name ORDER BY total",
        "SELECT id FROM {} WHERE id < 0",
        "SELECT 1 AS one, 'x' AS x, NULL AS nothing",
        "SHOW time_zone",
        "EXPLAIN SELECT * FROM {}",
    ],
)
def test_a_schema_is_that_of_the_rows(db: drsdb.Connection, stock: str, sql: str) -> None:
    sql = sql.format(stock)
    schema = get_schema(db, _proto.statement_query(sql))
    result = db.query(sql)
    assert schema.equals(result.schema, check_metadata=True)
    assert schema.equals(result.arrow().schema)


def test_nothing_runs_for_a_schema(db: drsdb.Connection, stock: str) -> None:
    assert len(get_schema(db, _proto.statement_query(f"INSERT INTO {stock} VALUES (-1, 'x', NULL)"))) == 0
    assert len(get_schema(db, _proto.statement_query(f"DROP TABLE {stock}"))) == 0
    assert db.query(f"SELECT count(*) FROM {stock}").arrow()[0].to_pylist() == [ROWS]
    with pytest.raises(drsdb.ProgrammingError, match="nowhere"):
        get_schema(db, _proto.statement_query("SELECT * FROM nowhere"))


def test_the_schema_of_a_prepared_statement(db: drsdb.Connection, stock: str) -> None:
    sql = f"SELECT name, price FROM {stock} WHERE id = $1"

    def ask(answer: Answer) -> pa.Schema:
        with Prepared(answer, sql, None) as prepared:
            return schema_at(answer, _proto.prepared_statement_query(prepared.handle))

    schema = db._cluster.request(ask, READ)
    assert schema.names == ["name", "price"]
    assert schema.types == [pa.string(), pa.decimal128(10, 2)]


@pytest.mark.parametrize(("value", "expected"), [(1.5, pa.float64()), (7, pa.int64()), ("x", pa.string())])
def test_the_schema_of_a_prepared_statement_with_values(
    db: drsdb.Connection, value: object, expected: pa.DataType
) -> None:
    def ask(answer: Answer) -> pa.Schema:
        with Prepared(answer, "SELECT ? AS given", None) as prepared:
            handle = prepared.bind(pa.RecordBatch.from_pydict({"1": [value]}))
            return schema_at(answer, _proto.prepared_statement_query(handle))

    assert db._cluster.request(ask, READ).types == [expected]


def test_the_schema_of_metadata(db: drsdb.Connection) -> None:
    command = _proto._any("CommandGetDbSchemas", b"")
    assert get_schema(db, command).names == ["catalog_name", "db_schema_name"]


def test_a_poll_has_everything_at_once(cluster: LocalCluster, stock: str) -> None:
    with connect(cluster) as connection, connection.cursor() as cursor:
        cursor.adbc_statement.set_options(**{StatementOptions.INCREMENTAL.value: "true"})
        rows: list[Any] = []
        # The driver polls until there is nothing more.
        while True:
            partitions, schema = cursor.adbc_execute_partitions(f"SELECT id FROM {stock}")
            if not partitions:
                break
            assert schema.names == ["id"]
            assert cursor.adbc_statement.get_option_float(StatementOptions.PROGRESS.value) == 1.0
            with connection.cursor() as reader:
                for partition in partitions:
                    reader.adbc_read_partition(partition)
                    rows += reader.fetch_arrow_table()["id"].to_pylist()
        assert sorted(rows) == list(range(ROWS))
        with pytest.raises(AdbcError, match="nowhere"):
            cursor.adbc_execute_partitions("SELECT * FROM nowhere")
