"""What is sent again when a server is lost: reads, writes under their id, results of which nobody has seen a row, and
those that can go on after the rows that were seen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
import pytest

import drsdb
from drsdb import _ids, _proto
from fakes import Behavior, FakeServer, Gate, batch, error_detail, info_of

Start = Callable[..., FakeServer]
Connect = Callable[..., drsdb.Connection]

EMPTY = pa.schema([("x", pa.int64())])
LOST = flight.FlightUnavailableError("socket closed")


def done(rows: int, version: int) -> bytes:
    return _proto._number(1, rows) + _proto._number(2, version)


class Index:
    """Index servers whose answers to each request are in one list; where it ends, they succeed."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.log: list[str] = []
        self.behaviors: dict[str, Behavior] = {}

    def behavior(self, name: str) -> Behavior:
        def next_failure() -> None:
            self.log.append(name)
            if self.failures:
                raise self.failures.pop(0)

        def flight_info(_command: bytes) -> flight.FlightInfo:
            next_failure()
            return info_of(EMPTY, [])

        def put(_command: bytes, reader: Any) -> bytes:
            rows = sum(chunk.data.num_rows for chunk in reader if chunk.data is not None)
            next_failure()
            return done(rows or 1, 9)

        behavior = Behavior(flight_info=flight_info, put=put, action=lambda _name, _body: [])
        self.behaviors[name] = behavior
        return behavior

    def statements(self) -> list[str]:
        """The ids of all writes."""
        return [text for behavior in self.behaviors.values() for text in behavior.statements if text]


class Clock:
    """A second passes whenever somebody looks, and nobody waits."""

    def __init__(self, seconds: Iterator[int]) -> None:
        self._seconds = seconds

    def monotonic(self) -> float:
        return next(self._seconds)

    def sleep(self, _seconds: float) -> None:
        pass


CONFLICT = error_detail("conflict", "key 1 is taken")


@pytest.fixture(autouse=True)
def first_server_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.randrange", lambda _: 0)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for; nobody waits."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


def test_ids_are_ulids() -> None:
    ids = {_ids.new_ulid() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(text) == 26 and text[0] in "01234567" and text.isalnum() for text in ids)
    assert min(ids)[:6] == max(ids)[:6], "they begin with the time"


def test_a_lost_read_goes_to_the_next_server(fake: Start, connect_fake: Connect) -> None:
    index = Index(LOST)
    connect_fake(fake(index.behavior("a")), fake(index.behavior("b"))).query("SELECT 1")
    assert index.log == ["a", "b"]
    assert index.statements() == []


def test_a_lost_write_is_asked_about_under_its_id(fake: Start, connect_fake: Connect) -> None:
    index = Index(LOST)
    db = connect_fake(fake(index.behavior("a")), fake(index.behavior("b")))
    assert db.execute("INSERT INTO t VALUES (1)") == (1, 9)
    assert index.log == ["a", "b"]
    one, other = index.statements()
    assert one == other
    assert len(one) == 26
    db.execute("INSERT INTO t VALUES (1)")
    assert len(set(index.statements())) == 2


def test_a_write_that_nobody_answers_is_of_unknown_outcome(
    fake: Start, connect_fake: Connect, pauses: list[float]
) -> None:
    index = Index(*[LOST] * 8)
    db = connect_fake(fake(index.behavior("a")), fake(index.behavior("b")))
    with pytest.raises(
        drsdb.OperationalError, match=r"the outcome of the statement is unknown: .*socket closed"
    ) as caught:
        db.execute("INSERT INTO t VALUES (1)")
    assert caught.value.outcome_unknown
    assert not caught.value.retryable
    assert len(index.log) == 8
    assert len(set(index.statements())) == 1
    assert len(pauses) == 3


@pytest.mark.parametrize("refusal", [CONFLICT, error_detail("disk_full", "the disk of a storage server is full")])
def test_a_write_that_may_be_under_way_elsewhere_is_asked_about_until_that_is_decided(
    fake: Start, connect_fake: Connect, pauses: list[float], refusal: bytes
) -> None:
    index = Index(LOST, flight.FlightServerError("see the trailer"))
    first, second = fake(index.behavior("a")), fake(index.behavior("b"))
    db = connect_fake(first, second)
    # The second server meets what the first one has begun, or a disk that the first one did not need.
    second.behavior.detail = refusal
    db.execute("INSERT INTO t VALUES (1)")
    assert index.log == ["a", "b", "b"]
    assert len(set(index.statements())) == 1
    assert len(pauses) == 1
    # Of a write that was answered, a conflict is the last word.
    for server in (first, second):
        server.behavior.detail = CONFLICT
    index.failures, index.log = [flight.FlightServerError("see the trailer")], []
    with pytest.raises(drsdb.ConflictError, match="key 1 is taken") as caught:
        db.execute("INSERT INTO t VALUES (1)")
    assert caught.value.retryable
    assert len(index.log) == 1


def test_what_was_written_is_seen_at_every_server(fake: Start, connect_fake: Connect) -> None:
    index = Index()
    first, second = fake(index.behavior("a")), fake(index.behavior("b"))
    db = connect_fake(first, second)
    db.query("SELECT 1")
    assert first.behavior.versions[-1] == ""
    db.execute("INSERT INTO t VALUES (1)")
    first.shutdown()
    db.query("SELECT 1")
    assert "9" in second.behavior.versions


def test_a_lost_load_of_a_table_is_sent_again_and_one_of_a_stream_is_not(fake: Start, connect_fake: Connect) -> None:
    index = Index(LOST)
    db = connect_fake(fake(index.behavior("a")), fake(index.behavior("b")))
    assert db.ingest("t", batch(1, 2, 3)).rows == 3
    assert index.log == ["a", "b"]
    assert len(set(index.statements())) == 1
    index.failures, index.log = [LOST], []
    with pytest.raises(drsdb.OperationalError, match="outcome of the statement is unknown") as caught:
        db.ingest("t", (batch(number) for number in range(3)))
    assert caught.value.outcome_unknown
    assert len(index.log) == 1


def test_the_last_resort_are_servers_that_were_dropped(fake: Start, connect_fake: Connect) -> None:
    index = Index()
    first, second = fake(index.behavior("a")), fake(index.behavior("b"))
    db = connect_fake(first, second)
    db._cluster._servers = [second.location]
    second.shutdown()
    db.query("SELECT 1")
    assert index.log == ["a"]


class Parts:
    """An index and storage server in one. Each plan has one endpoint, at the next of the locations."""

    def __init__(self, fake: Start, *locations: str) -> None:
        self.server = fake(Behavior(flight_info=self._plan, get=self._rows, action=lambda _name, _body: []))
        self.locations = [*locations, self.server.location]
        self.plans = 0
        self.no_plan_at: set[int] = set()
        self.broken_after: list[int] = []
        # Nothing breaks before it is open.
        self.gate = Gate()

    def _plan(self, _command: bytes) -> flight.FlightInfo:
        self.plans += 1
        if self.plans in self.no_plan_at:
            raise flight.FlightUnavailableError("no leader")
        place = self.locations[min(self.plans, len(self.locations)) - 1]
        return info_of(EMPTY, [(b"part", [place])])

    def _rows(self, _ticket: bytes) -> Iterator[pa.RecordBatch]:
        stop = self.broken_after.pop(0) if self.broken_after else 3
        for number in range(stop):
            yield batch(number)
        if stop < 3:
            self.gate.wait()
            raise flight.FlightUnavailableError("a server died")


FORMS: dict[str, Callable[[drsdb.Result], list[Any]]] = {
    "arrow": lambda result: result.arrow()["x"].to_pylist(),
    "batches": lambda result: [x for part in result.batches() for x in part["x"].to_pylist()],
    "rows": lambda result: [row[0] for row in result.rows()],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_result_of_which_no_row_was_seen_is_planned_again(
    fake: Start, connect_fake: Connect, pauses: list[float], form: str
) -> None:
    parts = Parts(fake, "grpc+tls://127.0.0.1:1")
    db = connect_fake(parts.server)
    assert FORMS[form](db.query("SELECT x FROM t")) == [0, 1, 2]
    assert parts.plans == 2
    assert len(pauses) == 1


def test_it_is_planned_again_until_a_silent_server_is_suspect(
    fake: Start, connect_fake: Connect, pauses: list[float]
) -> None:
    dead = "grpc+tls://127.0.0.1:1"
    parts = Parts(fake, *[dead] * 4)
    db = connect_fake(parts.server)
    # The second plan cannot be had either, for a moment.
    parts.no_plan_at = {2}
    assert db.query("SELECT x FROM t").arrow()["x"].to_pylist() == [0, 1, 2]
    assert parts.plans == 5
    # There is an end to it, and other errors are the last word.
    parts.locations, parts.plans = [dead], 0
    pauses.clear()
    with pytest.raises(drsdb.OperationalError) as caught:
        db.query("SELECT x FROM t").arrow()
    assert caught.value.code == drsdb.ErrorCode.UNAVAILABLE
    assert caught.value.retryable
    assert parts.plans == len(pauses) + 1
    assert 5 < sum(pauses) < 10


def test_a_result_of_which_a_row_was_seen_is_not(fake: Start, connect_fake: Connect, pauses: list[float]) -> None:
    parts = Parts(fake)
    db = connect_fake(parts.server)
    parts.broken_after = [2]
    batches = db.query("SELECT x FROM t").batches()
    next(batches)
    parts.gate.open()
    with pytest.raises(drsdb.OperationalError, match="was lost, and the result cannot go on elsewhere") as caught:
        list(batches)
    assert caught.value.message.startswith(f"server {parts.server.location} was lost")
    assert "a server died" in caught.value.fields["cause"]
    assert "ORDER BY" in caught.value.hint
    assert caught.value.code == drsdb.ErrorCode.UNAVAILABLE
    assert caught.value.retryable
    assert parts.plans == 1
    # As a whole table, nobody has seen a row before the end.
    parts.broken_after = [2, 1]
    assert FORMS["arrow"](db.query("SELECT x FROM t")) == [0, 1, 2]
    assert parts.plans == 4
    # What may write is carried out once.
    parts.broken_after = [1]
    with pytest.raises(drsdb.OperationalError, match="a server died") as caught:
        db.query("INSERT INTO t VALUES (1) RETURNING x").arrow()
    assert not caught.value.retryable
    assert parts.plans == 5
    assert len(pauses) == 2


@pytest.mark.parametrize(
    ("code", "fields", "told"),
    [
        ("unavailable", {"server": "https://b:1"}, "server https://b:1 was lost, and the result"),
        ("unavailable", {}, "it did nothing, and the result"),
        ("corrupt", {"server": "https://b:1"}, "it did nothing, and the result"),
    ],
)
def test_what_servers_say_of_others_is_told(
    fake: Start, connect_fake: Connect, pauses: list[float], code: str, fields: dict[str, str], told: str
) -> None:
    parts = Parts(fake)
    parts.broken_after = [2]
    db = connect_fake(parts.server)
    parts.server.behavior.detail = error_detail(code, "it did nothing", **fields)
    batches = db.query("SELECT x FROM t").batches()
    next(batches)
    parts.gate.open()
    with pytest.raises(drsdb.DatabaseError, match="cannot go on elsewhere") as caught:
        list(batches)
    assert caught.value.code == code
    assert caught.value.message.startswith(told)
    assert caught.value.fields["cause"] == "it did nothing"
    assert caught.value.retryable
    assert not pauses


def test_of_a_transaction_it_is_not_said_that_nothing_took_effect(
    fake: Start, connect_fake: Connect, pauses: list[float]
) -> None:
    parts = Parts(fake)
    parts.server.behavior.action = lambda name, _: (
        [_proto._any("ActionBeginTransactionResult", _proto._text(1, "t1"))] if name == "BeginTransaction" else []
    )
    tx = connect_fake(parts.server).transaction()
    parts.broken_after = [2]
    batches = tx.query("SELECT x FROM t").batches()
    next(batches)
    # Its rows may still come when it is committed.
    tx.commit()
    parts.gate.open()
    with pytest.raises(drsdb.OperationalError, match="cannot go on elsewhere") as caught:
        list(batches)
    assert not caught.value.retryable
    assert not pauses


class Ordered:
    """An index and storage server in one, of a result of 40 rows whose order can be repeated.

    Each plan has a text of its own that says where it can go on, and batches of its own. All but the last break off,
    once their rows have been seen.
    """

    def __init__(self, fake: Start, *plans: tuple[str, list[range]]) -> None:
        self.server = fake(Behavior(flight_info=self._plan, get=self._rows, action=lambda _name, _body: []))
        self._plans = plans
        self._planned = 0
        self._last_row = -1
        self._seen = threading.Condition()
        self._last_seen = -1
        self.refused_with: Exception | None = None

    def rows(self, result: drsdb.Result) -> Iterator[int]:
        """A result's rows, of which each counts as seen when the next is asked for."""
        for (row,) in result.rows():
            yield row
            with self._seen:
                self._last_seen = row
                self._seen.notify_all()

    @property
    def asked_to_resume(self) -> list[str]:
        """What the header said, with each request for a plan."""
        behavior = self.server.behavior
        calls = zip(behavior.calls, behavior.resumes, strict=True)
        return [resume for call, resume in calls if call == "GET_FLIGHT_INFO"]

    def _plan(self, _command: bytes) -> flight.FlightInfo:
        if self._planned and self.refused_with:
            raise self.refused_with
        self._planned += 1
        resume, _ = self._plans[self._planned - 1]
        ticket = b"%d" % self._planned
        return info_of(EMPTY, [(ticket, [self.server.location])], ordered=True, resume=resume)

    def _rows(self, ticket: bytes) -> Iterator[pa.RecordBatch]:
        _, batches = self._plans[int(ticket) - 1]
        for rows in batches:
            self._last_row = max(self._last_row, *rows)
            yield batch(*rows)
        if int(ticket) < len(self._plans):
            with self._seen:
                assert self._seen.wait_for(lambda: self._last_seen == self._last_row, timeout=30)
            raise flight.FlightUnavailableError("a server died")


BEGUN = [range(10), range(10, 20)]


# One batch ends where the first plan broke off, or begins there, or goes across.
@pytest.mark.parametrize("bounds", [[40], [20, 40], [7, 16, 33, 40], [19, 20, 21, 40]])
def test_a_result_whose_order_can_be_repeated_goes_on_after_the_rows_that_were_seen(
    fake: Start, connect_fake: Connect, pauses: list[float], bounds: list[int]
) -> None:
    others = [range(start, end) for start, end in zip([0, *bounds], bounds, strict=False)]
    ordered = Ordered(fake, ("17-c0ffee", BEGUN), ("17-c0ffee", others))
    result = connect_fake(ordered.server).query("SELECT x FROM t ORDER BY x")
    assert list(ordered.rows(result)) == list(range(40))
    assert ordered.asked_to_resume == ["", "17-c0ffee"]
    assert len(pauses) == 1


def test_it_goes_on_more_than_once_and_from_its_start_while_nobody_has_seen_a_row(
    fake: Start, connect_fake: Connect, pauses: list[float]
) -> None:
    # The second plan is of a later snapshot, and it is the one that goes on.
    longer = [range(9), range(9, 15)]
    plans = [("3-a", []), ("5-b", [range(10)]), ("5-b", longer), ("5-b", [range(3)]), ("5-b", [range(40)])]
    ordered = Ordered(fake, *plans)
    result = connect_fake(ordered.server).query("SELECT x FROM t ORDER BY x")
    assert list(ordered.rows(result)) == list(range(40))
    assert ordered.asked_to_resume == ["", "", "5-b", "5-b", "5-b"]
    assert len(pauses) == 4


def test_it_goes_on_as_often_as_it_makes_progress(fake: Start, connect_fake: Connect, pauses: list[float]) -> None:
    # More plans than one failure is worth, each good for one more row.
    plans = [("5-b", [range(rows)]) for rows in range(1, 13)]
    ordered = Ordered(fake, *plans, ("5-b", [range(40)]))
    result = connect_fake(ordered.server).query("SELECT x FROM t ORDER BY x")
    assert list(ordered.rows(result)) == list(range(40))
    assert len(set(pauses)) == 1, "each time it is the first wait"
    assert len(pauses) == 12


def test_its_time_goes_on(fake: Start, connect_fake: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    ordered = Ordered(fake, ("5-b", []), ("5-b", [range(10)]), ("5-b", [range(40)]))
    result = connect_fake(ordered.server).query("SELECT x FROM t ORDER BY x")
    monkeypatch.setattr("drsdb._result.time", Clock(clock))
    monkeypatch.setattr("drsdb._cluster.time", Clock(clock))
    # The clock stands still until the rows are asked for.
    assert list(ordered.rows(result)) == list(range(40))
    behavior = ordered.server.behavior
    spent = [text for call, text in zip(behavior.calls, behavior.spent, strict=True) if call == "GET_FLIGHT_INFO"]
    assert spent == ["", "1000", "2000"]


def test_without_progress_there_is_an_end_to_it(fake: Start, connect_fake: Connect, pauses: list[float]) -> None:
    ordered = Ordered(fake, ("5-b", [range(10)]), *[("5-b", [range(9)])] * 20)
    result = connect_fake(ordered.server).query("SELECT x FROM t ORDER BY x")
    with pytest.raises(drsdb.OperationalError) as caught:
        list(ordered.rows(result))
    assert caught.value.code == drsdb.ErrorCode.UNAVAILABLE
    assert len(pauses) == 7


def test_a_table_begins_anew(fake: Start, connect_fake: Connect, pauses: list[float]) -> None:
    ordered = Ordered(fake, ("17-c0ffee", []), ("18-c0ffee", [range(40)]))
    assert FORMS["arrow"](connect_fake(ordered.server).query("SELECT x FROM t ORDER BY x")) == list(range(40))
    assert ordered.asked_to_resume == ["", ""]
    assert len(pauses) == 1


# A server that has planned something else, and one that knows nothing of this.
@pytest.mark.parametrize("resume", ["18-c0ffee", ""])
def test_it_does_not_go_on_with_another_result(
    fake: Start, connect_fake: Connect, pauses: list[float], resume: str
) -> None:
    ordered = Ordered(fake, ("17-c0ffee", BEGUN), (resume, [range(40)]))
    result = connect_fake(ordered.server).query("SELECT x FROM t ORDER BY x")
    with pytest.raises(drsdb.ConflictError, match="would not go on"):
        list(ordered.rows(result))
    assert len(pauses) == 1


def test_it_is_never_short(fake: Start, connect_fake: Connect, pauses: list[float]) -> None:
    ordered = Ordered(fake, ("17-c0ffee", BEGUN), ("17-c0ffee", [range(19)]))
    result = connect_fake(ordered.server).query("SELECT x FROM t ORDER BY x")
    with pytest.raises(drsdb.InternalError, match="fewer rows"):
        list(ordered.rows(result))
    assert len(pauses) == 1


def test_an_index_server_may_refuse_the_rest(fake: Start, connect_fake: Connect, pauses: list[float]) -> None:
    ordered = Ordered(fake, ("17-c0ffee", BEGUN), ("17-c0ffee", []))
    ordered.refused_with = flight.FlightServerError("overwritten by the trailer")
    rows = ordered.rows(connect_fake(ordered.server).query("SELECT x FROM t ORDER BY x"))
    next(rows)
    ordered.server.behavior.detail = error_detail("conflict", "the table was altered")
    with pytest.raises(drsdb.ConflictError, match="the table was altered"):
        list(rows)
    assert len(pauses) == 1
