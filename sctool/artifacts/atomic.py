"""Writes that either happen or don't: a temporary name beside the target, then a rename."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sctool.errors import SctoolError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` if the block ends well, and vanishes if it doesn't."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that replaces ``path`` if the block ends well, and vanishes if it doesn't."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with disk_errors(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            if path.exists():
                old = path.with_name(f".{path.name}.{os.getpid()}.old")
                path.rename(old)
                partial.rename(path)
                shutil.rmtree(old)
            else:
                partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def disk_errors(path: Path, option: str = "--out") -> Iterator[None]:
    """Turn what the disk refuses into one line; ``option`` is the flag that sets another place."""
    try:
        yield
    except OSError as error:
        remedies = {
            errno.ENOSPC: ("the disk is full", f"free some space, or give another place with {option}"),
            errno.EDQUOT: ("the disk quota is used up", f"free some space, or give another place with {option}"),
            errno.EFBIG: ("the file may not grow that large (ulimit -f, or the kind of file system)", f"give another place with {option}"),
            errno.EACCES: ("no permission to write there", f"give a folder of yours with {option}"),
            errno.EPERM: ("no permission to write there", f"give a folder of yours with {option}"),
            errno.EROFS: ("the file system is read-only", f"give another place with {option}"),
            errno.ENOTDIR: ("a part of the path is a file, not a folder", f"give another place with {option}"),
            errno.EEXIST: ("a file is in the way", f"move it, or give another place with {option}"),
        }
        if error.errno not in remedies:
            raise
        what, remedy = remedies[error.errno]
        raise SctoolError(f"cannot write {path}: {what}", remedy) from None


def write_json(path: Path, value: Any) -> None:
    """Strict JSON (NaN and infinity become null), atomically."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(strict(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises
    ------
    SctoolError
        If it is cut short or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SctoolError(f"{path} cannot be read: {error}", "copy the folder again, or run its command again") from None


def strict(value: Any) -> Any:
    """Copy of a tree of dicts, lists and scalars that strict JSON can hold."""
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if hasattr(value, "item"):  # a NumPy or torch scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
