"""Fixtures: fake servers for faults, and one real cluster for everything else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import drsdb
from fakes import PASSWORD, USER, Behavior, FakeServer, Tls, Wire
from local_cluster import LocalCluster


@pytest.fixture(scope="session")
def tls() -> Tls:
    return Tls()


@pytest.fixture
def fake(tls: Tls) -> Iterator[Callable[..., FakeServer]]:
    """Starts fake servers, and stops them when the test is over."""
    servers: list[FakeServer] = []

    def start(behavior: Behavior | None = None, port: int = 0) -> FakeServer:
        servers.append(FakeServer(tls, behavior, port))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture
def wire() -> Iterator[Callable[[FakeServer], Wire]]:
    """Lays wires to servers, and takes them away when the test is over."""
    wires: list[Wire] = []

    def lay(server: FakeServer) -> Wire:
        wires.append(Wire(server))
        return wires[-1]

    yield lay
    for each in wires:
        each.close()


@pytest.fixture
def connect_fake(tls: Tls) -> Iterator[Callable[..., drsdb.Connection]]:
    """Connects to fake servers with the right login, unless told otherwise."""
    connections: list[drsdb.Connection] = []

    def connect(*servers: FakeServer | str, **options: Any) -> drsdb.Connection:
        urls = [server if isinstance(server, str) else server.url for server in servers]
        connections.append(drsdb.connect(urls, **{"user": USER, "password": PASSWORD, "ca": tls.ca, **options}))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.close()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """The cluster that all tests share; each makes tables of its own."""
    running = LocalCluster(tmp_path_factory.mktemp("cluster"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def db(cluster: LocalCluster) -> Iterator[drsdb.Connection]:
    """The administrator's connection."""
    with cluster.connect() as connection:
        yield connection


_numbers = itertools.count(1)


@pytest.fixture
def table(db: drsdb.Connection) -> Iterator[str]:
    """The name of a table that the test may create; dropped afterwards."""
    name = f"t{next(_numbers)}"
    yield name
    db.execute(f"DROP TABLE IF EXISTS {name}")
