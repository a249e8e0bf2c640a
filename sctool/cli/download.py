"""``sctool download``: published data sets, fetched, checked, and put where the other commands look for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sctool.cli import options as o
from sctool.cli.session import Session, score_table
from sctool.cli.transfer import TransferReporter
from sctool.errors import Interrupted, SctoolError

app = typer.Typer(help="Fetch published data sets.", no_args_is_help=True)

GROUPS = {
    "scgen": "Fetch pbmc, hpoly, species: cells before and after a treatment, for scGen.",
    "sctab": "Fetch blood, all, neurons, heart, kidney: raw counts of scTab, for adaptive resampling.",
    "cradle": "Fetch norman, dixit, replogle, adamson: perturbed genes, for CRADLE-VAE (one archive).",
}

Dest = Annotated[Path, typer.Option(help="Folder of the groups' folders.")]
Only = Annotated[list[str] | None, typer.Option(metavar="NAME", help="This data set only; several may be given.")]
Url = Annotated[str | None, typer.Option(help="Another address of the one data set chosen.")]
Mirror = Annotated[str | None, typer.Option(metavar="BASE", help="Try BASE/GROUP/FILE first.")]
FromFile = Annotated[Path | None, typer.Option(metavar="PATH", help="A file fetched by hand: .h5ad, or an archive that holds it.")]
Offline = Annotated[bool, typer.Option("--offline", help="Only look at what is here and compare its checksum.")]
Again = Annotated[bool, typer.Option("--force", help="Fetch again, and take a file that has changed.")]


class SomeFailed(SctoolError):
    """Some of several data sets could not be had."""

    exit_code = 3

    def __init__(self, problems: list[SctoolError]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems


@app.command("list")
def list_(dest: Dest = Path("data"), json_: o.Json = False, quiet: o.Quiet = False) -> None:
    """Say which data sets there are, and which are here."""
    session = Session(locals())
    from sctool.data.download.part import human
    from sctool.data.download.registry import data_sets

    rows, values = [], []
    for entry in data_sets():
        path = dest / entry.group / entry.file
        size = human(path.stat().st_size) if path.exists() else entry.about or "unknown"
        places = ", ".join(source.place for source in entry.sources)
        rows.append([entry.group, entry.name, entry.job, size, entry.licence, places, "here" if path.exists() else "no"])
        values.append(
            {
                **entry.model_dump(exclude={"sources"}),
                "pages": [source.page for source in entry.sources],
                "path": str(path),
                "here": path.exists(),
            }
        )
    columns = ["group", "name", "what for", "size", "licence", "source", "here"]
    session.result({"data_sets": values}, [score_table("", columns, rows, "left")], ["sctool download GROUP --only NAME"])


def _command(group: str) -> Callable[..., None]:
    def download(
        dest: Dest = Path("data"),
        only: Only = None,
        url: Url = None,
        mirror: Mirror = None,
        from_file: FromFile = None,
        offline: Offline = False,
        force: Again = False,
        json_: o.Json = False,
        quiet: o.Quiet = False,
    ) -> None:
        _download(group, Session(locals()), dest, only, url, mirror, from_file, offline)

    return download


for _group, _help in GROUPS.items():
    app.command(_group, help=_help)(_command(_group))


def _download(
    group: str,
    session: Session,
    dest: Path,
    only: list[str] | None,
    url: str | None,
    mirror: str | None,
    from_file: Path | None,
    offline: bool,
) -> None:
    from sctool.data.download.registry import choose

    given = {"--url": url, "--mirror": mirror, "--from-file": from_file, "--offline": offline or None}
    clash = [flag for flag, value in given.items() if value is not None]
    if len(clash) > 1:
        raise SctoolError(f"{' and '.join(clash)} exclude each other", "give one of them")
    entries = choose(group, only)
    names = ", ".join(entry.name for entry in entries)
    if url is not None and len(entries) > 1:
        raise SctoolError(f"--url is the address of one data set; {len(entries)} are chosen: {names}", f"add --only {entries[0].name}")
    if url is not None and not url.startswith(("http://", "https://")):
        raise SctoolError(f"--url {url} is no http or https address", "give a file of this machine with --from-file")
    from sctool.data.download.downloads import Downloads
    from sctool.data.download.unpack import is_archive

    if from_file is not None and len(entries) > 1 and from_file.is_file() and not is_archive(from_file):
        raise SctoolError(f"{from_file} (--from-file) is one data set; {len(entries)} are chosen: {names}", f"add --only {entries[0].name}")
    reporter = TransferReporter(session.console)
    downloads = Downloads(dest, session.say, reporter, url, mirror, from_file, session.force)
    results, problems = [], []
    for entry in entries:
        reporter.start(entry.name)
        try:
            results.append(downloads.offline(entry) if offline else downloads.get(entry))
        except SctoolError as problem:
            problems.append(problem)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted while fetching {entry.name}", "run the same command again; it goes on where it stopped"
            ) from None
        finally:
            reporter.stop()
    if not offline:
        downloads.tidy()
    values = [
        {
            "name": result.entry.name,
            "path": str(result.path),
            "size": result.path.stat().st_size,
            "cells": result.found.cells,
            "genes": result.found.genes,
            "holds": result.found.holds,
            "state": result.state,
            "checksum": result.checksum,
            "trust": result.trust,
            "notes": result.found.notes,
            "licence": result.entry.licence,
            "citation": result.entry.citation,
        }
        for result in results
    ]
    failed = [{"problem": problem.message, "fix": problem.hint} for problem in problems]
    lines = [line for result in results for line in (str(result), *(f"  note: {note}" for note in result.found.notes))]
    session.result({"files": values, "failed": failed}, [], lines)
    if problems:
        failure = SomeFailed(problems)
        failure.exit_code = 3 if results and not offline else 2
        raise failure
