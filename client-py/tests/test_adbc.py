"""A driver that is not ours: ADBC's Flight SQL driver, with TLS, a login and nothing set up for drsdb."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import adbc_driver_flightsql.dbapi as flightsql
import adbc_driver_manager
import pyarrow as pa
import pytest
from adbc_driver_flightsql import DatabaseOptions

import drsdb
from local_cluster import LocalCluster

pytestmark = pytest.mark.cluster


def connect(cluster: LocalCluster, *, autocommit: bool = True, **options: str) -> Any:
    config = tomllib.loads(cluster.config.read_text())
    ca, password = (cluster.data / config[key] for key in ("ca", "password_file"))
    arguments = {
        "username": config["user"],
        "password": Path(password).read_text().strip(),
        DatabaseOptions.TLS_ROOT_CERTS.value: Path(ca).read_text(),
        **options,
    }
    url = config["index_servers"][0].replace("https://", "grpc+tls://")
    return flightsql.connect(url, db_kwargs=arguments, autocommit=autocommit)


@pytest.fixture(scope="module")
def adbc(cluster: LocalCluster) -> Iterator[Any]:
    with connect(cluster) as connection:
        yield connection


@pytest.fixture(scope="module")
def parts(db: drsdb.Connection) -> Iterator[str]:
    db.execute("CREATE SCHEMA warehouse")
    db.execute("CREATE TABLE warehouse.bins (id BIGINT PRIMARY KEY)")
    db.execute(
        "CREATE TABLE parts (id BIGINT PRIMARY KEY, name VARCHAR(20) NOT NULL, price DECIMAL(10, 2), "
        # Of each row one copy, so that every server has a part of a scan.
        "bin BIGINT REFERENCES warehouse.bins (id)) WITH (replicas = 1)"
    )
    db.ingest(
        "parts",
        pa.table(
            {
                "id": pa.array(range(20_000), pa.int64()),
                "name": [f"part {number}" for number in range(20_000)],
                "price": pa.array([Decimal(number) / 4 for number in range(20_000)], pa.decimal128(10, 2)),
            }
        ),
    )
    yield "parts"
    db.execute("DROP TABLE parts")
    db.execute("DROP TABLE warehouse.bins")
    db.execute("DROP SCHEMA warehouse")


def test_a_query(adbc: Any, parts: str) -> None:
    with adbc.cursor() as cursor:
        cursor.execute(f"SELECT id, name, price FROM {parts} ORDER BY id")
        table = cursor.fetch_arrow_table()
    assert table["id"].to_pylist() == list(range(20_000))
    assert table["price"][7].as_py() == Decimal("1.75")


def test_a_scan_of_all_servers(adbc: Any, parts: str) -> None:
    with adbc.cursor() as cursor:
        partitions, schema = cursor.adbc_execute_partitions(f"SELECT id FROM {parts}")
        assert len(partitions) == 3
        assert schema.names == ["id"]
        rows: list[int] = []
        for partition in partitions:
            cursor.adbc_read_partition(partition)
            rows += cursor.fetch_arrow_table()["id"].to_pylist()
        assert sorted(rows) == list(range(20_000))
        cursor.execute(f"SELECT id FROM {parts}")
        assert sorted(row[0] for row in cursor.fetchall()) == list(range(20_000))


def test_parameters(adbc: Any, parts: str) -> None:
    with adbc.cursor() as cursor:
        cursor.execute(f"SELECT name FROM {parts} WHERE id = $1", (7,))
        assert cursor.fetchall() == [("part 7",)]
        cursor.adbc_prepare(f"SELECT name FROM {parts} WHERE id = $1")
        cursor.execute(f"SELECT name FROM {parts} WHERE id = $1", (8,))
        assert cursor.fetchall() == [("part 8",)]


def test_statements(adbc: Any, table: str) -> None:
    with adbc.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table} (x BIGINT PRIMARY KEY, s TEXT)")
        cursor.execute(f"INSERT INTO {table} VALUES (1, 'a'), (2, 'b')")
        cursor.executemany(f"INSERT INTO {table} VALUES ($1, $2)", [(3, "c"), (4, None)])
        assert cursor.rowcount in (2, -1)
        cursor.execute(f"SELECT * FROM {table} ORDER BY x")
        assert cursor.fetchall() == [(1, "a"), (2, "b"), (3, "c"), (4, None)]


def test_an_ingest(adbc: Any, table: str) -> None:
    rows = pa.table({"x": pa.array(range(50_000), pa.int64()), "s": [str(number) for number in range(50_000)]})
    with adbc.cursor() as cursor:
        assert cursor.adbc_ingest(table, rows, mode="create") == 50_000
        assert cursor.adbc_ingest(table, rows.to_reader(), mode="append") == 50_000
        cursor.execute(f"SELECT count(*), sum(x) FROM {table}")
        assert cursor.fetchone() == (100_000, 2 * sum(range(50_000)))
        with pytest.raises(adbc_driver_manager.Error):
            cursor.adbc_ingest(table, rows, mode="create")


def numbers(cursor: Any, table: str) -> list[int]:
    cursor.execute(f"SELECT x FROM {table} ORDER BY x")
    return [row[0] for row in cursor.fetchall()]


def test_transactions(cluster: LocalCluster, adbc: Any, table: str) -> None:
    with adbc.cursor() as other:
        other.execute(f"CREATE TABLE {table} (x BIGINT PRIMARY KEY)")
        with connect(cluster, autocommit=False) as connection, connection.cursor() as cursor:
            for committed in False, True:
                cursor.execute(f"INSERT INTO {table} VALUES (1), (2), (3)")
                cursor.execute(f"DELETE FROM {table} WHERE x = 3")
                assert numbers(cursor, table) == [1, 2]
                assert numbers(other, table) == []
                (connection.commit if committed else connection.rollback)()
                assert numbers(other, table) == ([1, 2] if committed else [])


def test_an_ingest_is_a_transaction_of_its_own(cluster: LocalCluster, adbc: Any, table: str) -> None:
    """With an ingest the driver does not say which transaction is open, which drsdb's own clients do."""
    with adbc.cursor() as other:
        other.execute(f"CREATE TABLE {table} (x BIGINT PRIMARY KEY)")
        with connect(cluster, autocommit=False) as connection, connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} VALUES (1)")
            assert cursor.adbc_ingest(table, pa.table({"x": pa.array([2], pa.int64())}), mode="append") == 1
            assert numbers(other, table) == [2], "it is committed"
            assert numbers(cursor, table) == [1], "the transaction's snapshot is older"
            connection.rollback()
            assert numbers(other, table) == [2]


def test_the_catalog(adbc: Any, parts: str) -> None:
    (catalog,) = adbc.adbc_get_objects(depth="all").read_all().to_pylist()
    assert catalog["catalog_name"] == "drsdb"
    schemas = {schema["db_schema_name"]: schema["db_schema_tables"] for schema in catalog["catalog_db_schemas"]}
    assert {"public", "warehouse"} <= schemas.keys()
    (table,) = (table for table in schemas["public"] if table["table_name"] == parts)
    assert [column["column_name"] for column in table["table_columns"]] == ["id", "name", "price", "bin"]
    assert [column["ordinal_position"] for column in table["table_columns"]] == [1, 2, 3, 4]
    assert [table["table_name"] for table in schemas["warehouse"]] == ["bins"]


def test_filters_on_the_catalog(adbc: Any, parts: str) -> None:
    objects = adbc.adbc_get_objects(depth="tables", db_schema_filter="public", table_name_filter="part%").read_all()
    (catalog,) = objects.to_pylist()
    (schema,) = catalog["catalog_db_schemas"]
    assert [table["table_name"] for table in schema["db_schema_tables"]] == [parts]


def test_a_tables_schema(adbc: Any, parts: str) -> None:
    schema = adbc.adbc_get_table_schema(parts)
    assert schema.names == ["id", "name", "price", "bin"]
    assert schema.types == [pa.int64(), pa.string(), pa.decimal128(10, 2), pa.int64()]
    assert [field.nullable for field in schema] == [False, False, True, True]
    with pytest.raises(adbc_driver_manager.Error):
        adbc.adbc_get_table_schema("nowhere")


def test_what_the_server_says_of_itself(adbc: Any) -> None:
    info = adbc.adbc_get_info()
    assert info["vendor_name"] == "drsdb"
    assert info["vendor_version"]
    assert "TABLE" in {kind.upper() for kind in adbc.adbc_get_table_types()}


def test_an_error(adbc: Any) -> None:
    with adbc.cursor() as cursor:
        with pytest.raises(adbc_driver_manager.Error, match="nowhere"):
            cursor.execute("SELECT * FROM nowhere")
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


def test_a_wrong_password(cluster: LocalCluster) -> None:
    refused = pytest.raises(adbc_driver_manager.Error, match="wrong user name or password")
    with refused as caught, connect(cluster, password="wrong") as connection:
        connection.cursor().execute("SELECT 1")
    assert caught.value.status_code == adbc_driver_manager.AdbcStatusCode.UNAUTHENTICATED
