"""A small screen, models trained on it, and settings that the tests of CRADLE-VAE share."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sctool.artifacts.tensors import load_tensors
from sctool.data.demo import SCREEN
from tests.conftest import run_in

KEYS = ("--perturbation-key", "perturbation", "--control", "control")
QUICK = ("--epochs", "2", "--n-hidden", "16", "--n-latent", "4", "--quiet")
NONE = ("--split", "none")
MEANS = ("--model", "additive")
CHOSEN = (
    *("control", "KLF1", "MAP2K6", "TGFBR2", "MAPK1", "MAP2K3", "SLC38A2"),
    *("KLF1+MAP2K6", "KLF1+TGFBR2", "MAPK1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "CNN1+MAPK1"),
)


@pytest.fixture(scope="session")
def screen():
    """Some cells of 12 perturbations of the demo, the 60 genes of most counts and all targets that are genes; made-up columns."""
    a = ad.read_h5ad(SCREEN.path)
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero(a.obs["perturbation"] == name)[: 100 if name == "control" else 40] for name in CHOSEN]
    most = np.argsort(-np.asarray(a.X.sum(0)).ravel())[:60]
    a = a[np.sort(np.concatenate(rows)), np.sort(most)].copy()
    n = a.n_obs
    a.obs["bad"] = rng.random(n) < 0.25
    a.obs["part"] = rng.choice(["train", "val", "test", "other"], n, p=[0.6, 0.1, 0.2, 0.1])
    a.obs["donor"] = rng.choice(["d1", "d2"], n)
    return a


@pytest.fixture
def screen_file(screen, tmp_path):
    screen.write_h5ad(tmp_path / "screen.h5ad")
    return tmp_path / "screen.h5ad"


@pytest.fixture
def train(sctool, screen_file, tmp_path):
    """Train on the small file; the folder, or what went wrong."""

    def run(*words, name="m", path=screen_file, keys=KEYS, flags=QUICK):
        ran = sctool("train", "cradle", path, *keys, *flags, "--name", name, *words)
        assert ran.code == 0, ran.err
        return tmp_path / "checkpoints" / "cradle" / name

    return run


@pytest.fixture(scope="session")
def home(screen, tmp_path_factory):
    """A folder with models that predictions are made from: of the user's flags ``bad``, and without any artifact."""
    here = tmp_path_factory.mktemp("home")
    screen.write_h5ad(here / "screen.h5ad")
    for words in (("--qc-key", "bad"), ("--model", "sams")):
        run_in(here, "train", "cradle", "screen.h5ad", *KEYS, *QUICK, *words, "--name", words[1])
    return here / "checkpoints" / "cradle"


@pytest.fixture
def predict(sctool, home, tmp_path):
    """Predict with one of those models; the folder of results."""

    def run(*words, model="bad", name="p"):
        ran = sctool("predict", "cradle", home / model, "--quiet", "--name", name, *words)
        assert ran.code == 0, ran.err
        return tmp_path / "results" / "cradle" / name

    return run


def weights(folder):
    return load_tensors(folder / "model.safetensors")[0]


def same(a, b):
    return a.keys() == b.keys() and all(a[key].shape == b[key].shape and bool((a[key] == b[key]).all()) for key in a)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def table(folder):
    return pd.read_csv(folder / "cells.csv", dtype={"cell": str})


def refused(ran, *said):
    """One line of what is wrong, one of what to do, and nothing else."""
    assert ran.code == 2, ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith(("error:", "  fix:", "Traceback"))]
    assert [line.split(":")[0] for line in lines] == ["error", "  fix"], ran.err
    for words in said:
        assert words in ran.err, ran.err
    assert ran.out == ""
