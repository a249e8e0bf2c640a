"""CRADLE-VAE from the command line: train, predict, what is written, and what goes wrong."""

import contextlib
import json
import os
import signal
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sctool.artifacts.tensors import load_tensors
from sctool.cli.main import main
from sctool.data.demo import SCREEN
from sctool.models.cradle import CradleVAE

KEYS = ("--perturbation-key", "perturbation", "--control", "control")
QUICK = ("--epochs", "2", "--n-hidden", "16", "--n-latent", "4", "--quiet")
NONE = ("--split", "none")
MEANS = ("--model", "additive")
CHOSEN = (
    *("control", "KLF1", "MAP2K6", "TGFBR2", "MAPK1", "MAP2K3", "SLC38A2"),
    *("KLF1+MAP2K6", "KLF1+TGFBR2", "MAPK1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "CNN1+MAPK1"),
)


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def home(screen, tmp_path_factory):
    """A folder with models that predictions are made from: of the user's flags ``bad``, and without any artifact."""
    here = tmp_path_factory.mktemp("home")
    screen.write_h5ad(here / "screen.h5ad")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for words in (("--qc-key", "bad"), ("--model", "sams")):
            patch.setattr(sys, "argv", ["sctool", "train", "cradle", "screen.h5ad", *KEYS, *QUICK, *words, "--name", words[1]])
            with contextlib.suppress(SystemExit):
                main()
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


# from training to files


def test_the_demo_end_to_end(sctool, tmp_path):
    flags = ("--epochs", "2", "--n-hidden", "16", "--n-latent", "4", "--n-top-genes", "100")
    ran = sctool("train", "cradle", *flags)
    assert ran.code == 0, ran.err
    assert "the bundled demo perturbations.h5ad with --perturbation-key perturbation, --control control" in ran.err
    folder = tmp_path / "checkpoints" / "cradle" / "perturbations-standard-seed0"
    assert str(folder.relative_to(tmp_path)) in ran.out
    about, cells = manifest(folder), table(folder).set_index("cell")
    screen = ad.read_h5ad(SCREEN.path)
    assert list(cells.index) == list(screen.obs_names)
    held = set(cells.loc[cells["split"] == "test", "perturbation"]) - {"control"}
    assert held
    assert all("+" in name for name in held)
    assert not held & set(cells.loc[cells["split"].isin(["train", "validation"]), "perturbation"])
    assert set(cells.loc[cells["perturbation"] == "control", "split"]) == {"train", "validation", "test"}
    assert set(cells["quality"]) == {"pass", "fail"}
    assert about["data"]["failed"] == (cells.loc[cells["split"].isin(["train", "validation"]), "quality"] == "fail").sum() > 0
    genes = about["genes"]["name"]
    assert len(genes) == about["sizes"]["n_genes"] - 1 >= 100
    assert set(about["vocabularies"]["target"]) & set(screen.var_names) <= set(genes)  # a target that is measured is never left out
    assert set(about["vocabularies"]["criterion"]) <= {"counts", "genes", "mt", "ribo", "hb", "doublet"}
    history = pd.read_csv(folder / "history.csv")
    assert {"train_reconstruction", "train_kl", "train_kl_global", "train_counterfactual", "validation_loss"} <= set(history)
    assert (history["train_counterfactual"] > 0).all()
    assert not (tmp_path / "checkpoints" / "cradle" / "perturbations-standard-seed0.part").exists()

    ran = sctool("predict", "cradle", folder, "--cells", "7")
    assert ran.code == 0, ran.err
    results = tmp_path / "results" / "cradle" / folder.name
    assert {path.name for path in results.iterdir()} == {"predictions.csv", "effects.csv.gz", "predictions.h5ad", "prediction.json"}
    note = json.loads((results / "prediction.json").read_text())
    assert note["perturbations"] == sorted(held)
    assert {key: note[key] for key in ("task", "run", "seed", "sampler", "kind", "quality", "control_cells")} == {
        "task": "perturbation",
        "run": folder.name,
        "seed": 0,
        "sampler": "uniform",
        "kind": "cradle",
        "quality": "pass",
        "control_cells": 7,
    }
    assert note["target_sum"] == about["data"]["target_sum"]
    assert note["file"] == str(SCREEN.path.resolve())

    profiles = pd.read_csv(results / "predictions.csv", index_col="perturbation")
    assert list(profiles.index) == ["control", *sorted(held)]
    assert list(profiles.columns) == genes
    effects = pd.read_csv(results / "effects.csv.gz")
    assert list(effects.columns) == ["perturbation", "gene", "control", "mean", "change", "low", "high", "seen"]
    assert not effects["seen"].any()
    assert (effects["low"] <= effects["change"]).all()
    assert (effects["change"] <= effects["high"]).all()
    assert (effects["high"] - effects["low"]).max() > 0
    np.testing.assert_allclose(effects["control"] + effects["change"], effects["mean"], atol=2e-4)
    for name in held:
        own = effects[effects["perturbation"] == name]
        assert list(own["gene"]) == list(profiles.columns)
        np.testing.assert_allclose(own["mean"], profiles.loc[name], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(own["control"], profiles.loc["control"], rtol=1e-4, atol=1e-6)
    means = weights(folder)["mean_pg"].numpy()
    assert abs(profiles.loc["control"].to_numpy() - means[0]).max() < 0.2  # the model's control is near the measured one

    made = ad.read_h5ad(results / "predictions.h5ad")
    assert made.shape == (7 * len(held), len(genes))
    assert list(made.var_names) == genes
    assert made.obs_names.is_unique
    assert set(made.obs["quality"]) == {"pass"}
    assert made.obs.groupby("perturbation", observed=True).size().to_dict() == dict.fromkeys(held, 7)
    assert (made.obs.groupby("control_cell", observed=True)["perturbation"].nunique() == len(held)).all()
    counts, x, expected = (sp.csr_matrix(m).toarray() for m in (made.layers["counts"], made.X, made.layers["expected"]))
    np.testing.assert_array_equal(counts, counts.round())
    assert counts.min() >= 0
    assert counts.sum() == pytest.approx(expected.sum(), rel=0.5)  # few cells, and the largest gene is a large part
    totals = set(screen.obs.loc[screen.obs["perturbation"] == "control", "n_counts_all_genes"])
    for cell, rows in made.obs.groupby("control_cell", observed=True).indices.items():
        there = counts[rows] > 0
        size = note["target_sum"] * counts[rows][there] / np.expm1(x[rows][there])
        assert np.ptp(size) < 1e-2 * size.mean(), cell  # one size for the cell under every perturbation
        assert any(abs(size.mean() - total) < 1e-3 * total for total in totals)  # which is that of a control cell
        assert (expected[rows].sum(1) < 1.5 * size.mean()).all()
    assert set(made.uns["sctool"]) >= {"model", "X", "layers", "cells"}


def test_json_is_the_only_output(sctool, home, tmp_path):
    ran = sctool("predict", "cradle", home / "bad", "--perturbations", "KLF1", "--cells", "0", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out) == {"results": "results/cradle/bad", "perturbations": 1}
    assert ran.err == ""


# what is predicted


def test_names_in_any_order_and_from_a_file(predict, tmp_path):
    given = predict("--perturbations", "MAP2K6+KLF1, KLF1 ,KLF1+MAP2K6+control,KLF1+KLF1,control,", "--cells", "0", name="given")
    assert json.loads((given / "prediction.json").read_text())["perturbations"] == ["KLF1+MAP2K6", "KLF1"]
    (tmp_path / "list.txt").write_text("MAP2K6+KLF1\n\n KLF1\ncontrol\n")
    read = predict("--perturbations", tmp_path / "list.txt", "--cells", "0", name="read")
    for file in ("predictions.csv", "effects.csv.gz"):
        pd.testing.assert_frame_equal(pd.read_csv(given / file), pd.read_csv(read / file))
    seen = pd.read_csv(given / "effects.csv.gz").groupby("perturbation")["seen"].all()
    assert seen["KLF1"]


def test_many_names_are_no_path(predict):
    """A list longer than a file name may be."""
    names = [name for name in CHOSEN if name != "control" and "+" not in name]
    wanted = [*names, *(f"{a}+{b}" for a in names for b in names if a < b)]
    text = ",".join(wanted)
    assert len(text) > 255
    made = predict("--perturbations", text, "--cells", "0")
    assert len(pd.read_csv(made / "predictions.csv")) == 1 + len(set(wanted))


def test_without_names_the_held_out_ones_are_predicted(predict, home):
    made = predict("--cells", "0")
    cells = table(home / "bad")
    held = sorted(set(cells.loc[cells["split"] == "test", "perturbation"]) - {"control"})
    assert list(pd.read_csv(made / "predictions.csv")["perturbation"]) == ["control", *held]


def test_a_target_never_perturbed_is_refused_with_the_nearest(sctool, home, tmp_path):
    ran = sctool("predict", "cradle", home / "bad", "--perturbations", "KLF1,KLF11+MAPK1")
    refused(ran, "KLF11", "did you mean 'KLF1'")
    assert not (tmp_path / "results").exists()
    ran = sctool("predict", "cradle", home / "bad", "--perturbations", "KLF11+MAPK1,KLF1", "--unseen", "--cells", "0")
    assert ran.code == 0, ran.err
    assert "KLF11+MAPK1 (KLF11)" in ran.err
    effects = pd.read_csv(tmp_path / "results" / "cradle" / "bad" / "effects.csv.gz").set_index("perturbation")
    assert np.isfinite(effects["change"]).all()
    assert not effects.loc["KLF11+MAPK1", "seen"].any()


def test_no_cells(predict):
    made = predict("--perturbations", "KLF1", "--cells", "0")
    assert {path.name for path in made.iterdir()} == {"predictions.csv", "effects.csv.gz", "prediction.json"}
    assert json.loads((made / "prediction.json").read_text())["control_cells"] == 0


def test_cells_that_fail_differ_from_cells_that_pass(predict):
    passing, failing = (
        ad.read_h5ad(predict("--perturbations", "KLF1", "--cells", "9", "--quality", quality, name=quality) / "predictions.h5ad")
        for quality in ("pass", "fail")
    )
    assert set(failing.obs["quality"]) == {"fail"}
    assert list(failing.obs["control_cell"]) == list(passing.obs["control_cell"])
    assert abs(failing.layers["expected"] - passing.layers["expected"]).max() > 1e-4


def test_without_artifacts_there_are_no_failing_cells(sctool, home, tmp_path):
    for words in (("--quality", "fail", "--perturbations", "KLF1"), ("--counterfactual",)):
        refused(sctool("predict", "cradle", home / "sams", *words), "knows no artifacts", "--qc-key")
    assert not (tmp_path / "results").exists()


def test_counterfactual_cells_are_those_of_the_file(sctool, home, screen, tmp_path):
    ran = sctool("predict", "cradle", home / "bad", "--counterfactual", "--quiet")
    assert ran.code == 0, ran.err
    folder = tmp_path / "results" / "cradle" / "bad-counterfactual"
    made = ad.read_h5ad(folder / "predictions.h5ad")
    assert list(made.obs_names) == list(screen.obs_names)
    assert list(made.obs["perturbation"]) == [
        "control" if name == "control" else "+".join(sorted(name.split("+"))) for name in screen.obs["perturbation"].astype(str)
    ]
    np.testing.assert_array_equal(made.obs["quality_observed"] == "fail", screen.obs["bad"])
    assert set(made.obs["quality"]) == {"pass"}
    assert (made.obs["part"].astype(str).to_numpy() == screen.obs["part"].astype(str).to_numpy()).all()  # columns of the file are kept
    expected = sp.csr_matrix(made.layers["expected"]).toarray()
    assert (expected >= 0).all()
    size_n1 = screen.obs["n_counts_all_genes"].to_numpy(float)[:, None]
    np.testing.assert_allclose(sp.csr_matrix(made.X).toarray(), np.log1p(expected * 1e4 / size_n1), atol=1e-4)
    assert (expected.sum(1) <= size_n1[:, 0] * (1 + 1e-5)).all()
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["cells"] == screen.n_obs
    assert figures["failed"] == int(screen.obs["bad"].sum())


def test_a_passing_cell_is_decoded_the_same_whatever_the_artifact(sctool, home, screen, tmp_path):
    """A counterfactual depends on a cell's flag only through its state: without flags in the file all cells count as passing."""
    sctool("predict", "cradle", home / "bad", "--counterfactual", "--quiet", "--name", "own")
    clean = screen.copy()
    clean.obs["bad"] = False
    clean.write_h5ad(tmp_path / "clean.h5ad")
    assert sctool("predict", "cradle", home / "bad", "clean.h5ad", "--counterfactual", "--quiet", "--name", "clean").code == 0
    own, clean = (ad.read_h5ad(tmp_path / "results" / "cradle" / name / "predictions.h5ad") for name in ("own", "clean"))
    difference_n = abs(sp.csr_matrix(own.X - clean.X).toarray()).max(1)
    bad = screen.obs["bad"].to_numpy(bool)
    assert difference_n[~bad].max() < 1e-5
    assert difference_n[bad].min() > 1e-6


def test_control_cells_of_another_file(predict, screen, tmp_path):
    """Its genes in another order and its labels left out: all its cells are taken for control cells."""
    query = screen[np.flatnonzero(screen.obs["perturbation"] == "control")[:12], screen.var_names[::-1]].copy()
    del query.obs["perturbation"]
    query.write_h5ad(tmp_path / "query.h5ad")
    made = ad.read_h5ad(predict("query.h5ad", "--perturbations", "KLF1", "--cells", "5", name="reversed") / "predictions.h5ad")
    assert set(made.obs["control_cell"]) <= set(query.obs_names)
    assert made.n_obs == 5
    query[:, screen.var_names].copy().write_h5ad(tmp_path / "query.h5ad")
    again = ad.read_h5ad(predict("query.h5ad", "--perturbations", "KLF1", "--cells", "5", name="ordered") / "predictions.h5ad")
    assert list(again.var_names) == list(made.var_names)
    np.testing.assert_allclose(
        sp.csr_matrix(again.layers["expected"]).toarray(), sp.csr_matrix(made.layers["expected"]).toarray(), rtol=1e-4
    )


def test_a_mistyped_column_of_a_query_is_an_error(sctool, home, screen_file, tmp_path):
    ran = sctool("predict", "cradle", home / "bad", screen_file, "--perturbations", "KLF1", "--perturbation-key", "perturbtion")
    refused(ran, "no column 'perturbtion'", "perturbation")
    assert not (tmp_path / "results").exists()


# what is held out


def test_unseen_targets(train):
    cells = table(train("--split", "singles", *MEANS))
    held = set(cells.loc[cells["split"] == "test", "perturbation"]) - {"control"}
    targets = {name for name in held if "+" not in name}
    assert targets
    known = cells.loc[cells["split"].isin(["train", "validation"]), "perturbation"]
    assert not any(targets & set(name.split("+")) for name in known)
    assert held == {name for name in set(cells["perturbation"]) if targets & set(name.split("+"))}


def test_cells_of_every_perturbation(train, predict):
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


def test_wrong_flags(sctool, screen_file, tmp_path):
    for key, said in (("badd", "no column 'badd'"), ("donor", "is not a column of flags")):
        refused(sctool("train", "cradle", screen_file, *KEYS, *QUICK, "--qc-key", key), said)
    assert not (tmp_path / "checkpoints").exists()


# models without a network


def test_simple_predictions_need_no_network(train, sctool, screen, tmp_path):
    folder = train("--model", "additive")
    assert {"mean_pg", "variance_pg", "cells_p"} <= set(weights(folder))
    assert not any("weight" in name or "log_theta" in name for name in weights(folder))
    about = manifest(folder)
    ran = sctool("predict", "cradle", folder, "--perturbations", "KLF1+MAP2K6,MAP2K3+KLF1")
    assert ran.code == 0, ran.err
    assert "predicts means, not cells" in ran.err
    results = tmp_path / "results" / "cradle" / "m"
    assert not (results / "predictions.h5ad").exists()
    assert json.loads((results / "prediction.json").read_text())["kind"] == "additive"
    profiles = pd.read_csv(results / "predictions.csv", index_col=0)
    cells = table(folder)
    known = cells["split"].isin(["train", "validation"]).to_numpy()
    scale = 1e4 / screen.obs["n_counts_all_genes"].to_numpy(float)[:, None]
    x_ng = np.log1p(screen.X.toarray() * scale)[:, [screen.var_names.get_loc(gene) for gene in about["genes"]["name"]]]
    mean = {name: x_ng[known & (cells["perturbation"] == name).to_numpy()].mean(0) for name in ("control", "KLF1", "MAP2K3")}
    np.testing.assert_allclose(profiles.loc["control"], mean["control"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(profiles.loc["KLF1+MAP2K3"], mean["KLF1"] + mean["MAP2K3"] - mean["control"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("model", ["no_change", "matching_mean", "shrunken", "cpa"])
def test_every_kind_of_model_predicts(train, sctool, model, tmp_path):
    folder = train("--model", model, *NONE)
    ran = sctool("predict", "cradle", folder, "--perturbations", "KLF1,KLF1+MAPK1", "--cells", "3", "--quiet")
    assert ran.code == 0, ran.err
    effects = pd.read_csv(tmp_path / "results" / "cradle" / "m" / "effects.csv.gz")
    assert np.isfinite(effects[["mean", "change", "low", "high"]].to_numpy()).all()
    assert (effects["change"] == 0).all() == (model == "no_change")
    assert (tmp_path / "results" / "cradle" / "m" / "predictions.h5ad").exists() == (model == "cpa")


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


def test_results_are_not_replaced_unless_told(sctool, home, tmp_path):
    command = ("predict", "cradle", home / "sams", "--perturbations", "KLF1", "--cells", "0", "--quiet")
    assert sctool(*command).code == 0
    file = tmp_path / "results" / "cradle" / "sams" / "predictions.csv"
    before = file.stat().st_mtime_ns
    refused(sctool(*command), "is there already", "--force")
    assert sctool(*command, "--resume").code == 0
    assert file.stat().st_mtime_ns == before
    assert sctool(*command, "--force").code == 0
    assert file.stat().st_mtime_ns != before
    refused(sctool(*command, "--name", "../out"), "is not a folder name")


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


# mistakes


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


def test_the_file_of_training_is_gone(sctool, train, screen_file, tmp_path):
    """Predictions need the model alone; the counterfactual of its cells needs the cells."""
    folder = train("--qc-key", "bad", *NONE)
    screen_file.rename(tmp_path / "moved.h5ad")
    assert sctool("predict", "cradle", folder, "--perturbations", "KLF1", "--cells", "2", "--quiet").code == 0
    refused(sctool("predict", "cradle", folder, "--counterfactual"), "screen.h5ad")
    assert sctool("predict", "cradle", folder, "moved.h5ad", "--counterfactual", "--quiet").code == 0
