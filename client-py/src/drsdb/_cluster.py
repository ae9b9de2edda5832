"""The index servers of a cluster, the login, and the Flight clients of every server.

Here live failover and authentication. What is asked of a server is the callers' matter, and so is pulling results from
storage servers, for which this module only keeps the connections.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum
from typing import Final, NamedTuple, TypeVar

import pyarrow.flight as flight

from drsdb import _proto
from drsdb._config import Config, location
from drsdb._cookies import CookieFactory, CookieJar
from drsdb._errors import CallErrors, Error, ErrorCode, InterfaceError, TrailerReaderFactory, error_of

T = TypeVar("T")
Bearer = tuple[str, str]  # the authorization header; bytes in fact, which pyarrow's type stubs deny

_FAILURES_BEFORE_DROP: Final = 2
_CONNECT_TIMEOUT_MS: Final = 3_000
_LOGIN_TIMEOUT_S: Final = 15.0

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


class Repeat(Enum):
    """When a request may go to another index server after one failed."""

    UNSENT = "only when it cannot have arrived"
    ALWAYS = "even when it may have been carried out: it changes nothing"


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
        self._closed = False

    def open(self) -> None:
        """Logs in at the first index server that answers, and learns the others."""
        self.request(lambda _: None, Repeat.ALWAYS)
        self._learn_servers()

    def ping(self) -> None:
        """Makes sure that an index server answers and that the login holds."""
        self.request(lambda answer: list(_ask_index_servers(answer)), Repeat.ALWAYS)

    @property
    def index_servers(self) -> tuple[str, ...]:
        """The locations of the index servers in use, the current one first."""
        with self._lock:
            return tuple(self._servers)

    def request(self, ask: Callable[[Answer], T], repeat: Repeat) -> T:
        """Makes a request of an index server: the current one or, as `repeat` allows, the next that answers.

        `ask` runs once for each server tried and raises this package's errors.
        """
        unanswered: list[Error] = []
        for server in self.index_servers:
            try:
                answer = self.authenticated(server, ask)
            except Error as error:
                if error.code != ErrorCode.UNAVAILABLE:
                    raise
                if not error._answered:
                    self._count_failure(server)
                unanswered.append(error)
                # An answered error means that this server works and one behind it does not.
                if repeat is Repeat.UNSENT and (error._sent or error._answered):
                    raise
                continue
            self._prefer(server)
            if unanswered:
                self._learn_servers()
            return answer
        raise _nobody_answered(unanswered)

    def authenticated(self, server: str, ask: Callable[[Answer], T]) -> T:
        """Makes a request of any server of the cluster, logging in where that is needed."""
        bearer = self._bearer or self._log_in(server, None)
        try:
            return ask(self._answer(server, bearer))
        except Error as error:
            if error.code == ErrorCode.UNAVAILABLE and not error._answered:
                self._forget(server)
            if error.code != ErrorCode.UNAUTHENTICATED:
                raise
        # The token has ended or the cluster's key is another one: an unauthenticated request has done nothing.
        return ask(self._answer(server, self._log_in(None, bearer)))

    def close(self) -> None:
        """Closes all connections. Requests made later raise InterfaceError."""
        with self._lock:
            self._closed = True
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            with suppress(Exception):
                client.close()

    def _answer(self, server: str, bearer: Bearer) -> Answer:
        return Answer(self._client(server), flight.FlightCallOptions(headers=[bearer]), server)

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
        with self._lock:
            self._failures[server] = self._failures.get(server, 0) + 1
            if self._failures[server] >= _FAILURES_BEFORE_DROP and server in self._servers:
                self._servers.remove(server)
            if not self._servers:
                # All are gone: whoever comes back first is welcome.
                self._servers = list(self._known)
                self._failures.clear()

    def _prefer(self, server: str) -> None:
        """Puts the server that answered first."""
        with self._lock:
            self._failures.pop(server, None)
            if self._servers[:1] != [server]:
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
    message = "no index server answers: " + "; ".join(error.message for error in errors)
    hint = next((error.hint for error in errors if error.hint), "check that an index server runs and can be reached")
    servers = ",".join(error.fields["server"] for error in errors if "server" in error.fields)
    return error_of(ErrorCode.UNAVAILABLE, message, hint=hint, fields={"server": servers})
