"""A real cluster of separate processes: `drsdb local --processes`, with one index and three storage servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import drsdb
from drsdb._config import location

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0


def binary() -> Path:
    """The program under test: DRSDB_BINARY, or where cargo puts the debug build."""
    if named := os.environ.get("DRSDB_BINARY"):
        return Path(named)
    target = os.environ.get("CARGO_TARGET_DIR", "~/.cache/drsdb/target")
    return Path(target).expanduser() / "debug/drsdb"


class LocalCluster:
    """Runs until `stop`. Everything that it writes is below `folder`."""

    def __init__(self, folder: Path, storage_servers: int = 3) -> None:
        if not binary().is_file():
            raise FileNotFoundError(
                f"{binary()} is not there: build it with `cargo build --bin drsdb`, or run `make test`"
            )
        self.data = folder / "data"
        self.config = self.data / "client.toml"
        self._log = folder / "cluster.log"
        self._ready = folder / "ready"
        command: list[str | Path] = [binary(), "local", "--processes", "--storage", str(storage_servers), "--port", "0"]
        # The pipe ends with this process, however it ends, and the cluster with the pipe.
        command += ["--data", self.data, "--ready-file", self._ready, "--exit-with-stdin"]
        with self._log.open("wb") as log:
            # A session of its own, so that a server that outlives its parent can still be found and ended.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._kill_all()
            raise

    def connect(self, **options: object) -> drsdb.Connection:
        """Connects as the administrator."""
        return drsdb.connect(config=self.config, **options)  # type: ignore[arg-type]

    def log(self) -> str:
        """What all servers have said."""
        files = [self._log, *sorted(self.data.glob("*/*.log"))]
        return "\n".join(f"{file.name}:\n{file.read_text(errors='replace')}" for file in files)

    def storage_pids(self) -> dict[str, int]:
        """The storage servers' processes by Flight location."""
        servers = json.loads(self._ready.read_text())["storage"]
        return {location(server["url"]): server["pid"] for server in servers}

    def stop(self) -> None:
        """Stops all servers in order; an error if that takes too long or fails."""
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"the cluster does not stop:\n{self.log()[-8_000:]}") from error
        finally:
            left = self._kill_all()
            if self._process.stdin is not None:
                self._process.stdin.close()
        assert code == 0, f"the cluster ended with code {code}:\n{self.log()[-8_000:]}"
        assert not left, f"a server outlived the cluster:\n{self.log()[-8_000:]}"

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._ready.exists():
            code = self._process.poll()
            assert code is None, f"the cluster ended with code {code} while it started:\n{self.log()[-8_000:]}"
            assert time.monotonic() < deadline, f"the cluster does not become ready:\n{self.log()[-8_000:]}"
            time.sleep(0.05)

    def abandon(self) -> None:
        """Kills all servers: of a cluster that has lost one, nothing more is expected."""
        self._kill_all()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _kill_all(self) -> bool:
        """Kills what is left of the session; true if there was anything."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self._process.wait()
        return True
