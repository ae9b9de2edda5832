"""What the client reads out of SQL text."""

from __future__ import annotations

import time

import pytest

from drsdb._statements import is_repeatable, number_placeholders, returns_rows, transaction_step


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1", True),
        ("  select 1", True),
        ("-- INSERT\n/* DROP /* nested */ */ (SELECT 1)", True),
        ("WITH a AS (SELECT 1) SELECT * FROM a", True),
        ("VALUES (1)", True),
        ("EXPLAIN SELECT 1", True),
        ("SHOW TABLES", True),
        ("INSERT INTO t VALUES (1)", False),
        ("CREATE TABLE select_me (x INT)", False),
        ("'SELECT'", False),
        ("", False),
        ("/* SELECT", False),
    ],
)
def test_queries_are_known(sql: str, expected: bool) -> None:
    assert returns_rows(sql) is expected


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 'DROP TABLE x' AS \"delete\" -- insert", True),
        ("SELECT $$ update $$", True),
        ("WITH a AS (INSERT INTO t VALUES (1) RETURNING x) SELECT * FROM a", False),
        ("EXPLAIN ANALYZE DELETE FROM t", False),
        ("SELECT * INTO u FROM t", False),
        ("INSERT INTO t VALUES (1)", False),
        ("", False),
        ("SELECT '" + "x" * (1 << 20) + "'", False),
    ],
)
def test_what_may_be_sent_twice(sql: str, expected: bool) -> None:
    assert is_repeatable(sql) is expected


@pytest.mark.parametrize(
    ("sql", "expected", "count"),
    [
        ("SELECT 1", "SELECT 1", 0),
        ("SELECT ?", "SELECT $1", 1),
        ("?,?,?", "$1,$2,$3", 3),
        ("SELECT '?', ?, 'it''s ?', ?", "SELECT '?', $1, 'it''s ?', $2", 2),
        (r"SELECT E'\'?', ?", r"SELECT E'\'?', $1", 1),
        ('SELECT "a?""?", ?', 'SELECT "a?""?", $1', 1),
        ("SELECT ? -- ?\n, ?", "SELECT $1 -- ?\n, $2", 2),
        ("SELECT /* ? /* ? */ ? */ ?", "SELECT /* ? /* ? */ ? */ $1", 1),
        ("SELECT $$?$$, $a$ ? $$ ? $a$, ?", "SELECT $$?$$, $a$ ? $$ ? $a$, $1", 1),
        ("SELECT $1, $2", "SELECT $1, $2", 0),
        ("SELECT a$b$, ?, c$b$", "SELECT a$b$, $1, c$b$", 1),
        ("SELECT 'never closed ?", "SELECT 'never closed ?", 0),
        ("SELECT /* never closed ?", "SELECT /* never closed ?", 0),
        ("SELECT 'ä', ?, 'ö'", "SELECT 'ä', $1, 'ö'", 1),
    ],
)
def test_placeholders_are_numbered(sql: str, expected: str, count: int) -> None:
    assert number_placeholders(sql) == (expected, count)


@pytest.mark.parametrize("piece", ["'", '"', "$$", "/*", "'' ", "?", "a?'", "\\'", "e'\\"])
def test_long_texts_take_linear_time(piece: str) -> None:
    def seconds(length: int) -> float:
        sql = piece * (length // len(piece))
        started = time.perf_counter()
        number_placeholders(sql)
        return time.perf_counter() - started

    seconds(10_000)
    assert seconds(400_000) < 40 * max(seconds(40_000), 0.002)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("BEGIN", "begin"),
        ("/* now */ start transaction read only", "begin"),
        ("COMMIT", "commit"),
        ("end work", "commit"),
        ("Rollback", "rollback"),
        ("ABORT", "rollback"),
        ("ROLLBACK TO a", None),
        ("ROLLBACK WORK TO SAVEPOINT a", None),
        ("SAVEPOINT begin", None),
        ("START", None),
        ("SELECT 'begin'", None),
        ("", None),
    ],
)
def test_what_opens_and_ends_a_transaction_is_known(sql: str, expected: str | None) -> None:
    assert transaction_step(sql) == expected
