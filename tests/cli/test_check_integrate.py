"""``sctool check --for integrate``: batches, labels, and how they cross."""

import json

import anndata as ad
import numpy as np
import pytest

from sctool.data.demo import BATCHES
from tests.cli.test_inputs import write


def lung(obs, path):
    """Cells of the bundled lung lines with other columns of obs."""
    a = ad.read_h5ad(BATCHES.path)
    obs(a.obs)
    return write(a[:, :200].copy(), path)


def half_known(obs):
    known = np.arange(len(obs)) % 2 == 0
    obs["partly"] = obs["cell_type"].astype(object).where(known, "Unknown").where(np.arange(len(obs)) % 5 > 0, np.nan)


def test_check_for_integration_of_a_good_file(sctool, tmp_path):
    path = lung(half_known, tmp_path / "good.h5ad")
    ran = sctool("check", path, "--for", "integrate", "--batch-key", "batch", "--label-key", "partly", "--json")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert said["problems"] == []
    assert said["notes"] == [
        "40% of 500 training cells have one of 5 labels; mode auto takes them as semi",
        "300 count as unlabelled (integrate.unlabeled): Unknown 200, missing 100",
    ]
    assert "raw counts" in said["about"]["X"]


def test_check_for_integration_says_how_batches_and_labels_cross(sctool, tmp_path):
    def columns(obs):
        obs["batch"] = np.where(np.arange(len(obs)) < 4, "few", obs["batch"].astype(str))
        obs["in_one"] = np.where(obs["batch"] == "sc_dropseq", "drop", np.where(np.arange(len(obs)) % 2, "odd", "even"))

    path = lung(columns, tmp_path / "a.h5ad")
    words = ("check", path, "--for", "integrate", "--batch-key", "batch", "--quiet")
    ran = sctool(*words, "--label-key", "in_one")
    assert ran.code == 0, ran.err
    assert "1 of 6 batches have fewer than 10 cells, too few to be refined: few (4)" in ran.out
    assert "1 of 3 labels are in one batch only: drop" in ran.out
    assert "ready for integrate" in ran.out
    ran = sctool(*words, "--label-key", "batch")
    assert ran.code == 0, ran.err
    assert "no label is in two batches: types and batches cannot be told apart" in ran.out
    ran = sctool(*words, "--label-key", "in_one", "--hold-out", "in_one=drop")
    assert "one of 2 labels" in ran.out  # of the training cells
    assert "in one batch only" not in ran.out


@pytest.mark.parametrize(
    ("flags", "what", "remedy"),
    [
        ((), "integration needs batches", "--batch-key"),
        (("--batch-key", "bach"), "no column 'bach'", "did you mean 'batch'?"),
        (("--batch-key", "one"), "all training cells are from one batch, 'same'", "nothing to integrate"),
        (("--batch-key", "batch", "--set", "data.cells=batch=sc_dropseq"), "one batch, 'sc_dropseq'", "nothing to integrate"),
        (("--batch-key", "batch", "--set", "data.cells=batch=x"), "obs['batch'] has no 'x'", "one of those names"),
        (("--batch-key", "batch", "--set", "integrate.mode=semi"), "integrate.mode semi needs labels", "--label-key"),
        (("--batch-key", "batch", "--label-key", "words"), "no training cell has a label in obs['words']", "integrate.mode"),
        (("--batch-key", "batch", "--label-key", "nothing"), "no cell has a value in obs['nothing']", "another column"),
    ],
)
def test_check_for_integration_tells_each_problem_once(sctool, tmp_path, flags, what, remedy):
    def columns(obs):
        obs["one"], obs["words"], obs["nothing"] = "same", "Unknown", np.nan

    ran = sctool("check", lung(columns, tmp_path / "a.h5ad"), "--for", "integrate", *flags, "--quiet")
    assert ran.code == 2
    assert what in ran.out
    assert remedy in ran.out
    assert ran.out.count("fix:") == 1
