"""One wanted file out of an archive, without trusting the archive: no paths, links, devices or bombs."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from sctool.artifacts.atomic import disk_errors
from sctool.data.download.part import Unavailable, human, room_for

MOST_TIMES_LARGER = 200
"""What an archive may hold in all, as a multiple of its own size; .h5ad files pack to a tenth, bombs to a thousandth."""
_STARTS = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "tar", b"\xfd7zXZ": "tar"}
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, RuntimeError)


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    size: int
    is_file: bool
    open: Callable[[], IO[bytes] | None]


def is_archive(path: Path) -> bool:
    """Judged by the first bytes, never by the name."""
    with path.open("rb") as file:
        head = file.read(8)
    return any(head.startswith(start) for start in _STARTS) or tarfile.is_tarfile(path)


def unpack(archive: Path, name: str, file: str, target: Path) -> str:
    """Write the .h5ad of data set ``name`` (published as ``file``) to ``target`` and return what it is called in the archive.

    Raises
    ------
    Unavailable
        None or several would fit, with what there is; or the archive is damaged or malicious.
    """
    with _opened(archive) as listing:
        members, said, limit = [], 0, MOST_TIMES_LARGER * archive.stat().st_size
        for member in listing:
            members.append(member)
            said += member.size
            if said > limit:
                raise Unavailable(
                    f"{archive.name} ({human(archive.stat().st_size)}) claims to hold over {human(limit)}: it is no honest archive",
                    "fetch it from another place",
                )
        wanted = pick(members, name, file, archive.name)
        room_for(wanted.size, target.parent)
        source = wanted.open()
        assert source is not None
        with disk_errors(target, "--dest"), source, target.open("wb") as out:
            written = 0
            while piece := source.read(1 << 20):
                written += len(piece)
                if written > wanted.size:
                    raise Unavailable(f"{wanted.name} is larger than the {human(wanted.size)} that {archive.name} says", "fetch it anew")
                out.write(piece)
        if written != wanted.size:
            raise Unavailable(f"{archive.name} is cut short: {wanted.name} has {written:,} of {wanted.size:,} bytes", "fetch it anew")
    return wanted.name


def pick(members: list[Member], name: str, file: str, archive: str) -> Member:
    """The one .h5ad that is the data set's: the published name, else one that holds its name, at best ``*_qc.h5ad``."""
    files = [member for member in members if _basename(member).endswith(".h5ad") and not _basename(member).startswith(".")]
    fitting = [member for member in files if _basename(member) == file]
    fitting = fitting or [member for member in files if name.lower() in _basename(member).lower()]
    for better in (lambda base: base.lower().startswith(name.lower()), lambda base: base.endswith("_qc.h5ad")):
        fitting = [member for member in fitting if better(_basename(member))] or fitting
    if len(fitting) != 1:
        what = "several files" if fitting else "no .h5ad"
        listed = ", ".join(member.name for member in (fitting or members)[:20]) or "nothing"
        raise Unavailable(
            f"{archive} has {what} for {name}: {listed}", f"unpack it by hand and give the file with --only {name} --from-file PATH"
        )
    found = fitting[0]
    if not found.is_file:
        raise Unavailable(f"{archive}: {found.name} is a link or a device, not a file", "fetch it from another place")
    path = PurePosixPath(found.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise Unavailable(f"{archive}: {found.name} points out of the archive", "fetch it from another place")
    return found


def _basename(member: Member) -> str:
    return PurePosixPath(member.name.replace("\\", "/")).name


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[Member]]:
    """The members one by one; whatever the libraries say about a damaged archive becomes one line."""
    try:
        if zipfile.is_zipfile(path) and not tarfile.is_tarfile(path):
            with zipfile.ZipFile(path) as packed:
                yield (_zipped(packed, info) for info in packed.infolist())
        elif tarfile.is_tarfile(path):
            with tarfile.open(path, "r:*") as tar:
                yield _tarred(tar)
        else:
            raise Unavailable(f"{path.name} is neither a tar nor a zip archive, or is cut short", "unpack it by hand, or fetch it anew")
    except _DAMAGED as error:
        raise Unavailable(f"{path.name} is damaged: {' '.join(str(error).split())[:120]}", "fetch it anew") from None


def _tarred(tar: tarfile.TarFile) -> Iterator[Member]:
    for info in tar:
        yield Member(info.name, info.size, info.isreg(), partial(tar.extractfile, info))
    if tar.fileobj:
        tar.fileobj.read(1 << 20)  # past the padding, where gzip keeps the checksum of it all


def _zipped(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kind = info.external_attr >> 28  # the file type of Unix; 10 is a link
    return Member(info.filename, info.file_size, not info.is_dir() and kind in (0, 8), partial(packed.open, info))
