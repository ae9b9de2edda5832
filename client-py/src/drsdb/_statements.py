"""What the client must know of SQL text: whether a statement may be sent twice, whether it opens or ends a transaction,
and where its `?` placeholders are. The server alone parses SQL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final, Literal, NamedTuple

# Strings, quoted names, dollar-quoted strings, comments (block comments nest, see `_tokens`), words and placeholders.
_TOKEN: Final = re.compile(
    r"""
      (?P<string>[eE]'(?:[^'\\]++|\\.|'')*+(?:'|\Z)|'(?:[^']++|'')*+(?:'|\Z))
    | (?P<name>"(?:[^"]++|"")*+(?:"|\Z))
    | (?P<dollar>\$(?P<tag>[A-Za-z_]\w*)?\$.*?(?:\$(?(tag)(?P=tag))\$|\Z))
    | (?P<line>--[^\n]*)
    | (?P<block>/\*)
    | (?P<word>\w[\w$]*)
    | (?P<mark>\?)
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCK_EDGE: Final = re.compile(r"/\*|\*/")

_QUERIES: Final = frozenset({"select", "with", "values", "table", "show", "describe", "desc", "explain"})
_WRITES: Final = frozenset(
    {"insert", "update", "delete", "merge", "create", "drop", "alter", "truncate", "copy", "into"}
)
# Looking through a longer text costs more than a repetition saves.
_LONGEST_JUDGED: Final = 1 << 20


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


def returns_rows(sql: str) -> bool:
    """Whether the statement is a query, judged by its first word."""
    return next((token.text.lower() in _QUERIES for token in _tokens(sql) if token.kind == "word"), False)


def is_repeatable(sql: str) -> bool:
    """Whether the statement can be sent again when nobody knows if it arrived: it surely changes nothing."""
    if len(sql) > _LONGEST_JUDGED or not returns_rows(sql):
        return False
    return not any(token.kind == "word" and token.text.lower() in _WRITES for token in _tokens(sql))


def transaction_step(sql: str) -> Literal["begin", "commit", "rollback"] | None:
    """Whether the statement opens or ends a transaction; going back to a savepoint does neither."""
    words = (token.text.lower() for token in _tokens(sql) if token.kind == "word")
    match list(islice(words, 3)):
        case ["begin", *_] | ["start", "transaction", *_]:
            return "begin"
        case ["commit" | "end", *_]:
            return "commit"
        case ["rollback", "to", *_] | ["rollback", "work" | "transaction", "to", *_]:
            return None
        case ["rollback" | "abort", *_]:
            return "rollback"
    return None


def number_placeholders(sql: str) -> tuple[str, int]:
    """Replaces the `?` placeholders by `$1`, `$2`, ..., which is what servers parse; returns their count as well."""
    parts: list[str] = []
    copied, count = 0, 0
    for token in _tokens(sql):
        if token.kind == "mark":
            count += 1
            parts += [sql[copied : token.start], f"${count}"]
            copied = token.start + 1
    return "".join(parts) + sql[copied:], count


def _tokens(sql: str) -> Iterator[_Token]:
    at = 0
    while match := _TOKEN.search(sql, at):
        at = match.end()
        kind = match.lastgroup or ""
        if kind == "block":
            at = _end_of_block(sql, at)
        elif kind in ("word", "mark"):
            yield _Token(kind, match.group(), match.start())


def _end_of_block(sql: str, at: int) -> int:
    depth = 1
    while depth and (edge := _BLOCK_EDGE.search(sql, at)):
        depth += 1 if edge.group() == "/*" else -1
        at = edge.end()
    return len(sql) if depth else at
