"""Writing predicted perturbations: mean profiles, changes with intervals, and cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sctool.artifacts.atomic import write_json
from sctool.artifacts.cells import CHUNK_CELLS, Block, frame_of, write_cells
from sctool.artifacts.result_folder import result_folder
from sctool.config import Config
from sctool.data.perturbation_names import CONTROL, canonical, targets_of
from sctool.engine.perturb import Cells, Response
from sctool.errors import SctoolError
from sctool.models.cradle import NETWORKS

NOTE = "prediction.json"
LONGEST_PATH = 255


def write_perturbed(
    response: Response,
    wanted: Sequence[str],
    cells: Cells | None,
    results: Path,
    about: dict[str, Any],
    *,
    quality: str = "pass",
    force: bool = False,
) -> pd.DataFrame:
    """Write ``predictions.csv``, ``effects.csv.gz``, ``prediction.json`` and, from a network, ``predictions.h5ad``.

    Parameters
    ----------
    response
        The trained model.
    wanted
        Canonical names of the perturbations.
    cells
        Control cells to perturb, as the network sees them; None writes no cells.
    quality
        ``pass``, or ``fail`` for cells with the usual artifact.
    about
        What ``prediction.json`` says beyond model, kind and perturbations.

    Returns
    -------
    A row for each perturbation: targets not seen in training, and the size of the predicted change.
    """
    made, genes, known = response.changes(wanted), response.genes, set(response.targets)
    factors_pg = None if cells is None else response.factors(wanted, made)
    if quality == "fail":
        shift_g, *shifts = response.artifact_shifts([CONTROL, *wanted])
        made = replace(made, control_g=made.control_g + shift_g, change_pg=made.change_pg + np.stack(shifts) - shift_g)
    seen = [name in response.perturbations for name in wanted]
    profiles = pd.DataFrame(np.vstack([made.control_g, made.control_g + made.change_pg]), columns=genes)
    profiles.insert(0, "perturbation", [CONTROL, *wanted])
    half_pg = 1.96 * made.sd_pg
    effects = pd.DataFrame(
        {
            "perturbation": np.repeat(list(wanted), len(genes)),
            "gene": np.tile(genes, len(wanted)),
            "control": np.tile(made.control_g, len(wanted)),
            "mean": (made.control_g + made.change_pg).ravel(),
            "change": made.change_pg.ravel(),
            "low": (made.change_pg - half_pg).ravel(),
            "high": (made.change_pg + half_pg).ravel(),
            "seen": np.repeat(seen, len(genes)),
        }
    )
    folder = response.folder
    scale = f"log1p of counts per {response.target_sum:,.0f}"
    note = {
        "task": "perturbation",
        "model": str(folder.path.resolve()),
        "run": folder.name,
        "seed": folder.manifest["seed"],
        "sampler": folder.manifest["sampler"],
        "kind": response.kind,
        "target_sum": response.target_sum,
        "scale": f"mean over cells of {scale}; low and high are a 95 % interval of the change of the mean",
        "perturbations": list(wanted),
        **about,
    }
    with result_folder(results, force=force) as partial:
        profiles.to_csv(partial / "predictions.csv", index=False, float_format="%.6g")
        effects.to_csv(partial / "effects.csv.gz", index=False, float_format="%.5g")
        if cells is not None and factors_pg is not None:
            _write_cells(partial / "predictions.h5ad", response, wanted, cells, factors_pg, quality, scale)
        write_json(partial / NOTE, note)
    unseen = [", ".join(target for target in targets_of(name) if target not in known) for name in wanted]
    size_p = np.sqrt(np.square(made.change_pg).sum(1))
    largest = [genes[at] for at in np.abs(made.change_pg).argmax(1)]
    return pd.DataFrame({"perturbation": wanted, "seen": seen, "unseen_targets": unseen, "size": size_p, "largest": largest})


def _write_cells(
    path: Path, response: Response, wanted: Sequence[str], cells: Cells, factors_pg: torch.Tensor, quality: str, scale: str
) -> None:
    """Counts drawn for each control cell under each perturbation; memory does not grow with their number."""
    n = len(cells.names)
    obs = pd.DataFrame(
        {
            "perturbation": np.repeat(list(wanted), n),
            "control_cell": np.tile(cells.names, len(wanted)),
            "quality": quality,
        },
        index=[f"{name}-{cell}" for name in wanted for cell in cells.names],
    )
    said = {
        "model": str(response.folder.path),
        "X": f"{scale} of the drawn counts",
        "layers": "counts: drawn from the model; expected: their expectation",
        "cells": "each is the control cell of that name, had it been perturbed",
    }
    generator = torch.Generator().manual_seed(response.folder.manifest["seed"])

    def blocks() -> Iterator[Block]:
        for name, factor_g in zip(wanted, factors_pg, strict=True):
            for at in range(0, n, CHUNK_CELLS):
                part = cells.part(at, at + CHUNK_CELLS)
                expected_ng = response.expected_counts(part, [name] * len(part.names), quality) * factor_g
                counts_ng = response.drawn_counts(expected_ng, generator)
                yield {
                    "X": torch.log1p(counts_ng * (response.target_sum / part.total_n[:, None])).numpy(),
                    "counts": counts_ng.numpy(),
                    "expected": expected_ng.numpy(),
                }

    write_cells(path, frame_of(obs, response.genes, uns={"sctool": said}), blocks())


def wanted_perturbations(response: Response, given: str | None) -> list[str]:
    """Canonical names: those given, separated by commas or as the lines of a file; else those held out in training.

    Raises
    ------
    SctoolError
        If none is given and none was held out.
    """
    if given is None:
        cells = response.folder.table("cells")
        names = sorted(set(cells.loc[cells["split"] == "test", "perturbation"]) - {CONTROL})
        if not names:
            raise SctoolError(f"{response.folder.name} held no cells out", "say what to predict: --perturbations A,A+B")
        return names
    is_file = len(given) < LONGEST_PATH and Path(given).is_file()
    if not is_file and "," not in given and Path(given).suffix in (".txt", ".csv", ".tsv"):
        raise SctoolError(f"--perturbations {given}: no such file", "give a file with one perturbation in each line, or names like A,A+B")
    texts = Path(given).read_text().splitlines() if is_file else given.split(",")
    settings = response.config.cradle
    names = [canonical(text, settings.control or CONTROL, settings.delimiter) for text in texts if text.strip()]
    wanted = [name for name in dict.fromkeys(names) if name != CONTROL]
    if not wanted:
        raise SctoolError(f"--perturbations {given!r} names no perturbation", "write it like KLF1,KLF1+MAP2K6, or give a file of lines")
    return wanted


def control_cells(response: Response, path: Path | None, config: Config, most: int, say: Callable[[str], None]) -> Cells | None:
    """At most so many control cells to perturb, of a file, else of training; None if none is wanted, or the model has no network."""
    if most == 0 or response.kind not in NETWORKS:
        if most:
            say(f"note: {response.kind} predicts means, not cells; predictions.h5ad is left out")
        return None
    if path is None:
        return response.base_cells().part(0, most)
    from sctool.engine.screen_query import ScreenQuery

    query = ScreenQuery(response, path, config)
    for line in (str(query.match), *(f"note: {note}" for note in query.notes)):
        say(line)
    rows = np.flatnonzero(query.name_n == CONTROL)
    if not len(rows):
        raise SctoolError(f"{path} has no control cells", "give --perturbation-key and --control, or leave the file out")
    rows = np.sort(np.random.default_rng(response.folder.manifest["seed"]).permutation(rows)[:most])
    return query.cells(rows)
