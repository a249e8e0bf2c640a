"""From a name to a checked .h5ad: sources in turn, a lock, a ``.part``, a look inside, a rename."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sctool.artifacts.atomic import disk_errors
from sctool.data.download.drive import fetch_drive
from sctool.data.download.fetch import Report, Say, fetch, fetch_json
from sctool.data.download.lock import locked
from sctool.data.download.part import Unavailable, discard, human, room_for, verify
from sctool.data.download.registry import DataSet, Source, data_sets
from sctool.data.download.unpack import is_archive, unpack
from sctool.data.download.verify import Found, compare, inspect, record, seen
from sctool.errors import SctoolError

ZENODO = "https://zenodo.org/api/records"


@dataclass(frozen=True)
class Result:
    """A file that is here and was looked into."""

    entry: DataSet
    path: Path
    state: str
    found: Found
    checksum: str | None
    trust: str

    def __str__(self) -> str:
        size = human(self.path.stat().st_size)
        return (
            f"{self.path}: {size}, {self.found.cells:,} cells x {self.found.genes:,} genes, {self.found.holds}; {self.state}; {self.trust}"
        )


class Candidate(NamedTuple):
    """A place to try: ``bring`` fills ``part`` and says what has been verified on the way."""

    at: str
    part: Path
    bring: Callable[[], str]


@dataclass
class Downloads:
    """The data sets of one command.

    Parameters
    ----------
    dest
        Folder of the groups' folders.
    say, report
        For lines, and for (bytes so far, bytes in all or None).
    url, mirror, from_file
        One address, the base of a mirror (``BASE/GROUP/FILE``), or a file fetched by hand.
    force
        Replace a file that is here, also by one with another checksum.
    """

    dest: Path
    say: Say
    report: Report
    url: str | None = None
    mirror: str | None = None
    from_file: Path | None = None
    force: bool = False
    _used: set[Path] = field(default_factory=set)
    _kept: set[Path] = field(default_factory=set)

    def path(self, entry: DataSet) -> Path:
        """Where a data set belongs."""
        return self.dest / entry.group / entry.file

    def get(self, entry: DataSet) -> Result:
        """Fetch one data set, unless it is here.

        Raises
        ------
        SctoolError
            Why not, from every source tried, and how to get it by hand. No finished file is left or changed.
        """
        target = self.path(entry)
        if target.exists() and not self.force:  # before the lock: a shared folder may be read-only
            return self._here(entry)
        with locked(target, lambda: self.say(f"another process fetches {target}; waiting")):
            if target.exists() and not self.force:
                return self._here(entry)
            if self.from_file is not None:
                return self._from_file(entry, self.from_file)
            failures: list[Unavailable] = []
            for candidate in self._candidates(entry):
                if failures:
                    self.say(failures[-1].message)
                shared = candidate.part != _part(target)
                with locked(candidate.part, lambda: self.say("another process fetches the archive; waiting")) if shared else nullcontext():
                    try:
                        self.say(f"{entry.name}: from {candidate.at}")
                        return self._settle(entry, candidate.part, candidate.at, candidate.bring())
                    except Unavailable as failure:
                        failures.append(failure)
            raise self._nowhere(entry, failures)

    def offline(self, entry: DataSet) -> Result:
        """Look at what is here and compare its checksum; ask nobody.

        Raises
        ------
        SctoolError
            It is not here, with how to get it by hand; or it is damaged, or has changed.
        """
        target = self.path(entry)
        if not target.exists():
            again = f"sctool download {entry.group} --only {entry.name}"
            raise SctoolError(
                f"{entry.name} is not here ({target})",
                f"run {again}, or fetch it by hand from {entry.sources[0].page} and add --from-file PATH",
            )
        if not seen(target):
            return self._here(entry)
        checksum, trust = compare(target, entry.name, target, False)
        return Result(entry, target, "here", self._look(target, entry), checksum, f"sha256 {trust}")

    def tidy(self) -> None:
        """Remove archives from which all that was wanted is out; not one that only lacked room to be unpacked."""
        for entry in data_sets():
            if entry.archive:
                part = _part(self.dest / entry.group / entry.archive)
                family = [other for other in data_sets() if (other.group, other.archive) == (entry.group, entry.archive)]
                if part in self._used - self._kept or (part.exists() and all(self.path(other).exists() for other in family)):
                    self._used.discard(part)
                    with locked(part, lambda: None):
                        discard(part)

    def _here(self, entry: DataSet) -> Result:
        target = self.path(entry)
        found = self._look(target, entry)
        trust = "sha256 not compared (--offline does)" if seen(target) else "no sha256 on record"
        state = "already here; --force replaces it" if self.url or self.from_file else "already here"
        return Result(entry, target, state, found, seen(target).get("checksum"), trust)

    def _look(self, target: Path, entry: DataSet) -> Found:
        try:
            return inspect(target, entry)
        except SctoolError as error:
            raise SctoolError(error.message, "fetch it again with --force") from None

    def _candidates(self, entry: DataSet) -> Iterator[Candidate]:
        part = _part(self.path(entry))
        if self.url is not None:
            drive = re.search(r"(?:drive|docs)\.google\.com/.*?(?:id=|/d/)([-\w]{20,})", self.url)
            yield self._drive(drive[1], part) if drive else self._web(_direct(self.url), part, entry)
            return
        packed = _part(part.with_name(entry.archive)) if entry.archive else None
        if self.mirror is not None:
            base = f"{self.mirror.rstrip('/')}/{entry.group}"
            yield self._web(f"{base}/{entry.file}", part, entry)
            if packed is not None:
                yield self._web(f"{base}/{entry.archive}", packed)
        for source in entry.sources:
            if source.kind == "drive":
                yield self._drive(source.at, packed if packed is not None else part)
            elif source.kind == "zenodo":
                yield self._zenodo(source, part)
            else:
                yield self._web(_direct(source.at), part, entry)

    def _web(self, url: str, part: Path, entry: DataSet | None = None) -> Candidate:
        size = entry.size if entry else None

        def bring() -> str:
            fetch(url, part, size=size, say=self.say, report=self.report)
            return ""

        return Candidate(url, part, bring)

    def _drive(self, file_id: str, part: Path) -> Candidate:
        def bring() -> str:
            fetch_drive(file_id, part, say=self.say, report=self.report)
            return ""

        return Candidate(f"Google Drive ({file_id})", part, bring)

    def _zenodo(self, source: Source, part: Path) -> Candidate:
        def bring() -> str:
            record_ = fetch_json(f"{ZENODO}/{source.at}", self.say)
            files = {file["key"]: file for file in record_.get("files", [])}
            if source.file not in files:
                raise Unavailable(f"{source.page} has no {source.file}; it has: {', '.join(files) or 'nothing'}")
            file = files[source.file]
            fetch(file["links"]["self"], part, size=file.get("size"), checksum=file.get("checksum"), say=self.say, report=self.report)
            return "checksum as Zenodo states it" if file.get("checksum") else ""

        return Candidate(f"{source.page}, {source.file}", part, bring)

    def _from_file(self, entry: DataSet, given: Path) -> Result:
        if given.is_dir() or not given.exists():
            raise SctoolError(f"{given} (--from-file) is {'a folder' if given.is_dir() else 'not there'}", "give the file itself")
        return self._settle(entry, given, str(given), "")

    def _settle(self, entry: DataSet, file: Path, at: str, verified: str) -> Result:
        """Unpack or copy what isn't this data set's own ``.part``, look inside, compare, rename."""
        target = self.path(entry)
        own = file == _part(target)
        ready = file if own and not is_archive(file) else target.with_name(f"{target.name}.new.part")
        try:
            if is_archive(file):
                if not own and self.from_file is None:
                    self._used.add(file)
                at = f"{at} ({unpack(file, entry.name, entry.file, ready)})"
            elif not own:
                _copy(file, ready)
            try:
                found = inspect(ready, entry)
            except SctoolError as error:
                raise Unavailable(f"{at} is not the data set {entry.name}: {error.message}") from None
            if entry.checksum:
                verify(ready, entry.checksum, at)
                verified = "checksum as published"
            checksum, trust = compare(target, entry.name, ready, self.force)
            with disk_errors(target, "--dest"):
                record(target, checksum, ready.stat().st_size, at)
                os.replace(ready, target)
        except Unavailable:
            if own:
                discard(file)
            raise
        except SctoolError:  # this machine's fault, not the file's
            self._kept.add(file)
            raise
        finally:
            if ready != file:
                ready.unlink(missing_ok=True)
        discard(_part(target))
        state = "copied" if self.from_file else "fetched"
        return Result(entry, target, state, found, checksum, "; ".join(filter(None, [verified, f"sha256 {trust}"])))

    def _nowhere(self, entry: DataSet, failures: list[Unavailable]) -> SctoolError:
        hints = list(dict.fromkeys(failure.hint for failure in failures if failure.hint))
        pages = " or ".join(dict.fromkeys(source.page for source in entry.sources))
        general = f"give another address with --url or --mirror, or fetch it by hand ({pages}) and give it with --from-file PATH"
        return SctoolError("; ".join(failure.message for failure in failures), ", or ".join([*hints, general]))


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _direct(url: str) -> str:
    """A share link of Dropbox as a link to the file."""
    if not re.match(r"https?://(www\.)?dropbox\.com/", url):
        return url
    bare = re.sub(r"([?&])(dl|raw)=\d&?", r"\1", url).rstrip("?&")
    return f"{bare}{'&' if '?' in bare else '?'}dl=1"


def _copy(given: Path, ready: Path) -> None:
    room_for(given.stat().st_size, ready.parent)
    with disk_errors(ready, "--dest"):
        shutil.copyfile(given, ready)
