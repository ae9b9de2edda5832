"""The session's cookies. Servers keep nothing about a client: what `SET` changes comes back as a cookie and is sent
along with every later request, to whichever index server.

Here lives the jar only; no value in it is read.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pyarrow.flight as flight


class CookieJar:
    """Cookies by name; thread-safe. All servers of a cluster share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cookies: dict[str, str] = {}

    def take(self, set_cookie: str) -> None:
        """Stores what a `set-cookie` header says, or deletes it if its age is over."""
        pair, *attributes = (part.strip() for part in set_cookie.split(";"))
        name, found, value = pair.partition("=")
        if not found or not name:
            return
        with self._lock:
            if any(attribute.lower() == "max-age=0" for attribute in attributes):
                self._cookies.pop(name, None)
            else:
                self._cookies[name] = value

    def header(self) -> str:
        """The `cookie` header; empty: no cookies."""
        with self._lock:
            return "; ".join(f"{name}={value}" for name, value in self._cookies.items())


class _Cookies(flight.ClientMiddleware):
    def __init__(self, jar: CookieJar) -> None:
        super().__init__()
        self._jar = jar

    def sending_headers(self) -> dict[str, list[str] | list[bytes]]:
        header = self._jar.header()
        return {"cookie": [header]} if header else {}

    def received_headers(self, headers: Mapping[str, list[Any]]) -> None:
        for name, values in headers.items():
            if name.lower() == "set-cookie":
                for value in values:
                    self._jar.take(value)


class CookieFactory(flight.ClientMiddlewareFactory):
    """Sends the jar's cookies with each call, and fills it."""

    def __init__(self, jar: CookieJar) -> None:
        super().__init__()
        self._jar = jar

    def start_call(self, _info: flight.CallInfo) -> flight.ClientMiddleware:
        return _Cookies(self._jar)
