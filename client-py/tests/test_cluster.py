"""Login and failover over index servers, against fake ones."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
import pytest

import drsdb
from fakes import Behavior, FakeServer, Tls, Wire, error_detail, index_servers, info_of

Start = Callable[..., FakeServer]
Connect = Callable[..., drsdb.Connection]

EMPTY = pa.schema([("x", pa.int64())])


def answering(name: str, log: list[str]) -> Behavior:
    """An index server that writes down who was asked, and whose answers have no rows."""

    def flight_info(_command: bytes) -> flight.FlightInfo:
        log.append(name)
        return info_of(EMPTY, [])

    def put(_command: bytes, _reader: object) -> bytes:
        log.append(name)
        return b"\x08\x01"

    return Behavior(flight_info=flight_info, put=put)


@pytest.fixture
def closed_port() -> str:
    """An address where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"https://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(autouse=True)
def first_server_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients begin with a random server; the tests want to know with which."""
    monkeypatch.setattr("random.randrange", lambda _: 0)


def test_a_query_is_asked_of_one_server(fake: Start, connect_fake: Connect) -> None:
    log: list[str] = []
    db = connect_fake(fake(answering("a", log)), fake(answering("b", log)))
    for _ in range(3):
        assert db.query("SELECT 1").arrow().num_rows == 0
    assert log == ["a", "a", "a"]


def test_clients_spread_over_servers(fake: Start, connect_fake: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.randrange", lambda count: count - 1)
    log: list[str] = []
    connect_fake(fake(answering("a", log)), fake(answering("b", log))).query("SELECT 1")
    assert log == ["b"]


def test_a_server_that_is_gone_is_passed_over(fake: Start, connect_fake: Connect, closed_port: str) -> None:
    log: list[str] = []
    db = connect_fake(closed_port, fake(answering("b", log)))
    db.query("SELECT 1")
    db.execute("INSERT INTO t VALUES (1)")
    assert log == ["b", "b"]


def test_a_server_that_goes_away_is_passed_over(fake: Start, connect_fake: Connect) -> None:
    log: list[str] = []
    first, second = fake(answering("a", log)), fake(answering("b", log))
    db = connect_fake(first, second)
    db.query("SELECT 1")
    first.shutdown()
    db.query("SELECT 1")
    # The write cannot have arrived at the first server, so it may go on to the second.
    db.execute("INSERT INTO t VALUES (1)")
    assert log == ["a", "b", "b"]
    assert db.index_servers[0] == second.location


def test_a_server_that_is_cut_off_is_passed_over(
    fake: Start, wire: Callable[[FakeServer], Wire], connect_fake: Connect
) -> None:
    log: list[str] = []
    way = wire(fake(answering("a", log)))
    db = connect_fake(way.location, fake(answering("b", log)))
    db.query("SELECT 1")
    way.freeze()
    started = time.monotonic()
    db.query("SELECT 1")
    assert log == ["a", "b"]
    assert time.monotonic() - started < 25


def test_a_server_that_fails_is_last_and_after_two_failures_dropped(fake: Start, connect_fake: Connect) -> None:
    log: list[str] = []
    servers = [fake(answering(name, log)) for name in "abc"]
    db = connect_fake(*servers)
    first, second, third = (server.location for server in servers)
    for server in servers[:2]:
        server.shutdown()
        db.query("SELECT 1")
    assert list(db.index_servers) == [third, first, second]
    fake(answering("b again", log), servers[1].port)
    servers[2].shutdown()
    db.query("SELECT 1")
    assert list(db.index_servers) == [second, third]
    assert log == ["b", "c", "b again"]


def test_when_all_are_gone_the_error_names_them_and_the_first_to_come_back_serves(
    fake: Start, connect_fake: Connect
) -> None:
    log: list[str] = []
    servers = [fake(answering(name, log)) for name in "ab"]
    db = connect_fake(*servers)
    for server in servers:
        server.shutdown()
    for _ in range(3):
        with pytest.raises(drsdb.OperationalError, match="no index server answers") as caught:
            db.query("SELECT 1")
        assert caught.value.code == drsdb.ErrorCode.UNAVAILABLE
        assert all(server.location in str(caught.value) for server in servers)
    fake(answering("b again", log), servers[1].port)
    assert db.query("SELECT 1").arrow().num_rows == 0
    assert log == ["b again"]


def test_an_index_server_that_reports_another_as_down_is_not_dropped(fake: Start, connect_fake: Connect) -> None:
    log: list[str] = []

    def refuse(_command: bytes) -> flight.FlightInfo:
        raise flight.FlightUnavailableError("no leader")

    detail = error_detail("unavailable", "no leader", server="x")
    first = fake(Behavior(flight_info=refuse, detail=detail))
    db = connect_fake(first, fake(answering("b", log)))
    db.query("SELECT 1")
    assert log == ["b"]
    assert first.location in db.index_servers


def test_the_cluster_tells_its_index_servers(fake: Start, connect_fake: Connect) -> None:
    log: list[str] = []
    second = fake(answering("b", log))
    behavior = answering("a", log)
    first = fake(behavior)
    behavior.action = lambda name, _: [index_servers(first.url, second.url)] if name == "drsdb.IndexServers" else []
    db = connect_fake(first)
    assert db.index_servers == (first.location, second.location)
    first.shutdown()
    db.query("SELECT 1")
    assert log == ["b"]


def test_one_login_serves_all_servers(fake: Start, connect_fake: Connect) -> None:
    log: list[str] = []
    first, second = fake(answering("a", log)), fake(answering("b", log))
    db = connect_fake(first, second)
    first.shutdown()
    db.query("SELECT 1")
    assert (first.behavior.logins, second.behavior.logins) == (1, 0)


def test_a_token_that_ended_is_renewed(fake: Start, connect_fake: Connect) -> None:
    log: list[str] = []
    server = fake(answering("a", log))
    db = connect_fake(server)
    server.behavior.token = b"Bearer another"
    db.execute("INSERT INTO t VALUES (1)")
    assert log == ["a"]
    assert server.behavior.logins == 2


def test_a_password_that_is_wrong_by_now_is_said_at_once(
    fake: Start, connect_fake: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    server = fake(answering("a", log))
    db = connect_fake(server)
    monkeypatch.setattr("fakes.PASSWORD", "another")
    server.behavior.token = b"Bearer another"
    for logins in (2, 3):
        with pytest.raises(drsdb.OperationalError, match="the password is wrong") as caught:
            db.query("SELECT 1")
        assert caught.value.code == drsdb.ErrorCode.UNAUTHENTICATED
        assert (server.behavior.logins, log) == (logins, [])


def test_a_wrong_password_is_said_at_once(fake: Start, connect_fake: Connect) -> None:
    first, second = fake(), fake()
    with pytest.raises(drsdb.OperationalError, match="the password is wrong") as caught:
        connect_fake(first, second, password="wrong")
    assert caught.value.code == drsdb.ErrorCode.UNAUTHENTICATED
    assert (first.behavior.logins, second.behavior.logins) == (1, 0)


def test_a_wrong_ca_is_explained(tls: Tls, fake: Start, connect_fake: Connect) -> None:
    server = fake()
    with pytest.raises(drsdb.OperationalError, match=r"Hint: .*pass the cluster's ca\.pem") as caught:
        connect_fake(server, ca=tls.other_ca)
    assert caught.value.fields["server"] == server.location
    assert server.behavior.logins == 0


def test_a_closed_connection_refuses(fake: Start, connect_fake: Connect) -> None:
    with connect_fake(fake(answering("a", []))) as db:
        db.query("SELECT 1")
    with pytest.raises(drsdb.InterfaceError, match="the connection is closed"):
        db.query("SELECT 1")
    db.close()


def test_what_is_set_is_sent_to_every_server(fake: Start, connect_fake: Connect) -> None:
    first, second = fake(answering("a", [])), fake(answering("b", []))
    db = connect_fake(first, second)
    first.behavior.headers = {"set-cookie": b"drsdb_session=abc=; Path=/; Secure"}
    db.execute("SET time_zone = '+02:00'")
    db.query("SELECT 1")
    first.shutdown()
    db.query("SELECT 1")
    assert first.behavior.cookies[-2:] == ["", "drsdb_session=abc="]
    assert second.behavior.cookies[-2:] == ["drsdb_session=abc="] * 2
    second.behavior.headers = {"set-cookie": b"drsdb_session=; Max-Age=0"}
    db.query("SELECT 1")
    db.query("SELECT 1")
    assert second.behavior.cookies[-1] == ""


@pytest.mark.parametrize("parameters", ["text", b"bytes", {"name": 1}, 7])
def test_parameters_that_are_no_sequence_are_refused(fake: Start, connect_fake: Connect, parameters: Any) -> None:
    db = connect_fake(fake(answering("a", [])))
    with pytest.raises(drsdb.InterfaceError, match=r"Hint: write \[value\] for a single one"):
        db.query("SELECT ?", parameters)
