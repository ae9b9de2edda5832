"""Pulls the endpoints of one result from the storage servers, in parallel.

    endpoint 0 --thread--> [ batches ]  \\
    endpoint 1 --thread--> [ batches ]   >-- the caller's thread, in endpoint order or as they come
    endpoint 2 --thread--> [ batches ]  /

Here lives everything between a FlightInfo and a sequence of record batches: threads, bounded buffers, order, an
endpoint's other locations, cancellation. pyarrow releases the GIL while it waits, decrypts and decodes, so the threads
do run in parallel.

Invariant: a pull is whole or an error. A stream that breaks is read again elsewhere only as long as none of its rows
was handed out; after that, its error is the pull's. Whether the result can go on with another one is `_result.py`'s
matter.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.flight as flight

from drsdb._cluster import Answer, Cluster
from drsdb._config import location as flight_location
from drsdb._errors import CallErrors, Error, ErrorCode, InterfaceError, error_of

MAX_THREADS: Final = 16
_STOP_TIMEOUT_S: Final = 2.0
_REUSE_CONNECTION: Final = "arrow-flight-reuse-connection"


@dataclass(frozen=True)
class Endpoint:
    """A part of a result: its number, its ticket, and the servers that can give it, the best first."""

    number: int
    ticket: flight.Ticket
    locations: tuple[str, ...]


def endpoints_of(info: flight.FlightInfo, origin: str) -> list[Endpoint]:
    """The endpoints of an answer that the server `origin` gave; an endpoint without a location is there itself."""
    endpoints = []
    for number, endpoint in enumerate(info.endpoints):
        # Bytes, whatever pyarrow's type stubs say.
        locations = [bytes(place.uri).decode() for place in endpoint.locations]
        servers = [origin if place.startswith(_REUSE_CONNECTION) else flight_location(place) for place in locations]
        endpoints.append(Endpoint(number, endpoint.ticket, tuple(dict.fromkeys(servers)) or (origin,)))
    return endpoints


def schema_of(info: flight.FlightInfo) -> pa.Schema:
    """The schema of an answer; one without rows (to DDL, say) may have none."""
    schema: pa.Schema | None = info.schema
    return schema if schema is not None else pa.schema([])


class _Readers:
    """The open streams of a pull, so that any thread can end them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[flight.FlightStreamReader] = set()
        self.cancelled = False

    def add(self, reader: flight.FlightStreamReader) -> None:
        with self._lock:
            if not self.cancelled:
                self._open.add(reader)
                return
        reader.cancel()

    def remove(self, reader: flight.FlightStreamReader) -> None:
        with self._lock:
            self._open.discard(reader)

    def cancel(self) -> None:
        with self._lock:
            self.cancelled = True
            readers, self._open = self._open, set()
        for reader in readers:
            with suppress(Exception):
                reader.cancel()


class _Feed:
    """What one endpoint has delivered and the caller has not taken."""

    def __init__(self) -> None:
        self.batches: deque[pa.RecordBatch] = deque()
        self.bytes = 0
        self.finished = False


class Pull:
    """One pass over a result's endpoints. Threads start with the first batch that is asked for.

    `buffer_bytes` bounds what is held for a slow caller (each endpoint may exceed its share by one batch); `None` holds
    everything, which lets a broken endpoint be read again from its start at another location.
    """

    def __init__(
        self,
        cluster: Cluster,
        endpoints: list[Endpoint],
        schema: pa.Schema,
        *,
        ordered: bool,
        buffer_bytes: int | None,
    ) -> None:
        self._cluster = cluster
        self._endpoints = endpoints
        self._schema = schema
        self._ordered = ordered
        self._whole_endpoints = buffer_bytes is None
        self._share = max(1, (buffer_bytes or 0) // max(1, min(len(endpoints), MAX_THREADS)))
        self._readers = _Readers()
        self._changed = threading.Condition()
        # The rest is guarded by `_changed`.
        self._feeds = [_Feed() for _ in endpoints]
        self._next_endpoint = 0
        self._failure: BaseException | None = None
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def batches(self) -> Generator[pa.RecordBatch]:
        """The batches: of endpoint 0, then 1, ... when the result is ordered, else as they arrive."""
        self._start()
        try:
            while (batch := self._take()) is not None:
                yield batch
        finally:
            self.stop()

    def stop(self) -> None:
        """Ends all streams, which makes the servers stop working on them, and waits for the threads."""
        with self._changed:
            self._stopped = True
            for feed in self._feeds:
                feed.batches.clear()
            self._changed.notify_all()
        self._readers.cancel()
        # A thread that is still connecting cannot be interrupted; it sees `cancelled` when it is through.
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self) -> None:
        with self._changed:
            if self._threads or self._stopped:
                raise InterfaceError("the result has been read already", code=ErrorCode.INVALID_ARGUMENT)
            count = min(len(self._endpoints), MAX_THREADS)
            names = (f"drsdb-pull-{number}" for number in range(count))
            self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def _take(self) -> pa.RecordBatch | None:
        """The next batch, or None at the end. Raises the first error of any endpoint at once."""
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                if self._stopped:
                    raise error_of(ErrorCode.CANCELLED, "the result was closed while it was read")
                open_feeds = [feed for feed in self._feeds if feed.batches or not feed.finished]
                if not open_feeds:
                    return None
                for feed in open_feeds[:1] if self._ordered else open_feeds:
                    if feed.batches:
                        batch = feed.batches.popleft()
                        feed.bytes -= batch.nbytes
                        self._changed.notify_all()
                        return batch
                self._changed.wait()

    def _work(self) -> None:
        """A thread: pulls one endpoint after the other, in their order, until none is left."""
        try:
            while (endpoint := self._claim()) is not None:
                self._pull(endpoint)
                with self._changed:
                    self._feeds[endpoint.number].finished = True
                    self._changed.notify_all()
        except BaseException as failure:
            with self._changed:
                if self._failure is None and not self._stopped:
                    self._failure = failure
                self._changed.notify_all()
            self._readers.cancel()

    def _claim(self) -> Endpoint | None:
        with self._changed:
            if self._stopped or self._failure is not None or self._next_endpoint == len(self._endpoints):
                return None
            self._next_endpoint += 1
            return self._endpoints[self._next_endpoint - 1]

    def _pull(self, endpoint: Endpoint) -> None:
        failures: list[Error] = []
        for server in endpoint.locations:
            handed_out = False
            whole: list[pa.RecordBatch] = []
            try:
                for batch in self._read(endpoint, server):
                    if self._whole_endpoints:
                        whole.append(batch)
                    elif not self._hand_out(endpoint, batch):
                        return
                    else:
                        handed_out = True
            except Error as error:
                failures.append(error)
                if handed_out or self._readers.cancelled or not may_be_elsewhere(error):
                    raise
                continue
            for batch in whole:
                self._hand_out(endpoint, batch)
            return
        raise _nowhere(endpoint, failures)

    def _hand_out(self, endpoint: Endpoint, batch: pa.RecordBatch) -> bool:
        """Buffers a batch, when there is room; False when nobody wants it any more."""
        feed = self._feeds[endpoint.number]
        with self._changed:
            while not self._whole_endpoints and feed.bytes >= self._share and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return False
            feed.batches.append(batch)
            feed.bytes += batch.nbytes
            self._changed.notify_all()
            return True

    def _read(self, endpoint: Endpoint, server: str) -> Iterator[pa.RecordBatch]:
        """The batches of one endpoint at one server."""
        errors = CallErrors(server)

        def open_stream(answer: Answer) -> flight.FlightStreamReader:
            nonlocal errors
            errors = CallErrors(server)
            with errors.translated():
                reader = answer.client.do_get(endpoint.ticket, answer.options)
                self._check_schema(reader.schema, server)
                return reader

        reader = self._cluster.authenticated(server, open_stream)
        self._readers.add(reader)
        try:
            while True:
                with errors.translated():
                    try:
                        batch = reader.read_chunk().data
                    except StopIteration:
                        return
                if batch is not None and batch.num_rows:
                    yield batch
        finally:
            self._readers.remove(reader)

    def _check_schema(self, schema: pa.Schema, server: str) -> None:
        if not schema.equals(self._schema, check_metadata=False):
            raise error_of(
                ErrorCode.INTERNAL,
                f"server {server} sends another schema than the query has:\n{schema}\ninstead of\n{self._schema}",
                fields={"server": server},
            )


def may_be_elsewhere(error: Error) -> bool:
    """A server that is gone or has damaged data, or a transport that broke; any other verdict holds everywhere."""
    if error.code == ErrorCode.INTERNAL:
        return not error._answered
    return error.code in (ErrorCode.UNAVAILABLE, ErrorCode.CORRUPT)


def _nowhere(endpoint: Endpoint, failures: list[Error]) -> Error:
    if len(failures) == 1:
        return failures[0]
    message = f"no server can give part {endpoint.number} of the result: " + "; ".join(e.message for e in failures)
    hint = next((error.hint for error in failures if error.hint), "run the query again")
    return error_of(ErrorCode.UNAVAILABLE, message, hint=hint, fields={"server": ",".join(endpoint.locations)})
