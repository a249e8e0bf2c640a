"""Cohorts of which the answer is known: a group told by the state of one rare type, donors that are all alike, batches to hide."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sctool.config import load_config
from sctool.data.check_samples import open_cohort
from sctool.data.samples import prepare_samples
from sctool.engine.run import set_up, train_in_memory
from sctool.engine.sample_answers import averaged
from sctool.engine.samples import in_blocks, sample_stages, see
from sctool.models.registry import BUILDERS
from tests.conftest import run_in

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "planted_cohort.py"
OURS, PROBED = "SampleCLR", "SampleCLR + linear probe"
WORDS = ("--sample-key", "sample", "--label-key", "cell_type", "--repeats", "1", "--permutations", "0", "--no-plots", "--quiet")


@pytest.fixture(scope="module")
def planted():
    spec = importlib.util.spec_from_file_location("planted_cohort", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def run(planted, folder, cohort, *words, group_s=None):
    """Folder of the results of a run on a cohort, with its groups or others."""
    cells = planted.as_anndata(cohort)
    if group_s is not None:
        cells.obs["group"] = [f"g{i}" for i in group_s[cohort.sample_n]]
    cells.write_h5ad(folder / "cohort.h5ad")
    run_in(folder, "train", "sampleclr", "cohort.h5ad", *WORDS, *words, "--name", "m")
    return folder / "results" / "sampleclr" / "m"


def scores(folder):
    return pd.read_csv(folder / "comparison.csv").query("score == 'auc'").set_index("name"), pd.read_csv(folder / "scores.csv").set_index(
        "name"
    )["balanced_accuracy"]


def test_a_rare_type_that_tells_the_groups_apart_is_found(planted, tmp_path):
    cohort = planted.simulate_cohort(n_donors=60, cells=400, seed=0)
    folder = run(planted, tmp_path, cohort, "--task", "group:class")
    _, accuracy = scores(folder)
    assert accuracy[OURS] > 0.8
    assert accuracy[OURS] > accuracy["mean"] + 0.1
    assert accuracy[OURS] > accuracy[["mean_sd", "composition", "composition_clr", "mean_and_composition"]].max() + 0.1
    importance = pd.read_csv(folder / "importance_tests.csv").set_index("cell_type")
    own = f"t{planted.PLANTED}"
    assert importance["mean_enrichment"].idxmax() == own
    assert importance.loc[own, "mean_enrichment"] > 3
    assert importance.loc[own, "q"] < 0.01
    by_type = pd.read_csv(folder / "importance_by_celltype.csv")
    effects = by_type[[key for key in by_type if key.startswith("effect_")]].abs().mean(axis=1).groupby(by_type["cell_type"]).mean()
    assert effects.idxmax() == own
    assert json.loads((folder / "metrics.json").read_text())["importance_stability"] > 0.5


def test_shuffled_groups_are_not_found(planted, tmp_path):
    """Each true group has each label equally often, so that what tells the true groups apart is of no use."""
    cohort = planted.simulate_cohort(n_donors=60, cells=400, seed=0)
    comparison, accuracy = scores(run(planted, tmp_path, cohort, "--task", "group:class", group_s=planted.shuffled(cohort.label_s, 3, 0)))
    for name in (OURS, PROBED):
        assert comparison.loc[name, "low"] < 0.5
        assert accuracy[name] < 1 / 3 + 0.2  # three standard errors of 60 donors


def test_donors_that_are_alike_are_not_told_apart(planted, tmp_path):
    cohort = planted.simulate_cohort(n_donors=40, cells=200, noise=True, seed=0)
    retrieval = pd.read_csv(run(planted, tmp_path, cohort) / "retrieval.csv").set_index("name")
    assert retrieval.loc[PROBED, "chance"] == pytest.approx(1 / 79)
    assert retrieval.loc[PROBED, "top1"] < 0.1


def test_donors_that_differ_are_told_apart(planted, tmp_path):
    cohort = planted.simulate_cohort(n_donors=40, cells=400, seed=0)
    retrieval = pd.read_csv(run(planted, tmp_path, cohort) / "retrieval.csv").set_index("name")
    assert retrieval.loc[PROBED, "top1"] > 0.9


def held_out(planted, folder, cohort, batch_key):
    """Share of held-out donors whose batch and whose group is found, with batches hidden or not; three folds."""
    planted.as_anndata(cohort).write_h5ad(folder / "cohort.h5ad")
    flags = {"sample_key": "sample", "rep": "obsm:X_pca", "tasks": ["group:class"], "n_networks": 2}
    config = load_config(model="sampleclr", flags={f"sampleclr.{key}": value for key, value in flags.items()})
    config = config.replaced({"data.batch_key": batch_key, "device": "cpu"})
    checked = open_cohort(folder / "cohort.h5ad", config)
    made, task = checked.require_cohort(), checked.tasks[0]
    stratum_s, fold_s = cohort.label_s * 2 + cohort.batch_s, np.empty(len(made), int)
    for code in np.unique(stratum_s):
        own = np.flatnonzero(stratum_s == code)
        fold_s[own] = np.random.default_rng(code).permutation(len(own)) % 3
    hits = {"embedding": [], "told": [], "task": []}
    for fold in range(3):
        train_s = fold_s != fold
        prepared = prepare_samples(made, [task], config, train_s)
        setting = set_up(BUILDERS["sampleclr"], prepared, config)
        for _ in train_in_memory(setting, sample_stages):
            pass
        seen = see(setting.module, in_blocks(prepared.matrix, made.sample_n), prepared.codes["batch"], [task], {})

        def found(z_sd, train_s=train_s):
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(z_sd[train_s], cohort.batch_s[train_s])
            return probe.predict(z_sd[~train_s]) == cohort.batch_s[~train_s]

        hits["embedding"].extend(found(seen.embedded.embedding_sd))
        hits["told"].extend(np.mean([found(one.z_sd) for one in seen.told], axis=0))
        p_sc = averaged(task, [one["group"] for one in seen.answers], [0.5, 0.5])
        hits["task"].extend(p_sc[~train_s].argmax(1) == cohort.label_s[~train_s])
    return {key: float(np.mean(values)) for key, values in hits.items()}


def test_a_batch_is_hidden_from_donors_held_out(planted, tmp_path):
    cohort = planted.simulate_cohort(n_donors=60, n_batches=2, batch_sd=0.4, seed=0)
    without = held_out(planted, tmp_path, cohort, None)
    hidden = held_out(planted, tmp_path, cohort, "batch")
    assert without["embedding"] > 0.9, (without, hidden)
    assert hidden["embedding"] < 0.65, (without, hidden)  # chance is .5
    assert hidden["task"] >= without["task"] - 0.05, (without, hidden)
