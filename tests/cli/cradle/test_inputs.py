"""CRADLE-VAE from the command line: what goes wrong, which is said before anything is written."""

import numpy as np
import pytest
import scipy.sparse as sp

from tests.cli.cradle.conftest import KEYS, NONE, QUICK, refused

# training


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--perturbation-key", "gene", "--control", "control"), "no column 'gene'"),
        (("--perturbation-key", "perturbation", "--control", "ctrl"), "has no 'ctrl'"),
        (("--perturbation-key", "perturbation"), "--control is missing"),
        ((), "--perturbation-key is missing"),
        ((*KEYS, "--delimiter", "_"), "--delimiter '+'"),
        ((*KEYS, "--model", "cradel"), "cradle"),
        ((*KEYS, "--split", "oood"), "no column 'oood'"),
        ((*KEYS, "--split", "donor"), "has no 'train' cell"),
        ((*KEYS, "--split", "ood", "--fold", "7/5"), "is not a fold"),
        ((*KEYS, "--split", "ood", "--fold", "1/9"), "cannot be shared out over 9 folds"),
        ((*KEYS, "--split", "cells", "--fold", "1/5"), "--fold"),
        ((*KEYS, "--batch-key", "btch"), "no column 'btch'"),
        ((*KEYS, "--label-key", "typ"), "no column 'typ'"),
        ((*KEYS, "--hold-out", "donor=d9"), "no 'd9'"),
        ((*KEYS, "--n-latent", "0"), "cradle.n_latent"),
        ((*KEYS, "--mask-prior", "1"), "cradle.mask_prior"),
        ((*KEYS, "--set", "cradle.qc_criteria=[mito]"), "no criterion 'mito'"),
        ((*KEYS, "--set", "cradle.size_key=depth"), "no column 'depth'"),
        ((*KEYS, "--set", "cradle.n_latnt=3"), "cradle.n_latent"),
        ((*KEYS, "--qc-mad", "0"), "cradle.qc_mad"),
        (("--preset", "norman"), "columns of guides like guide_KLF1"),
        (("--preset", "replogle"), "column 'gene'"),
        (("--preset", "nroman"), "norman"),
        ((*KEYS, "--counts-layer", "raw"), "raw"),
        ((*KEYS, "--name", "a/b"), "is not a folder name"),
    ],
)
def test_wrong_settings_write_nothing(sctool, screen_file, tmp_path, words, said):
    refused(sctool("train", "cradle", screen_file, *QUICK, *words), said)
    assert not (tmp_path / "checkpoints").exists()


def all_control(a):
    a.obs["perturbation"] = "control"


def logged(a):
    a.X = sp.csr_matrix(np.log1p(a.X.toarray() / 3))


def nameless(a):
    a.obs["perturbation"] = a.obs["perturbation"].astype(object).where(np.arange(a.n_obs) > 4, None)


def unique_names(a):
    a.obs["perturbation"] = [f"p{at}" if at else "control" for at in range(a.n_obs)]


def all_fail(a):
    a.obs["bad"] = True


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (all_control, "all cells are control cells"),
        (logged, "counts"),
        (nameless, "5 of"),
        (unique_names, "looks like a name of each cell"),
        (all_fail, "fail quality control"),
    ],
)
def test_wrong_screens_write_nothing(sctool, screen, tmp_path, spoil, said):
    wrong = screen.copy()
    spoil(wrong)
    wrong.write_h5ad(tmp_path / "wrong.h5ad")
    refused(sctool("train", "cradle", "wrong.h5ad", *KEYS, *QUICK, "--qc-key", "bad"), said)
    assert not (tmp_path / "checkpoints").exists()


def test_wrong_flags(sctool, screen_file, tmp_path):
    for key, said in (("badd", "no column 'badd'"), ("donor", "is not a column of flags")):
        refused(sctool("train", "cradle", screen_file, *KEYS, *QUICK, "--qc-key", key), said)
    assert not (tmp_path / "checkpoints").exists()


# both


def test_wrong_places(sctool, home, screen, tmp_path, monkeypatch):
    (tmp_path / "text.h5ad").write_text("no file of cells")
    (tmp_path / "empty.txt").write_text("\n\n")
    few = screen[:20, :10].copy()
    few.write_h5ad(tmp_path / "few.h5ad")
    model = home / "bad"
    treated = screen[screen.obs["perturbation"] != "control"].copy()
    treated.write_h5ad(tmp_path / "treated.h5ad")
    for words, said in (
        (("train", "cradle", "nowhere.h5ad", *KEYS), "nowhere.h5ad"),
        (("train", "cradle", "text.h5ad", *KEYS), "text.h5ad"),
        (("train", "cradle", "--preset", "norman"), "norman"),
        (("predict", "cradle", home / "none"), "is not a model folder"),
        (("predict", "scgen", model), "is a cradle model"),
        (("predict", "cradle", model, "--perturbations", "control,"), "names no perturbation"),
        (("predict", "cradle", model, "--perturbations", "empty.txt"), "names no perturbation"),
        (("predict", "cradle", model, "few.h5ad", "--perturbations", "KLF1"), "genes"),
        (("predict", "cradle", model, "treated.h5ad", "--perturbations", "KLF1"), "control"),
        (("predict", "cradle", model, "nowhere.h5ad", "--counterfactual"), "nowhere.h5ad"),
    ):
        refused(sctool(*words), said)
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "checkpoints").exists()


# prediction


def test_a_mistyped_column_of_a_query_is_an_error(sctool, home, screen_file, tmp_path):
    ran = sctool("predict", "cradle", home / "bad", screen_file, "--perturbations", "KLF1", "--perturbation-key", "perturbtion")
    refused(ran, "no column 'perturbtion'", "perturbation")
    assert not (tmp_path / "results").exists()


def test_the_file_of_training_is_gone(sctool, train, screen_file, tmp_path):
    """Predictions need the model alone; the counterfactual of its cells needs the cells."""
    folder = train("--qc-key", "bad", *NONE)
    screen_file.rename(tmp_path / "moved.h5ad")
    assert sctool("predict", "cradle", folder, "--perturbations", "KLF1", "--cells", "2", "--quiet").code == 0
    refused(sctool("predict", "cradle", folder, "--counterfactual"), "screen.h5ad")
    assert sctool("predict", "cradle", folder, "moved.h5ad", "--counterfactual", "--quiet").code == 0
