"""Transactions against fakes: where their calls go, what a lost server means, and when they are run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
import pytest

import drsdb
from drsdb import _proto
from fakes import Behavior, FakeServer, batch, error_detail, info_of

Start = Callable[..., FakeServer]
Connect = Callable[..., drsdb.Connection]

LOST = flight.FlightUnavailableError("socket closed")
CONFLICT = error_detail("conflict", "another transaction was first")

# Where each command and action has its transaction.
FIELDS = {
    "CommandStatementQuery": 2,
    "CommandStatementUpdate": 2,
    "CommandStatementIngest": 6,
    "ActionCreatePreparedStatementRequest": 2,
    "ActionEndTransactionRequest": 1,
    "ActionBeginSavepointRequest": 1,
}


def _any(name: str, body: bytes) -> bytes:
    return _proto._any(name, body)


class Index:
    """Index servers that know transactions. `log` has who was asked, for what, and in which transaction."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, str]] = []
        self.begun = 0
        # What to do instead, once, by what is asked for.
        self.failures: dict[str, list[Exception]] = {}

    def behavior(self, name: str) -> Behavior:
        def asked(message: bytes, what: str | None = None) -> None:
            fields = _proto._last(message)
            kind = _proto._decode_text(fields[1]).rpartition(".")[2]
            body = _proto._last(_proto._as_bytes(fields, 2))
            transaction = _proto._as_bytes(body, FIELDS[kind]).decode() if kind in FIELDS else ""
            if what is None:
                first = body.get(1)
                what = first.decode() if isinstance(first, bytes) and "Statement" in kind else kind
            if kind == "CommandStatementIngest":
                what = "ingest"
            if kind in ("ActionEndTransactionRequest", "ActionEndSavepointRequest"):
                what = f"{what} {body[2]!r}"
            self.log.append((name, what, transaction))
            if self.failures.get(what):
                raise self.failures[what].pop(0)

        def flight_info(command: bytes) -> flight.FlightInfo:
            asked(command)
            return info_of(pa.schema([]), [])

        def put(command: bytes, reader: Any) -> bytes:
            list(reader)
            asked(command)
            return _proto._number(1, 1)

        def action(kind: str, body: bytes) -> list[bytes]:
            if kind in ("drsdb.IndexServers", "ClosePreparedStatement"):
                return []
            asked(body, kind)
            if kind == "BeginTransaction":
                self.begun += 1
                return [_any("ActionBeginTransactionResult", _proto._text(1, f"t{self.begun}"))]
            if kind == "BeginSavepoint":
                return [_any("ActionBeginSavepointResult", _proto._text(1, "s"))]
            if kind == "CreatePreparedStatement":
                return [_any("ActionCreatePreparedStatementResult", _proto._text(1, "handle"))]
            return [_proto._number(2, 11)] if kind == "EndTransaction" else []

        return Behavior(flight_info=flight_info, put=put, action=action)

    def take(self) -> list[tuple[str, str, str]]:
        log, self.log = self.log, []
        return log


COMMIT, ROLLBACK = "EndTransaction 1", "EndTransaction 2"


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients begin with the first server, and nobody waits."""
    monkeypatch.setattr("random.randrange", lambda _: 0)
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.fixture
def index() -> Index:
    return Index()


@pytest.fixture
def servers(index: Index, fake: Start) -> list[FakeServer]:
    return [fake(index.behavior("a")), fake(index.behavior("b"))]


@pytest.fixture
def db(servers: list[FakeServer], connect_fake: Connect) -> drsdb.Connection:
    return connect_fake(*servers)


def test_all_of_a_transaction_goes_to_its_server(db: drsdb.Connection, index: Index, servers: list[FakeServer]) -> None:
    with db.transaction() as tx:
        # Another request of the same connection makes the second server the first to be asked.
        index.failures["elsewhere"] = [LOST]
        db.execute("elsewhere")
        assert db.index_servers[0] == servers[1].location
        index.take()
        tx.execute("INSERT")
        tx.query("SELECT")
        tx.execute("INSERT ?", [1])
        savepoint = tx.savepoint("s")
        tx.ingest("t", batch(1))
        savepoint.rollback()
        savepoint.release()
        with tx.cursor() as cursor:
            cursor.execute("DELETE")
    assert index.take() == [
        ("a", "INSERT", "t1"),
        ("a", "SELECT", "t1"),
        ("a", "CreatePreparedStatement", "t1"),
        ("a", "handle", ""),
        ("a", "BeginSavepoint", "t1"),
        ("a", "ingest", "t1"),
        ("a", "EndSavepoint 2", ""),
        ("a", "EndSavepoint 1", ""),
        ("a", "DELETE", "t1"),
        ("a", COMMIT, "t1"),
    ]
    db.query("SELECT")
    assert servers[1].behavior.versions[-1] == "11", "the commit's version is known"
    assert db.index_servers[0] == servers[1].location


def test_an_exception_rolls_back(db: drsdb.Connection, index: Index) -> None:
    tx = db.transaction()
    with pytest.raises(ZeroDivisionError), tx:
        tx.execute(f"INSERT {1 // 0}")
    assert index.take()[-1] == ("a", ROLLBACK, "t1")
    with pytest.raises(drsdb.ConflictError, match="the transaction is over"):
        tx.execute("INSERT")
    with pytest.raises(drsdb.ConflictError, match="the transaction is over"):
        tx.commit()
    tx.rollback()
    assert index.take() == []


def test_a_block_may_end_its_transaction_itself(db: drsdb.Connection, index: Index) -> None:
    with db.transaction() as tx:
        assert tx.commit().version == 11
    assert [what for _, what, _ in index.take()] == ["BeginTransaction", COMMIT]


@pytest.mark.parametrize("sql", ["SELECT", "INSERT"])
def test_a_transaction_ends_with_its_server(db: drsdb.Connection, index: Index, sql: str) -> None:
    tx = db.transaction()
    # A read is worth a second connection; of a write, nobody knows whether it arrived.
    index.failures[sql] = [LOST] * (2 if sql == "SELECT" else 1)
    with pytest.raises(drsdb.ConflictError, match="the index server where it was is lost") as caught:
        tx.query(sql)
    assert caught.value.retryable
    assert {name for name, _, _ in index.take()} == {"a"}
    with pytest.raises(drsdb.ConflictError, match="the transaction is over"):
        tx.query(sql)
    tx.rollback()
    assert index.take() == []


def test_a_lost_commit_is_asked_about_at_another_server(db: drsdb.Connection, index: Index) -> None:
    tx = db.transaction()
    index.failures[COMMIT] = [LOST]
    assert tx.commit().version == 11
    assert index.take()[1:] == [("a", COMMIT, "t1"), ("b", COMMIT, "t1")]


def test_a_commit_that_nobody_answers_is_of_unknown_outcome(db: drsdb.Connection, index: Index) -> None:
    tx = db.transaction()
    index.failures[COMMIT] = [LOST] * 8
    with pytest.raises(drsdb.OperationalError, match="outcome of the statement is unknown") as caught:
        tx.commit()
    assert caught.value.outcome_unknown
    assert not isinstance(caught.value, drsdb.ConflictError)


def test_work_that_meets_a_conflict_is_run_again(db: drsdb.Connection, index: Index, servers: list[FakeServer]) -> None:
    for server in servers:
        server.behavior.detail = CONFLICT
    index.failures = {"INSERT": [flight.FlightServerError("x")], COMMIT: [flight.FlightServerError("x")]}
    runs = 0

    def work(tx: drsdb.Transaction) -> int:
        nonlocal runs
        runs += 1
        tx.execute("INSERT")
        return runs

    assert db.run_transaction(work) == 3
    assert [what for _, what, _ in index.take()] == [
        *("BeginTransaction", "INSERT", ROLLBACK),
        *("BeginTransaction", "INSERT", COMMIT),
        *("BeginTransaction", "INSERT", COMMIT),
    ]
    index.failures = {"INSERT": [flight.FlightServerError("x") for _ in range(3)]}
    with pytest.raises(drsdb.ConflictError):
        db.run_transaction(work, attempts=3)
    assert runs == 6
    with pytest.raises(ZeroDivisionError):
        db.run_transaction(lambda _: 1 // 0)


@pytest.mark.parametrize("failing", ["BeginTransaction", "INSERT"])
def test_work_that_meets_a_dead_server_is_run_again(
    db: drsdb.Connection, index: Index, servers: list[FakeServer], failing: str
) -> None:
    for server in servers:
        server.behavior.detail = error_detail("unavailable", "a storage server died")
    # Every index server says so of the beginning; a statement is asked of one.
    index.failures = {failing: [flight.FlightServerError("x")] * (2 if failing == "BeginTransaction" else 1)}
    db.run_transaction(lambda tx: tx.execute("INSERT"))
    log = [what for _, what, _ in index.take()]
    assert log.count(failing) == (3 if failing == "BeginTransaction" else 2)
    assert log.count(COMMIT) == 1


def test_work_that_goes_on_after_its_commit_is_done_once(
    db: drsdb.Connection, index: Index, servers: list[FakeServer]
) -> None:
    for server in servers:
        server.behavior.detail = error_detail("unavailable", "a storage server died")

    def work(tx: drsdb.Transaction) -> None:
        tx.execute("INSERT")
        tx.commit()
        db.query("SELECT")

    index.failures = {"SELECT": [flight.FlightServerError("x")] * 2}
    with pytest.raises(drsdb.OperationalError, match="a storage server died"):
        db.run_transaction(work)
    assert [what for _, what, _ in index.take()].count("INSERT") == 1
    # A commit that surely failed is nothing to keep from doing it again.
    for server in servers:
        server.behavior.detail = CONFLICT
    index.failures = {COMMIT: [flight.FlightServerError("x")]}
    db.run_transaction(work)
    assert [what for _, what, _ in index.take()].count(COMMIT) == 2


def test_without_autocommit_a_statement_begins_a_transaction(connect_fake: Connect, fake: Start, index: Index) -> None:
    db = connect_fake(fake(index.behavior("a")), autocommit=False)
    assert not db.autocommit
    db.commit()
    db.rollback()
    assert index.take() == []
    with db.cursor() as cursor:
        cursor.execute("INSERT")
        cursor.executemany("INSERT ?", [(1,), (2,)])
    assert db.in_transaction
    with pytest.raises(drsdb.InterfaceError, match="autocommit cannot change within a transaction"):
        db.autocommit = True
    db.commit()
    db.execute("UPDATE")
    db.rollback()
    db.execute("DELETE")
    db.close()
    begin = ("a", "BeginTransaction", "")
    log = [entry for entry in index.take() if entry[1] not in ("CreatePreparedStatement", "handle")]
    assert log == [
        *(begin, ("a", "INSERT", "t1"), ("a", COMMIT, "t1")),
        *(begin, ("a", "UPDATE", "t2"), ("a", ROLLBACK, "t2")),
        *(begin, ("a", "DELETE", "t3"), ("a", ROLLBACK, "t3")),
    ]


def test_autocommit_is_an_attribute(db: drsdb.Connection, index: Index) -> None:
    assert db.autocommit
    db.autocommit = False
    db.execute("INSERT")
    db.commit()
    db.autocommit = True
    db.execute("INSERT")
    assert [transaction for _, what, transaction in index.take() if what == "INSERT"] == ["t1", ""]


def test_an_implicit_transaction_that_is_lost_must_be_rolled_back(db: drsdb.Connection, index: Index) -> None:
    db.autocommit = False
    db.execute("INSERT")
    index.failures["INSERT"] = [LOST]
    with pytest.raises(drsdb.ConflictError, match="is lost"):
        db.execute("INSERT")
    # What would come next must not be committed on its own.
    with pytest.raises(drsdb.ConflictError, match="the transaction is over"):
        db.execute("INSERT")
    with pytest.raises(drsdb.ConflictError, match="the transaction is over"):
        db.commit()
    db.execute("INSERT")
    db.commit()
    assert index.take()[-1][1:] == (COMMIT, "t2")


def test_sql_transactions_stay_with_their_server_as_well(
    db: drsdb.Connection, index: Index, servers: list[FakeServer]
) -> None:
    db.execute("BEGIN")
    assert db.in_transaction
    db._cluster._count_success(servers[1].location, prefer=True)
    db.execute("INSERT")
    db.execute("ROLLBACK TO s")
    index.failures["COMMIT"] = [LOST]
    db.commit()
    db.execute("INSERT")
    assert [(name, what) for name, what, _ in index.take()] == [
        *(("a", "BEGIN"), ("a", "INSERT"), ("a", "ROLLBACK TO s"), ("a", "COMMIT"), ("b", "COMMIT")),
        ("b", "INSERT"),
    ]


def test_sql_transactions_end_with_their_server(db: drsdb.Connection, index: Index) -> None:
    db.execute("START TRANSACTION")
    index.failures["INSERT"] = [LOST]
    with pytest.raises(drsdb.ConflictError, match="is lost"):
        db.execute("INSERT")
    assert not db.in_transaction
