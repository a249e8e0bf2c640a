"""The cells that the training of a model of perturbations held out."""

from __future__ import annotations

import numpy as np

from sctool.bench.perturbed import Truth
from sctool.data.screen import Screen
from sctool.engine.perturb import Response


def held_out_truth(response: Response, screen: Screen) -> Truth:
    """Those that passed quality control, with the genes of the model."""
    rows = np.flatnonzero((screen.split_n == "test") & ~screen.fail_n)
    x_ng = screen.log_expression(rows, response.columns_of(screen))
    return Truth.of(x_ng, screen.name_n[rows].astype(str), screen.split_n[rows], response.means.genes)
