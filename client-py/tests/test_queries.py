"""Queries, results and sessions on a real cluster."""

from __future__ import annotations

import datetime
import decimal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.flight as flight
import pytest

import drsdb
from drsdb import _proto
from drsdb._cluster import Answer
from drsdb._errors import CallErrors
from drsdb._route import READ
from local_cluster import LocalCluster

pytestmark = pytest.mark.cluster

ROWS = 300_000


@pytest.fixture(scope="module")
def numbers(db: drsdb.Connection) -> Iterator[str]:
    """A table with the numbers below ROWS, spread over all storage servers."""
    # One copy of each row: with more, one server would answer such small queries alone.
    db.execute("CREATE TABLE numbers (n BIGINT PRIMARY KEY, half DOUBLE, name TEXT) WITH (replicas = 1)")
    column = pa.array(range(ROWS), pa.int64())
    rows = pa.table({"n": column, "half": pc.divide(column.cast(pa.float64()), 2.0), "name": column.cast(pa.string())})
    assert db.ingest("numbers", rows).rows == ROWS
    yield "numbers"
    db.execute("DROP TABLE numbers")


def test_a_constant(db: drsdb.Connection) -> None:
    table = db.query("SELECT 1 AS one, 'x' AS x, NULL AS nothing").arrow()
    assert table.to_pylist() == [{"one": 1, "x": "x", "nothing": None}]


def test_a_scan_comes_from_all_storage_servers(db: drsdb.Connection, numbers: str) -> None:
    result = db.query(f"SELECT * FROM {numbers}")
    assert result.endpoints == 3
    table = result.arrow()
    assert table.schema.types == [pa.int64(), pa.float64(), pa.string()]
    assert sorted(values(table["n"])) == list(range(ROWS))
    assert pc.all(pc.equal(table["half"], pc.divide(table["n"].cast(pa.float64()), 2.0))).as_py()
    assert pc.all(pc.equal(table["name"], table["n"].cast(pa.string()))).as_py()


def test_result_rows_do_not_come_from_the_index_server(db: drsdb.Connection, numbers: str) -> None:
    info = _flight_info(db, f"SELECT * FROM {numbers}")
    places = {location.uri.decode() for endpoint in info.endpoints for location in endpoint.locations}
    assert len(places) == 3
    assert places.isdisjoint(db.index_servers)


def test_a_sorted_result_is_ordered_in_every_form(db: drsdb.Connection, numbers: str) -> None:
    sql = f"SELECT n FROM {numbers} ORDER BY n DESC"
    expected = list(range(ROWS - 1, -1, -1))
    assert db.query(sql).ordered
    assert db.query(sql).arrow()["n"].to_pylist() == expected
    assert [row for part in db.query(sql).batches() for row in part["n"].to_pylist()] == expected
    assert [row[0] for row in db.query(sql).rows()] == expected


def test_a_small_buffer_loses_nothing(db: drsdb.Connection, numbers: str) -> None:
    batches = db.query(f"SELECT n FROM {numbers}").batches(buffer_bytes=1)
    rows = [row for part in batches for row in values(part["n"])]
    assert sorted(rows) == list(range(ROWS))


def test_an_abandoned_stream_leaves_the_connection_usable(db: drsdb.Connection, numbers: str) -> None:
    with db.query(f"SELECT * FROM {numbers}") as result:
        next(result.batches(buffer_bytes=1))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("drsdb-pull")]
    assert db.query(f"SELECT count(*) FROM {numbers}").arrow()[0].to_pylist() == [ROWS]


def test_an_empty_result_has_its_schema(db: drsdb.Connection, numbers: str) -> None:
    for sql in (f"SELECT * FROM {numbers} WHERE n < 0", f"SELECT * FROM {numbers} WHERE n < 0 ORDER BY n"):
        table = db.query(sql).arrow()
        assert table.num_rows == 0
        assert table.schema.types == [pa.int64(), pa.float64(), pa.string()]


def test_aggregates_and_joins_are_right(db: drsdb.Connection, numbers: str) -> None:
    sql = f"""
        SELECT a.n % 7 AS k, count(*) AS rows, sum(b.half) AS total
        FROM {numbers} a JOIN {numbers} b ON a.n = b.n + 1
        GROUP BY 1 ORDER BY 1"""
    expected = [
        {"k": k, "rows": len(range(k or 7, ROWS, 7)), "total": sum((n - 1) / 2 for n in range(k or 7, ROWS, 7))}
        for k in range(7)
    ]
    assert db.query(sql).arrow().to_pylist() == expected


def test_frames(db: drsdb.Connection, numbers: str) -> None:
    result = db.query(f"SELECT n, name FROM {numbers} WHERE n < 3 ORDER BY n")
    assert result.df().to_dict("list") == {"n": [0, 1, 2], "name": ["0", "1", "2"]}
    assert result.pl().to_dict(as_series=False) == {"n": [0, 1, 2], "name": ["0", "1", "2"]}


@pytest.mark.parametrize("placeholder", ["?", "$1"])
def test_parameters(db: drsdb.Connection, numbers: str, placeholder: str) -> None:
    sql = f"SELECT n FROM {numbers} WHERE n = {placeholder}"
    for n in (0, 7, ROWS - 1):
        assert db.query(sql, [n]).arrow()["n"].to_pylist() == [n]
    assert db.query(sql, [ROWS]).arrow().num_rows == 0
    assert db.query(sql, [None]).arrow().num_rows == 0


def test_parameters_cannot_become_sql(db: drsdb.Connection, numbers: str) -> None:
    evil = f"'; DROP TABLE {numbers}; --"
    assert db.query(f"SELECT n FROM {numbers} WHERE name = ? AND '?' = '?'", [evil]).arrow().num_rows == 0
    assert db.query("SELECT ? AS x", [evil]).arrow()["x"].to_pylist() == [evil]


@pytest.mark.parametrize("value", [7, 1.5, True, decimal.Decimal("1.25"), datetime.date(2024, 2, 29), None])
def test_a_parameter_that_nothing_says_the_type_of_has_its_values(db: drsdb.Connection, value: Any) -> None:
    assert db.query("SELECT ? AS x", [value]).arrow()["x"].to_pylist() == [value]


@pytest.mark.parametrize("value", [1.5, decimal.Decimal("1.5")])
def test_a_fraction_is_compared_as_it_is(db: drsdb.Connection, numbers: str, value: Any) -> None:
    assert db.query(f"SELECT n FROM {numbers} WHERE n = ?", [value]).arrow().num_rows == 0
    assert db.query(f"SELECT n FROM {numbers} WHERE n < ? ORDER BY n", [value]).arrow()["n"].to_pylist() == [0, 1]
    assert db.query("SELECT n + ? AS x FROM (SELECT 1 AS n) AS one", [value]).arrow()["x"].to_pylist()[0] == 2.5


def test_a_wrong_number_of_parameters_is_refused(db: drsdb.Connection, numbers: str) -> None:
    with pytest.raises(drsdb.ProgrammingError, match="2 parameters, and row 0 of the values has 1"):
        db.query(f"SELECT n FROM {numbers} WHERE n = ? OR n = ?", [1])
    with pytest.raises(drsdb.ProgrammingError):
        db.query(f"SELECT n FROM {numbers} WHERE n = ?")


def test_threads_share_a_connection(db: drsdb.Connection, numbers: str) -> None:
    def ask(n: int) -> list[Any]:
        return values(db.query(f"SELECT n FROM {numbers} WHERE n = ?", [n]).arrow()["n"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(40))) == [[n] for n in range(40)]


def test_settings_last_for_the_session(cluster: LocalCluster) -> None:
    with cluster.connect() as one, cluster.connect() as other:
        one.execute("SET batch_rows = 10")
        assert "10" in one.query("SHOW batch_rows").arrow().to_pylist()[0].values()
        assert "10" not in other.query("SHOW batch_rows").arrow().to_pylist()[0].values()


def test_a_ticket_is_bound_to_its_user(db: drsdb.Connection, cluster: LocalCluster, numbers: str) -> None:
    db.execute("CREATE USER eve PASSWORD 'eve knows it'")
    try:
        info = _flight_info(db, f"SELECT * FROM {numbers}")
        with cluster.connect(user="eve", password="eve knows it") as eve:
            (place, *_), ticket = info.endpoints[0].locations, info.endpoints[0].ticket

            def pull(who: drsdb.Connection, ticket: flight.Ticket) -> None:
                who._cluster.authenticated(place.uri.decode(), lambda answer: _pull(answer, ticket))

            pull(db, ticket)
            with pytest.raises(drsdb.OperationalError) as caught:
                pull(eve, ticket)
            assert caught.value.code == drsdb.ErrorCode.TICKET_INVALID
            changed = bytearray(ticket.ticket)
            changed[len(changed) // 2] ^= 1
            for garbage in (bytes(changed), b"", b"garbage"):
                with pytest.raises(drsdb.OperationalError) as caught:
                    pull(db, flight.Ticket(garbage))
                assert caught.value.code == drsdb.ErrorCode.TICKET_INVALID
    finally:
        db.execute("DROP USER eve")


def test_a_login_ends_with_its_password(db: drsdb.Connection, cluster: LocalCluster, numbers: str) -> None:
    db.execute("CREATE USER eve PASSWORD 'eve knows it'")
    try:
        with cluster.connect(user="eve", password="eve knows it") as eve:
            endpoint = _flight_info(eve, f"SELECT * FROM {numbers}").endpoints[0]
            index, storage = eve.index_servers[0], endpoint.locations[0].uri.decode()
            old = eve._cluster._bearer
            assert old is not None

            def refused(ask: Callable[[Answer], object], server: str) -> bool:
                """Asks with the old token, without logging in again."""
                try:
                    ask(eve._cluster._answer(server, old, READ))
                except drsdb.OperationalError as error:
                    if error.code != drsdb.ErrorCode.UNAUTHENTICATED:
                        raise
                    return "log in again" in error.hint
                return False

            def plan(answer: Answer) -> None:
                descriptor = flight.FlightDescriptor.for_command(_proto.statement_query("SELECT 1"))
                with CallErrors(answer.location).translated():
                    answer.client.get_flight_info(descriptor, answer.options)

            def pull(answer: Answer) -> None:
                _pull(answer, endpoint.ticket)

            assert not refused(plan, index)
            assert not refused(pull, storage)
            db.execute("ALTER USER eve PASSWORD 'eve does not'")
            assert refused(plan, index)
            # Storage servers hear of it with the next ping.
            _until(lambda: refused(pull, storage))
            with pytest.raises(drsdb.OperationalError, match="wrong user name or password"):
                eve.query("SELECT 1")

            # Another user of the same name and password: the client logs in again, the old token stays refused.
            db.execute("DROP USER eve")
            db.execute("CREATE USER eve PASSWORD 'eve knows it'")
            assert eve.query("SELECT 1 AS one").arrow().num_rows == 1
            assert refused(plan, index)
            assert refused(pull, storage)
            assert eve.query(f"SELECT count(name) AS n FROM {numbers}").arrow().to_pylist() == [{"n": ROWS}]
    finally:
        db.execute("DROP USER eve")


def test_a_ticket_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRSDB_TICKET_LIFETIME_S", "1")
    cluster = LocalCluster(tmp_path, storage_servers=1)
    try:
        with cluster.connect() as db:
            db.execute("CREATE TABLE t (n BIGINT)")
            db.execute("INSERT INTO t VALUES (1)")
            endpoint = _flight_info(db, "SELECT n FROM t").endpoints[0]
            place = endpoint.locations[0].uri.decode()

            def pull_until_refused() -> None:
                deadline = time.monotonic() + 30
                while time.monotonic() < deadline:
                    table = db._cluster.authenticated(place, lambda answer: _pull(answer, endpoint.ticket))
                    assert table.num_rows == 1

            with pytest.raises(drsdb.OperationalError) as caught:
                pull_until_refused()
            assert caught.value.code == drsdb.ErrorCode.TICKET_EXPIRED
            assert db.query("SELECT n FROM t").arrow().num_rows == 1
    finally:
        cluster.stop()


def test_a_query_that_takes_longer_than_it_may_is_a_timeout(cluster: LocalCluster, numbers: str) -> None:
    endless = f"SELECT a.n, b.name FROM {numbers} a JOIN {numbers} b ON a.n % 7 = b.n % 7"
    with cluster.connect() as db:
        db.execute("SET statement_timeout = '1s'")
        assert db.query("SHOW statement_timeout").arrow()["value"].to_pylist() == ["1s"]
        with pytest.raises(drsdb.OperationalError) as caught:
            db.query(endless).arrow()
        assert caught.value.code == drsdb.ErrorCode.TIMEOUT
        assert "SET statement_timeout" in caught.value.hint
        assert not caught.value.retryable
        with db.transaction() as tx, pytest.raises(drsdb.OperationalError) as caught:
            tx.query(endless).arrow()
        assert caught.value.code == drsdb.ErrorCode.TIMEOUT
        # The time of a ticket begins when it is redeemed: a client that comes late has all of it.
        info = _flight_info(db, f"SELECT sum(n) FROM {numbers}")
        time.sleep(1)
        place = info.endpoints[0].locations[0].uri.decode()
        pulled = db._cluster.authenticated(place, lambda answer: _pull(answer, info.endpoints[0].ticket))
        assert [int(total) for total in values(pulled.column(0))] == [ROWS * (ROWS - 1) // 2]
        # Sessions are apart.
        with cluster.connect() as other:
            assert other.query("SHOW statement_timeout").arrow()["value"].to_pylist() == ["0"]


def test_a_running_query_is_cancelled_by_its_flight_info(db: drsdb.Connection, numbers: str) -> None:
    info = _flight_info(db, f"SELECT a.n, b.name FROM {numbers} a JOIN {numbers} b ON a.n % 7 = b.n % 7")
    endpoint = info.endpoints[0]
    place = endpoint.locations[0].uri.decode()

    def cancel() -> bytes:
        """CancelFlightInfoRequest { info = 1 } -> CancelFlightInfoResult { status = 1 }."""
        message = info.serialize()
        body = b"\x0a" + _varint(len(message)) + message
        action = flight.Action("CancelFlightInfo", body)
        answers = db._cluster.request(lambda answer: list(answer.client.do_action(action, answer.options)), READ)
        return answers[0].body.to_pybytes()

    not_cancellable, cancelling = b"\x08\x03", b"\x08\x02"
    assert cancel() == not_cancellable, "nobody has pulled it yet"

    def pull_until_cancelled(answer: Answer) -> None:
        with CallErrors(answer.location).translated():
            reader = answer.client.do_get(endpoint.ticket, answer.options)
            assert reader.read_chunk().data is not None
            assert cancel() == cancelling
            while True:
                reader.read_chunk()

    with pytest.raises(drsdb.Error) as caught:
        db._cluster.authenticated(place, pull_until_cancelled)
    assert caught.value.code == drsdb.ErrorCode.CANCELLED


def test_the_config_file_is_enough(cluster: LocalCluster) -> None:
    with drsdb.connect(config=cluster.config) as db:
        assert db.query("SELECT 1 AS x").arrow()["x"].to_pylist() == [1]
        assert all(server.startswith("grpc+tls://") for server in db.index_servers)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def values(column: Any) -> list[Any]:
    return list(column.to_pylist())


def _flight_info(db: drsdb.Connection, sql: str) -> flight.FlightInfo:
    descriptor = flight.FlightDescriptor.for_command(_proto.statement_query(sql))
    return db._cluster.request(lambda answer: answer.client.get_flight_info(descriptor, answer.options), READ)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _pull(answer: Answer, ticket: flight.Ticket) -> pa.Table:
    with CallErrors(answer.location).translated():
        return answer.client.do_get(ticket, answer.options).read_all()
