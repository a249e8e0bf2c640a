"""``eval integration`` and its pictures from end to end, on the bundled lung cells."""

import json
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sctool.bench.integration import PCA_NAME
from sctool.data.demo import CELLS
from tests.cli.test_commands import files, strict_json
from tests.conftest import QUICK

KEYS = ("--batch-key", "batch", "--label-key", "cell_type")


@pytest.fixture(scope="module")
def lung():
    a = ad.read_h5ad(CELLS.path.with_name("batches.h5ad"))
    a = a[a.obs["cell_type"].isin(["H1975", "H2228", "A549"])].copy()  # JAX compiles for each type anew
    types = a.obs["cell_type"].astype("category").cat.codes.to_numpy()
    rng = np.random.default_rng(0)
    a.obsm["X_told"] = (np.eye(3)[types] * 8 + rng.normal(size=(a.n_obs, 3))).astype(np.float32)
    a.obs["one"], a.obs["nothing"] = "same", np.nan
    a.obs["gaps"] = a.obs["batch"].astype(object).where(np.arange(a.n_obs) > 2, np.nan)
    a.obs["partly"] = a.obs["cell_type"].astype(object).where((types < 2) & (rng.random(a.n_obs) > 0.2), np.nan)
    return a


@pytest.fixture
def lung_file(lung, tmp_path):
    lung.write_h5ad(tmp_path / "lung.h5ad")
    np.save(tmp_path / "noise.npy", np.random.default_rng(1).normal(size=(lung.n_obs, 3)))
    return tmp_path / "lung.h5ad"


def test_scores_tables_and_pictures(sctool, lung, lung_file, tmp_path, monkeypatch):
    for tool in ("harmonypy", "scvi"):
        monkeypatch.setitem(sys.modules, tool, None)  # as if not installed
    words = ("eval", "integration", lung_file, *KEYS, "--embedding", "obsm:X_told", "--embedding", "noise.npy", "--name", "r")
    ran = sctool(*words, "--peers")
    assert ran.code == 0, ran.err
    assert "also those a model was trained on" in ran.err
    assert ran.err.count("is skipped") == ran.err.count("pip install 'sctool[peers]'") == 2
    assert "unintegrated PCA" in ran.out
    assert "behind the baseline 'unintegrated PCA' in bio" in ran.out
    assert ran.out.count("is lost: its neighbours vote") >= 1
    folder = tmp_path / "results" / "integration" / "r"
    first = files(folder)
    assert set(first) == {
        "metrics.json",
        "scores.csv",
        "per_type.csv",
        "cells.csv",
        "embedding-X_told.npy",
        "embedding-noise.npy",
        "embedding-unintegrated-PCA.npy",
    }
    metrics = strict_json(folder / "metrics.json")
    scores = {name: {key: value["mean"] for key, value in row.items()} for name, row in metrics["scores"].items()}
    assert list(scores) == ["X_told", "noise", PCA_NAME]
    assert scores["X_told"]["total"] > 0.85 > scores[PCA_NAME]["total"]
    assert scores["X_told"]["bio"] > scores[PCA_NAME]["bio"] > scores["noise"]["bio"]
    for row in scores.values():
        assert row["total"] == pytest.approx(0.4 * row["batch"] + 0.6 * row["bio"])
        assert row["batch"] == pytest.approx(np.mean([row[key] for key in ("ilisi", "kbet", "graph_connectivity", "bras")]))
        with_pcr = (4 * row["batch"] + row["pcr_comparison"]) / 5
        assert row["total_with_pcr"] == pytest.approx(0.4 * with_pcr + 0.6 * row["bio"])
        assert row["raw_label_silhouette"] == pytest.approx(2 * row["label_asw"] - 1)
    assert {row["name"] for row in metrics["types_at_risk"]} == {"noise"}
    per_type = pd.read_csv(folder / "per_type.csv")
    assert len(per_type) == 9
    assert per_type.groupby("name")["cells"].sum().eq(lung.n_obs).all()
    assert list(pd.read_csv(folder / "cells.csv")["cell"]) == list(lung.obs_names)

    assert sctool(*words, "--force", "--quiet").code == 0
    assert files(folder) == first

    ran = sctool("plot", folder, "--format", "png", "--format", "svg")
    assert ran.code == 0, ran.err
    drawn = {path.name: path for path in (folder / "plots").iterdir()}
    assert set(drawn) == {f"{name}.{ending}" for name in ("scores", "per-type", "umap") for ending in ("png", "svg")}
    assert all(path.stat().st_size > 5000 for path in drawn.values())
    assert len(pd.read_csv(folder / "umap.csv")) == 3 * lung.n_obs


def test_a_model_and_held_out_cells_with_missing_labels(sctool, lung, lung_file, tmp_path):
    assert sctool("train", "scvi", lung_file, "--batch-key", "batch", *QUICK, "--name", "m").code == 0
    where = ("--hold-out", "protocol=CEL-seq2", "--batch-key", "batch", "--label-key", "partly")
    ran = sctool("eval", "integration", lung_file, "--model", "checkpoints/scvi/m", *where, "--json")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    chosen = lung.obs["protocol"] == "CEL-seq2"
    assert said["cells"] == int((chosen & lung.obs["partly"].notna()).sum())
    assert said["left_out"] == int((chosen & lung.obs["partly"].isna()).sum()) > 0
    assert set(said["scores"]) == {"m", PCA_NAME}
    assert pd.read_csv(tmp_path / "results" / "integration" / "m" / "scores.csv").loc[0, ["name", "arm"]].tolist() == ["m", "standard"]


@pytest.mark.parametrize(
    ("flags", "what", "remedy"),
    [
        (("--label-key", "cell_type"), "--batch-key is missing", "there are: batch"),
        (("--batch-key", "batch"), "--label-key is missing", "there are: batch"),
        (("--batch-key", "bach", "--label-key", "cell_type"), "no column 'bach'", "did you mean 'batch'?"),
        (("--batch-key", "batch", "--label-key", "celltype"), "no column 'celltype'", "did you mean 'cell_type'?"),
        (("--batch-key", "one", "--label-key", "cell_type"), "one batch only ('same')", "--batch-key"),
        (("--batch-key", "batch", "--label-key", "one"), "one type only ('same')", "--label-key"),
        (("--batch-key", "batch", "--label-key", "nothing"), "only 0 cells have a label", "--label-key"),
        (("--batch-key", "batch", "--label-key", "batch"), "are both 'batch'", "two different columns"),
        (("--batch-key", "gaps", "--label-key", "cell_type"), "3 of 336 cells have no value in obs['gaps']", "fill it in"),
        (("--batch-key", "protocol", "--label-key", "batch"), "no type of obs['batch'] is in two batches", "another --batch-key"),
        ((*KEYS, "--hold-out", "batch=none"), "obs['batch'] has no 'none'", "one of those names"),
        ((*KEYS, "--embedding", "short.npy"), "short.npy has shape (7, 3)", "one row per cell"),
        ((*KEYS, "--embedding", "obsm:X_tld"), "no obsm 'X_tld'", "did you mean 'X_told'?"),
    ],
)
def test_bad_input_is_one_line_and_a_remedy(sctool, lung_file, tmp_path, flags, what, remedy):
    np.save(tmp_path / "short.npy", np.zeros((7, 3)))
    given = () if "--embedding" in flags else ("--embedding", "noise.npy")
    ran = sctool("eval", "integration", lung_file, *flags, *given)
    assert ran.code == 2
    lines = [line for line in ran.err.splitlines() if line.strip()]
    assert what in ran.err
    assert remedy in ran.err
    assert "Traceback" not in ran.err
    assert len(lines) == 2
    assert not (tmp_path / "results").exists()


def test_nothing_to_score(sctool, lung_file):
    ran = sctool("eval", "integration", lung_file, *KEYS)
    assert ran.code == 2
    assert "nothing to score" in ran.err
