"""The index servers of a cluster, the login, and the Flight clients of every server.

Here live failover and authentication. What is asked of a server is the callers' matter, and so is pulling results from
storage servers, for which this module only keeps the connections.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

import pyarrow.flight as flight

from drsdb import _proto
from drsdb._config import Config, location
from drsdb._cookies import CookieFactory, CookieJar
from drsdb._errors import CallErrors, Error, ErrorCode, InterfaceError, TrailerReaderFactory, error_of
from drsdb._route import READ, Route, is_lost

T = TypeVar("T")
Bearer = tuple[str, str]  # the authorization header; bytes in fact, as all headers are, which pyarrow's type stubs deny

_FAILURES_BEFORE_DROP: Final = 2
_CONNECT_TIMEOUT_MS: Final = 3_000
_LOGIN_TIMEOUT_S: Final = 15.0

# A connection that broke may be made again to the only server that knows a transaction.
_PINNED_ATTEMPTS: Final = 2

# Waits before the servers are asked again what became of a write. Another leader of the index servers is there after
# about as long.
_ASK_AGAIN_AFTER_S: Final = (0.2, 0.8, 2.0)

_STATEMENT_HEADER: Final = b"drsdb-statement-id"
# The highest commit version that this client has seen: whoever answers must be at least there.
_VERSION_HEADER: Final = b"drsdb-version"
# Where an answer goes on that broke off.
_RESUME_HEADER: Final = b"drsdb-resume"
# How many milliseconds a query has taken already that is planned once more.
_SPENT_HEADER: Final = b"drsdb-spent-ms"

# A server that is stopped or cut off is noticed while a call waits for it, and not after TCP's quarter of an hour.
_CHANNEL_OPTIONS: Final[list[tuple[str, int | str]]] = [
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Each client has its own connections, and none inherits another's waiting time.
    ("grpc.use_local_subchannel_pool", 1),
]


class Answer(NamedTuple):
    """A Flight connection that a request is made on."""

    client: flight.FlightClient
    options: flight.FlightCallOptions
    location: str


class Cluster:
    """Thread-safe. Requests go to one index server until it stops answering, then to the next."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._login_lock = threading.Lock()
        self._cookies = CookieJar()
        self._clients: dict[str, flight.FlightClient] = {}
        self._known: list[str] = list(dict.fromkeys(config.index_servers))
        # Clients spread over the index servers; each then stays with one.
        start = random.randrange(len(self._known))
        self._servers: list[str] = self._known[start:] + self._known[:start]
        self._failures: dict[str, int] = {}
        self._bearer: Bearer | None = None
        self._seen_version = 0
        self._closed = False

    def open(self) -> None:
        """Logs in at the first index server that answers, and learns the others."""
        self.request(lambda _: None, READ)
        self._learn_servers()

    def ping(self) -> None:
        """Makes sure that an index server answers and that the login holds."""
        self.request(lambda answer: list(_ask_index_servers(answer)), READ)

    @property
    def index_servers(self) -> tuple[str, ...]:
        """The locations of the index servers in use, the current one first."""
        with self._lock:
            return tuple(self._servers)

    def has_seen(self, version: int | None) -> None:
        """Remembers a commit version: what is read from now on includes it, at whichever index server."""
        with self._lock:
            self._seen_version = max(self._seen_version, version or 0)

    def request(self, ask: Callable[[Answer], T], route: Route) -> T:
        """Makes a request of an index server: the current one or, as `route` allows, the next that answers.

        `ask` runs once for each server tried and raises this package's errors.
        """
        pauses = iter(_ASK_AGAIN_AFTER_S)
        maybe_done = failed = False
        while True:
            unanswered: list[Error] = []
            for server in self._candidates(route):
                try:
                    answer = self.authenticated(server, ask, route)
                except Error as error:
                    if is_lost(error):
                        self._count_failure(server)
                    maybe_done = maybe_done or route.leaves_doubt(error)
                    if route.is_final(error, maybe_done):
                        final = route.final(error, maybe_done and is_lost(error))
                        if final is error:
                            raise
                        raise final from error
                    unanswered.append(error)
                    failed = True
                    continue
                self._count_success(server, prefer=route.server is None)
                if failed:
                    self._learn_servers()
                return answer
            pause = next(pauses, None)
            if pause is None or not maybe_done or route.pinned:
                raise route.final(_nobody_answered(unanswered), maybe_done)
            time.sleep(pause)

    def authenticated(self, server: str, ask: Callable[[Answer], T], route: Route = READ) -> T:
        """Makes a request of any server of the cluster, logging in where that is needed."""
        bearer = self._bearer or self._log_in(server, None)
        try:
            return ask(self._answer(server, bearer, route))
        except Error as error:
            if is_lost(error):
                self._forget(server)
            if error.code != ErrorCode.UNAUTHENTICATED:
                raise
        # The token has ended or the cluster's key is another one: an unauthenticated request has done nothing.
        return ask(self._answer(server, self._log_in(None, bearer), route))

    def close(self) -> None:
        """Closes all connections. Requests made later raise InterfaceError."""
        with self._lock:
            self._closed = True
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            with suppress(Exception):
                client.close()

    def _candidates(self, route: Route) -> list[str]:
        """The servers to ask, in order: those in use and, as the last resort, all that were ever known."""
        if route.server is not None and route.pinned:
            return [route.server] * _PINNED_ATTEMPTS
        first = [route.server] if route.server is not None else []
        with self._lock:
            return list(dict.fromkeys([*first, *self._servers, *self._known]))

    def _answer(self, server: str, bearer: Bearer, route: Route) -> Answer:
        headers: list[Any] = [bearer]
        if route.statement is not None:
            headers.append((_STATEMENT_HEADER, route.statement.encode()))
        if route.resume is not None:
            headers.append((_RESUME_HEADER, route.resume.encode()))
        if route.begun is not None:
            spent_ms = int((time.monotonic() - route.begun) * 1000)
            headers.append((_SPENT_HEADER, str(spent_ms).encode()))
        if self._seen_version:
            headers.append((_VERSION_HEADER, str(self._seen_version).encode()))
        return Answer(self._client(server), flight.FlightCallOptions(headers=headers), server)

    def _client(self, server: str) -> flight.FlightClient:
        with self._lock:
            if self._closed:
                raise InterfaceError("the connection is closed", code=ErrorCode.INVALID_ARGUMENT, hint="connect again")
            client = self._clients.get(server)
            if client is None:
                with CallErrors(server).translated():
                    client = flight.FlightClient(
                        server,
                        tls_root_certs=self._config.ca,  # type: ignore[arg-type]
                        middleware=[TrailerReaderFactory(), CookieFactory(self._cookies)],
                        generic_options=_CHANNEL_OPTIONS,
                    )
                self._clients[server] = client
            return client

    def _forget(self, server: str) -> None:
        """Makes the next request to a server connect anew: gRPC would refuse it at once while it waits to reconnect.

        Other threads may still read through the old connection, so it is not closed here.
        """
        with self._lock:
            self._clients.pop(server, None)

    def _log_in(self, server: str | None, stale: Bearer | None) -> Bearer:
        """The bearer header; one thread logs in for all that found `stale`. Only index servers know passwords."""
        with self._login_lock:
            if self._bearer is not None and self._bearer != stale:
                return self._bearer
            failure: Error | None = None
            for candidate in [server] if server is not None else self.index_servers:
                try:
                    self._bearer = self._handshake(candidate)
                    return self._bearer
                except Error as error:
                    if error.code != ErrorCode.UNAVAILABLE:
                        raise
                    self._forget(candidate)
                    # A login may be repeated anywhere.
                    error._sent = False
                    failure = error
            raise failure or _nobody_answered([])

    def _handshake(self, server: str) -> Bearer:
        client = self._client(server)
        options = flight.FlightCallOptions(timeout=_LOGIN_TIMEOUT_S)
        try:
            with CallErrors(server).translated():
                return client.authenticate_basic_token(self._config.user, self._config.password, options)
        except Error as error:
            if error._answered or error.code not in (ErrorCode.INTERNAL, ErrorCode.TIMEOUT):
                raise
            # Of a server that cannot be reached, a handshake says only that it failed: any other call says why.
            _probe(client, server)
            raise

    def _learn_servers(self) -> None:
        """Takes over the cluster's own list of index servers; without an answer the old one stays."""
        current = self.index_servers[0]
        try:
            urls = self.authenticated(current, lambda answer: list(_ask_index_servers(answer)))
        except Error:
            return
        learned = list(dict.fromkeys(location(url) for url in urls))
        if not learned:
            return
        with self._lock:
            # The current server may be reached by another name than its own: it stays, it answers.
            others = [server for server in learned if server != current]
            self._servers = [current, *others]
            self._known = list(dict.fromkeys([*self._known, *learned]))
            self._failures = {server: count for server, count in self._failures.items() if server in self._servers}

    def _count_failure(self, server: str) -> None:
        """Puts a server that does not answer last; at the second failure in a row it is no longer in use."""
        with self._lock:
            self._failures[server] = self._failures.get(server, 0) + 1
            if server in self._servers:
                self._servers.remove(server)
                if self._failures[server] < _FAILURES_BEFORE_DROP:
                    self._servers.append(server)
            if not self._servers:
                # All are gone: whoever comes back first is welcome.
                self._servers = list(self._known)
                self._failures.clear()

    def _count_success(self, server: str, *, prefer: bool) -> None:
        """Forgets a server's failures. Who is preferred comes first from now on."""
        with self._lock:
            self._failures.pop(server, None)
            if prefer and self._servers[:1] != [server]:
                self._servers = [server, *(other for other in self._servers if other != server)]


def _probe(client: flight.FlightClient, server: str) -> None:
    """Raises why a server cannot be reached; returns when it can, although it refuses whoever has not logged in."""
    try:
        with CallErrors(server).translated():
            list(
                client.do_action(
                    flight.Action("drsdb.IndexServers", b""), flight.FlightCallOptions(timeout=_LOGIN_TIMEOUT_S)
                )
            )
    except Error as error:
        if error.code == ErrorCode.UNAVAILABLE:
            raise


def _ask_index_servers(answer: Answer) -> Iterator[str]:
    with CallErrors(answer.location).translated():
        for result in answer.client.do_action(flight.Action("drsdb.IndexServers", b""), answer.options):
            yield from _proto.read_index_servers(result.body.to_pybytes())


def _nobody_answered(errors: list[Error]) -> Error:
    if len(errors) == 1:
        return errors[0]
    # What a server says about others is worth more than the servers that merely do not run.
    if answered := [error for error in errors if error._answered]:
        return answered[0]
    message = "no index server answers: " + "; ".join(error.message for error in errors)
    hint = next((error.hint for error in errors if error.hint), "check that an index server runs and can be reached")
    servers = ",".join(error.fields["server"] for error in errors if "server" in error.fields)
    return error_of(ErrorCode.UNAVAILABLE, message, hint=hint, fields={"server": servers})
