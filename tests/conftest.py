"""What tests share: the bundled cells, small files made from them, and the command line in-process."""

import sys
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sctool.cli.main import main
from sctool.data.demo import CELLS

VECTORS = Path(__file__).parent / "vectors"


def pytest_collection_modifyitems(items):
    import torch

    items.sort(key=lambda item: "test_docs" not in item.nodeid)  # the longest first, so that no worker is left with one at the end
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))


@pytest.fixture(autouse=True)
def one_thread():
    """For each test anew: one that gives --threads would leave its number to those after it."""
    import torch

    torch.set_num_threads(1)


@dataclass
class Ran:
    code: int
    out: str
    err: str


def run_in(folder, *words):
    """A command line with its own root of results, for what several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["sctool", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    assert code == 0


@pytest.fixture
def sctool(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["sctool", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def demo_cells():
    return ad.read_h5ad(CELLS.path)


@pytest.fixture(scope="session")
def small(demo_cells):
    """300 real cells x 400 genes with a batch, a donor and a type column."""
    rng = np.random.default_rng(0)
    a = demo_cells[np.sort(rng.permutation(demo_cells.n_obs)[:300]), :400].copy()
    a = a[np.asarray(a.X.sum(1)).ravel() > 0].copy()
    a.obs = pd.DataFrame(
        {
            "cell_type": a.obs["subpopulation"].astype(str).to_numpy(),
            "batch": rng.choice(["b1", "b2"], a.n_obs),
            "donor": rng.choice(["d1", "d2", "d3", "d4"], a.n_obs),
            "part": rng.choice(["train", "test"], a.n_obs, p=[0.8, 0.2]),
        },
        index=a.obs_names,
    )
    a.X = sp.csr_matrix(a.X, dtype=np.float32)
    return a


@pytest.fixture
def small_file(small, tmp_path):
    path = tmp_path / "small.h5ad"
    small.write_h5ad(path)
    return path


QUICK = ("--epochs", "3", "--n-top-genes", "100", "--n-hidden", "16", "--n-latent", "4", "--quiet")


@pytest.fixture
def trained(sctool, small_file, tmp_path):
    """A model trained for three epochs on the small file."""
    assert (
        sctool(
            "train",
            "scvi",
            small_file,
            "--hold-out",
            "part=test",
            "--batch-key",
            "batch",
            "--label-key",
            "cell_type",
            "--name",
            "m",
            *QUICK,
        ).code
        == 0
    )
    return tmp_path / "checkpoints" / "scvi" / "m"
