"""Checks the workspace's architecture: which crate may depend on which, and where a library may be named.

    python tools/check_workspace.py [ROOT]

Prints every violation and ends with code 1 if there is any. The rules are the constants below. What compilers and
linters check is not repeated here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

# Crate -> the crates of the workspace that it may use. The two servers never link each other.
EDGES: Final[dict[str, set[str]]] = {
    "drsdb-proto": set(),
    "drsdb-core": {"drsdb-proto"},
    "drsdb-index": {"drsdb-proto", "drsdb-core"},
    "drsdb-storage": {"drsdb-proto", "drsdb-core"},
    "drsdb-client": {"drsdb-proto"},
    # `drsdb demo` and `drsdb generate` are about the benchmark's data and queries.
    "drsdb": {"drsdb-proto", "drsdb-core", "drsdb-index", "drsdb-storage", "drsdb-client", "drsdb-benchmarks"},
    "drsdb-benchmarks": {"drsdb-proto", "drsdb-client"},
}

# Crates that a client links: they stay small.
WITHOUT_DATAFUSION: Final = ("drsdb-proto", "drsdb-client")

# Library -> the folders whose sources alone may name it.
ONLY_NAMED_IN: Final[dict[str, tuple[str, ...]]] = {
    "openraft": ("flight-index/src/raft",),
    "rusqlite": ("flight-index/src/raft", "flight-storage/src/row", "flight-storage/src/column"),
}

LONGEST_FILE: Final = 1_000

# Comments, strings and characters, which may name anything. Rust's block comments nest: one level is enough here.
_NOT_CODE: Final = re.compile(
    r"""
      //[^\n]*
    | /\*.*?\*/
    | r(?P<hashes>\#*)".*?"(?P=hashes)
    | "(?:[^"\\]|\\.)*"
    | '(?:[^'\\\n]|\\.)'
    """,
    re.VERBOSE | re.DOTALL,
)


def edge_violations(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Of the workspace's own crates, tests' dependencies included."""
    members = {package["name"]: package for package in metadata["packages"] if package["source"] is None}
    for name, package in members.items():
        if name not in EDGES:
            yield f"crate {name} is not in the list of allowed edges: say in tools/check_workspace.py what it may use"
            continue
        for dependency in package["dependencies"]:
            if dependency["name"] in members and dependency["name"] not in EDGES[name]:
                yield f"crate {name} may not depend on {dependency['name']}"
    for name in EDGES.keys() - members.keys():
        yield f"crate {name} is in the list of allowed edges and not in the workspace"


def datafusion_violations(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Of what the clients link, however indirectly."""
    names = {package["id"]: package["name"] for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    for start in (package for package, name in names.items() if name in WITHOUT_DATAFUSION):
        reached_from: dict[str, str | None] = {start: None}
        queue = [start]
        while queue:
            package = queue.pop()
            for dependency in nodes[package]["deps"]:
                kinds = {kind["kind"] for kind in dependency["dep_kinds"]}
                # Tests and build scripts are not linked.
                if None in kinds and dependency["pkg"] not in reached_from:
                    reached_from[dependency["pkg"]] = package
                    queue.append(dependency["pkg"])
        for package in reached_from:
            if names[package].startswith("datafusion"):
                path: list[str] = []
                at: str | None = package
                while at is not None:
                    path.append(names[at])
                    at = reached_from[at]
                yield f"crate {names[start]} links {names[package]}: {' <- '.join(path)}"


def source_violations(root: Path) -> Iterator[str]:
    """Of the sources' text: libraries out of place, files without a header, files that are too long."""
    for path in sorted(root.glob("*/**/*.rs")):
        name = path.relative_to(root).as_posix()
        if name.split("/")[0] in ("target", ".venv"):
            continue
        text = path.read_text(encoding="utf-8")
        if not text.startswith("//!"):
            yield f"{name}: begins without `//!` docs that say what lives here"
        if (lines := text.count("\n")) > LONGEST_FILE:
            yield f"{name}: {lines} lines; split it (at most {LONGEST_FILE})"
        if "/src/" not in name:
            continue
        code = _NOT_CODE.sub(lambda match: "\n" * match.group().count("\n"), text)
        for library, folders in ONLY_NAMED_IN.items():
            if any(name.startswith((f"{folder}/", f"{folder}.rs")) for folder in folders):
                continue
            for match in re.finditer(rf"\b{library}\b", code):
                line = code.count("\n", 0, match.start()) + 1
                yield f"{name}:{line}: names {library}, which only {', '.join(folders)} may"


def main(root: Path) -> int:
    about_rustc = subprocess.run(["rustc", "-vV"], cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout
    host = about_rustc.partition("host: ")[2].split()[0]
    cargo = os.environ.get("CARGO", "cargo")
    # Without the filter, cargo downloads what other platforms need.
    command = [cargo, "metadata", "--format-version", "1", "--locked", "--filter-platform", host]
    cargo_says = subprocess.run(command, cwd=root, check=False, stdout=subprocess.PIPE)
    if cargo_says.returncode:
        return cargo_says.returncode
    metadata = json.loads(cargo_says.stdout)
    violations = [*edge_violations(metadata), *datafusion_violations(metadata), *source_violations(root)]
    for violation in violations:
        print(violation, file=sys.stderr)
    print(f"workspace: {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent))
