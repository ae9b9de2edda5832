"""What a real cluster says to bad input, and that it goes on serving after it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

import drsdb
from fakes import Tls
from local_cluster import LocalCluster

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def orders(db: drsdb.Connection) -> Iterator[None]:
    """A table to be wrong about."""
    db.execute("CREATE TABLE orders (id BIGINT PRIMARY KEY, price DECIMAL(10, 2), note TEXT, small SMALLINT)")
    db.execute("INSERT INTO orders VALUES (1, 2.50, 'x', 32767)")
    yield
    db.execute("DROP TABLE orders")


@pytest.fixture(autouse=True)
def still_serves(db: drsdb.Connection) -> Iterator[None]:
    """After every insult, the cluster answers."""
    yield
    assert db.query("SELECT note FROM orders WHERE id = 1").arrow()["note"].to_pylist() == ["x"]


@pytest.mark.parametrize(
    ("sql", "line", "column"),
    [("SELEC 1", "1", "1"), ("SELECT *\nFROM orders\nWHERE id ==== 1", "3", None), ("SELECT (1", "1", None)],
)
def test_a_syntax_error_has_a_place(db: drsdb.Connection, sql: str, line: str, column: str | None) -> None:
    with pytest.raises(drsdb.ProgrammingError) as caught:
        db.query(sql)
    assert caught.value.code == drsdb.ErrorCode.SYNTAX_ERROR
    assert caught.value.fields["line"] == line
    assert int(caught.value.fields["column"]) > 0
    assert column is None or caught.value.fields["column"] == column


@pytest.mark.parametrize(
    ("sql", "near"),
    [("SELECT * FROM ordrs", "orders"), ("SELECT pric FROM orders", "price"), ("SELECT * FROM publc.orders", "public")],
)
def test_an_unknown_name_is_corrected(db: drsdb.Connection, sql: str, near: str) -> None:
    with pytest.raises(drsdb.ProgrammingError) as caught:
        db.query(sql)
    assert caught.value.code == drsdb.ErrorCode.NOT_FOUND
    assert near in caught.value.hint


@pytest.mark.parametrize(
    ("sql", "codes"),
    [
        ("SELECT id / 0 FROM orders", {"invalid_value"}),
        ("SELECT CAST('x' AS BIGINT)", {"invalid_value"}),
        ("SELECT CAST(note AS BIGINT) FROM orders", {"invalid_value"}),
        ("SELECT id * 9223372036854775807 * 2 FROM orders", {"invalid_value"}),
        ("SELECT note + price FROM orders", {"type_mismatch", "invalid_argument", "invalid_value"}),
        ("SELECT id FROM orders GROUP BY note", {"invalid_argument"}),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", {"unsupported"}),
        ("COMMIT", {"invalid_argument"}),
        ("UPDATE orders SET id = note", {"invalid_value"}),
        ("UPDATE orders SET id = NULL", {"constraint_violation"}),
        ("CREATE TABLE orders (x INT)", {"already_exists"}),
        ("CREATE TABLE z (x INT, x INT)", {"invalid_argument"}),
        ("CREATE TABLE z (x NOTATYPE)", {"unsupported", "not_found", "syntax_error"}),
        ("INSERT INTO orders VALUES (1)", {"invalid_argument"}),
        ("INSERT INTO orders (id) VALUES (NULL)", {"constraint_violation"}),
    ],
)
def test_a_typed_error(db: drsdb.Connection, sql: str, codes: set[str]) -> None:
    with pytest.raises(drsdb.DatabaseError) as caught, db.cursor() as cursor:
        cursor.execute(sql).fetchall() if sql.startswith("SELECT") else cursor.execute(sql)
    assert caught.value.code in codes, str(caught.value)
    assert caught.value.message


def test_ten_thousand_parentheses(db: drsdb.Connection) -> None:
    with pytest.raises(drsdb.DatabaseError) as caught:
        db.query("SELECT " + "(" * 10_000 + "1" + ")" * 10_000)
    assert caught.value.code in ("syntax_error", "resource_exhausted", "invalid_argument", "unsupported")


def test_fifty_megabytes_of_sql(db: drsdb.Connection) -> None:
    with pytest.raises(drsdb.DatabaseError) as caught:
        db.query("SELECT '" + "x" * 50_000_000 + "'")
    assert caught.value.code == drsdb.ErrorCode.RESOURCE_EXHAUSTED


def test_wrong_logins(cluster: LocalCluster) -> None:
    for login in ({"password": "wrong"}, {"user": "nobody"}, {"user": ""}):
        with pytest.raises(drsdb.OperationalError) as caught:
            cluster.connect(**login)
        assert caught.value.code == drsdb.ErrorCode.UNAUTHENTICATED


def test_a_wrong_ca(cluster: LocalCluster, tls: Tls) -> None:
    with pytest.raises(drsdb.OperationalError, match="not issued by the CA in use"):
        cluster.connect(ca=tls.other_ca)


def test_a_client_without_tls(db: drsdb.Connection) -> None:
    host, port = _address(db)
    with socket.create_connection((host, port), 10) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        plain.settimeout(10)
        # HTTP/2's GOAWAY, which says why, and the end.
        answer = b""
        with suppress(ConnectionResetError):
            while part := plain.recv(4096):
                answer += part
    assert b"TLS" in answer


def test_a_client_with_tls_1_2(db: drsdb.Connection) -> None:
    host, port = _address(db)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection((host, port), 10) as plain,
        pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"),
    ):
        context.wrap_socket(plain)


def _address(db: drsdb.Connection) -> tuple[str, int]:
    parts = urlsplit(db.index_servers[0])
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port
