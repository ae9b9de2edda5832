"""The SQL shell at a terminal: what only a terminal shows."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator

import pytest

from local_cluster import LocalCluster, binary

pytestmark = pytest.mark.cluster

PATIENCE_S = 30.0
# The editor draws the prompt, then tells the terminal that the line is complete.
PROMPT = "> \r\x1b[8C\x1b[?2026l"
PROMPT_IN_TRANSACTION = "=*> \r\x1b[9C\x1b[?2026l"


class Terminal:
    """A shell that believes that somebody sits before it."""

    def __init__(self, cluster: LocalCluster, history: str) -> None:
        self._master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "HOME": history, "XDG_STATE_HOME": history}
        self._process = subprocess.Popen(
            [binary(), "sql", "--config", cluster.config],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self._seen = ""

    def type(self, text: str, prompt: str = PROMPT) -> None:
        """Types at the next prompt: what comes before it, a line editor may throw away."""
        self.wait_for(prompt)
        self.press(text)

    def press(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> str:
        """What was written up to and with `text`."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self._seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} does not come; seen: {self._seen!r}"
            if select.select([self._master], [], [], min(left, 0.5))[0]:
                try:
                    self._seen += os.read(self._master, 65536).decode(errors="replace")
                except OSError:  # The other side is closed.
                    assert text in self._seen, f"the shell ended; seen: {self._seen!r}"
        before, found, self._seen = self._seen.partition(text)
        return before + found

    def end(self) -> int:
        code = self._process.wait(PATIENCE_S)
        os.close(self._master)
        return code

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self.end()


def _take_terminal() -> None:
    """Makes standard input the terminal of the new session, so that Ctrl-C becomes a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(cluster: LocalCluster, tmp_path: os.PathLike[str]) -> Iterator[Terminal]:
    shell = Terminal(cluster, os.fspath(tmp_path))
    yield shell
    shell.kill()


def test_statements_span_lines_and_answers_are_tables(terminal: Terminal) -> None:
    terminal.type("SELECT 40 + 2\r")
    terminal.type("  AS answer;\r")
    assert "answer" in terminal.wait_for("42")
    terminal.type("\\q\r")
    assert terminal.end() == 0


def test_the_prompt_says_that_a_transaction_is_open(terminal: Terminal) -> None:
    terminal.type("BEGIN;\r")
    terminal.type("SELECT nonsense;\r", PROMPT_IN_TRANSACTION)
    terminal.type("ROLLBACK;\r", PROMPT_IN_TRANSACTION)
    terminal.type("\\q\r")
    assert terminal.end() == 0


def test_ctrl_c_cancels_the_query_and_not_the_shell(terminal: Terminal) -> None:
    # Far longer than anyone waits.
    terminal.type("SELECT count(*) FROM generate_series(1, 100000) a(x), generate_series(1, 10000000) b(y)")
    terminal.press(" WHERE (x * y) % 3 = 1;\r")
    terminal.wait_for("\x1b[?2004l")
    time.sleep(1.0)
    terminal.press("\x03")
    terminal.wait_for("ancel")
    terminal.type("SELECT 'still ' || 'here';\r")
    terminal.wait_for("still here")
    # At the prompt, Ctrl-C drops the line, and Ctrl-D ends.
    terminal.type("SELECT nonsense\x03")
    terminal.type("SELECT 'end';\r")
    terminal.wait_for("| end")
    terminal.type("\x04")
    assert terminal.end() == 0
