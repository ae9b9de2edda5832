"""Pulling endpoints: parallel, ordered, bounded, never short. Against fake storage servers."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.flight as flight
import pytest

import drsdb
from fakes import Behavior, FakeServer, Gate, Wire, batch, error_detail, info_of

Start = Callable[..., FakeServer]
SCHEMA = pa.schema([("x", pa.int64())])


@pytest.fixture
def query(fake: Start, connect_fake: Callable[..., drsdb.Connection]) -> Iterator[Callable[..., drsdb.Result]]:
    """The result of a query whose answer has the given endpoints (ticket, locations)."""
    results: list[drsdb.Result] = []

    def run(
        endpoints: Sequence[tuple[bytes, Sequence[str]]], *, ordered: bool = False, schema: pa.Schema = SCHEMA
    ) -> drsdb.Result:
        index = fake(Behavior(flight_info=lambda _: info_of(schema, endpoints, ordered=ordered)))
        results.append(connect_fake(index).query("SELECT x FROM t"))
        return results[-1]

    yield run
    for result in results:
        result.close()


def storage(get: Callable[[bytes], Iterable[pa.RecordBatch]], **options: object) -> Behavior:
    return Behavior(get=get, **options)  # type: ignore[arg-type]


def pull_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("drsdb-pull")]


def numbers(table: pa.Table | pa.RecordBatch) -> list[int]:
    return table.column("x").to_pylist()  # type: ignore[return-value]


def test_all_endpoints_are_pulled_at_the_same_time(fake: Start, query: Callable[..., drsdb.Result]) -> None:
    barrier = threading.Barrier(3, timeout=30)

    def get(ticket: bytes) -> Iterator[pa.RecordBatch]:
        barrier.wait()
        yield batch(int(ticket))

    servers = [fake(storage(get)) for _ in range(3)]
    result = query([(b"%d" % number, [server.location]) for number, server in enumerate(servers)])
    assert result.endpoints == 3
    assert sorted(numbers(result.arrow())) == [0, 1, 2]
    assert not pull_threads()


@pytest.mark.parametrize("streamed", [False, True])
def test_an_ordered_result_keeps_the_order_of_its_endpoints(
    fake: Start, query: Callable[..., drsdb.Result], streamed: bool
) -> None:
    last_is_done = Gate()

    def get(ticket: bytes) -> Iterator[pa.RecordBatch]:
        number = int(ticket)
        if number == 0:
            last_is_done.wait()
        for at in range(5):
            yield batch(number * 5 + at)
        if number == 2:
            last_is_done.open()

    server = fake(storage(get))
    result = query([(b"%d" % number, [server.location]) for number in range(3)], ordered=True)
    rows = [row for part in result.batches() for row in numbers(part)] if streamed else numbers(result.arrow())
    assert rows == list(range(15))


def test_more_endpoints_than_threads(fake: Start, query: Callable[..., drsdb.Result]) -> None:
    server = fake(storage(lambda ticket: [batch(int(ticket))]))
    for ordered in (False, True):
        result = query([(b"%d" % number, [server.location]) for number in range(50)], ordered=ordered)
        rows = [row for part in result.batches(buffer_bytes=1) for row in numbers(part)]
        assert (rows if ordered else sorted(rows)) == list(range(50))


def test_a_slow_reader_bounds_what_is_fetched(fake: Start, query: Callable[..., drsdb.Result]) -> None:
    sent = 0
    big = pa.record_batch({"x": pa.array(range(1 << 17), pa.int64())})  # 1 MiB

    def get(_ticket: bytes) -> Iterator[pa.RecordBatch]:
        nonlocal sent
        for _ in range(300):
            sent += 1
            yield big

    result = query([(b"", [fake(storage(get)).location])])
    batches = result.batches(buffer_bytes=4 << 20)
    next(batches)
    # What is on the way is bounded by gRPC's flow control, a few MiB; wait until nothing moves any more.
    deadline, seen = time.monotonic() + 30, -1
    while sent != seen:
        assert time.monotonic() < deadline, "the server never comes to rest"
        seen = sent
        threading.Event().wait(0.5)
    assert sent < 100
    assert 1 + sum(1 for _ in batches) == 300


def test_a_server_that_is_down_is_replaced_by_the_next_location(
    fake: Start, query: Callable[..., drsdb.Result]
) -> None:
    down, up = fake(), fake(storage(lambda _: [batch(7)]))
    down.shutdown()
    for _ in range(2):
        assert numbers(query([(b"", [down.location, up.location])]).arrow()) == [7]
        assert [numbers(part) for part in query([(b"", [down.location, up.location])]).batches()] == [[7]]


def breaking(after: int) -> Callable[[bytes], Iterator[pa.RecordBatch]]:
    def get(_ticket: bytes) -> Iterator[pa.RecordBatch]:
        for number in range(after):
            yield batch(number)
        raise flight.FlightUnavailableError("broke in the middle")

    return get


def test_a_table_is_read_again_elsewhere_when_a_stream_breaks(fake: Start, query: Callable[..., drsdb.Result]) -> None:
    broken, whole = fake(storage(breaking(3))), fake(storage(lambda _: [batch(0, 1, 2, 3)]))
    assert numbers(query([(b"", [broken.location, whole.location])]).arrow()) == [0, 1, 2, 3]


def test_a_stream_that_broke_after_rows_were_handed_out_is_an_error(
    fake: Start, query: Callable[..., drsdb.Result]
) -> None:
    broken, whole = fake(storage(breaking(3))), fake(storage(lambda _: [batch(0, 1, 2, 3)]))
    with pytest.raises(drsdb.OperationalError, match="cannot go on elsewhere") as caught:
        list(query([(b"", [broken.location, whole.location])]).batches())
    assert caught.value.fields["server"] == broken.location
    assert "broke in the middle" in caught.value.fields["cause"]


@pytest.mark.parametrize("streamed", [False, True])
def test_one_broken_endpoint_breaks_the_result(fake: Start, query: Callable[..., drsdb.Result], streamed: bool) -> None:
    good, broken = fake(storage(lambda _: [batch(1)])), fake(storage(breaking(2)))
    result = query([(b"", [good.location]), (b"", [broken.location])])
    with pytest.raises(drsdb.OperationalError) as caught:
        list(result.batches()) if streamed else result.arrow()
    # The good one's row may have been handed out before.
    assert "broke in the middle" in caught.value.fields.get("cause", caught.value.message)
    assert not pull_threads()


def test_a_server_that_is_cut_off_is_an_error_and_no_hang(
    fake: Start, wire: Callable[[FakeServer], Wire], query: Callable[..., drsdb.Result]
) -> None:
    never = Gate()

    def get(_ticket: bytes) -> Iterator[pa.RecordBatch]:
        yield batch(1)
        never.wait()

    way = wire(fake(storage(get)))
    batches = query([(b"", [way.location])]).batches()
    next(batches)
    way.freeze()
    started = time.monotonic()
    with pytest.raises(drsdb.OperationalError) as caught:
        next(batches)
    never.open()
    assert caught.value.code == drsdb.ErrorCode.UNAVAILABLE
    assert caught.value.fields["server"] == way.location
    assert time.monotonic() - started < 25


def test_when_no_location_answers_the_error_names_all(fake: Start, query: Callable[..., drsdb.Result]) -> None:
    servers = [fake(), fake()]
    for server in servers:
        server.shutdown()
    with pytest.raises(drsdb.OperationalError, match="no server can give part 0") as caught:
        query([(b"", [server.location for server in servers])]).arrow()
    assert all(server.location in str(caught.value) for server in servers)


def test_a_servers_own_verdict_is_final(fake: Start, query: Callable[..., drsdb.Result]) -> None:
    def refuse(_ticket: bytes) -> Iterable[pa.RecordBatch]:
        raise flight.FlightUnauthorizedError("overwritten by the trailer")

    detail = error_detail("ticket_expired", "the ticket has expired", "run the query again")
    first, second = fake(storage(refuse, detail=detail)), fake(storage(lambda _: [batch(1)]))
    with pytest.raises(drsdb.OperationalError, match="the ticket has expired") as caught:
        query([(b"", [first.location, second.location])]).arrow()
    assert caught.value.code == drsdb.ErrorCode.TICKET_EXPIRED
    assert "DO_GET" not in second.behavior.calls


def test_another_schema_than_announced_is_an_error(fake: Start, query: Callable[..., drsdb.Result]) -> None:
    server = fake(storage(lambda _: [batch(1)]))
    with pytest.raises(drsdb.InternalError, match="another schema") as caught:
        query([(b"", [server.location])], schema=pa.schema([("x", pa.int32())])).arrow()
    assert caught.value.fields["server"] == server.location


def test_no_location_means_the_server_that_planned(fake: Start, connect_fake: Callable[..., drsdb.Connection]) -> None:
    behavior = storage(lambda _: [batch(3)])
    behavior.flight_info = lambda _: info_of(SCHEMA, [(b"", []), (b"", ["arrow-flight-reuse-connection://?"])])
    assert numbers(connect_fake(fake(behavior)).query("SELECT 1").arrow()) == [3, 3]


@pytest.mark.parametrize("by", ["close", "with", "garbage"])
def test_an_abandoned_stream_ends_at_the_server(fake: Start, query: Callable[..., drsdb.Result], by: str) -> None:
    ended = Gate()

    def get(_ticket: bytes) -> Iterator[pa.RecordBatch]:
        try:
            while True:
                yield batch(*range(10_000))
        finally:
            ended.open()

    server = fake(storage(get))
    result = query([(b"", [server.location])])
    batches = result.batches(buffer_bytes=1)
    next(batches)
    if by == "close":
        result.close()
    elif by == "with":
        with result:
            pass
    else:
        del batches
        gc.collect()
    ended.wait()
    assert not pull_threads()


def test_closing_wakes_a_reader_that_waits(fake: Start, query: Callable[..., drsdb.Result]) -> None:
    reading, never = Gate(), Gate()

    def get(_ticket: bytes) -> Iterator[pa.RecordBatch]:
        yield batch(1)
        reading.open()
        never.wait()

    result = query([(b"", [fake(storage(get)).location])])

    def close() -> None:
        reading.wait()
        result.close()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(drsdb.OperationalError, match="closed while it was read"):
        list(result.batches())
    closer.join()
    never.open()


def test_forms_of_a_result(fake: Start, query: Callable[..., drsdb.Result]) -> None:
    server = fake(storage(lambda _: [batch(1, 2), batch(), batch(3)]))
    endpoints = [(b"", [server.location])]
    assert list(query(endpoints).rows()) == [(1,), (2,), (3,)]
    assert numbers(query(endpoints).reader().read_all()) == [1, 2, 3]
    assert numbers(pa.table(query(endpoints))) == [1, 2, 3]
    assert query(endpoints).df()["x"].to_list() == [1, 2, 3]
    assert query(endpoints).pl()["x"].to_list() == [1, 2, 3]
    kept = query(endpoints)
    assert kept.columns == ["x"]
    assert kept.arrow() is kept.arrow()
    assert kept.df().shape == (3, 1)
    assert [part.num_rows for part in kept.batches()] == [2, 1]


def test_a_stream_is_read_once(fake: Start, query: Callable[..., drsdb.Result]) -> None:
    result = query([(b"", [fake(storage(lambda _: [batch(1)])).location])])
    list(result.batches())
    with pytest.raises(drsdb.InterfaceError, match="has been read already"):
        result.arrow()
    result.close()
    with pytest.raises(drsdb.InterfaceError, match="is closed"):
        result.batches()


def test_a_result_without_endpoints_is_empty(query: Callable[..., drsdb.Result]) -> None:
    table = query([]).arrow()
    assert (table.num_rows, table.schema) == (0, SCHEMA)
    assert list(query([]).batches()) == []
