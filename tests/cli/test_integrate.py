"""``sctool integrate`` from end to end, on a small part of the bundled lung cells."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from sctool.artifacts.model_folder import open_model
from sctool.config import Config
from sctool.engine.query import load_module, open_query
from sctool.models.registry import BUILDERS
from tests.cli.conftest import FLAGS, KEYS
from tests.cli.test_commands import files, strict_json
from tests.cli.test_inputs import assert_told

WRITTEN = {
    "latent_embeddings.npy",
    "corrected_expression.h5ad",
    "cell_type_predictions.csv",
    "metrics.json",
    "history.csv",
    "logs/training.log",
}
MODEL = {"model.safetensors", "manifest.json", "history.csv", "cells.csv"}


def results(tmp_path, name="r"):
    return tmp_path / "results" / "integrate" / name


def checkpoint(tmp_path, name="r"):
    return tmp_path / "checkpoints" / "integrate" / name


def same_cells(a, b):
    """Two .h5ad by content."""
    a, b = ad.read_h5ad(a), ad.read_h5ad(b)
    pd.testing.assert_frame_equal(a.obs, b.obs)
    assert list(a.var_names) == list(b.var_names)
    for key in (None, *a.layers):
        np.testing.assert_array_equal(np.asarray(a.layers[key] if key else a.X), np.asarray(b.layers[key] if key else b.X))
    np.testing.assert_array_equal(a.obsm["X_integrate"], b.obsm["X_integrate"])


def same_results(a, b, besides=()):
    mine, theirs = files(a), files(b)
    assert set(mine) == set(theirs)
    for name in set(mine) - set(besides):
        if name.endswith(".h5ad"):
            same_cells(a / name, b / name)
        else:
            assert mine[name] == theirs[name], name


@pytest.mark.parametrize(
    ("mode", "keys"),
    [
        ("unsupervised", ("--batch-key", "batch")),
        ("unsupervised", (*KEYS, "--mode", "unsupervised")),
        ("semi", ("--batch-key", "batch", "--label-key", "partly")),
        ("supervised", KEYS),
    ],
)
def test_each_mode_writes_what_is_documented(integrate, lung, tmp_path, mode, keys):
    ran = integrate("--json", keys=keys)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["mode"] == mode
    assert set(files(results(tmp_path))) == WRITTEN
    assert set(files(checkpoint(tmp_path))) == MODEL
    assert not list(tmp_path.rglob("*.part"))
    metrics = strict_json(results(tmp_path) / "metrics.json")
    assert (metrics["mode"], metrics["cells"], metrics["genes"], metrics["batches_known"]) == (mode, lung.n_obs, 200, 1)
    z = np.load(results(tmp_path) / "latent_embeddings.npy")
    assert z.shape == (lung.n_obs, 4)
    assert z.dtype == np.float32
    assert np.isfinite(z).all()
    table = pd.read_csv(results(tmp_path) / "cell_type_predictions.csv")
    assert list(table.columns) == ["cell", "label", "probability", "entropy"]
    assert list(table["cell"]) == list(lung.obs_names)
    assert table["probability"].between(0, 1).all()
    assert (table["entropy"] >= 0).all()
    if mode == "unsupervised":
        assert table["label"].str.match(r"cluster_\d+$").all()
    else:
        assert set(table["label"]) <= {"H1975", "H2228", "A549"}
    history = pd.read_csv(checkpoint(tmp_path) / "history.csv")
    assert list(history["stage"].unique()) == ["autoencoder", "tuning", "diffusion"]
    assert (history["stage"] == "autoencoder").sum() == 3
    assert (history["stage"] == "tuning").sum() == 2
    assert np.isfinite(history["train_loss"]).all()


def test_the_embedding_does_not_read_the_labels_of_the_file(integrate, lung, lung_file, tmp_path):
    """Other labels at inference change no byte of codes and types."""
    assert integrate().code == 0
    a = lung.copy()
    a.obs["cell_type"] = np.random.default_rng(5).permutation(a.obs["cell_type"].astype(str).to_numpy())
    a.write_h5ad(tmp_path / "other.h5ad")
    del a.obs["cell_type"]
    a.write_h5ad(tmp_path / "none.h5ad")
    model = ("--model", checkpoint(tmp_path), "--no-score")
    for name in ("lung", "other", "none"):
        assert integrate(*model, path=tmp_path / f"{name}.h5ad", name=name, flags=(), keys=()).code == 0
    for name in ("lung", "other", "none"):
        for file in ("latent_embeddings.npy", "cell_type_predictions.csv"):
            assert (results(tmp_path, name) / file).read_bytes() == (results(tmp_path) / file).read_bytes()


def test_corrected_expression(integrate, lung, lung_file, tmp_path):
    assert integrate("--target-batch", "source").code == 0
    made = ad.read_h5ad(results(tmp_path) / "corrected_expression.h5ad")
    assert list(made.obs_names) == list(lung.obs_names)
    assert set(made.layers) == {"rate", "mean_counts", "counts_qmap"}
    assert list(made.obs["batch"]) == list(lung.obs["batch"])
    assert "p-values" in made.uns["sctool"]["warning"]
    assert made.uns["sctool"]["target_batch"] == "source"
    x, rate, mean, mapped = made.X, made.layers["rate"], made.layers["mean_counts"], made.layers["counts_qmap"]
    observed = lung[:, made.var_names].X.toarray()
    np.testing.assert_allclose(x, np.log1p(rate), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rate.sum(1), 1e4, rtol=1e-4)
    np.testing.assert_allclose(mean.sum(1), observed.sum(1), rtol=1e-4)
    np.testing.assert_array_equal(mapped, observed)
    query = open_query(open_model(checkpoint(tmp_path)), BUILDERS["integrate"], lung_file, Config())
    with torch.inference_mode():
        z = torch.from_numpy(np.load(results(tmp_path) / "latent_embeddings.npy"))
        own = query.module.proportions(z, {"batch": torch.from_numpy(query.store.codes("batch"))})
    np.testing.assert_allclose(rate, 1e4 * own, rtol=1e-4, atol=1e-4)
    codes = {}
    for target in ("average", "sc_dropseq", "4", "0"):
        ran = integrate("--model", checkpoint(tmp_path), "--target-batch", target, "--no-score", name=f"to-{target}", flags=())
        assert ran.code == 0, ran.err
        codes[target] = ad.read_h5ad(results(tmp_path, f"to-{target}") / "corrected_expression.h5ad")
        mapped = codes[target].layers["counts_qmap"]
        np.testing.assert_array_equal(mapped, np.round(mapped))
        assert np.isfinite(mapped).all()
        assert (mapped >= 0).all()
        np.testing.assert_allclose(codes[target].layers["mean_counts"].sum(1), observed.sum(1), rtol=1e-4)
    np.testing.assert_array_equal(codes["4"].X, codes["sc_dropseq"].X)
    assert not np.array_equal(codes["0"].X, codes["4"].X)
    own = (lung.obs["batch"] == "sc_dropseq").to_numpy()
    np.testing.assert_array_equal(codes["4"].layers["counts_qmap"][own], observed[own])
    assert (codes["0"].layers["counts_qmap"][own] != observed[own]).any()


@pytest.mark.parametrize(
    "extra", [(), ("--ar",), ("--sampler", "balanced"), ("--set", "integrate.likelihood=zinb", "--hold-out", "protocol=Drop-seq")]
)
def test_twice_the_same(integrate, tmp_path, extra):
    made = []
    for _ in range(2):
        ran = integrate(*extra, "--force")
        assert ran.code == 0, ran.err
        made.append((files(checkpoint(tmp_path)), np.load(results(tmp_path) / "latent_embeddings.npy")))
        results(tmp_path).rename(tmp_path / f"kept{len(made)}")
    assert made[0][0] == made[1][0]
    same_results(tmp_path / "kept1", tmp_path / "kept2")
    assert np.isfinite(made[0][1]).all()


def test_inference_twice_gives_the_same_bytes(integrate, tmp_path):
    assert integrate().code == 0
    for name in ("a", "b"):
        assert integrate("--model", checkpoint(tmp_path), "--no-score", name=name, flags=()).code == 0
    same_results(results(tmp_path, "a"), results(tmp_path, "b"))
    same_results(results(tmp_path), results(tmp_path, "a"), besides=["metrics.json"])


def test_the_order_of_categories_in_the_file_changes_nothing(integrate, lung, tmp_path):
    assert integrate().code == 0
    a = lung.copy()
    for key in ("batch", "cell_type"):
        names = sorted(a.obs[key].astype(str).unique())
        a.obs[key] = pd.Categorical(a.obs[key].astype(str), categories=["unused", *names[::-1]])
    a.write_h5ad(tmp_path / "turned.h5ad")
    ran = integrate(path=tmp_path / "turned.h5ad", name="turned")
    assert ran.code == 0, ran.err
    for file in ("latent_embeddings.npy", "cell_type_predictions.csv"):
        assert (results(tmp_path) / file).read_bytes() == (results(tmp_path, "turned") / file).read_bytes()
    weights = [(checkpoint(tmp_path, name) / "model.safetensors").read_bytes() for name in ("r", "turned")]
    assert weights[0] == weights[1]
    np.testing.assert_array_equal(*(ad.read_h5ad(results(tmp_path, n) / "corrected_expression.h5ad").X for n in ("r", "turned")))
    a.obs["batch"] = [f"x-{name}" for name in a.obs["batch"]]
    a.obs["cell_type"] = [f"y-{name}" for name in a.obs["cell_type"]]
    a.write_h5ad(tmp_path / "renamed.h5ad")
    assert integrate(path=tmp_path / "renamed.h5ad", name="renamed").code == 0
    np.testing.assert_array_equal(*(np.load(results(tmp_path, n) / "latent_embeddings.npy") for n in ("r", "renamed")))
    tables = [pd.read_csv(results(tmp_path, n) / "cell_type_predictions.csv") for n in ("r", "renamed")]
    assert ("y-" + tables[0]["label"]).equals(tables[1]["label"])


def test_refinement(integrate, lung, tmp_path):
    """The codes as they were are written too; refined ones take their place only if the gate lets them."""
    more = ("--set", "integrate.refine_min_confidence=0.3", "--set", "integrate.refine_min_cells=5")
    ran = integrate("--ddpm-refine", "--refine-steps", "50", "--epochs", "30", "--set", "integrate.finetune_epochs=20", *more)
    assert ran.code == 0, ran.err
    assert set(files(results(tmp_path))) == WRITTEN | {"latent_unrefined.npy"}
    metrics = strict_json(results(tmp_path) / "metrics.json")
    z, before = (np.load(results(tmp_path) / f"latent_{name}.npy") for name in ("embeddings", "unrefined"))
    obs = ad.read_h5ad(results(tmp_path) / "corrected_expression.h5ad").obs
    moved = (z != before).any(1)
    assert metrics["refinement"]["accepted"] == bool(moved.any())
    assert metrics["moved"] == pytest.approx(moved.mean())
    np.testing.assert_array_equal(obs["refined"], moved)
    assert metrics["refinement"]["moved"] > 0.2
    assert metrics["refinement"]["reason"]
    assert {"correlation_within", "ilisi_before", "ilisi_after"} <= set(metrics["refinement"])
    assert "refinement" in ran.err
    plain = integrate("--model", checkpoint(tmp_path), "--no-score", name="plain", flags=())
    assert plain.code == 0
    assert not (results(tmp_path, "plain") / "latent_unrefined.npy").exists()
    np.testing.assert_array_equal(np.load(results(tmp_path, "plain") / "latent_embeddings.npy"), before)
    again = integrate(*more, "--ddpm-refine", "--refine-steps", "50", "--model", checkpoint(tmp_path), "--no-score", name="a", flags=())
    assert again.code == 0
    np.testing.assert_array_equal(np.load(results(tmp_path, "a") / "latent_embeddings.npy"), z)


def test_refinement_of_cells_that_are_sure_of_nothing_is_refused(integrate, tmp_path):
    ran = integrate("--ddpm-refine", "--set", "integrate.refine_min_confidence=1")
    assert ran.code == 0, ran.err
    metrics = strict_json(results(tmp_path) / "metrics.json")
    assert metrics["refinement"]["accepted"] is False
    assert metrics["refinement"]["moved"] == 0
    made = [(results(tmp_path) / f"latent_{name}.npy").read_bytes() for name in ("embeddings", "unrefined")]
    assert made[0] == made[1]


def test_new_cells_of_an_unseen_batch_with_missing_genes(integrate, lung, tmp_path):
    train, new = (lung[(lung.obs["batch"] != "sc_dropseq") ^ turn].copy() for turn in (False, True))
    for name, part in (("train", train), ("new", new), ("fewer", new[:, 30:].copy()), ("turned", new[:, ::-1].copy())):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    assert integrate(path=tmp_path / "train.h5ad").code == 0
    apply = {"flags": ("--no-score",), "keys": ()}
    ran = integrate("--model", checkpoint(tmp_path), path=tmp_path / "new.h5ad", name="new", **apply)
    assert ran.code == 0, ran.err
    assert "note: 100% of the cells are from batches the model has not seen" in ran.err
    assert strict_json(results(tmp_path, "new") / "metrics.json")["batches_known"] == 0
    z = np.load(results(tmp_path, "new") / "latent_embeddings.npy")
    assert len(z) == new.n_obs
    assert np.isfinite(z).all()
    ran = integrate("--model", checkpoint(tmp_path), path=tmp_path / "turned.h5ad", name="turned", **apply)
    np.testing.assert_array_equal(np.load(results(tmp_path, "turned") / "latent_embeddings.npy"), z)
    ran = integrate("--model", checkpoint(tmp_path), path=tmp_path / "fewer.h5ad", name="fewer", **apply)
    assert ran.code == 0, ran.err
    assert "170 of 200 genes" in ran.err
    metrics = strict_json(results(tmp_path, "fewer") / "metrics.json")
    assert (metrics["gene_coverage"], metrics["genes"]) == (0.85, 200)
    less = np.load(results(tmp_path, "fewer") / "latent_embeddings.npy")
    assert np.isfinite(less).all()
    assert np.corrcoef(less.ravel(), z.ravel())[0, 1] > 0.7
    made = ad.read_h5ad(results(tmp_path, "fewer") / "corrected_expression.h5ad")
    assert list(made.var_names) == list(lung.var_names)
    np.testing.assert_allclose(made.layers["rate"].sum(1), 1e4, rtol=1e-4)
    assert np.isfinite(made.layers["counts_qmap"]).all()
    assert not made.layers["counts_qmap"][:, :30].any()
    to_source = ("--model", checkpoint(tmp_path), "--target-batch", "source")
    assert integrate(*to_source, path=tmp_path / "fewer.h5ad", name="source", **apply).code == 0
    made = ad.read_h5ad(results(tmp_path, "source") / "corrected_expression.h5ad")
    observed = new[:, 30:].X.toarray()
    np.testing.assert_allclose(made.layers["mean_counts"][:, 30:].sum(1), observed.sum(1), rtol=1e-4)
    assert (made.layers["counts_qmap"][:, 30:] == observed).mean() > 0.99


def test_some_scores_are_written_with_labels_and_without(integrate, tmp_path):
    ran = integrate("--score", flags=tuple(word for word in FLAGS if word != "--no-score"))
    assert ran.code == 0, ran.err
    metrics = strict_json(results(tmp_path) / "metrics.json")
    assert {"integrated", "unintegrated PCA"} <= set(metrics["scores"])
    assert {"scores.csv", "metrics.json"} <= set(files(results(tmp_path)))
    for row in metrics["scores"].values():
        assert 0 < row["total"]["mean"] < 1


def test_resume_passes_over_a_finished_run(integrate, tmp_path):
    assert integrate().code == 0
    weights = checkpoint(tmp_path) / "model.safetensors"
    before, kept = weights.stat().st_mtime_ns, files(results(tmp_path))
    assert_told(integrate(), "is there already", "--force")
    ran = integrate("--resume")
    assert ran.code == 0, ran.err
    assert "finished already" in ran.err
    assert weights.stat().st_mtime_ns == before
    assert set(files(results(tmp_path))) == set(kept)
    assert (results(tmp_path) / "latent_embeddings.npy").read_bytes() == kept["latent_embeddings.npy"]
    assert_told(integrate("--resume", "--set", "integrate.kl_weight=0.1"), "trained with other settings", "--force")
    assert_told(integrate("--resume", "--set", "diffusion.lr=0.1"), "trained with other settings", "--force")


def test_a_model_can_be_loaded_and_classifies_as_written(integrate, lung_file, tmp_path):
    assert integrate().code == 0
    folder = open_model(checkpoint(tmp_path), "integrate")
    module = load_module(folder, BUILDERS["integrate"])
    assert bool(module.placed)
    assert int(module.cells_cb.sum()) == 240
    query = open_query(folder, BUILDERS["integrate"], lung_file, Config())
    p = module.classify(query.store.batch(np.arange(240)))[:, :-1]
    names = np.array(folder.manifest["vocabularies"]["label"])
    assert list(names[p.argmax(1)]) == list(pd.read_csv(results(tmp_path) / "cell_type_predictions.csv")["label"])
