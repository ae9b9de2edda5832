"""Transactions of several statements, and running them again when another one was first.

A transaction lives on the index server that began it, and all of it goes there. Only its end may be asked of any: the
outcome is in the cluster's log, so that a commit whose answer was lost is asked about again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, TypeVar

from drsdb import _proto
from drsdb._cluster import Answer, Cluster
from drsdb._errors import Error, ErrorCode, error_of
from drsdb._ingest import WriteResult
from drsdb._prepared import act
from drsdb._route import READ, Repeat, Route, transaction_over
from drsdb._session import Scope, Session

T = TypeVar("T")

_FIRST_PAUSE_S: Final = 0.01
_LONGEST_PAUSE_S: Final = 0.64


class Transaction(Session):
    """An open transaction; made by `Connection.transaction`. Its statements see its snapshot and its own writes.

    The end of a `with` block commits it, or rolls it back when an exception leaves the block. A `ConflictError`, be it
    of a statement or of the commit, means that nothing of it took effect and that it may be run again from its start.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._over = False
        # What it did must not be done again.
        self._may_be_committed = False

        def begin(answer: Answer) -> tuple[bytes, str]:
            reply = act(answer, "BeginTransaction", _proto.begin_transaction())
            if not reply:
                raise error_of(ErrorCode.INTERNAL, f"server {answer.location} began no transaction")
            return _proto.read_transaction(reply[0]), answer.location

        # Begun twice is harmless: one that nobody uses ends by itself.
        self._id, self._server = cluster.request(begin, READ)

    def commit(self) -> WriteResult:
        """Makes everything that it did visible, at once. When no index server answers, the error says that the outcome
        is unknown (`Error.outcome_unknown`)."""
        if self._over:
            raise transaction_over()
        reply = self._end(commit=True)
        result = WriteResult.decode(reply[0]) if reply else WriteResult(None, None)
        self._cluster.has_seen(result.version)
        return result

    def rollback(self) -> None:
        """Forgets everything that it did. Of a transaction that is over, there is nothing to forget."""
        if not self._over:
            self._end(commit=False)

    def savepoint(self, name: str) -> Savepoint:
        """Sets a savepoint. `name` is for SQL's `ROLLBACK TO`; the answer is enough for everything else."""
        body = _proto.begin_savepoint(self._scope().transaction or b"", name)
        reply = self._request("", lambda answer: act(answer, "BeginSavepoint", body), self._scope().route(reads=False))
        if not reply:
            raise error_of(ErrorCode.INTERNAL, f"server {self._server} set no savepoint")
        return Savepoint(self, _proto.read_savepoint(reply[0]))

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            if not self._over:
                self.commit()
            return
        # The exception of the block is the one that matters; a transaction that is left open ends by itself.
        with suppress(Error):
            self.rollback()

    def __repr__(self) -> str:
        return f"<drsdb.Transaction {'over' if self._over else 'open'} at {self._server}>"

    def _scope(self) -> Scope:
        if self._over:
            raise transaction_over()
        return Scope(self._id, self._server)

    def _transaction_lost(self) -> None:
        self._over = True

    def _end(self, *, commit: bool) -> list[bytes]:
        self._over = True
        self._may_be_committed = commit
        body = _proto.end_transaction(self._id, commit=commit)
        route = Route(Repeat.ALWAYS, server=self._server, ends_transaction=True)
        try:
            return self._cluster.request(lambda answer: act(answer, "EndTransaction", body), route)
        except Error as error:
            if _allows_another_run(error):
                self._may_be_committed = False
            raise


class Savepoint:
    """A point in a transaction to go back to."""

    def __init__(self, transaction: Transaction, savepoint: bytes) -> None:
        self._transaction = transaction
        self._id = savepoint

    def rollback(self) -> None:
        """Undoes everything since; the savepoint stays."""
        self._end(release=False)

    def release(self) -> None:
        """Forgets the savepoint; what was done since stays."""
        self._end(release=True)

    def _end(self, *, release: bool) -> None:
        body = _proto.end_savepoint(self._id, release=release)
        route = self._transaction._scope().route(reads=False)
        self._transaction._request("", lambda answer: act(answer, "EndSavepoint", body), route)


def run(cluster: Cluster, work: Callable[[Transaction], T], attempts: int) -> T:
    """Runs `work` in a transaction and commits it; on a conflict or without a server, again in a new one."""
    attempt = 1
    while True:
        transaction: Transaction | None = None
        try:
            with Transaction(cluster) as transaction:
                return work(transaction)
        except Error as error:
            committed = transaction is not None and transaction._may_be_committed
            if committed or not _allows_another_run(error) or attempt >= attempts:
                raise
        # Random, so that transactions that met once do not meet again.
        time.sleep(random.uniform(0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)))
        attempt += 1


def _allows_another_run(error: Error) -> bool:
    """Whether a transaction that ended in this error, wherever in it, may be run again. What is unavailable has not
    committed it, be it a statement, a query or its very beginning."""
    return error.retryable or (error.code == ErrorCode.UNAVAILABLE and not error.outcome_unknown)
