"""``eval perturbation`` and ``plot`` on runs of ours, and on counts of other tools."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from tests.conftest import run_in
from tests.perturbation_eval.conftest import DOUBLES, GENES
from tests.perturbation_eval.test_files import keys, write_run

KEYS = ("--perturbation-key", "guide", "--control", "NT")


def written(path, made, renamed=None, **columns):
    """The screen as a file, its control called NT."""
    names, _, counts, _ = made
    shown = pd.Series(np.where(names == "control", "NT", names)).replace(renamed or {})
    obs = pd.DataFrame({"guide": shown.to_numpy(), **columns}, index=[f"c{at}" for at in range(len(names))])
    ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def home(made, tmp_path_factory):
    """A folder with a trained network, a model of means, and their predictions; a quarter of the cells, and most of D, have failed."""
    here = tmp_path_factory.mktemp("runs")
    names = made[0]
    bad = np.random.default_rng(0).random(len(names)) < 0.25
    bad |= (names == "D") & (np.arange(len(names)) % 8 > 0)
    written(here / "screen.h5ad", made, bad=bad)
    quick = (*KEYS, "--split", "ood", "--epochs", "2", "--n-hidden", "8", "--n-latent", "4", "--quiet")
    for name, words in (("network", ("--qc-key", "bad")), ("sums", ("--model", "additive"))):
        run_in(here, "train", "cradle", "screen.h5ad", *quick, *words, "--name", name)
        run_in(here, "predict", "cradle", f"checkpoints/cradle/{name}", "--quiet", "--name", name)
    return here


def test_scores_of_a_run_are_those_of_its_training(home, sctool):
    ran = sctool("eval", "perturbation", home / "results/cradle/network", "--name", "n")
    assert ran.code == 0, ran.err
    assert "passing cells are scored" in ran.err
    ours = pd.read_csv("results/perturbation/n/scores.csv").query("arm == 'baseline'").set_index("name")
    training = pd.read_csv(home / "checkpoints/cradle/network/comparison.csv").query("arm == 'baseline'").set_index("name")
    for name in ("matching_mean", "additive", "shrunken"):
        for score in ("change_r", "change_error", "specific_r", "rmse"):
            assert ours.loc[name, score] == pytest.approx(training.loc[name, score], rel=1e-6), (name, score)


def test_models_without_epochs_are_not_drawn(home, sctool):
    ran = sctool("plot", home / "checkpoints/cradle/sums")
    assert ran.code == 2
    assert "not trained in epochs" in ran.err
    ran = sctool("plot", home / "checkpoints/cradle/sums", home / "checkpoints/cradle/network")
    assert ran.code == 0, ran.err
    assert (home / "checkpoints/cradle/network/plots/training.png").exists()
    ran = sctool("plot", home / "results/cradle/sums")
    assert ran.code == 2
    assert "sctool eval perturbation" in ran.err


def test_counterfactuals_have_no_truth(home, sctool):
    run_in(home, "predict", "cradle", "checkpoints/cradle/network", "--counterfactual", "--quiet", "--name", "cf")
    ran = sctool("eval", "perturbation", home / "results/cradle/cf")
    assert ran.code == 2
    assert "no truth to score" in ran.err
    assert "--force" not in ran.err


def test_flags_win_over_those_of_training(files, made, additive, means, sctool, tmp_path):
    names, split, _, _ = made
    own = pd.DataFrame([means.control_g], index=["control"], columns=GENES)
    table = pd.concat([own, pd.DataFrame(additive, index=GENES).T + means.control_g])
    run = write_run(tmp_path, "mine", files / "screen.h5ad", table, names, split)
    other = written(tmp_path / "other.h5ad", made)
    ran = sctool("eval", "perturbation", run, "--data", other, "--name", "a")  # column and control are those of the other file
    assert ran.code == 2
    assert "ctrl" in ran.err
    ran = sctool("eval", "perturbation", run, "--data", other, *KEYS, "--delimiter", "+", "--name", "b")
    assert ran.code == 0, ran.err
    assert set(pd.read_csv("results/perturbation/b/per_perturbation.csv")["perturbation"]) == set(DOUBLES)


@pytest.mark.parametrize("word", ["NA", "None", "nan"])
def test_perturbations_called_like_a_missing_value(word, made, additive, sctool, tmp_path):
    written(tmp_path / "words.h5ad", made, {"A": word})
    wide = pd.DataFrame(additive, index=GENES).T.rename(index={"A": word}).rename_axis("perturbation")
    wide.to_csv(tmp_path / "wide.csv")
    wide.reset_index().melt("perturbation", var_name="gene", value_name="change").to_csv(tmp_path / "long.csv", index=False)
    for name in ("wide", "long"):
        ran = sctool("eval", "perturbation", tmp_path / f"{name}.csv", "--data", tmp_path / "words.h5ad", *KEYS)
        assert ran.code == 0, ran.err
        each = pd.read_csv(f"results/perturbation/{name}/per_perturbation.csv", keep_default_na=False)
        assert word in set(each["perturbation"])
        assert sctool("plot", tmp_path / "results/perturbation" / name).code == 0


def test_counts_have_the_scale_of_the_real_cells(made, sctool, tmp_path):
    """Half of the genes are measured beyond the file; predicted counts are the real ones, at another depth."""
    names, split, counts, _ = made
    size = 2.0 * counts.sum(1)
    written(tmp_path / "screen.h5ad", made, part=split, n_counts_all_genes=size)
    rows = np.flatnonzero(np.isin(names, DOUBLES))
    obs = pd.DataFrame({"guide": names[rows]}, index=[f"p{at}" for at in rows])
    predicted = ad.AnnData(sp.csr_matrix(3 * counts[rows]), obs=obs, var=pd.DataFrame(index=GENES))
    predicted.write_h5ad(tmp_path / "panel.h5ad")
    predicted.obs["n_counts_all_genes"] = 3 * size[rows]
    predicted.write_h5ad(tmp_path / "sizes.h5ad")
    paths = tmp_path / "panel.h5ad", tmp_path / "sizes.h5ad"
    ran = sctool("eval", "perturbation", *paths, "--data", tmp_path / "screen.h5ad", *KEYS, "--split-key", "part", "--name", "c")
    assert ran.code == 0, ran.err
    assert "these genes have 50%, as in the real control cells" in ran.err
    assert "of obs['n_counts_all_genes']" in ran.err
    error = pd.read_csv("results/perturbation/c/scores.csv").set_index("name")["rmse"]
    assert error["panel"] < 0.3 * error["no_change"]
    assert error["sizes"] < 0.3 * error["no_change"]


def test_one_perturbation_has_no_rank(files, additive, sctool, tmp_path):
    pd.DataFrame(additive, index=GENES).T.loc[["A+B"]].rename(index={"A+B": "A_B"}).to_csv(tmp_path / "one.csv")
    ran = sctool("eval", "perturbation", tmp_path / "one.csv", *keys(files))
    assert ran.code == 0, ran.err
    assert "nan" not in ran.out
