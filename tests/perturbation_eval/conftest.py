"""Cells of perturbations whose effects add up, their means, and the scores of an additive prediction, which the tests share."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sctool.bench.perturbation import Contestant, compare
from sctool.bench.perturbed import Truth
from sctool.models.perturbation.means import Means
from sctool.models.perturbation.predictors import PREDICTORS

SINGLES = ("A", "B", "C", "D", "E")
DOUBLES = ("A+B", "A+C", "B+D", "C+E")
GENES = tuple(f"g{at}" for at in range(60)) + SINGLES


def screen(seed=0, cells=40, controls=120):
    """Counts of single and double perturbations whose effects add up, and which cells are held out: doubles, and half of the control."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(2.0, 2.0, len(GENES)) + 0.5
    effects = {name: np.where(rng.random(len(GENES)) < 0.3, rng.normal(0, 0.8, len(GENES)), 0) for name in SINGLES}
    names, counts = [], []
    for name in ("control", *SINGLES, *DOUBLES):
        n = controls if name == "control" else cells
        effect = sum((effects[target] for target in name.split("+") if target in effects), np.zeros(len(GENES)))
        counts.append(rng.poisson(base * np.exp(effect), (n, len(GENES))))
        names += [name] * n
    names = np.array(names)
    split = np.where(np.isin(names, DOUBLES), "test", "train").astype("<U10")
    split[np.flatnonzero(names == "control")[::2]] = "test"
    counts = np.vstack(counts).astype(np.float32)
    log = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    return names, split, counts, sp.csr_matrix(log)


@pytest.fixture(scope="session")
def made():
    return screen()


@pytest.fixture(scope="session")
def truth(made):
    names, split, _, log = made
    return Truth.of(log, names, split, GENES)


@pytest.fixture(scope="session")
def means(made):
    names, split, _, log = made
    return Means.of(log, names, np.flatnonzero(split == "train"), GENES)


@pytest.fixture(scope="session")
def additive(means):
    return dict(zip((*SINGLES, *DOUBLES), PREDICTORS["additive"][0](means, (*SINGLES, *DOUBLES)), strict=True))


@pytest.fixture(scope="session")
def evaluation(made, truth, means, additive):
    names, split, _, log = made
    cells = {name: log[names == name] for name in DOUBLES}
    control = log[(names == "control") & (split == "train")]
    return compare(truth, means, [Contestant("sum", additive, "standard", 0, "run", cells)], control_ng=control)


@pytest.fixture(scope="session")
def files(made, additive, means, tmp_path_factory):
    """The screen, and predictions of other tools in every format."""
    names, split, counts, log = made
    folder = tmp_path_factory.mktemp("perturbation")
    shown = np.where(names == "control", "ctrl", [name.replace("+", "_") for name in names])
    obs = pd.DataFrame({"guide": shown, "part": split}, index=[f"c{at}" for at in range(len(names))])
    data = ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES))
    data.write_h5ad(folder / "screen.h5ad")
    change = pd.DataFrame(additive, index=GENES).T.rename_axis("perturbation")
    change.index = [name.replace("+", "_") for name in change.index]
    change.to_csv(folder / "change.tsv", sep="\t")
    mean = change + means.control_g
    mean.to_csv(folder / "mean.csv")
    shifted = mean + 0.5
    shifted.loc["ctrl"] = means.control_g + 0.5
    shifted.to_csv(folder / "own-control.csv")
    long = change.rename_axis("perturbation").reset_index().melt("perturbation", var_name="gene", value_name="change")
    long.to_csv(folder / "long.csv", index=False)
    rows = np.flatnonzero(np.isin(names, DOUBLES))
    ad.AnnData(log[rows], obs=obs.iloc[rows][["guide"]], var=pd.DataFrame(index=GENES)).write_h5ad(folder / "cells.h5ad")
    return folder
