"""CRADLE-VAE from the command line: what is held out, quality, and runs."""

import os
import signal

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sctool.models.cradle import CradleVAE
from tests.cli.cradle.conftest import CHOSEN, KEYS, MEANS, NONE, QUICK, manifest, refused, same, table, weights

# what is held out


def test_unseen_targets(train):
    cells = table(train("--split", "singles", *MEANS))
    held = set(cells.loc[cells["split"] == "test", "perturbation"]) - {"control"}
    targets = {name for name in held if "+" not in name}
    assert targets
    known = cells.loc[cells["split"].isin(["train", "validation"]), "perturbation"]
    assert not any(targets & set(name.split("+")) for name in known)
    assert held == {name for name in set(cells["perturbation"]) if targets & set(name.split("+"))}


def test_cells_of_every_perturbation(train):
    folder = train("--split", "cells")
    cells = table(folder)
    assert set(cells.groupby("perturbation")["split"].nunique()) == {3}
    assert (cells["split"] == "test").mean() == pytest.approx(0.25, abs=0.02)
    assert "comparison" in manifest(folder)


def test_nothing_held_out(train, sctool):
    folder = train(*NONE)
    assert set(table(folder)["split"]) == {"train", "validation"}
    assert "comparison" not in manifest(folder)
    refused(sctool("predict", "cradle", folder), "held no cells out", "--perturbations")


def test_a_split_of_the_users_own(train, screen):
    cells = table(train("--split", "part", *MEANS))
    wanted = screen.obs["part"].map({"train": "train", "val": "validation", "test": "test", "other": "unused"})
    assert list(cells["split"]) == list(wanted)


def test_cells_held_out_by_a_column(train, screen):
    cells = table(train("--hold-out", "donor=d2", *MEANS))
    assert set(cells.loc[(screen.obs["donor"] == "d2").to_numpy(), "split"]) == {"test"}
    assert set(cells.loc[(screen.obs["donor"] == "d1").to_numpy(), "split"]) == {"train", "validation"}


def test_folds_share_out_the_combinations(train, screen):
    held = []
    for fold in ("1/3", "2/3", "3/3"):
        cells = table(train("--split", "ood", "--fold", fold, *MEANS, name=fold[0]))
        held.append(set(cells.loc[cells["split"] == "test", "perturbation"]) - {"control"})
    combinations = {"+".join(sorted(name.split("+"))) for name in CHOSEN if "+" in name}
    assert sorted(name for fold in held for name in fold) == sorted(combinations)


# quality


def test_without_quality_control(train):
    folder = train("--qc-key", "none", *NONE)
    assert set(table(folder)["quality"]) == {"pass"}
    about = manifest(folder)
    assert about["data"]["quality"] == {"key": "none"}
    assert about["sizes"]["n_criteria"] == 0
    assert weights(folder)["artifact_mean_ql"].shape[0] == 0
    assert (pd.read_csv(folder / "history.csv")["train_counterfactual"] == 0).all()


def test_flags_of_the_users_own(home, screen):
    cells = table(home / "bad")
    np.testing.assert_array_equal(cells["quality"] == "fail", screen.obs["bad"])
    assert manifest(home / "bad")["vocabularies"]["criterion"] == ["bad"]


def test_a_stricter_limit_fails_more_cells(train):
    """A limit in deviations, fitted on training cells; it is kept with the model."""
    failed = {mad: train("--qc-mad", mad, *NONE, name=f"mad{mad}") for mad in ("1", "3")}
    share = {mad: (table(folder)["quality"] == "fail").mean() for mad, folder in failed.items()}
    assert share["1"] > 2 * share["3"]
    assert set(manifest(failed["1"])["data"]["quality"]["thresholds"]["bounds"]) >= {"counts", "genes"}


# runs


def test_an_interrupted_run_goes_on_to_the_same_weights(train, sctool, screen_file, monkeypatch, tmp_path):
    words = (*NONE, "--batch-size", "64", "--set", "train.checkpoint_seconds=0")
    whole = train(*words, name="whole")
    loss, calls = CradleVAE.loss, []

    def broken_off(self, batch, anneal=1.0):
        calls.append(self.training)
        if sum(calls) == 9:  # in the second epoch
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, batch, anneal)

    monkeypatch.setattr(CradleVAE, "loss", broken_off)
    command = ("train", "cradle", screen_file, *KEYS, *QUICK, *words, "--name", "parts")
    ran = sctool(*command)
    assert ran.code != 0
    assert "--resume" in ran.err
    assert not (tmp_path / "checkpoints" / "cradle" / "parts").exists()
    monkeypatch.setattr(CradleVAE, "loss", loss)
    refused(sctool(*command), "unfinished run", "--resume")
    refused(sctool(*command, "--resume", "--lr", "0.1"), "other settings", "lr")
    ran = sctool(*command, "--resume")
    assert ran.code == 0, ran.err
    parts = tmp_path / "checkpoints" / "cradle" / "parts"
    assert same(weights(whole), weights(parts))
    pd.testing.assert_frame_equal(pd.read_csv(whole / "history.csv"), pd.read_csv(parts / "history.csv"))
    assert not parts.with_name("parts.part").exists()


def test_a_finished_run_is_kept(train, sctool, screen_file):
    folder = train(*NONE)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    command = ("train", "cradle", screen_file, *KEYS, *QUICK, *NONE, "--name", "m")
    refused(sctool(*command), "is there already", "--force")
    assert sctool(*command, "--resume").code == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    refused(sctool(*command, "--resume", "--n-latent", "5"), "cradle.n_latent was 4 and is 5")
    assert sctool(*command, "--force").code == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns != before


def test_same_seed_same_result(train, sctool, tmp_path):
    first, second, other = train(*NONE, name="first"), train(*NONE, name="second"), train(*NONE, "--seed", "1", name="other")
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(other))
    made = []
    for folder in (first, second):
        assert sctool("predict", "cradle", folder, "--perturbations", "KLF1", "--cells", "4", "--quiet").code == 0
        made.append(ad.read_h5ad(tmp_path / "results" / "cradle" / folder.name / "predictions.h5ad"))
    assert abs(made[0].layers["counts"] - made[1].layers["counts"]).max() == 0


def test_on_disk_is_the_same_as_in_memory(train, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = (*NONE, "--n-top-genes", "30")
    assert same(weights(train(*words, name="memory")), weights(train(*words, "--backed", name="disk")))


def test_adaptive_resampling(train):
    history = pd.read_csv(train("--ar", "--ar-warmup", "0", *NONE) / "history.csv")
    assert (history["weights_ess"] < 1).all()


def test_batches(train, sctool, screen, tmp_path):
    """A query without the column of batches is decoded as an average batch."""
    folder = train("--batch-key", "donor", "--qc-key", "bad", *NONE)
    assert manifest(folder)["vocabularies"]["batch"] == ["d1", "d2"]
    query = screen[:50].copy()
    del query.obs["donor"]
    query.write_h5ad(tmp_path / "query.h5ad")
    ran = sctool("predict", "cradle", folder, "query.h5ad", "--counterfactual", "--quiet")
    assert ran.code == 0, ran.err
    assert np.isfinite(sp.csr_matrix(ad.read_h5ad(tmp_path / "results/cradle/m-counterfactual/predictions.h5ad").X).data).all()


def test_a_published_screen_by_preset(sctool, screen, tmp_path):
    """Columns of guides become perturbations, published settings stand in for ours, and a flag wins over them."""
    norman = screen.copy()
    for target in sorted({target for name in CHOSEN[1:] for target in name.split("+")}):
        norman.obs[f"guide_{target}"] = [int(target in str(name).split("+")) for name in norman.obs["perturbation"]]
    norman.obs["guide_identity"] = "what"
    del norman.obs["perturbation"]
    norman.write_h5ad(tmp_path / "norman.h5ad")
    ran = sctool("train", "cradle", "norman.h5ad", "--preset", "norman", "--n-latent", "6", "--n-hidden", "8", "--epochs", "1", "--quiet")
    assert ran.code == 0, ran.err
    (folder,) = (tmp_path / "checkpoints" / "cradle").iterdir()
    config = manifest(folder)["config"]
    assert config["cradle"]["n_latent"] == 6
    assert config["cradle"]["mode"] == "concat"
    assert config["cradle"]["guide"] == "correlated"
    assert config["train"]["batch_size"] == 512
    assert config["train"]["epochs"] == 1
    names = {"control" if name == "control" else "+".join(sorted(name.split("+"))) for name in CHOSEN}
    assert set(table(folder)["perturbation"]) == names
    ran = sctool("predict", "cradle", folder, "--cells", "3", "--quiet")
    assert ran.code == 0, ran.err
