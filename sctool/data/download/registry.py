"""The data sets which ``sctool download`` knows, read from ``datasets.json``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from sctool.errors import SctoolError

_FILE = Path(__file__).with_name("datasets.json")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Frozen):
    """Where a file can be had.

    ``at`` is an address (``http``, ``dropbox``), the number of a record (``zenodo``) or the id of a file (``drive``); ``file`` is its
    name in the record, or the name of an archive on Drive that holds the data set among others.
    """

    kind: Literal["http", "dropbox", "zenodo", "drive"]
    at: str
    file: str | None = None

    @property
    def place(self) -> str:
        """Where that is, in a word."""
        return {"zenodo": f"Zenodo {self.at}", "drive": "Google Drive", "dropbox": "Dropbox"}.get(self.kind, self.at)

    @property
    def page(self) -> str:
        """What to open in a browser to fetch it by hand."""
        pages = {"zenodo": f"https://zenodo.org/records/{self.at}", "drive": f"https://drive.google.com/uc?id={self.at}"}
        return pages.get(self.kind, self.at)


class DataSet(_Frozen):
    """One file that can be fetched.

    ``sources`` are in order of preference. ``size`` (bytes) and ``checksum`` (``sha256:...`` or ``md5:...``) are those of the .h5ad, null
    where nobody has stated them; ``about`` is a size as people say it. ``obs`` has the columns it should have, with the values known.
    """

    group: str
    name: str
    job: str
    file: str
    sources: tuple[Source, ...]
    size: int | None = None
    about: str | None = None
    checksum: str | None = None
    licence: str
    citation: str
    expects: Literal["counts", "expression"]
    obs: dict[str, tuple[str, ...]]

    @property
    def archive(self) -> str | None:
        """Name of the archive it comes in, if it does."""
        return next((source.file for source in self.sources if source.kind == "drive" and source.file), None)


@cache
def data_sets() -> tuple[DataSet, ...]:
    """All of them, in the order of the file."""
    return tuple(DataSet.model_validate(entry) for entry in json.loads(_FILE.read_text()))


def choose(group: str, only: list[str] | None) -> list[DataSet]:
    """The data sets of a group, or those named.

    Raises
    ------
    SctoolError
        With the nearest name there is.
    """
    members = {entry.name: entry for entry in data_sets() if entry.group == group}
    for name in only or []:
        if name not in members:
            from sctool.data.read import near  # loads anndata; only wanted here

            raise SctoolError(f"{group} has no data set {name!r} (--only); it has: {', '.join(members)}", near(name, list(members)))
    return [entry for name, entry in members.items() if not only or name in only]
