"""How a client finds its cluster: arguments, the `client.toml` that `drsdb local` writes, and server addresses.

Here live reading and checking only; nothing connects.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from drsdb._errors import ErrorCode, InterfaceError

DEFAULT_CONFIG: Final = Path("drsdb-data/client.toml")
_KEYS: Final = frozenset({"index_servers", "ca", "user", "password_file"})
# Nobody has a longer one, and a server may be unable to read so much, and so to say it.
_MAX_USER_BYTES: Final = 255
_MAX_PASSWORD_BYTES: Final = 1024
_TLS_SCHEMES: Final = frozenset({"https", "grpc+tls"})


@dataclass(frozen=True)
class Config:
    """Everything that a connection needs. `password` is not shown in `repr`."""

    index_servers: tuple[str, ...]
    ca: bytes | None
    user: str
    password: str

    def __repr__(self) -> str:
        return f"Config(index_servers={self.index_servers!r}, user={self.user!r})"


def resolve(
    index_servers: Sequence[str] | None,
    config: str | os.PathLike[str] | None,
    user: str | None,
    password: str | None,
    ca: str | bytes | os.PathLike[str] | None,
) -> Config:
    """Combines a configuration file with arguments, which win over it. Without servers and file, the default file."""
    path = Path(config) if config is not None else DEFAULT_CONFIG if index_servers is None else None
    from_file = _read(path) if path is not None else {}
    folder = path.parent if path is not None else Path()
    if isinstance(index_servers, str):
        index_servers = [index_servers]
    servers = index_servers if index_servers is not None else from_file.get("index_servers", [])
    if not servers:
        raise _wrong(
            "no index server is named", 'pass index_servers=["https://host:port", ...] or config="client.toml"'
        )
    user = user if user is not None else from_file.get("user")
    if user is None:
        raise _wrong("no user is named", "pass user= and password=, or a config file that has them")
    if password is None and "password_file" in from_file:
        password = _read_text(folder / from_file["password_file"], "password_file").rstrip("\r\n")
    if password is None:
        raise _wrong(
            f"no password is given for user {user}", "pass password=, or name a password_file in the config file"
        )
    for what, text, limit in [("user name", user, _MAX_USER_BYTES), ("password", password, _MAX_PASSWORD_BYTES)]:
        if (size := len(text.encode("utf-8", "surrogatepass"))) > limit:
            raise _wrong(f"a {what} has at most {limit} bytes, and this one {size}", "pass the right one")
    if ca is None and "ca" in from_file:
        ca = folder / from_file["ca"]
    return Config(tuple(location(server) for server in servers), _pem(ca), user, password)


def location(url: str) -> str:
    """The Flight location of a server's URL: `https://`, `grpc+tls://` and a bare `host:port` mean the same."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in _TLS_SCHEMES:
        raise _wrong(f"server address {url!r} is not a TLS address", "drsdb speaks TLS only: write https://host:port")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None:
        raise _wrong(f"server address {url!r} lacks a host or a port", "write https://host:port")
    return f"grpc+tls://[{host}]:{port}" if ":" in host else f"grpc+tls://{host}:{port}"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(_read_text(path, "config"))
    except tomllib.TOMLDecodeError as error:
        raise _wrong(f"{path} is not TOML: {error}", "correct the file, or let `drsdb local` write it again") from error
    if unknown := sorted(values.keys() - _KEYS):
        raise _wrong(f"{path} has unknown keys: {', '.join(unknown)}", f"known are {', '.join(sorted(_KEYS))}")
    for key, value in values.items():
        texts = value if key == "index_servers" else [value]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise _wrong(
                f"{path}: {key} has the wrong type", "index_servers is a list of strings, the others are strings"
            )
    return values


def _read_text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        hint = "start a cluster with `drsdb local`, or pass index_servers=" if path == DEFAULT_CONFIG else ""
        raise _wrong(f"{what} {path} cannot be read: {error}", hint) from error


def _pem(ca: str | bytes | os.PathLike[str] | None) -> bytes | None:
    """The certificates: bytes and text with a PEM header are themselves, all else is a path."""
    if ca is None:
        return None
    if isinstance(ca, str) and "-----BEGIN" in ca:
        return ca.encode()
    if isinstance(ca, bytes):
        pem = ca
    else:
        try:
            pem = Path(ca).read_bytes()
        except OSError as error:
            raise _wrong(
                f"the CA certificates {os.fspath(ca)} cannot be read: {error}", "pass a PEM file as ca="
            ) from error
    if b"-----BEGIN CERTIFICATE" not in pem:
        raise _wrong("ca has no PEM certificate", "pass the path or the content of the cluster's ca.pem")
    return pem


def _wrong(message: str, hint: str) -> InterfaceError:
    return InterfaceError(message, code=ErrorCode.INVALID_ARGUMENT, hint=hint)
