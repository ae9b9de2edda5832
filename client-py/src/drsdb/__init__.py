"""The Python client of drsdb, a distributed SQL database.

    import drsdb

    with drsdb.connect(["https://127.0.0.1:7000"], user="admin", password="...", ca="ca.pem") as db:
        db.ingest("trips", table)                                 # any Arrow data, in one transaction
        frame = db.query("SELECT * FROM trips WHERE id > ?", [7]).df()
        with db.transaction() as tx:                              # several statements, all or nothing
            tx.execute("DELETE FROM trips WHERE id = 7")

An index server plans a query; its rows come straight from the storage servers, in parallel, as Arrow batches. The
package is also a DB-API 2.0 driver: see `Connection.cursor`.
"""

from __future__ import annotations

from drsdb._connection import Connection, connect
from drsdb._dbapi import (
    BINARY,
    DATETIME,
    NUMBER,
    ROWID,
    STRING,
    Binary,
    Cursor,
    Date,
    DateFromTicks,
    Time,
    TimeFromTicks,
    Timestamp,
    TimestampFromTicks,
    apilevel,
    paramstyle,
    threadsafety,
)
from drsdb._errors import (
    ConflictError,
    DatabaseError,
    DataError,
    Error,
    ErrorCode,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Warning,  # noqa: A004
)
from drsdb._ingest import WriteResult
from drsdb._result import Result
from drsdb._transaction import Savepoint, Transaction

__version__ = "0.1.0"

__all__ = [
    "BINARY",
    "DATETIME",
    "NUMBER",
    "ROWID",
    "STRING",
    "Binary",
    "ConflictError",
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Date",
    "DateFromTicks",
    "Error",
    "ErrorCode",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Result",
    "Savepoint",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "Transaction",
    "Warning",
    "WriteResult",
    "apilevel",
    "connect",
    "paramstyle",
    "threadsafety",
]
