"""Whether a file is the data set it should be, and the checksums seen so far."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sctool.artifacts.atomic import disk_errors, write_json
from sctool.data.download.lock import locked
from sctool.data.download.part import Unavailable, digest
from sctool.data.download.registry import DataSet
from sctool.errors import SctoolError


@dataclass
class Found:
    """What a file holds."""

    cells: int
    genes: int
    holds: str
    notes: list[str] = field(default_factory=list)


def inspect(path: Path, entry: DataSet) -> Found:
    """Open a file and judge it by its values; columns that are missing are worth a note.

    Raises
    ------
    SctoolError
        It cannot be read, or its matrix is of no use.
    """
    from sctool.data.matrix_kind import find_counts, judge
    from sctool.data.read import H5ad

    file = H5ad(path)
    if entry.expects == "counts":
        counts = find_counts(file)
        source, kind, genes = counts.source, counts.kind, len(counts.var)
    else:
        if "X" not in file.shapes:
            raise SctoolError(f"{path.name} has no X", "")
        source, kind, genes = "X", judge(file, "X"), len(file.var)
        if kind.kind in ("invalid", "empty"):
            raise SctoolError(f"{path.name}: X is {kind}", "")
    notes = []
    if missing := [key for key in entry.obs if key not in file.obs]:
        has = ", ".join(map(str, file.obs.columns[:20])) or "none"
        notes.append(f"obs lacks {', '.join(missing)}, which {entry.name} should have; it has: {has}")
    for key, values in entry.obs.items():
        if key in file.obs and (absent := sorted(set(values) - set(file.obs[key].astype(str)))):
            notes.append(f"obs[{key!r}] has no cell with {', '.join(absent)}")
    return Found(file.n_cells, genes, f"{source}: {kind}", notes)


def seen(path: Path) -> dict[str, Any]:
    """What ``checksums.json`` beside a file says of it: ``checksum``, ``size``, ``origin`` and ``on``; empty if nothing."""
    try:
        entry = json.loads((path.parent / "checksums.json").read_text()).get(path.name, {})
    except (OSError, ValueError, AttributeError):
        return {}
    return entry if isinstance(entry, dict) and "checksum" in entry else {}


def record(path: Path, checksum: str, size: int, origin: str) -> None:
    """Write what was seen of a file into ``checksums.json``."""
    book = path.parent / "checksums.json"
    with locked(book, lambda: None), disk_errors(book, "--dest"):
        try:
            entries = json.loads(book.read_text())
        except (OSError, ValueError):
            entries = {}
        on = datetime.now(UTC).strftime("%Y-%m-%d")
        write_json(book, {**entries, path.name: {"checksum": checksum, "size": size, "origin": origin, "on": on}})


def compare(path: Path, name: str, file: Path, force: bool) -> tuple[str, str]:
    """The sha256 of ``file``, and what it is worth beside the one recorded for ``path``, its final place.

    Raises
    ------
    Unavailable
        It differs, unless ``force``.
    """
    checksum, before = digest(file), seen(path)
    if not before:
        return checksum, "recorded on first use"
    on = before.get("on", "an earlier day")
    if before["checksum"] == checksum:
        return checksum, f"as recorded on {on}"
    if force:
        return checksum, f"not the one recorded on {on}, which was {before['checksum']}"
    raise Unavailable(
        f"{name} is not the file seen before: {checksum} now, {before['checksum']} recorded on {on}",
        "if the change is known and wanted, take the new one with --force; else fetch it from another place",
    )
