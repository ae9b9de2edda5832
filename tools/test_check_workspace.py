"""The architecture check finds what it must, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from check_workspace import EDGES, datafusion_violations, edge_violations, source_violations


def metadata(edges: dict[str, list[str]], outside: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """What cargo says about a workspace with the given crates, and crates outside of it."""
    everything = {**edges, **(outside or {})}
    return {
        "packages": [
            {
                "id": name,
                "name": name,
                "source": None if name in edges else "registry",
                "dependencies": [{"name": used} for used in uses],
            }
            for name, uses in everything.items()
        ],
        "resolve": {
            "nodes": [
                {"id": name, "deps": [{"pkg": used, "dep_kinds": [{"kind": None}]} for used in uses]}
                for name, uses in everything.items()
            ]
        },
    }


def allowed() -> dict[str, list[str]]:
    return {name: sorted(uses) for name, uses in EDGES.items()}


def test_the_allowed_edges_pass() -> None:
    assert list(edge_violations(metadata(allowed()))) == []


@pytest.mark.parametrize(
    ("crate", "uses"),
    [("drsdb-index", "drsdb-storage"), ("drsdb-storage", "drsdb-index"), ("drsdb-proto", "drsdb-core")],
)
def test_another_edge_is_found(crate: str, uses: str) -> None:
    edges = allowed()
    edges[crate].append(uses)
    assert list(edge_violations(metadata(edges))) == [f"crate {crate} may not depend on {uses}"]


def test_an_unknown_crate_is_found() -> None:
    (violation,) = edge_violations(metadata({**allowed(), "drsdb-common": []}))
    assert "drsdb-common is not in the list" in violation


def test_datafusion_in_a_client_is_found_however_deep() -> None:
    edges = allowed()
    edges["drsdb-client"].append("middle")
    outside = {"middle": ["datafusion-common"], "datafusion-common": []}
    (violation,) = datafusion_violations(metadata(edges, outside))
    assert violation.endswith("datafusion-common <- middle <- drsdb-client")


def test_datafusion_elsewhere_is_fine() -> None:
    edges = allowed()
    edges["drsdb-core"].append("datafusion")
    assert list(datafusion_violations(metadata(edges, {"datafusion": []}))) == []


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("flight-index/src/raft/log.rs", "//! Log.\nuse openraft::Raft;\nuse rusqlite::Connection;\n", 0),
        ("flight-index/src/raft.rs", "//! Log.\nuse openraft::Raft;\n", 0),
        ("flight-storage/src/column/manifest.rs", "//! M.\nuse rusqlite::Connection;\n", 0),
        (
            "flight-index/src/catalog/mod.rs",
            '//! openraft\n// openraft\n/* openraft */\nconst X: &str = "openraft";\n',
            0,
        ),
        ("flight-index/src/catalog/mod.rs", "//! C.\nuse openraft::Raft;\n", 1),
        ("flight-index/src/catalog/mod.rs", "//! C.\nlet c = '\"'; use openraft::Raft; let d = '\"';\n", 1),
        ("flight-index/src/rafting/mod.rs", "//! C.\nuse openraft::Raft;\n", 1),
        ("core/src/lib.rs", "//! C.\nfn f() -> rusqlite::Result<()> { todo!() }\n", 1),
        ("core/src/lib.rs", "//! C.\nfn f<'a>(x: &'a str) -> rusqlite::Result<&'a str> { todo!() }\n", 1),
        ("flight-storage/tests/row.rs", "//! T.\nuse rusqlite::Connection;\n", 0),
        ("core/src/lib.rs", "use std::io;\n", 1),
        ("core/src/lib.rs", "//! C.\n" + "\n" * 1_000, 1),
    ],
)
def test_sources(tmp_path: Path, name: str, text: str, found: int) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text)
    violations = list(source_violations(tmp_path))
    assert len(violations) == found
    assert all(violation.startswith(name) for violation in violations)
