"""CRADLE-VAE from the command line: what is predicted, and what is written."""

import itertools
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sctool.data.demo import SCREEN
from tests.cli.cradle.conftest import CHOSEN, NONE, manifest, refused, table, weights


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
    names = sorted(name for name in CHOSEN if name != "control" and "+" not in name)
    wanted = ["+".join(own) for size in (1, 2, 3) for own in itertools.combinations(names, size)]
    text = ",".join(wanted)
    assert len(text) > 255
    made = predict("--perturbations", text, "--cells", "0")
    assert list(pd.read_csv(made / "predictions.csv")["perturbation"]) == ["control", *wanted]


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
    folders = [predict("--perturbations", "KLF1", "--cells", "9", "--quality", quality, name=quality) for quality in ("pass", "fail")]
    passing, failing = (ad.read_h5ad(folder / "predictions.h5ad") for folder in folders)
    mean_pass, mean_fail = (pd.read_csv(folder / "predictions.csv", index_col=0) for folder in folders)
    # The artifact moves control and perturbed cells alike, so means more than changes.
    assert (mean_fail - mean_pass).abs().max(axis=1).min() > 1e-4
    change_pass, change_fail = (pd.read_csv(folder / "effects.csv.gz")["change"] for folder in folders)
    np.testing.assert_allclose(change_fail, (mean_fail.loc["KLF1"] - mean_fail.loc["control"]).to_numpy(), atol=1e-4)
    assert (change_fail - change_pass).abs().max() < (mean_fail - mean_pass).abs().max().max()
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
    assert np.isfinite(effects[["mean", "change"]].to_numpy()).all()
    assert np.isfinite(effects[["low", "high"]].to_numpy()).all() == (model in ("shrunken", "cpa"))  # the others know no error
    assert (effects["change"] == 0).all() == (model == "no_change")
    assert (tmp_path / "results" / "cradle" / "m" / "predictions.h5ad").exists() == (model == "cpa")
