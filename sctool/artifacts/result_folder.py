"""The result folder: ``metrics.json``, tables as CSV, ``plots/``. Written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sctool.artifacts.atomic import atomic_folder
from sctool.errors import SctoolError


def check_free(folder: Path, *, force: bool) -> None:
    """Refuse a result that is there already, before any work is done."""
    if folder.exists() and not force:
        raise SctoolError(f"{folder} is there already", "give another --name, or --force to replace it")


@contextmanager
def result_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder to write into, which becomes ``folder`` if all went well."""
    check_free(folder, force=force)
    with atomic_folder(folder) as partial:
        yield partial
