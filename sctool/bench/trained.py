"""What a trained model of perturbations is worth: its predictions of the held-out cells beside simple ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from sctool.bench.evaluation import Evaluation
from sctool.bench.held_out import held_out_truth
from sctool.bench.perturbation import SHOWN, compare
from sctool.bench.perturbation_case import Contestant
from sctool.bench.perturbation_choice import Choice
from sctool.data.minibatch import CellStore
from sctool.data.perturbation_names import CONTROL, targets_of
from sctool.data.prepare import Prepared
from sctool.data.screen import Screen
from sctool.engine.perturb import Response
from sctool.errors import SctoolError
from sctool.metrics.perturbation import iwelbo
from sctool.models.cradle import NETWORKS

PARTICLES, MOST_CELLS = 25, 2000
"""Of the likelihood of held-out cells."""


def compare_trained(response: Response, screen: Screen, say: Callable[[str], None]) -> Evaluation | None:
    """Score a model on the cells its training held out and that passed quality control; None where there are none.

    Parameters
    ----------
    response
        The trained model.
    screen
        The screen it was trained on.
    say
        Told what is left out.
    """
    if not ((screen.split_n == "test") & (screen.name_n != CONTROL)).any():
        return None
    try:
        truth = held_out_truth(response, screen)
        return compare(truth, response.means, contestants(response, list(truth.perturbations)), say=say)
    except SctoolError as error:  # the model is good; there is too little to score it on
        say(f"note: not compared with simple predictions: {error.message}")
        return None


def limits(response: Response, screen: Screen) -> list[str]:
    """What is held out that the training cells tell little of, and where a network is of no use."""
    held, known = sorted(set(screen.name_n[screen.split_n == "test"]) - {CONTROL}), set(response.targets)
    unseen = [name for name in held if set(targets_of(name)) - known]
    new = [name for name in held if name not in response.perturbations and set(targets_of(name)) & known]
    said = []
    if unseen:
        shown = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
        said.append(f"{len(unseen)} of {len(held)} held-out perturbations have targets never perturbed in training: {shown}")
    if held and not new and response.kind in NETWORKS and not screen.fail_n.any():
        said.append("the network does not enter what is predicted here; --model shrunken gives the same at once")
    return said


def contestants(response: Response, wanted: list[str]) -> list[Contestant]:
    """What a model predicts, and what its network alone does."""
    made = response.changes(wanted)
    out = [Contestant(response.kind, dict(zip(wanted, made.change_pg, strict=True)), control_g=made.control_g)]
    if response.kind in NETWORKS:
        out.append(Contestant("network alone", dict(zip(wanted, response.network_changes(wanted), strict=True))))
    return out


def held_out_likelihood(response: Response, prepared: Prepared, screen: Screen) -> dict[str, float]:
    """Predictive log-likelihood of held-out cells under a network (IWELBO, nats per cell), and its Monte-Carlo error; of 2,000 at most."""
    if response.kind not in NETWORKS:
        return {}
    rows = np.random.default_rng(0).permutation(prepared.rows("test"))[:MOST_CELLS]
    if not len(rows):
        return {}
    store = CellStore(prepared.matrix, prepared.codes, prepared.obs.index, prepared.columns, totals=prepared.totals)
    value, error = iwelbo(response.log_weights(store, np.sort(rows), screen.name_n[np.sort(rows)], PARTICLES))
    return {"test_iwelbo": value, "test_iwelbo_error": error}


def comparison(made: Evaluation | None, chosen: Choice | None) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """What the manifest keeps of a comparison, and of how the model was chosen; and their tables."""
    contents: dict[str, Any] = {}
    tables: dict[str, pd.DataFrame] = {}
    if made is not None:
        scores = made.summary.set_index("name")[list(SHOWN)]
        contents["comparison"] = {"scores": scores.to_dict("index"), "verdict": made.verdict()}
        tables["comparison"] = made.scores
    if chosen is not None:
        contents["chosen"] = {"model": chosen.winner, "how": chosen.how}
        tables["candidates"] = chosen.table
    return contents, tables
