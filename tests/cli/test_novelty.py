"""``sctool novelty`` through the command line."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sctool.data.demo import BATCHES
from sctool.data.novelty import parts, truth
from sctool.errors import SctoolError

FAST = ("--n-top-genes", "150", "--threads", "1", "--no-plots", "--set", "novelty.n_components=10")
KEYS = ("--label-key", "cell_type")


@pytest.fixture(scope="module")
def lung():
    """300 real cells of five lines in five batches."""
    a = ad.read_h5ad(BATCHES.path)
    a = a[np.sort(np.random.default_rng(0).permutation(a.n_obs)[:300])].copy()
    a.obs["is_hek"] = np.where(a.obs["cell_type"] == "H838", "Yes", "no")
    a.obs["score"] = np.arange(a.n_obs) / 7
    return a


@pytest.fixture
def lung_file(lung, tmp_path):
    lung.write_h5ad(tmp_path / "lung.h5ad")
    return tmp_path / "lung.h5ad"


@pytest.mark.parametrize(
    ("values", "novel_value", "expected"),
    [
        ([True, False], None, [True, False]),
        ([1, 0], None, [True, False]),
        ([1.0, 0.0], None, [True, False]),
        (["true", "FALSE"], None, [True, False]),
        (["Yes", "no"], None, [True, False]),
        (["T", "f"], None, [True, False]),
        (["y", " N "], None, [True, False]),
        (["True", "False"], "true", [True, False]),
        ([True, False], "TRUE", [True, False]),
        ([True, False], "no", [False, True]),
        (["HEK", "microglia"], "hek", [True, False]),
        ([3, 4], "4", [False, True]),
        ([1, 2], "1", [True, False]),
    ],
)
def test_truth(values, novel_value, expected):
    for column in (pd.Series(values), pd.Series(values).astype("category")):
        assert truth(column, "k", novel_value).tolist() == expected


@pytest.mark.parametrize(
    ("values", "novel_value", "said"),
    [
        (["HEK", "microglia"], None, r"not yes or no; it has: hek \(1\), microglia \(1\)"),
        ([0.5, 1.0], None, "not yes or no"),
        (["HEK", "microglia"], "hec", "has no 'hec'"),
        (["no", "false"], None, "none of the 2 cells are novel"),
        (["yes", "1"], None, "all of the 2 cells are novel"),
        (["yes", None], None, "1 cells have no value"),
    ],
)
def test_truth_refuses(values, novel_value, said):
    with pytest.raises(SctoolError, match=said):
        truth(pd.Series(values), "k", novel_value)


def test_parts_keep_groups_whole():
    rng = np.random.default_rng(0)
    groups = rng.choice(list("abcdefg"), 200)
    rows = np.arange(200)
    made = parts(rows, groups, rng)
    assert np.array_equal(np.sort(np.concatenate(made)), rows)
    assert len(made) == 3
    assert not any(set(groups[a]) & set(groups[b]) for a in made for b in made if a is not b)
    assert max(map(len, made)) < 110


def test_hold_out_each_on_the_demo(sctool, tmp_path):
    done = sctool(
        "novelty",
        "--methods",
        "misfit",
        "mahalanobis-class",
        *FAST[:4],
        "--set",
        "novelty.n_components=10",
        "--hold-out",
        "each",
        "--name",
        "r",
        "--json",
    )
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    run = tmp_path / "results" / "novelty" / "r"
    stored = json.loads((run / "metrics.json").read_text())
    assert stored["methods"] == printed["methods"]
    assert stored["protocol"] == "held-out batch"
    assert set(stored["baselines"]) == {"depth", "random"}
    assert 0.35 < stored["baselines"]["random"]["auroc"] < 0.65
    assert stored["methods"]["mahalanobis-class"]["auroc"] > 0.9
    table = pd.read_csv(run / "novelty_by_class.csv")
    assert table.groupby("method")["held_out"].nunique().eq(5).all()
    scores = pd.read_csv(run / "scores.csv")
    assert not scores.duplicated(["cell", "held_out", "part"]).any()
    assert scores.loc[scores["is_novel"], "type"].eq(scores.loc[scores["is_novel"], "held_out"]).all()
    assert {path.name for path in (run / "plots").glob("*.png")} == {"scores.png", "curves.png", "auroc-by-type.png"}
    manifest = json.loads((tmp_path / "checkpoints" / "novelty" / "r" / "manifest.json").read_text())
    assert len(manifest["vocabularies"]["label"]) == 5, "after each, the model kept knows all types"


def test_one_type_then_the_model_on_new_cells(sctool, lung, lung_file, tmp_path):
    """What the model says of the same cells later is what it said when it was judged."""
    done = sctool("novelty", lung_file, *KEYS, "--hold-out", "H838", "--name", "r", *FAST)
    assert done.code == 0, done.err
    assert "AUROC" in done.out
    part = lung[::-1, ::-1].copy()
    part.write_h5ad(tmp_path / "query.h5ad")
    done = sctool("novelty", tmp_path / "query.h5ad", "--model", "checkpoints/novelty/r", "--name", "q", "--no-plots")
    assert done.code == 0, done.err
    asked = pd.read_csv(tmp_path / "results/novelty/q/scores.csv").set_index("cell")
    judged = pd.read_csv(tmp_path / "results/novelty/r/scores.csv").set_index("cell")
    assert list(asked.columns[:2]) == ["flagged", "default"]
    for method in ("misfit", "mahalanobis-class", "lr-energy", "xgb-energy", "default"):
        np.testing.assert_allclose(asked.loc[judged.index, method], judged[method], rtol=1e-5, atol=1e-5)
    novel = lung.obs_names[lung.obs["cell_type"] == "H838"]
    assert asked.loc[novel, "flagged"].mean() > 0.6
    trained = pd.read_csv(tmp_path / "checkpoints/novelty/r/cells.csv")["cell"]
    assert not set(trained) & set(judged.index)
    assert not set(trained) & set(novel)


def test_a_column_of_novel_cells(sctool, lung_file, tmp_path):
    done = sctool(
        "novelty", lung_file, *KEYS, "--novel-key", "is_hek", "--methods", "mahalanobis-class", "--group-key", "batch", "--name", "r", *FAST
    )
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "results/novelty/r/metrics.json").read_text())
    assert metrics["methods"]["mahalanobis-class"]["auroc"] > 0.9
    done = sctool("novelty", lung_file, "--model", "checkpoints/novelty/r", "--novel-key", "is_hek", "--novel-value", "no", "--name", "q")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "results/novelty/q/metrics.json").read_text())
    assert metrics["methods"]["mahalanobis-class"]["auroc"] < 0.1, "the other side was named as novel"
    assert (tmp_path / "results/novelty/q/plots/curves.png").exists()


def test_all_cells_are_learned_without_a_protocol(sctool, lung_file, tmp_path):
    done = sctool("novelty", lung_file, *KEYS, "--methods", "knn", "iforest", "--name", "r", *FAST)
    assert done.code == 0, done.err
    assert not (tmp_path / "results").exists()
    assert len(pd.read_csv(tmp_path / "checkpoints/novelty/r/cells.csv")) == 300
    again = sctool("novelty", lung_file, *KEYS, "--methods", "knn", "--name", "r", *FAST)
    assert again.code == 2
    assert "is there already" in again.err
    asked = sctool("novelty", lung_file, "--model", "checkpoints/novelty/r", "--methods", "lof")
    assert asked.code == 2
    assert "it has: knn, iforest" in asked.err


def test_same_seed_same_files(sctool, lung_file, tmp_path):
    for name in "ab":
        assert (
            sctool("novelty", lung_file, *KEYS, "--hold-out", "A549", "--methods", "xgb-energy", "iforest", "--name", name, *FAST).code == 0
        )
    a, b = ((tmp_path / "results/novelty" / name / "scores.csv").read_text() for name in "ab")
    assert a == b


def test_latent_distances_of_scvi(sctool, trained, small_file, tmp_path):
    done = sctool("novelty", small_file, "--model", trained, "--name", "q", "--no-plots")
    assert done.code == 0, done.err
    scores = pd.read_csv(tmp_path / "results/novelty/q/scores.csv")
    assert list(scores.columns) == ["cell", "flagged", "latent"]
    assert scores["flagged"].mean() < 0.3
    small_file.rename(tmp_path / "moved.h5ad")
    done = sctool("novelty", tmp_path / "moved.h5ad", "--model", trained, "--name", "again")
    assert done.code == 2
    assert "is not there any more" in done.err


@pytest.mark.parametrize(
    ("words", "said", "fix"),
    [
        (("--hold-out", "H383"), "has no 'H383' (--hold-out)", "did you mean 'H838'?"),
        (("--methods", "iforrest"), "no detector 'iforrest'", "did you mean 'iforest'?"),
        (("--methods", "latent"), "latent space of a trained model", "--model checkpoints/scvi/RUN"),
        (("--novel-key", "is_hec"), "has no column 'is_hec'", "did you mean 'is_hek'?"),
        (("--novel-key", "batch"), "is not yes or no", "--novel-value"),
        (("--novel-key", "is_hek", "--hold-out", "H838"), "exclude each other", "give the one"),
        (("--group-key", "donor"), "has no column 'donor'", ""),
        (("--label-key", "one"), "1 known type is left", "two known types"),
        (("--label-key", "two", "--hold-out", "b"), "1 known type is left", "two known types"),
        (("--label-key", "empty"), "0 known type", "two known types"),
        (("--model", "nowhere"), "is not a model folder", ""),
        (("--alpha", "2"), "novelty.alpha", ""),
    ],
)
def test_mistakes(sctool, lung, tmp_path, words, said, fix):
    a = lung[::5].copy()
    a.obs["one"], a.obs["two"], a.obs["empty"] = "a", np.where(np.arange(60) % 2, "a", "b"), "Unknown"
    a.write_h5ad(tmp_path / "lung.h5ad")
    keys = () if "--label-key" in words else KEYS
    done = sctool("novelty", tmp_path / "lung.h5ad", *keys, *words, *FAST)
    assert done.code == 2, done.out + done.err
    assert said in done.err
    assert fix in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "results").exists()


def test_label_key_is_asked_for(sctool, lung_file):
    done = sctool("novelty", lung_file)
    assert done.code == 2
    assert "--label-key is missing" in done.err
