"""Flight servers in this process that behave as a test tells them to: faults that a real cluster has only by accident.

Where pyarrow's type stubs are wrong about what a server gets and gives, they are ignored.

What drsdb's servers answer is not imitated here beyond the login: the tests that are marked `cluster` ask real ones.
"""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
import trustme

from drsdb import _proto

USER = "admin"
PASSWORD = "secret"
TOKEN = b"Bearer token"


class Tls:
    """A CA, a certificate for 127.0.0.1, and another CA that did not sign it."""

    def __init__(self) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        self.ca = authority.cert_pem.bytes()
        self.other_ca = trustme.CA().cert_pem.bytes()
        self.chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        self.key = certificate.private_key_pem.bytes()


@dataclass
class Behavior:
    """What a fake server does; without a handler a request is refused. `detail` rides in the trailer of its errors.

    The lists have an item for each call that is no login, in order: its method and what its headers said.
    """

    flight_info: Callable[[bytes], flight.FlightInfo] | None = None
    get: Callable[[bytes], Iterable[pa.RecordBatch]] | None = None
    get_schema: pa.Schema = field(default_factory=lambda: pa.schema([("x", pa.int64())]))
    action: Callable[[str, bytes], list[bytes]] | None = None
    put: Callable[[bytes, Any], bytes] | None = None
    detail: bytes = b""
    token: bytes = TOKEN
    logins: int = 0
    headers: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    cookies: list[str] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    resumes: list[str] = field(default_factory=list)
    spent: list[str] = field(default_factory=list)


class _Auth(flight.ServerAuthHandler):
    def authenticate(self, outgoing: Any, incoming: Any) -> None:
        """Everything is in the headers."""

    def is_valid(self, _token: bytes) -> bytes:  # type: ignore[override]
        return b""


class _Middleware(flight.ServerMiddleware):
    def __init__(self, headers: dict[str, bytes]) -> None:
        super().__init__()
        self._headers = headers

    def sending_headers(self) -> dict[str, bytes]:  # type: ignore[override]
        return self._headers


class _Factory(flight.ServerMiddlewareFactory):
    def __init__(self, behavior: Behavior) -> None:
        super().__init__()
        self._behavior = behavior

    def start_call(self, info: flight.CallInfo, headers: dict[str, list[str]]) -> flight.ServerMiddleware:  # type: ignore[override]
        given = headers.get("authorization", [""])[0]
        if given.startswith("Basic "):
            self._behavior.logins += 1
            if base64.b64decode(given.removeprefix("Basic ")) != f"{USER}:{PASSWORD}".encode():
                raise flight.FlightUnauthenticatedError("the password is wrong")
            return _Middleware({"authorization": self._behavior.token})
        if given.encode() != self._behavior.token:
            raise flight.FlightUnauthenticatedError("the token has ended")
        self._behavior.calls.append(info.method.name)
        self._behavior.cookies.append(headers.get("cookie", [""])[0])
        self._behavior.statements.append(headers.get("drsdb-statement-id", [""])[0])
        self._behavior.versions.append(headers.get("drsdb-version", [""])[0])
        self._behavior.resumes.append(headers.get("drsdb-resume", [""])[0])
        self._behavior.spent.append(headers.get("drsdb-spent-ms", [""])[0])
        answer = {"drsdb-error-bin": self._behavior.detail} if self._behavior.detail else {}
        return _Middleware(answer | self._behavior.headers)


class FakeServer(flight.FlightServerBase):
    """A TLS Flight server on a free port."""

    def __init__(self, tls: Tls, behavior: Behavior | None = None, port: int = 0) -> None:
        self.behavior = behavior or Behavior()
        super().__init__(
            f"grpc+tls://127.0.0.1:{port}",
            auth_handler=_Auth(),
            tls_certificates=[(tls.chain, tls.key)],  # type: ignore[list-item]
            middleware={"fake": _Factory(self.behavior)},
        )

    @property
    def url(self) -> str:
        """As configuration names it."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def location(self) -> str:
        """As Flight names it."""
        return f"grpc+tls://127.0.0.1:{self.port}"

    def get_flight_info(self, _context: Any, descriptor: flight.FlightDescriptor) -> flight.FlightInfo:
        if self.behavior.flight_info is None:
            raise flight.FlightServerError("no flight info here")
        return self.behavior.flight_info(descriptor.command or b"")

    def do_get(self, _context: Any, ticket: flight.Ticket) -> flight.FlightDataStream:
        if self.behavior.get is None:
            raise flight.FlightServerError("no rows here")
        return flight.GeneratorStream(self.behavior.get_schema, iter(self.behavior.get(ticket.ticket)))

    def do_action(self, _context: Any, action: flight.Action) -> Iterator[flight.Result]:  # type: ignore[override]
        if self.behavior.action is None:
            raise NotImplementedError(action.type)
        body = action.body.to_pybytes()
        return iter([flight.Result(pa.py_buffer(part)) for part in self.behavior.action(action.type, body)])

    def do_put(self, _context: Any, descriptor: flight.FlightDescriptor, reader: Any, writer: Any) -> None:
        if self.behavior.put is None:
            raise flight.FlightServerError("no loads here")
        writer.write(pa.py_buffer(self.behavior.put(descriptor.command or b"", reader)))


class Wire:
    """A way to a server that can be frozen: connections stay open and nothing moves, as when its machine is cut off."""

    def __init__(self, server: FakeServer) -> None:
        self._target = server.port
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.location = f"grpc+tls://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        self._flows.clear()

    def close(self) -> None:
        self._flows.set()
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._flows.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def info_of(
    schema: pa.Schema, endpoints: Sequence[tuple[bytes, Sequence[str]]], *, ordered: bool = False, resume: str = ""
) -> flight.FlightInfo:
    """An answer with one endpoint for each pair of ticket and locations; `resume` says where it can go on."""
    parts = [flight.FlightEndpoint(ticket, list(locations)) for ticket, locations in endpoints]
    metadata = _proto._text(3, resume)
    return flight.FlightInfo(
        schema, flight.FlightDescriptor.for_command(b""), parts, -1, -1, ordered=ordered, app_metadata=metadata
    )


def error_detail(code: str, message: str, hint: str = "", **fields: str) -> bytes:
    """An encoded drsdb.v1.ErrorDetail."""
    body = _proto._text(1, code) + _proto._text(2, message) + _proto._text(3, hint)
    for key, value in fields.items():
        body += _proto._bytes(4, _proto._text(1, key) + _proto._text(2, value))
    return body


def index_servers(*urls: str) -> bytes:
    """An encoded drsdb.v1.IndexServers."""
    return b"".join(_proto._text(1, url) for url in urls)


def batch(*values: int) -> pa.RecordBatch:
    """A batch of the column x."""
    return pa.record_batch({"x": pa.array(values, pa.int64())})


def interval(months: int, days: int, nanoseconds: int) -> pa.MonthDayNano:
    """An INTERVAL's value."""
    return pa.MonthDayNano((months, days, nanoseconds))  # type: ignore[call-arg, arg-type]


class Gate:
    """Something a server waits for until the test opens it; the wait is bounded, so that no test hangs."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def open(self) -> None:
        self._event.set()

    def wait(self) -> None:
        assert self._event.wait(30), "the gate was never opened"
