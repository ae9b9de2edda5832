"""Transactions on a real cluster: several statements, savepoints, conflicts, loads, DB-API's implicit ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import adbc_driver_manager
import pyarrow as pa
import pytest

import drsdb
from local_cluster import LocalCluster
from test_adbc import connect

pytestmark = pytest.mark.cluster

ACCOUNTS = 10


@pytest.fixture
def accounts(db: drsdb.Connection, table: str) -> str:
    db.execute(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, balance BIGINT NOT NULL) WITH (engine = 'row')")
    db.ingest(table, pa.table({"id": range(ACCOUNTS), "balance": [100] * ACCOUNTS}))
    return table


@pytest.fixture
def other(cluster: LocalCluster) -> Iterator[drsdb.Connection]:
    with cluster.connect() as connection:
        yield connection


def total(session: drsdb.Connection | drsdb.Transaction, accounts: str) -> int:
    sums = session.query(f"SELECT sum(balance) FROM {accounts}").arrow()[0].to_pylist()
    return int(sums[0] or 0)


def test_a_transaction_is_seen_by_itself_and_then_by_all(
    db: drsdb.Connection, other: drsdb.Connection, accounts: str
) -> None:
    with db.transaction() as tx:
        assert tx.execute(f"UPDATE {accounts} SET balance = balance - 30 WHERE id = 1").rows == 1
        tx.execute(f"INSERT INTO {accounts} VALUES (?, ?)", [ACCOUNTS, 7])
        assert tx.ingest(accounts, pa.table({"id": [ACCOUNTS + 1], "balance": [5]})).rows == 1
        assert total(tx, accounts) == 100 * ACCOUNTS - 30 + 7 + 5
        assert total(other, accounts) == total(db, accounts) == 100 * ACCOUNTS
    assert total(db, accounts) == 100 * ACCOUNTS - 30 + 7 + 5
    # Another client's read that begins later sees it as well.
    assert total(other, accounts) == 100 * ACCOUNTS - 30 + 7 + 5


def test_a_rollback_and_a_savepoint(db: drsdb.Connection, accounts: str) -> None:
    tx = db.transaction()
    tx.execute(f"DELETE FROM {accounts} WHERE id = 0")
    savepoint = tx.savepoint("a")
    tx.execute(f"DELETE FROM {accounts}")
    assert total(tx, accounts) == 0
    savepoint.rollback()
    assert total(tx, accounts) == 100 * (ACCOUNTS - 1)
    tx.rollback()
    assert total(db, accounts) == 100 * ACCOUNTS


def test_the_first_committer_wins(db: drsdb.Connection, accounts: str) -> None:
    one, two = db.transaction(), db.transaction()
    one.execute(f"UPDATE {accounts} SET balance = 1 WHERE id = 3")
    # One is under way there; the other has committed since the snapshot.
    with pytest.raises(drsdb.ConflictError) as caught:
        two.execute(f"UPDATE {accounts} SET balance = 2 WHERE id = 3")
    assert caught.value.retryable
    one.commit()
    two.rollback()
    three = db.transaction()
    assert total(three, accounts) == 100 * ACCOUNTS - 99
    db.execute(f"UPDATE {accounts} SET balance = 4 WHERE id = 4")
    with pytest.raises(drsdb.ConflictError):
        three.execute(f"UPDATE {accounts} SET balance = 3 WHERE id = 4")
    three.rollback()
    assert total(db, accounts) == 100 * ACCOUNTS - 99 - 96


def test_transfers_keep_the_sum(cluster: LocalCluster, db: drsdb.Connection, accounts: str) -> None:
    ended = threading.Event()

    def transfer(number: int) -> None:
        source, target = number % ACCOUNTS, (number * 7 + 1) % ACCOUNTS
        if source == target:
            return

        def work(tx: drsdb.Transaction) -> None:
            rows = tx.query(f"SELECT balance FROM {accounts} WHERE id = ?", [source]).arrow()[0].to_pylist()
            amount = min(10, int(rows[0] or 0))
            tx.execute(f"UPDATE {accounts} SET balance = balance - ? WHERE id = ?", [amount, source])
            tx.execute(f"UPDATE {accounts} SET balance = balance + ? WHERE id = ?", [amount, target])

        db.run_transaction(work, attempts=50)

    def watch() -> list[int]:
        with cluster.connect() as watcher:
            sums = [total(watcher, accounts)]
            while not ended.is_set():
                sums.append(total(watcher, accounts))
        return sums

    with ThreadPoolExecutor(5) as pool:
        watching = pool.submit(watch)
        try:
            list(pool.map(transfer, range(24)))
        finally:
            ended.set()
        assert set(watching.result()) == {100 * ACCOUNTS}


def test_dbapi_begins_transactions_when_autocommit_is_off(
    cluster: LocalCluster, db: drsdb.Connection, accounts: str
) -> None:
    with cluster.connect(autocommit=False) as connection, connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {accounts} VALUES (20, 1), (21, 1)")
        assert cursor.rowcount == 2
        cursor.execute(f"SELECT count(*) FROM {accounts}")
        assert cursor.fetchone() == (ACCOUNTS + 2,)
        assert total(db, accounts) == 100 * ACCOUNTS
        connection.rollback()
        cursor.executemany(f"INSERT INTO {accounts} VALUES (?, ?)", [(22, 1), (23, 1)])
        connection.commit()
        cursor.execute(f"DELETE FROM {accounts}")
    assert total(db, accounts) == 100 * ACCOUNTS + 2


def test_sql_says_begin_and_commit(cluster: LocalCluster, db: drsdb.Connection, accounts: str) -> None:
    with cluster.connect() as connection:
        connection.execute("BEGIN")
        connection.execute(f"UPDATE {accounts} SET balance = balance + 1 WHERE id < 2")
        connection.execute("SAVEPOINT a")
        connection.execute(f"DELETE FROM {accounts} WHERE id = 5")
        connection.execute("ROLLBACK TO SAVEPOINT a")
        assert total(db, accounts) == 100 * ACCOUNTS
        connection.execute("COMMIT")
        assert total(connection, accounts) == total(db, accounts) == 100 * ACCOUNTS + 2


def test_returning_gives_rows(db: drsdb.Connection, accounts: str) -> None:
    rows = db.query(f"UPDATE {accounts} SET balance = 5 WHERE id IN (1, 2) RETURNING id, balance").arrow()
    assert sorted(rows.to_pylist(), key=lambda row: row["id"]) == [{"id": 1, "balance": 5}, {"id": 2, "balance": 5}]
    with db.cursor() as cursor:
        cursor.execute(f"DELETE FROM {accounts} WHERE id = ? RETURNING balance", [1])
        assert cursor.fetchall() == [(5,)]


def test_returning_and_parameters_are_as_large_as_their_values(db: drsdb.Connection, table: str) -> None:
    # All columns of a message share its memory, which must not count once for each of them.
    columns = [f"c{number}" for number in range(20)]
    numbers = range(20_000)
    rows = pa.table({"id": numbers} | {column: [number % 1000 for number in numbers] for column in columns})
    db.ingest(table, rows, mode="create", options={"primary_key": "id"})
    gone = db.query(f"DELETE FROM {table} WHERE id < 5000 RETURNING *").arrow()
    assert gone.sort_by("id").to_pydict() == rows.slice(0, 5000).to_pydict()
    more = ", ".join(f"c1 + {number} AS more{number}" for number in range(60))
    with pytest.raises(drsdb.OperationalError, match="RETURNING gives more than"):
        db.query(f"UPDATE {table} SET c0 = 0 RETURNING *, {more}")
    assert db.execute(f"DELETE FROM {table}").rows == 15_000
    marks = ", ".join(["?"] * rows.num_columns)
    with db.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {table} VALUES ({marks})", list(zip(*rows.to_pydict().values(), strict=True)))
    assert db.query(f"SELECT * FROM {table}").arrow().sort_by("id").to_pydict() == rows.to_pydict()


def test_another_driver_has_transactions_too(cluster: LocalCluster, db: drsdb.Connection, accounts: str) -> None:
    with connect(cluster) as connection:
        # The connection began with autocommit, so that its own commit does nothing.
        adbc = connection.adbc_connection
        adbc.set_autocommit(False)
        with connection.cursor() as cursor:
            cursor.execute(f"UPDATE {accounts} SET balance = 0 WHERE id = 0")
            assert total(db, accounts) == 100 * ACCOUNTS
            adbc.rollback()
            cursor.execute(f"UPDATE {accounts} SET balance = 1 WHERE id = 0")
            adbc.commit()
            with pytest.raises(adbc_driver_manager.Error, match="balance"):
                cursor.execute(f"INSERT INTO {accounts} VALUES (50, NULL)")
            adbc.rollback()
    assert total(db, accounts) == 100 * ACCOUNTS - 99
