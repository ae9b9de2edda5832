"""The golden SQL scripts on SQLite and DuckDB: where they speak the same SQL, they must answer what the scripts say.

The answers were written by hand (`drsdb/tests/golden/mod.rs` tells in which form); this tells that they are not drsdb's
alone. A statement that another database does not know, or understands otherwise, is skipped by one of the rules below,
and with it what depends on it: whatever is said later about a table that it would have changed.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

import duckdb
import pytest

from oracles import Answer, DuckDb, Sqlite

SCRIPTS = Path(__file__).parents[2] / "drsdb/tests/golden/scripts"

# The same in other words: expressions, and what is put in their place.
Words = dict[str, str]

WORDS_OF_BOTH: Words = {
    r" WITH \(engine = [^)]*\)": "",
    r"generate_series\((\d+), (\d+)\)": r"(WITH RECURSIVE series AS ("
    r"SELECT \1 AS value UNION ALL SELECT value + 1 FROM series WHERE value < \2) SELECT value FROM series)",
}

WORDS_OF_SQLITE: Words = {
    r"^TRUNCATE (TABLE )?": "DELETE FROM ",
    r"\b(DATE|TIMESTAMP) '": "'",
    # Only without row ids are the columns of a primary key NOT NULL.
    r"^(CREATE TABLE .*PRIMARY KEY.*)": r"\1 WITHOUT ROWID",
    r"\bgreatest\(": "max(",
    r"\bstring_agg\(": "group_concat(",
    r"concat\('spare ', (.*)\)\)": r"'spare ' || \1)",
    # No row of values has the word DEFAULT.
    r"\(4, 'ring', DEFAULT, DEFAULT\)": "(4, 'ring', 7, 'new')",
    r"WHERE id = 1\), DEFAULT, \(": "WHERE id = 1), 7, (",
    r"\(4, 0.25, DEFAULT, NULL\)": "(4, 0.25, 0.1, NULL)",
    r"SET bonus = DEFAULT": "SET bonus = NULL",
    # Behind FROM, ON would belong to a join.
    r"FROM counter ON CONFLICT": "FROM counter WHERE TRUE ON CONFLICT",
}

WORDS_OF_DUCKDB: Words = {
    r"\bpublic\.": "main.",
    r"\bat\b": '"at"',
    r"\) (IGNORE|RESPECT) NULLS": r" \1 NULLS)",
    # What they may do is said again, or is what they do anyway.
    r"^(BEGIN|START TRANSACTION) (READ|ISOLATION) .*": "BEGIN",
}

# What is skipped, and why: expressions that are looked for in `script: statement --> first line of its answer`.
Rules = dict[str, str]

OF_BOTH: Rules = {
    "what drsdb does not do, others may": r"--> error unsupported",
    "settings and catalogs are each database's own": r"^(settings|information_schema|system_tables): "
    r"|\b(information_schema|drsdb)\.|: (DESCRIBE|SHOW) ",
    "ids, and when now() is, are each database's own": r"ULID|\b(event|stamped\w*)\b",
    "division by zero gives NULL": r" / (0|\(id - (id|3|50)\)) ",
    "numbers are rounded": r"SELECT 4\.7, 3",
    "names are the same in any case": r'"N"',
    "IS may follow IS DISTINCT FROM": r"IS DISTINCT FROM b IS NULL",
    "a default is looked at when it is used": r"DEFAULT 'many'",
    "one table is dropped or emptied at a time": r": (DROP TABLE|TRUNCATE) \w+, ",
    "nothing is dropped or emptied with what depends on it": r": (DROP TABLE|TRUNCATE) \w+ CASCADE "
    r"| DROP (COLUMN|CONSTRAINT) \w+ CASCADE ",
    "views are not in the way of what they stand on": r"^views: DROP (TABLE sale|VIEW totals) --> error : "
    r"|--> error constraint_violation: view ",
    "constraints stay as they came with their table": r": ALTER TABLE .* "
    r"(ADD (CONSTRAINT|FOREIGN KEY|CHECK)|(DROP|RENAME) CONSTRAINT) ",
    "a table is changed in one way at a time": r": ALTER TABLE .*, (ADD|DROP|ALTER) ",
    "cascades have no bound": r"--> error resource_exhausted",
    "keys are looked at row by row": r"SET (id = id \+ 1|id = 3 - (slot\.)?id|barcode = CASE) ",
    "one statement may change a row twice": r"'plum', 2|'tags', 2|\(8, 'y'\)|\(6, NULL, 2\)",
}

OF_SQLITE: Rules = {
    "a database in memory has one session": r"^transactions: ",
    "there are no schemas": r"^schemas: ",
    "there is no such statement": r": (MERGE|COMMENT|CREATE OR REPLACE|DELETE FROM \w+ USING) ",
    "there is no such ALTER TABLE": r": ALTER TABLE .* (ALTER COLUMN|ADD PRIMARY KEY|IF|RESTRICT) ",
    "there is no such expression": r"\b(ANY|ALL) \(|INTERVAL|IGNORE NULLS|count\(DISTINCT g\) FILTER",
    "there is no such function": r"\barray_agg\(|\bROLLUP \(",
    "DEFAULT has expressions in parentheses": r"DEFAULT (a \+|-CAST)",
    "NOTHING is a word of the grammar": r" nothing\b",
    "a value may be of any type and size": r"--> error (invalid_value|type_mismatch)|'many'|= 'blue' ",
    "a subquery is its first row": r"more than one row|several rows, one value",
    "a column may be set twice": r"SET pay = 1, pay = 2",
    "times and NaN are texts": r"^branches: .*\bjob\b|^floats: .*\bodd\b",
    "a savepoint begins a transaction": r": SAVEPOINT d ",
    "a column takes what it refers to along": r": ALTER TABLE box DROP COLUMN was_on -->",
}

OF_DUCKDB: Rules = {
    "there are no savepoints": r"^savepoints: ",
    "foreign keys have no actions": r" ON (DELETE|UPDATE) (CASCADE|SET NULL)",
    "a new column has no constraint": r": ALTER TABLE .* ADD COLUMN .* (REFERENCES|CHECK) ",
    "a transaction is what it was when it began": r"SET TRANSACTION|the transaction is READ ONLY",
    "a view may be called a table": r": COMMENT ON TABLE implement_list ",
    "a column has no comment once its table has another name": r": COMMENT ON COLUMN implement\.",
    "there is no COMMENT IF EXISTS": r": COMMENT IF EXISTS ",
    "what no row would have is not looked at": r": UPDATE counter SET .* --> error (invalid_value|type_mismatch)",
    "an error ends a transaction": r"\(901, 2\)",
    "TRUNCATE does not mind foreign keys": r": TRUNCATE shelf --> error",
    "a row may not refer to one of the same statement": r"\(2, 1, 1\)",
    "ON CONFLICT does not look at the rows before it": r"\(7, NULL, 1\)|\(8, 10, 1\)|\(6, NULL, 50\)|\(6, 61, 2\)",
    "ON CONFLICT DO NOTHING leaves out what lacks a value": r"'home', NULL",
}


class Step(NamedTuple):
    """A statement on one line, and the lines of its answer."""

    line: int
    session: str
    sql: str
    answer: list[str]


def steps(script: str) -> list[Step]:
    found: list[Step] = []
    session, statement, first = "main", "", 0
    for number, line in enumerate(script.splitlines(), 1):
        if line.startswith("-->"):
            found[-1].answer.append(line.removeprefix("-->").strip())
        elif line.startswith("--@"):
            session = line.removeprefix("--@").strip()
        elif statement or not line.startswith("--"):
            first = first if statement else number
            statement = f"{statement} {line.strip()}".strip()
            if statement.endswith(";"):
                found.append(Step(first, session, statement.rstrip(";"), []))
                statement = ""
    return found


class Dialect(NamedTuple):
    name: str
    # Another session of the same database, if there is one already.
    connect: Callable[[Sqlite | DuckDb | None], Sqlite | DuckDb]
    words: Words
    rules: Rules
    # So many answers at least are the same.
    answers: int


def sqlite_session(beside: Sqlite | DuckDb | None) -> Sqlite:
    assert beside is None, "a database in memory has one session"
    return Sqlite()


def duckdb_session(beside: Sqlite | DuckDb | None) -> DuckDb:
    assert not isinstance(beside, Sqlite)
    session = DuckDb(beside)
    session.run("SET default_null_order = 'nulls_last_on_asc_first_on_desc'")
    session.run("SET integer_division = true")
    return session


SQLITE = Dialect("SQLite", sqlite_session, WORDS_OF_BOTH | WORDS_OF_SQLITE, OF_BOTH | OF_SQLITE, 410)
DUCKDB = Dialect("DuckDB", duckdb_session, WORDS_OF_BOTH | WORDS_OF_DUCKDB, OF_BOTH | OF_DUCKDB, 520)


class Lost:
    """The tables and views that are not what the script takes them for, since a statement about them was skipped."""

    def __init__(self) -> None:
        # What each is made of: the words of the statement that made it.
        self._made: dict[str, set[str]] = {}
        self._lost: set[str] = set()

    def note(self, sql: str) -> None:
        """A statement is about to run, or to be skipped."""
        if made := re.search(r"(?:CREATE (?:OR REPLACE )?(?:TABLE|VIEW)(?: IF NOT EXISTS)?|RENAME TO) ([\w.]+)", sql):
            self._made[made[1]] = words(sql)

    def depends(self, sql: str) -> bool:
        return not self._lost.isdisjoint(words(sql))

    def skip(self, sql: str) -> None:
        """All that the statement names is lost, what is made of it, and what a lost table has foreign keys to."""
        more = words(sql) & self._made.keys()
        while more:
            self._lost |= more
            more = {name for name, made in self._made.items() if made & more}
            for name in self._lost:
                if "REFERENCES" in self._made[name]:
                    more |= self._made[name] & self._made.keys()
            more -= self._lost


def words(sql: str) -> set[str]:
    return set(re.findall(r"[\w.]+", sql))


def cell(value: object) -> str:
    """A value as text, the same for one that is the same: 1, 1.0 and true, which SQLite does not tell apart."""
    text = "NULL" if value is None else str(value).strip()
    text = {"true": "1", "false": "0"}.get(text.lower(), text)
    try:
        return str((Decimal(text) + 0).normalize())
    except InvalidOperation:
        return text


def table(rows: Sequence[tuple[object, ...]], in_order: bool) -> list[list[str]]:
    cells = [[cell(value) for value in row] for row in rows]
    return cells if in_order else sorted(cells)


class Comparison:
    """One script on one database."""

    def __init__(self, dialect: Dialect, script: Path, stack: ExitStack) -> None:
        self._dialect, self._script, self._stack = dialect, script, stack
        self._sessions: dict[str, Sqlite | DuckDb] = {}
        self._lost = Lost()
        self.same = 0
        self.rules: set[str] = set()
        self.differences: list[str] = []

    def run(self) -> None:
        for step in steps(self._script.read_text()):
            self._lost.note(step.sql)
            text = f"{self._script.stem}: {step.sql} --> {step.answer[0]}"
            rules = {why for why, expression in self._dialect.rules.items() if re.search(expression, text)}
            self.rules |= rules
            if rules or self._lost.depends(step.sql):
                if not step.sql.startswith("SELECT") and not re.match("error|0 rows", step.answer[0]):
                    self._lost.skip(step.sql)
            elif difference := self._difference(step):
                where = f"{self._script.name}:{step.line} on {self._dialect.name}"
                self.differences.append(f"{where}: {step.sql}\n  expected {step.answer}, and it {difference}")
            elif step.answer != ["ok"]:
                self.same += 1

    def _difference(self, step: Step) -> str | None:
        """What the database does instead, if it does not do what the script says."""
        session = self._sessions.get(step.session)
        if session is None:
            session = self._dialect.connect(next(iter(self._sessions.values()), None))
            self._sessions[step.session] = self._stack.enter_context(closing(session))
        sql = step.sql
        for expression, instead in self._dialect.words.items():
            sql = re.sub(expression, instead, sql)
        try:
            answer = session.run(sql)
        except (sqlite3.Error, duckdb.Error) as error:
            # What is refused because it is not known is no agreement.
            unknown = re.search("syntax error|not implemented|not supported|no such function", str(error), re.I)
            agrees = re.match("error(?! constraint)", step.answer[0]) and not unknown
            return None if agrees else f"fails: {error}"
        return None if self._agrees(step, sql, answer) else f"answers {answer}"

    def _agrees(self, step: Step, sql: str, answer: Answer) -> bool:
        first, *lines = step.answer
        if answer is None:
            return re.match("error( constraint_violation)?( ?:|$)", first) is not None
        if first.startswith("error"):
            return False
        if isinstance(answer, list):
            # SQLite takes NULL for the least of all, the others for the greatest.
            in_order = "ORDER BY" in sql and not (self._dialect is SQLITE and "NULL" in str(lines))
            return table([tuple(line.split("|")) for line in lines], in_order) == table(answer, in_order)
        # SQLite does not tell how many rows CREATE TABLE AS wrote.
        return first in ("ok", f"{answer} row", f"{answer} rows") or sql.startswith("CREATE TABLE")


# RIGHT JOIN and IS DISTINCT FROM.
recent = pytest.mark.skipif(sqlite3.sqlite_version_info < (3, 39), reason="SQLite is older than 3.39")


@pytest.mark.parametrize(
    "dialect", [pytest.param(SQLITE, id="sqlite", marks=recent), pytest.param(DUCKDB, id="duckdb")]
)
def test_other_databases_answer_what_the_scripts_say(dialect: Dialect) -> None:
    same, rules, differences = 0, set[str](), list[str]()
    for script in sorted(SCRIPTS.glob("*.sql")):
        with ExitStack() as stack:
            comparison = Comparison(dialect, script, stack)
            comparison.run()
        same += comparison.same
        rules |= comparison.rules
        differences += comparison.differences
    assert not differences, f"{len(differences)} answers differ:\n\n" + "\n\n".join(differences)
    assert same >= dialect.answers
    assert rules == dialect.rules.keys(), "each rule is for something"
