"""A connection to a cluster: how it is made, and which transaction its statements belong to.

How statements run is in `_session.py`. What DB-API 2.0 adds is here and in `_dbapi.py`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from drsdb import _config, _errors, _statements, _transaction
from drsdb._cluster import Answer, Cluster
from drsdb._errors import Error, ErrorCode, InterfaceError, NotSupportedError
from drsdb._route import Repeat, Route
from drsdb._session import Scope, Session
from drsdb._transaction import Transaction

T = TypeVar("T")


def connect(
    index_servers: Sequence[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    user: str | None = None,
    password: str | None = None,
    ca: str | bytes | os.PathLike[str] | None = None,
    autocommit: bool = True,
) -> Connection:
    """Connects to a cluster and logs in.

    `index_servers` are URLs (`https://host:port`); one that answers is enough, the others are learned from it. A `user`
    has at most 255 bytes in UTF-8, a `password` 1,024. `ca` is the path or content of a PEM file with the certificates
    to trust; without it, the system's are. `config` names a `client.toml`, as `drsdb local` writes it, for whatever is
    not passed; `drsdb-data/client.toml` is read when neither it nor `index_servers` is given. `autocommit`: see
    `Connection.autocommit`.
    """
    cluster = Cluster(_config.resolve(index_servers, config, user, password, ca))
    try:
        cluster.open()
    except BaseException:
        cluster.close()
        raise
    return Connection(cluster, autocommit=autocommit)


class Connection(Session):
    """A logged-in client of a cluster; made by `connect`. Thread-safe: threads may share it, each with its own results.

    Every statement is its own transaction and has been committed when its call returns, unless `autocommit` is off, or
    it is run in a `transaction`.
    """

    # DB-API 2.0 wants the exceptions to be reachable from a connection.
    Warning = _errors.Warning
    Error = _errors.Error
    InterfaceError = _errors.InterfaceError
    DatabaseError = _errors.DatabaseError
    DataError = _errors.DataError
    OperationalError = _errors.OperationalError
    IntegrityError = _errors.IntegrityError
    InternalError = _errors.InternalError
    ProgrammingError = _errors.ProgrammingError
    NotSupportedError = _errors.NotSupportedError

    def __init__(self, cluster: Cluster, *, autocommit: bool = True) -> None:
        super().__init__(cluster)
        self._lock = threading.Lock()
        self._autocommit = autocommit
        # Of autocommit off: the transaction that the first statement began.
        self._transaction: Transaction | None = None
        # Where the transaction is that the statement BEGIN opened.
        self._begun_at: str | None = None

    @property
    def index_servers(self) -> tuple[str, ...]:
        """The index servers in use, the current one first."""
        return self._cluster.index_servers

    @property
    def autocommit(self) -> bool:
        """True (the default of `connect`): every statement is committed on its own. False: as DB-API 2.0 has it, the
        first statement begins a transaction, which lasts until `commit` or `rollback`; closing rolls it back. Threads
        that share the connection share that transaction.
        """
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        if value != self._autocommit and self.in_transaction:
            raise InterfaceError(
                "autocommit cannot change within a transaction",
                code=ErrorCode.INVALID_ARGUMENT,
                hint="commit or roll back first",
            )
        self._autocommit = value

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open: one of autocommit off, or of the statement BEGIN."""
        return self._transaction is not None or self._begun_at is not None

    def transaction(self) -> Transaction:
        """Begins a transaction, beside whatever else the connection does:

        with connection.transaction() as tx:
            tx.execute("UPDATE account SET balance = balance - 10 WHERE id = 1")
            tx.execute("UPDATE account SET balance = balance + 10 WHERE id = 2")
        """
        return Transaction(self._cluster)

    def run_transaction(self, work: Callable[[Transaction], T], *, attempts: int = 10) -> T:
        """Runs `work(tx)` in a transaction and commits it. When that ends in a `ConflictError`, or in an error of code
        `unavailable` before anything was committed, `work` is run again in a new transaction, up to `attempts` times;
        any other exception rolls it back and is raised.
        """
        return _transaction.run(self._cluster, work, attempts)

    def commit(self) -> None:
        """Commits the open transaction. Without one it does nothing: every statement has been committed already."""
        transaction = self._take_transaction()
        if transaction is not None:
            transaction.commit()
        elif self._begun_at is not None:
            self.execute("COMMIT")

    def rollback(self) -> None:
        """Rolls the open transaction back. With autocommit and without one there is nothing that could be."""
        transaction = self._take_transaction()
        if transaction is not None:
            transaction.rollback()
        elif self._begun_at is not None:
            self.execute("ROLLBACK")
        elif self._autocommit:
            raise NotSupportedError(
                "there is no transaction to roll back: every statement is committed on its own",
                code=ErrorCode.UNSUPPORTED,
                hint="set autocommit = False, or use transaction()",
            )

    def close(self) -> None:
        """Rolls back an open transaction and closes all connections to servers. Closing twice is harmless."""
        transaction = self._take_transaction()
        if transaction is not None:
            with suppress(Error):
                transaction.rollback()
        self._cluster.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<drsdb.Connection index_servers={list(self.index_servers)}>"

    def _take_transaction(self) -> Transaction | None:
        with self._lock:
            transaction, self._transaction = self._transaction, None
            return transaction

    def _scope(self) -> Scope:
        if self._autocommit:
            return Scope(server=self._begun_at)
        with self._lock:
            if self._transaction is None:
                self._transaction = Transaction(self._cluster)
            return self._transaction._scope()

    def _transaction_lost(self) -> None:
        with self._lock:
            self._begun_at = None
            if self._transaction is not None:
                self._transaction._transaction_lost()

    def _request(self, sql: str, ask: Callable[[Answer], T], route: Route) -> T:
        """Notes where BEGIN opens a transaction, and when it ends. Its end may be asked of any server."""
        step = _statements.transaction_step(sql) if self._autocommit else None
        if step is None:
            return super()._request(sql, ask, route)
        if step != "begin":
            route = Route(Repeat.ALWAYS, server=self._begun_at, ends_transaction=True)

        def noting_where(answer: Answer) -> tuple[T, str]:
            return ask(answer), answer.location

        try:
            outcome, location = super()._request(sql, noting_where, route)
        except Error as error:
            # What is refused as it stands has changed nothing; every other failed COMMIT has ended the transaction.
            refused = (ErrorCode.SYNTAX_ERROR, ErrorCode.UNAUTHENTICATED, ErrorCode.UNAVAILABLE)
            if step != "begin" and error.code not in refused:
                self._begun_at = None
            raise
        self._begun_at = location if step == "begin" else None
        return outcome
