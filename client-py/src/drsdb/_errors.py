"""The exceptions of the client: DB-API 2.0 classes that carry the server's typed error.

Here live the classes, the closed set of codes, and the one translation of a failed Flight call into them. Whether a
call is tried again is decided elsewhere (`_cluster.py`, `_pull.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa
import pyarrow.flight as flight

from drsdb import _proto

_DETAIL_TRAILER: Final = "drsdb-error-bin"


class ErrorCode(StrEnum):
    """What kind of error it is. The set is closed and the text form never changes."""

    SYNTAX_ERROR = "syntax_error"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    TYPE_MISMATCH = "type_mismatch"
    INVALID_VALUE = "invalid_value"
    INVALID_ARGUMENT = "invalid_argument"
    CONSTRAINT_VIOLATION = "constraint_violation"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    TICKET_INVALID = "ticket_invalid"
    TICKET_EXPIRED = "ticket_expired"
    UNAVAILABLE = "unavailable"
    CONFLICT = "conflict"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    DISK_FULL = "disk_full"
    UNSUPPORTED = "unsupported"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    CORRUPT = "corrupt"
    INTERNAL = "internal"


# DB-API 2.0 prescribes the name, which shadows the builtin only for `from drsdb import *`.
class Warning(Exception):  # noqa: A001, N818
    """Required by DB-API 2.0; drsdb raises none."""


class Error(Exception):
    """The base of all errors of this package.

    `code` says what kind it is, `message` what is wrong, `hint` what to change (may be empty), and `fields` has typed
    details: `line`, `column`, `table`, `constraint`, `server`, ...
    """

    def __init__(
        self,
        message: str,
        *,
        code: ErrorCode = ErrorCode.INTERNAL,
        hint: str = "",
        fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint
        self.fields: dict[str, str] = dict(fields or {})
        # Whether a server raised it, and whether the request can have reached one: a retry depends on both.
        self._answered = False
        self._sent = True

    @property
    def retryable(self) -> bool:
        """Whether nothing took effect, and the transaction may be run again from its start: another one was in the way,
        a statement met a storage server that is gone, or a query outside of a transaction lost one while its rows came.
        """
        nothing_done = self.code == ErrorCode.CONFLICT or self.fields.get("outcome") == "none"
        return nothing_done and not self.outcome_unknown

    @property
    def outcome_unknown(self) -> bool:
        """Whether nobody could say if the statement took effect."""
        return self.fields.get("outcome") == "unknown"

    def __str__(self) -> str:
        return f"{self.message}. Hint: {self.hint}" if self.hint else self.message


class InterfaceError(Error):
    """The client is used wrongly: a closed cursor, a missing argument."""


class DatabaseError(Error):
    """The base of the errors that concern the database."""


class DataError(DatabaseError):
    """A value that its type or operation cannot hold."""


class OperationalError(DatabaseError):
    """A server, a login, a ticket or a resource: not under the control of who wrote the statement."""


class ConflictError(OperationalError):
    """Another transaction was first, or the transaction's server is lost: nothing of it took effect, run it again."""


class IntegrityError(DatabaseError):
    """A constraint is violated."""


class InternalError(DatabaseError):
    """A defect, or damaged data."""


class ProgrammingError(DatabaseError):
    """The statement is wrong: syntax, unknown names, types."""


class NotSupportedError(DatabaseError):
    """SQL that drsdb does not do."""


_CLASSES: Final[dict[ErrorCode, type[DatabaseError]]] = {
    ErrorCode.SYNTAX_ERROR: ProgrammingError,
    ErrorCode.NOT_FOUND: ProgrammingError,
    ErrorCode.ALREADY_EXISTS: ProgrammingError,
    ErrorCode.TYPE_MISMATCH: ProgrammingError,
    ErrorCode.INVALID_ARGUMENT: ProgrammingError,
    ErrorCode.INVALID_VALUE: DataError,
    ErrorCode.CONSTRAINT_VIOLATION: IntegrityError,
    ErrorCode.CONFLICT: ConflictError,
    ErrorCode.UNSUPPORTED: NotSupportedError,
    ErrorCode.CORRUPT: InternalError,
    ErrorCode.INTERNAL: InternalError,
}

# Of a Flight error without details: from a server that is not drsdb's, from a proxy, or from the transport.
_FLIGHT_CODES: Final[tuple[tuple[type[BaseException], ErrorCode], ...]] = (
    (flight.FlightUnavailableError, ErrorCode.UNAVAILABLE),
    (flight.FlightUnauthenticatedError, ErrorCode.UNAUTHENTICATED),
    (flight.FlightUnauthorizedError, ErrorCode.PERMISSION_DENIED),
    (flight.FlightTimedOutError, ErrorCode.TIMEOUT),
    (flight.FlightCancelledError, ErrorCode.CANCELLED),
    (pa.ArrowNotImplementedError, ErrorCode.UNSUPPORTED),
    (pa.ArrowKeyError, ErrorCode.NOT_FOUND),
    (pa.ArrowInvalid, ErrorCode.INVALID_ARGUMENT),
    (OSError, ErrorCode.UNAVAILABLE),
)


def error_of(
    code: ErrorCode, message: str, *, hint: str = "", fields: Mapping[str, str] | None = None
) -> DatabaseError:
    """The exception of the DB-API class that `code` belongs to."""
    kind = _CLASSES.get(code, OperationalError)
    if (fields or {}).get("outcome") == "unknown":
        # Whoever catches conflicts runs the transaction again, which must not happen to one that may be committed.
        kind = OperationalError
    return kind(message, code=code, hint=hint, fields=fields)


def cannot_go_on(cause: Error) -> DatabaseError:
    """Of a result that lost a server after rows of it were handed out, which come in another order the next time. What
    the transport has to say is for nobody to read, and stays in the field `cause`."""
    damaged, server = cause.code == ErrorCode.CORRUPT, cause.fields.get("server")
    what = cause.message if damaged or server is None else f"server {server} was lost"
    return error_of(
        ErrorCode.CORRUPT if damaged else ErrorCode.UNAVAILABLE,
        f"{what}, and the result cannot go on elsewhere: rows of it were handed out, and their order is not definite",
        hint="run the query again, or give it an ORDER BY that leaves no choice: by a key, say, or by all columns",
        fields={**cause.fields, "cause": cause.message},
    )


class _Trailers:
    """What the server said about one call beyond its status."""

    def __init__(self) -> None:
        self.detail: bytes | None = None


_this_thread: Final = threading.local()


class _TrailerReader(flight.ClientMiddleware):
    def __init__(self, trailers: _Trailers) -> None:
        super().__init__()
        self._trailers = trailers

    def received_headers(self, headers: Mapping[str, list[Any]]) -> None:
        # Called for the headers and again for the trailers, in whatever thread reads the call's end.
        for name, values in headers.items():
            if name.lower() == _DETAIL_TRAILER and values:
                self._trailers.detail = bytes(values[0])


class TrailerReaderFactory(flight.ClientMiddlewareFactory):
    """Hands the trailers of each call to the `CallErrors.translated` block that the call was started in.

    pyarrow's exceptions do not carry custom trailers, and a client's middleware is not told which call it serves; but
    it is created in the thread that starts the call, so a thread-local connects the two.
    """

    def start_call(self, _info: flight.CallInfo) -> flight.ClientMiddleware:
        return _TrailerReader(getattr(_this_thread, "trailers", None) or _Trailers())


class CallErrors:
    """Translates the errors of one Flight call, which may be raised in several blocks: at its start, at each read."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._trailers = _Trailers()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns pyarrow's errors inside the block into this package's. At most one call is started in it."""
        outer = getattr(_this_thread, "trailers", None)
        _this_thread.trailers = self._trailers
        try:
            yield
        except (flight.FlightError, pa.ArrowException, OSError) as error:
            raise _translate(error, self._trailers.detail, self._server) from error
        finally:
            _this_thread.trailers = outer


def _translate(error: BaseException, detail: bytes | None, server: str) -> DatabaseError:
    if detail is not None:
        try:
            code, message, hint, fields = _proto.read_error_detail(detail)
        except _proto.MalformedMessageError:
            pass
        else:
            answered = error_of(_known_code(code), message, hint=hint, fields=fields)
            answered._answered = True
            return answered
    return _translate_without_detail(error, server)


def _known_code(text: str) -> ErrorCode:
    try:
        return ErrorCode(text)
    except ValueError:
        # From a newer server.
        return ErrorCode.INTERNAL


def _translate_without_detail(error: BaseException, server: str) -> DatabaseError:
    code = next((code for kind, code in _FLIGHT_CODES if isinstance(error, kind)), ErrorCode.INTERNAL)
    message = _plain_message(str(error))
    sent = not ("failed to connect" in message or "DNS resolution failed" in message)
    hint = ""
    if "CERTIFICATE_VERIFY_FAILED" in message or "certificate verify failed" in message.lower():
        hint = "the server's certificate was not issued by the CA in use: pass the cluster's ca.pem as ca="
    elif not sent:
        hint = "check that the server runs and that its address is right"
    if code in (ErrorCode.UNAVAILABLE, ErrorCode.INTERNAL, ErrorCode.TIMEOUT):
        message = f"server {server}: {message}"
    translated = error_of(code, message, hint=hint, fields={"server": server})
    translated._sent = sent
    return translated


def _plain_message(message: str) -> str:
    """Without what the layers below put around it."""
    message = message.partition(". gRPC client debug context:")[0]
    message = message.removesuffix(". Detail: Unavailable").removesuffix(". Detail: Failed")
    for prefix in ("Flight returned ", "Flight error: "):
        if message.startswith(prefix) and "with message: " in message:
            message = message.partition("with message: ")[2]
    return message or "the call failed without a message"
