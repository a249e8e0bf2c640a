"""``sctool train curve``: the same test cells at every size, training sets within each other, and what is written."""

import json
from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sctool.bench.curve import _jobs, learning_curve
from sctool.config import Config
from sctool.data.demo import BATCHES
from sctool.data.folds import outer_folds
from sctool.data.labelled import prepare_labelled
from tests.cli.test_commands import files, strict_json
from tests.cli.test_inputs import assert_told

COLUMNS = [
    *("model", "n_groups", "n_cells", "frac_cells", "n_classes_seen", "f1_macro_present", "accuracy", "balanced_accuracy"),
    *("roc_auc_macro_seen", "fit_seconds", "axis", "repeat", "size", "outer_fold"),
]
KEYS = ("--label-key", "cell_type", "--group-key", "batch")
FAST = ("--models", "lr", "--repeats", "2", "--no-plots", "--set", "classify.markers=40", "--threads", "1")


@pytest.fixture(scope="module")
def lung():
    a = ad.read_h5ad(BATCHES.path)
    return a[np.sort(np.random.default_rng(0).permutation(500)[:200]), :200].copy()


@pytest.fixture
def curve(sctool, lung, tmp_path):
    lung.write_h5ad(tmp_path / "lung.h5ad")

    def run(*words, keys=KEYS, name="r"):
        ran = sctool("train", "curve", tmp_path / "lung.h5ad", *keys, *FAST, "--name", name, *words)
        table = tmp_path / "results/curve" / name / "learning_curve.csv"
        return ran, pd.read_csv(table) if table.exists() else None

    return run


def test_by_groups(curve, lung, tmp_path):
    ran, table = curve("--json")
    assert ran.code == 0, ran.err
    folder = tmp_path / "results/curve/r"
    assert set(files(folder)) == {"learning_curve.csv", "learning_curve_summary.csv", "metrics.json"}
    assert set(table.columns) == set(COLUMNS)
    assert set(table["model"]) == {"lr", "knn", "majority"}
    assert set(table["axis"]) == {"groups"}
    assert set(table["outer_fold"]) == set(lung.obs["batch"])
    own = table[table["model"] == "lr"]
    assert (own.groupby("size").size() == pd.Series({1: 10, 2: 10, 3: 10, 4: 5})).all()
    assert (own["n_groups"] == own["size"]).all()
    sizes = lung.obs["batch"].value_counts()
    whole = own[own["size"] == 4]
    assert dict(zip(whole["outer_fold"], whole["n_cells"], strict=True)) == {name: 200 - n for name, n in sizes.items()}
    assert (whole["frac_cells"] == 1).all()
    np.testing.assert_allclose(own["frac_cells"], own["n_cells"] / (200 - own["outer_fold"].map(sizes)))
    for _, part in own.groupby(["outer_fold", "repeat"]):
        assert part["n_cells"].is_monotonic_increasing
    assert own["f1_macro_present"].between(0, 1).all()
    summary = pd.read_csv(folder / "learning_curve_summary.csv")
    means = own.groupby("size")["f1_macro_present"].mean()
    np.testing.assert_allclose(summary.loc[summary["model"] == "lr", "f1_macro_present_mean"], means)
    spread = own.groupby("size")["f1_macro_present"].std()
    np.testing.assert_allclose(summary.loc[summary["model"] == "lr", "f1_macro_present_sd"], spread)
    told = json.loads(ran.out)
    metrics = strict_json(folder / "metrics.json")
    assert told["models"] == metrics["models"]
    assert (metrics["axis"], metrics["groups"]) == ("groups", 5)
    assert means[4] > means[1]


def test_by_cells(curve):
    ran, table = curve("--by", "cells", "--fractions", "0.1", "0.3", "1", "--cv", "groups:2")
    assert ran.code == 0, ran.err
    own = table[table["model"] == "lr"]
    assert set(own["axis"]) == {"cells"}
    assert sorted(own["size"].unique()) == [0.1, 0.3, 1.0]
    assert (own.groupby("size").size() == pd.Series({0.1: 4, 0.3: 4, 1.0: 2})).all()
    assert (own["frac_cells"] >= own["size"] - 0.001).all()  # one cell of each type at least
    assert (own["frac_cells"] <= own["size"] + 0.06).all()
    assert (own["n_classes_seen"] == 5).all()
    mean = own.groupby("size")["f1_macro_present"].mean()
    assert mean[1.0] > mean[0.1]


def test_without_groups(curve):
    ran, table = curve("--by", "cells", "--fractions", "0.2", "1", "--cv", "cells:2", keys=KEYS[:2])
    assert ran.code == 0, ran.err
    assert set(table["outer_fold"]) == {"fold1", "fold2"}
    assert (table["n_groups"] == 0).all()


@pytest.mark.parametrize("by", ["groups", "cells"])
def test_training_sets_lie_within_each_other_and_never_in_the_test(lung, tmp_path, by):
    lung.write_h5ad(tmp_path / "a.h5ad")
    settings = {"data.label_key": "cell_type", "data.group_key": "batch", "curve.by": by, "curve.repeats": 3}
    config = Config().replaced({**settings, "curve.fractions": [1.0, 0.05, 0.3]})
    cells = prepare_labelled(tmp_path / "a.h5ad", config)
    for fold in outer_folds(cells.train, cells.labels_n, cells.groups_n, "auto", 0):
        jobs = list(_jobs(fold, cells, config))
        first_sets = []
        for repeat in range(3):
            own = [(size, set(train)) for which, size, train in jobs if which == repeat]
            assert [size for size, _ in own] == sorted(size for size, _ in own)
            for (_, less), (_, more) in pairwise(own):
                assert less < more
            for size, train in own:
                assert train <= set(fold.train)
                assert not train & set(fold.test)
                if by == "groups":
                    assert len({cells.groups_n[row] for row in train}) == size
                else:
                    for label in set(cells.labels_n[fold.train]):
                        all_of_it = (cells.labels_n[fold.train] == label).sum()
                        assert sum(cells.labels_n[row] == label for row in train) == int(np.ceil(size * all_of_it - 1e-9))
            first_sets.append(frozenset(own[0][1]))
        assert len(set(first_sets)) > 1


def test_the_same_again(lung, tmp_path):
    lung.write_h5ad(tmp_path / "a.h5ad")
    settings = {
        "data.label_key": "cell_type",
        "data.group_key": "batch",
        "curve.repeats": 1,
        "classify.models": ["lr"],
        "classify.cv": "groups:3",
    }
    tables = []
    for seed in (0, 0, 1):
        config = Config().replaced({**settings, "seed": seed, "classify.markers": 30})
        made = learning_curve(tmp_path / "a.h5ad", config, say=lambda text: None, tick=lambda *told: None)
        tables.append(made.table.drop(columns="fit_seconds"))
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])


def test_a_finished_curve_is_not_overwritten(curve, tmp_path):
    words = ("--by", "cells", "--fractions", "1", "--cv", "groups:2")
    assert curve(*words)[0].code == 0
    before = (tmp_path / "results/curve/r/learning_curve.csv").read_bytes()
    assert_told(curve(*words)[0], "is there already", "--force")
    assert (tmp_path / "results/curve/r/learning_curve.csv").read_bytes() == before
    assert curve(*words, "--force")[0].code == 0


def test_plots(curve, tmp_path):
    ran, _ = curve("--by", "cells", "--fractions", "0.3", "1", "--cv", "groups:2", "--plots")
    assert ran.code == 0, ran.err
    assert list((tmp_path / "results/curve/r/plots").glob("*.png"))


@pytest.mark.parametrize(
    ("words", "keys", "what"),
    [
        ((), KEYS[:2], "needs 3 groups or more; there is no column of groups"),
        ((), ("--label-key", "cell_type", "--group-key", "protocol"), "needs 3 groups or more; obs['protocol'] has 2"),
        ((), KEYS[2:], "needs labels"),
        (("--by", "donors"), KEYS, "curve.by"),
        (("--repeats", "0"), KEYS, "curve.repeats"),
        (("--cv", "foo"), KEYS, "is not known"),
        (("--models", "svc"), KEYS, "unknown model"),
        pytest.param(("--cv", "none"), KEYS, "none"),
        pytest.param(("--by", "cells", "--fractions", "0"), KEYS, "fractions"),
        pytest.param(("--by", "cells", "--fractions", "0.5", "2"), KEYS, "fractions"),
    ],
)
def test_bad_input(curve, tmp_path, words, keys, what):
    ran, table = curve(*words, keys=keys)
    assert_told(ran, what, "")
    assert table is None
    assert not (tmp_path / "results").exists()
