"""Storage servers of a real cluster that die or stop while they are needed: an error that names the server, never a
short result and never a hang. Where another server has the rows too, it is as if nothing had been.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import drsdb
from local_cluster import LocalCluster

pytestmark = pytest.mark.cluster

ROWS = 2_000_000


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A cluster that the test may break, with the table `big`, of whose rows each is on one server only."""
    cluster = LocalCluster(tmp_path)
    try:
        with cluster.connect() as db:
            numbers = pa.array(range(ROWS), pa.int64())
            db.execute("CREATE TABLE big (n BIGINT, text TEXT) WITH (replicas = 1)")
            db.ingest("big", pa.table({"n": numbers, "text": numbers.cast(pa.string())}))
        yield cluster
    finally:
        cluster.abandon()


@pytest.mark.parametrize("how", ["table", "stream"])
def test_a_server_that_died_before_it_was_asked(own_cluster: LocalCluster, how: str) -> None:
    with own_cluster.connect() as db:
        result = db.query("SELECT * FROM big")
        victim, pid = own_cluster.storage_pids().popitem()
        os.kill(pid, signal.SIGKILL)
        # It is started again: who asks for long enough gets all rows.
        failure: drsdb.OperationalError | None = None
        batches: list[pa.RecordBatch] = []
        try:
            batches = result.arrow().to_batches() if how == "table" else list(result.batches())
        except drsdb.OperationalError as error:
            failure = error
        if failure is None:
            assert sum(batch.num_rows for batch in batches) == ROWS
        else:
            assert failure.code == drsdb.ErrorCode.UNAVAILABLE
            assert victim in str(failure)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_goes_away_while_it_sends(own_cluster: LocalCluster, how: signal.Signals) -> None:
    with own_cluster.connect() as db:
        batches = db.query("SELECT * FROM big").batches(buffer_bytes=1)
        rows = [next(batches).num_rows]
        victim, pid = own_cluster.storage_pids().popitem()
        os.kill(pid, how)
        started = time.monotonic()
        try:
            with pytest.raises(drsdb.OperationalError) as caught:
                rows.extend(batch.num_rows for batch in batches)
        finally:
            if how is signal.SIGSTOP:
                os.kill(pid, signal.SIGCONT)
        assert caught.value.code == drsdb.ErrorCode.UNAVAILABLE
        assert caught.value.fields["server"] == victim
        assert caught.value.message.startswith(f"server {victim} was lost, and the result cannot go on elsewhere")
        assert "ORDER BY" in caught.value.hint
        assert caught.value.retryable
        assert sum(rows) < ROWS
        assert time.monotonic() - started < 30


def test_an_aggregate_over_a_server_that_died(own_cluster: LocalCluster) -> None:
    with own_cluster.connect() as db:
        result = db.query("SELECT text, count(*) FROM big GROUP BY text ORDER BY text")
        victim, pid = own_cluster.storage_pids().popitem()
        os.kill(pid, signal.SIGKILL)
        failure: drsdb.OperationalError | None = None
        rows = 0
        try:
            rows = result.arrow().num_rows
        except drsdb.OperationalError as error:
            failure = error
        if failure is None:
            assert rows == ROWS
        else:
            assert failure.code == drsdb.ErrorCode.UNAVAILABLE
            assert victim.rpartition(":")[2] in str(failure)
        # The index server needs no storage server for what it knows itself.
        assert db.query("SELECT 1 AS x").arrow()["x"].to_pylist() == [1]


def test_rows_that_others_have_too(own_cluster: LocalCluster) -> None:
    with own_cluster.connect() as db:
        db.execute("CREATE TABLE safe (n BIGINT PRIMARY KEY)")
        db.execute("INSERT INTO safe SELECT v FROM generate_series(1, 1000) g(v)")
        result = db.query("SELECT n FROM safe")
        _, pid = own_cluster.storage_pids().popitem()
        os.kill(pid, signal.SIGKILL)
        assert result.arrow().sort_by("n")["n"].to_pylist() == list(range(1, 1001))
        assert db.execute("UPDATE safe SET n = n + 1000").rows == 1000
        assert db.query("SELECT min(n) AS x FROM safe").arrow()["x"].to_pylist() == [1001]
