"""Where a request to an index server may go, and whether it may be made again. Nothing here connects.

a read              -> the next server, each once
a write, by its id  -> the next server, each once; when it may have been done somewhere, all again, a few times
a transaction's end -> its own server, then as a write
in a transaction    -> its own server only; when that is lost, so is the transaction
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from drsdb._errors import Error, ErrorCode, error_of
from drsdb._ids import new_ulid

# Errors that one attempt of a write may end in and another not.
_OF_ONE_ATTEMPT: Final = frozenset(
    {
        ErrorCode.CONFLICT,
        ErrorCode.CONSTRAINT_VIOLATION,
        ErrorCode.RESOURCE_EXHAUSTED,
        ErrorCode.DISK_FULL,
        ErrorCode.CANCELLED,
        ErrorCode.TIMEOUT,
        ErrorCode.CORRUPT,
        ErrorCode.INTERNAL,
    }
)


class Repeat(Enum):
    """When a request may be made again after it failed."""

    UNSENT = "only when it cannot have arrived"
    ALWAYS = "even when it may have been carried out"


@dataclass(frozen=True)
class Route:
    """The way of one request."""

    repeat: Repeat
    # Names a write: servers do what has one id once, however often it arrives.
    statement: str | None = None
    # Asked first, ...
    server: str | None = None
    # ... and, when a transaction lives there, alone.
    pinned: bool = False
    ends_transaction: bool = False
    # Where the answer goes on that it asks for once more, and by the monotonic clock when that began: its time goes on.
    resume: str | None = None
    begun: float | None = None

    def is_final(self, error: Error, maybe_done: bool) -> bool:
        """Whether the request ends with this error; `maybe_done` says that an earlier attempt may have succeeded."""
        if is_lost(error):
            return error._sent and self.repeat is Repeat.UNSENT
        if error.code == ErrorCode.UNAVAILABLE:
            # An answered error means that this server works and one behind it does not: another may reach it.
            return self.repeat is Repeat.UNSENT or self.pinned
        if error.code in _OF_ONE_ATTEMPT:
            # It says nothing of an earlier attempt, which may be under way somewhere still, and which this one may have
            # met: later that is answered by its id.
            return not (maybe_done and self.statement is not None)
        return True

    def leaves_doubt(self, error: Error) -> bool:
        """Whether the request may have been carried out although it failed like this."""
        if self.ends_transaction:
            return error._sent
        return self.statement is not None and (error.outcome_unknown or (is_lost(error) and error._sent))

    def final(self, error: Error, maybe_done: bool) -> Error:
        """The error that the caller gets."""
        if self.pinned and is_lost(error):
            return _transaction_lost(error)
        return _outcome_unknown(error) if maybe_done else error


READ: Final = Route(Repeat.ALWAYS)


def write() -> Route:
    """A write that may be sent again."""
    return Route(Repeat.ALWAYS, new_ulid())


def single_write() -> Route:
    """A write that is there once: in a transaction, or of rows from a stream."""
    return Route(Repeat.UNSENT, new_ulid())


def is_lost(error: Error) -> bool:
    """Whether the server is gone, or the way to it: it said nothing itself."""
    return not error._answered and error.code in (ErrorCode.UNAVAILABLE, ErrorCode.INTERNAL)


def transaction_over() -> Error:
    """Of a statement in a transaction that has ended."""
    return error_of(
        ErrorCode.CONFLICT,
        "the transaction is over",
        hint="run it again from its start",
        fields={"transaction": "over"},
    )


def _transaction_lost(cause: Error) -> Error:
    return error_of(
        ErrorCode.CONFLICT,
        f"the transaction is over: the index server where it was is lost: {cause.message}",
        hint="nothing of it took effect: run it again from its start",
        fields={**cause.fields, "transaction": "lost"},
    )


def _outcome_unknown(cause: Error) -> Error:
    return error_of(
        cause.code,
        f"the outcome of the statement is unknown: {cause.message}",
        hint="look whether it took effect before running it again",
        fields={**cause.fields, "outcome": "unknown"},
    )
