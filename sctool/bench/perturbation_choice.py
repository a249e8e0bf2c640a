"""Which model of perturbations predicts best what it has not seen, by cross-validation on the training cells (``--model auto``)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from sctool.artifacts.model_folder import RunPlace, open_model
from sctool.bench.held_out import held_out_truth
from sctool.bench.perturbed import score_changes
from sctool.config import Config
from sctool.data import perturbation_splits as splits
from sctool.data.perturbation import prepare_screen
from sctool.data.perturbation_names import targets_of
from sctool.data.screen import Screen
from sctool.engine.perturb import Response, screen_stages
from sctool.engine.run import run_training
from sctool.models.perturbation.predictors import PREDICTORS
from sctool.models.registry import BUILDERS

FOLDS = 3
NETWORK = "cradle"


@dataclass(frozen=True)
class Choice:
    """The winner, and how the candidates fared."""

    winner: str
    how: str
    table: pd.DataFrame
    """A row for each fold and candidate: ``change_r`` and ``change_error``, means over perturbations."""


def inner_folds(screen: Screen, seed: int) -> tuple[str, list[Screen]]:
    """Splits of the known cells that ask the question the held-out cells ask: unseen combinations, unseen targets, or other cells.

    Returns
    -------
    how, screens
        In words; and the screen with its known cells split anew, the held-out ones unused.
    """
    known = screen.known()
    keep: dict[str, Any] = {"validation": 0.1, "control_share": 0.5, "seed": seed}
    name_n, there = screen.name_n[known], set(screen.name_n[known])
    asked = set(screen.name_n[screen.split_n == "test"]) - there
    targets = {target for name in there for target in targets_of(name)}
    unseen = [name for name in asked if set(targets_of(name)) - targets]
    combinations = [name for name in there if len(targets_of(name)) > 1]
    singles = [name for name in there if len(targets_of(name)) == 1]
    nothing = not (screen.split_n == "test").any()  # then new combinations are what it is for
    if (nothing or asked) and len(unseen) * 2 <= len(asked) and len(combinations) >= FOLDS:
        how, made = "unseen combinations", [splits.split_perturbations(name_n, (i, FOLDS), **keep) for i in range(FOLDS)]
    elif asked and len(singles) > FOLDS:
        how, made = "unseen targets", [splits.split_singles(name_n, fold=(i, FOLDS), **keep) for i in range(FOLDS)]
    else:
        how, made = "other cells", [splits.split_cells(name_n, 0.2, 0.1, seed + i) for i in range(FOLDS)]
    out = []
    for inner in made:
        split_n = np.full(len(screen.name_n), "unused", dtype="<U10")
        split_n[known] = inner
        out.append(replace(screen, split_n=split_n))
    return f"{FOLDS} folds of {how} among the training cells", out


def choose_model(screen: Screen, config: Config, outer: RunPlace, say: Callable[[str], None]) -> Choice:
    """Train the network and make every simple prediction on each fold; the best mean rank of correlation and error wins.

    Parameters
    ----------
    screen, config
        The screen, and the settings of the network.
    outer
        Of the run; what the folds leave goes beside it until the choice is made, so that it can be resumed.
    say
        Told of each fold.
    """
    how, folds = inner_folds(screen, config.seed)
    say(f"choosing the model by {how}")
    rows, home = [], outer.folder.with_name(f"{outer.folder.name}.folds")
    if not outer.resume:
        shutil.rmtree(home, ignore_errors=True)
    settings = config.replaced({"cradle.model": NETWORK})
    for number, inner in enumerate(folds, 1):
        place = RunPlace(home / str(number), resume=True, force=False)
        if place.finished:
            made = open_model(place.folder, "cradle")
            made.require_settings(settings.model_dump(include={"data", "train", "ar", "cradle"}), seed=settings.seed)
        else:
            made = run_training("cradle", BUILDERS["cradle"], prepare_screen(inner, settings), settings, place, stages=screen_stages)
        response = Response(made)
        truth = held_out_truth(response, inner)
        wanted = list(truth.perturbations)
        changes = {NETWORK: response.changes(wanted).change_pg}
        changes |= {name: predict(response.means, wanted) for name, (predict, _) in PREDICTORS.items()}
        for name, change_pg in changes.items():
            scored = score_changes(truth, dict(zip(wanted, change_pg, strict=True)))
            scored = scored[~scored["few_cells"]] if (~scored["few_cells"]).any() else scored
            rows.append((number, name, float(scored["change_r"].fillna(0).mean()), float(scored["change_error"].mean())))
        say(f"fold {number} of {len(folds)}: {len(wanted)} perturbations of {int(truth.means.cells_p.sum()):,} cells")
    table = pd.DataFrame(rows, columns=["fold", "model", "change_r", "change_error"])
    mean = table.groupby("model")[["change_r", "change_error"]].mean()
    mean = mean[~mean.round(12).duplicated()]  # some say the same: the first stands for them
    rank = mean["change_r"].rank(ascending=False) + mean["change_error"].rank()
    winner = str(rank.sort_values(kind="stable").index[0])
    shutil.rmtree(home, ignore_errors=True)
    best = ", ".join(f"{name} {mean.loc[name, 'change_r']:.3f}" for name in rank.sort_values(kind="stable").index[:4])
    say(f"chosen: {winner} (r of the change: {best})")
    return Choice(winner, how, table)
