"""How arguments and `client.toml` become a configuration, and what is said when they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

import drsdb
from drsdb._config import location, resolve
from fakes import Tls


@pytest.fixture
def folder(tmp_path: Path, tls: Tls) -> Path:
    (tmp_path / "ca.pem").write_bytes(tls.ca)
    (tmp_path / "password").write_text("from file\n")
    (tmp_path / "client.toml").write_text(
        'index_servers = ["https://127.0.0.1:7000", "grpc+tls://b:1"]\n'
        f'ca = "{tmp_path}/ca.pem"\nuser = "admin"\npassword_file = "password"\n'
    )
    return tmp_path


def test_a_file_says_it_all(folder: Path, tls: Tls) -> None:
    config = resolve(None, folder / "client.toml", None, None, None)
    assert config.index_servers == ("grpc+tls://127.0.0.1:7000", "grpc+tls://b:1")
    assert (config.user, config.password, config.ca) == ("admin", "from file", tls.ca)


def test_arguments_win(folder: Path, tls: Tls) -> None:
    config = resolve(["c:2"], folder / "client.toml", "me", "mine", tls.other_ca)
    assert config.index_servers == ("grpc+tls://c:2",)
    assert (config.user, config.password, config.ca) == ("me", "mine", tls.other_ca)


@pytest.mark.parametrize(
    ("user", "password", "complaint"),
    [("ä" * 128, "p", "user name has at most 255 bytes, and this one 256"), ("u", "p" * 1025, "at most 1024 bytes")],
)
def test_a_login_that_nobody_can_have_is_refused(tls: Tls, user: str, password: str, complaint: str) -> None:
    with pytest.raises(drsdb.InterfaceError, match=complaint) as caught:
        resolve(["a:1"], None, user, password, tls.ca)
    assert caught.value.code == drsdb.ErrorCode.INVALID_ARGUMENT
    assert resolve(["a:1"], None, "u" * 255, "p" * 1024, tls.ca).user == "u" * 255


def test_the_password_is_not_shown(folder: Path) -> None:
    assert "from file" not in repr(resolve(None, folder / "client.toml", None, None, None))


def test_the_default_file_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "drsdb-data").mkdir()
    (folder / "drsdb-data/client.toml").write_text('index_servers = ["https://d:4"]\nuser = "u"\n')
    monkeypatch.chdir(folder)
    assert resolve(None, None, None, "p", None).index_servers == ("grpc+tls://d:4",)


def test_without_a_default_file_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(drsdb.InterfaceError, match=r"drsdb-data/client.toml cannot be read.*Hint: start a cluster"):
        drsdb.connect()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("index_servers = [", "is not TOML"),
        ('index_server = ["https://a:1"]', "unknown keys: index_server"),
        ('index_servers = "https://a:1"', "index_servers has the wrong type"),
        ("index_servers = [7]", "index_servers has the wrong type"),
        ("user = 7", "user has the wrong type"),
        ("index_servers = []", "no index server is named"),
        ('index_servers = ["https://a:1"]', "no user is named"),
        ('index_servers = ["https://a:1"]\nuser = "u"', "no password is given for user u"),
        ('index_servers = ["https://a:1"]\nuser = "u"\npassword_file = "gone"', "password_file .*gone cannot be read"),
        ('index_servers = ["http://a:1"]\nuser = "u"\npassword_file = "password"', "is not a TLS address"),
        ('index_servers = ["https://a:1"]\nuser = "u"\npassword_file = "password"\nca = "gone"', "gone cannot be read"),
        ('index_servers = ["https://a:1"]\nuser = "u"\npassword_file = "password"\nca = "password"', "no PEM"),
    ],
)
def test_a_wrong_file_is_refused(folder: Path, text: str, complaint: str) -> None:
    (folder / "wrong.toml").write_text(text)
    with pytest.raises(drsdb.InterfaceError, match=complaint) as caught:
        resolve(None, folder / "wrong.toml", None, None, None)
    assert caught.value.code == "invalid_argument"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h:1", "grpc+tls://h:1"),
        ("https://h:1/", "grpc+tls://h:1"),
        ("grpc+tls://h:1", "grpc+tls://h:1"),
        ("h:1", "grpc+tls://h:1"),
        ("https://[::1]:5", "grpc+tls://[::1]:5"),
    ],
)
def test_addresses_that_mean_the_same(url: str, expected: str) -> None:
    assert location(url) == expected


@pytest.mark.parametrize(
    "url", ["http://h:1", "grpc://h:1", "grpc+tcp://h:1", "https://h", "https://:1", "https://h:x", ""]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(drsdb.InterfaceError, match=r"Hint: .*https://host:port"):
        location(url)
