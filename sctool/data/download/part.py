"""The unfinished file: ``NAME.part``, and ``NAME.part.json`` which says whose bytes it holds (address, ETag or date, size in all)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from sctool.errors import SctoolError


class Unavailable(SctoolError):
    """A source doesn't give the file; another may."""


@dataclass(frozen=True)
class Origin:
    """Whose bytes a ``.part`` holds."""

    url: str
    validator: str | None
    total: int | None

    @classmethod
    def of(cls, part: Path) -> Origin | None:
        """What the sidecar says, if there is a good one."""
        try:
            return cls(**json.loads(sidecar(part).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, part: Path) -> None:
        """Write the sidecar, whole or not at all."""
        temporary = sidecar(part).with_suffix(".new")
        temporary.write_text(json.dumps(asdict(self)))
        os.replace(temporary, sidecar(part))


def sidecar(part: Path) -> Path:
    """The small file beside a ``.part``."""
    return part.with_name(f"{part.name}.json")


def discard(part: Path) -> None:
    """Remove a ``.part`` and its sidecar."""
    part.unlink(missing_ok=True)
    sidecar(part).unlink(missing_ok=True)


def bytes_in(part: Path) -> int:
    """Size so far."""
    return part.stat().st_size if part.exists() else 0


def is_complete(part: Path, url: str) -> bool:
    """Whether all bytes of that address are there already."""
    origin = Origin.of(part)
    return origin is not None and origin.url == url and part.exists() and origin.total == bytes_in(part)


def room_for(needed: int | None, folder: Path) -> None:
    """Refuse to start what cannot fit."""
    free = shutil.disk_usage(folder).free
    if needed is not None and needed > free:
        raise SctoolError(
            f"{folder} has {human(free)} free; {human(needed)} are needed", "free some space, or give another place with --dest"
        )


def digest(path: Path, algorithm: str = "sha256") -> str:
    """``ALGORITHM:HEX`` of a file."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def verify(path: Path, checksum: str, at: str) -> None:
    """Compare with ``ALGORITHM:HEX``.

    Raises
    ------
    Unavailable
        With both values.
    """
    found = digest(path, checksum.partition(":")[0])
    if found != checksum:
        raise Unavailable(f"{at} has the checksum {found} where {checksum} is expected")


def human(size: float) -> str:
    """Bytes in the units people use."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
