"""``sctool train sampleclr`` on a tiny cohort."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sctool.artifacts.tensors import load_tensors
from tests.cli.cradle.conftest import refused
from tests.samples.conftest import KEYS, ORDER, TASKS, dims, files, model, read, results, written

BARE = ("--cv", "none")  # where the test of the model is not what is asked about


def test_without_a_task_there_is_an_embedding_judged_by_halves(home):
    folder = results(home, "plain")
    table = read(folder, "embeddings")
    assert table.columns[:4].tolist() == ["sample", "donor", "n_cells", "enough_cells"]
    assert {"condition", "stage", "pool"} <= set(table)
    z_sd = dims(table)
    assert z_sd.shape == (14, 5 + 3 + 6)  # features, clusters, learned
    np.testing.assert_allclose(np.linalg.norm(z_sd[:, -6:], axis=1), 1, atol=1e-5)
    distances = read(folder, "distances").set_index("sample")
    assert distances.index.tolist() == distances.columns.tolist() == table["sample"].tolist()
    np.testing.assert_allclose(distances.loc["s00", "s01"], np.linalg.norm(z_sd[0] - z_sd[1]), rtol=1e-5)
    retrieval = read(folder, "retrieval")
    assert {"SampleCLR + linear probe", "mean"} <= set(retrieval["name"])
    assert retrieval["top1"].between(0, 1).all()
    assert set(read(folder, "robustness")["cells"]) == {25}
    cells = pd.read_csv(folder / "cell_importance.csv.gz")
    assert cells.columns.tolist() == ["cell", "sample", "enrichment", "w_1", "w_2"]
    np.testing.assert_allclose(cells.groupby("sample")[["w_1", "w_2"]].sum(), 1, atol=1e-4)
    np.testing.assert_allclose(cells["enrichment"], cells[["w_1", "w_2"]].mean(axis=1) * 40, rtol=1e-4)
    assert not list(folder.glob("predictions.csv")) + list(folder.glob("importance_*"))


def test_with_tasks_each_is_tested_beside_the_baselines(home):
    folder = results(home, "told")
    comparison = read(folder, "comparison")
    assert set(comparison["task"]) == {"condition", "age", "stage"}
    assert {"SampleCLR", "SampleCLR + linear probe", "attention alone", "mean", "composition", "random"} <= set(comparison["name"])
    predictions = read(folder, "predictions")
    own = predictions[(predictions["task"] == "condition") & (predictions["name"] == "SampleCLR")]
    assert sorted(own["sample"]) == [f"s{i:02d}" for i in range(14)]  # each once, held out
    np.testing.assert_allclose(own[["p_ill", "p_well"]].sum(axis=1), 1)
    assert own.groupby("donor")["fold"].nunique().max() == 1
    levels = predictions[(predictions["task"] == "stage") & (predictions["name"] == "SampleCLR")]
    np.testing.assert_allclose(levels[["p_mild", "p_severe", "p_worst"]].sum(axis=1), 1)
    np.testing.assert_allclose(levels["expected"], levels["p_severe"] + 2 * levels["p_worst"])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["task"] == "samples"
    assert -1 <= metrics["importance_stability"] <= 1


def test_importance_is_told_by_donor_and_type(home):
    folder = results(home, "told")
    by_type = read(folder, "importance_by_celltype")
    assert len(by_type) == 14 * 2
    effects = ["effect_condition_well", "effect_age", "effect_stage"]
    assert set(effects) <= set(by_type)
    assert by_type[effects].notna().all(axis=None)
    np.testing.assert_allclose(by_type.groupby("sample")["share"].sum(), 1)
    mean = (by_type["enrichment"] * by_type["share"]).groupby(by_type["sample"]).sum()
    np.testing.assert_allclose(mean, 1, atol=1e-4)  # weights sum to 1
    tests = read(folder, "importance_tests")
    each = sorted(zip(tests["task"], tests["cell_type"], strict=True))
    assert each == [("condition", "a"), ("condition", "b"), ("stage", "a"), ("stage", "b")]
    assert (tests["n_donors"] == 10).all()
    assert ((tests["low"] <= tests["mean_enrichment"]) & (tests["mean_enrichment"] <= tests["high"])).all()


def test_components_are_of_the_training_donors_only(tiny, tmp_path, monkeypatch, train):
    """Other counts of the donors that are held out change their features, not what makes them."""
    from sctool.data import representation

    made, fit = {}, representation.fit_projection
    held = (tiny.obs["donor"] == "d5").to_numpy()

    def remembers(x_ng, counts, train_n, *rest):
        projection = fit(x_ng, counts, train_n, *rest)
        made.setdefault(run, {})[np.packbits(train_n).tobytes()] = (train_n, projection)
        return projection

    def spoil(a):
        rng = np.random.default_rng(1)
        counts = a.X.toarray()
        counts[held] = rng.poisson(5 * rng.random(60), (held.sum(), 60))
        a.X = counts

    monkeypatch.setattr(representation, "fit_projection", remembers)
    for run, change in (("as it is", lambda a: None), ("spoilt", spoil)):
        assert train("--rep", "X", "--name", run.split()[0], path=written(tiny, tmp_path, change)).code == 0
    without = [key for key, (train_n, _) in made["as it is"].items() if not (train_n & held).any()]
    assert without
    for key in made["as it is"]:
        a, b = made["as it is"][key][1], made["spoilt"][key][1]
        same = np.array_equal(a.columns, b.columns) and np.array_equal(a.components_gf, b.components_gf)
        assert same == (key in without)


def test_features_of_a_trained_model(sctool, tiny_file, train, tmp_path):
    settings = ("--epochs", "1", "--n-hidden", "8", "--n-latent", "4", "--quiet", "--name", "codes")
    assert sctool("train", "scvi", tiny_file, *settings).code == 0
    ran = train("--rep", "checkpoints/scvi/codes", *BARE, "--name", "m")
    assert ran.code == 0, ran.err
    note = json.loads((tmp_path / "checkpoints/sampleclr/m/manifest.json").read_text())
    assert note["sizes"]["n_features"] == 4
    ran = sctool("predict", "sampleclr", "checkpoints/sampleclr/m", tiny_file, "--name", "p")
    assert ran.code == 0, ran.err
    a, b = (dims(read(tmp_path / part, "embeddings")) for part in ("results/sampleclr/p", "checkpoints/sampleclr/m"))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_batch_is_hidden(home):
    """Of what batches of four donors or more differ by, nothing remains in the plain part of the embedding."""
    assert read(model(home, "plain"), "history")["train_batches"].between(0, 1).all()
    assert "train_batches" not in read(model(home, "told"), "history")
    level = {}
    for name in ("plain", "told"):
        table = read(model(home, name), "embeddings")
        spread_v = load_tensors(model(home, name) / "model.safetensors")[0]["encoder.spread_v"].numpy()
        own = pd.DataFrame(dims(table)[:, :8] * spread_v * 8**0.5).groupby(table["pool"])
        level[name] = own.mean()
    donors = table.groupby("pool")["donor"].nunique()
    assert donors.to_dict() == {"p1": 6, "p2": 4}
    assert level["told"].abs().max(axis=1).min() > 0.1
    np.testing.assert_allclose(level["plain"], 0, atol=1e-5)


@pytest.mark.parametrize("prior", ["pseudobulk", "gloscope", "csv"])
def test_a_prior_changes_what_is_learned(home, train, tmp_path, prior):
    said = prior
    if prior == "csv":
        said = tmp_path / "prior.csv"
        read(results(home, "plain"), "distances").to_csv(said, index=False)
    ran = train("--prior", said, "--name", "m", "--batch-key", "pool", *(() if prior == "gloscope" else BARE))
    assert ran.code == 0, ran.err
    a, b = (dims(read(folder, "embeddings")) for folder in (tmp_path / "checkpoints/sampleclr/m", model(home, "plain")))
    np.testing.assert_allclose(a[:, :8], b[:, :8], atol=1e-6)  # means and log-ratios are what they are
    assert np.abs(a[:, 8:] - b[:, 8:]).max() > 1e-3


def test_adaptive_resampling_weighs_samples(train, tmp_path):
    ran = train("--ar", "--ar-warmup", "1", "--task", "condition", *BARE, "--name", "m")
    assert ran.code == 0, ran.err
    samples = read(tmp_path / "checkpoints/sampleclr/m", "samples")
    assert samples["weight"].mean() == pytest.approx(1)
    assert samples["weight"].nunique() > 1


def test_the_same_seed_gives_the_same_bytes(home, train, tmp_path):
    assert train("--batch-key", "pool", "--name", "plain").code == 0
    assert files(tmp_path / "results/sampleclr/plain") == files(results(home, "plain"))
    assert files(tmp_path / "checkpoints/sampleclr/plain") == files(model(home, "plain"))
    assert train("--batch-key", "pool", "--seed", "1", "--cv", "none", "--name", "other").code == 0
    other = tmp_path / "results/sampleclr/other/embeddings.csv"
    assert other.read_bytes() != (results(home, "plain") / "embeddings.csv").read_bytes()


@pytest.mark.parametrize("where", ["fold", "network"])
def test_an_interrupted_run_goes_on_with_the_same_result(home, train, tmp_path, monkeypatch, where):
    from sctool.engine import run, sample_folds

    words = ("--task", "condition")
    fits, module = [], run if where == "network" else sample_folds.FoldNetworks
    name = "_trainer" if where == "network" else "_fitted"
    fit, last = getattr(module, name), {"fold": 2, "network": 2 * 3 + 2 + 2}[where]

    def breaks_off(*args, **kwargs):
        fits.append(1)
        if len(fits) == last:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(module, name, breaks_off)
    ran = train(*words, "--name", "broken")
    assert ran.code == 130
    kept = {"fold": 1, "network": 4}[where]
    assert ran.err.splitlines()[-2:] == [f"error: interrupted; {kept} of 4 fits are kept", "  fix: give --resume to go on"]
    assert not (tmp_path / "results/sampleclr/broken").exists()
    assert not (tmp_path / "checkpoints/sampleclr/broken").exists()
    refused(train(*words, "--name", "broken"), "unfinished", "--resume")
    before = len(fits)
    ran = train(*words, "--name", "broken", "--resume")
    assert ran.code == 0, ran.err
    if where != "network":  # folds that were done are not trained again
        assert len(fits) - before == 4 - (last - 1)
    for part in ("results", "checkpoints"):
        assert files(tmp_path / part / "sampleclr/broken") == files(home / part / "sampleclr/short")
    assert not (tmp_path / "checkpoints/sampleclr/broken.part").exists()


def test_a_finished_run_is_not_overwritten(tiny, train, tmp_path):
    assert train("--name", "m", *BARE).code == 0
    before = files(tmp_path)
    refused(train("--name", "m", *BARE, "--seed", "1"), "is there already", "--force")
    assert train("--name", "m", *BARE, "--resume").code == 0
    for words, said in (
        (("--seed", "1"), "--seed 0, not 1"),
        (("--set", "sampleclr.n_heads=3"), "sampleclr.n_heads was 2 and is 3"),
        (("--task", "age:regression"), "sampleclr.tasks was [] and is ['age:regression']"),
    ):
        refused(train("--name", "m", *BARE, "--resume", *words), said, "--force")
    other = written(tiny, tmp_path, lambda a: a.obs.insert(0, "ward", "w1"))
    refused(train("--name", "m", *BARE, "--resume", path=other), "other cells or samples")
    other.unlink()
    assert files(tmp_path) == before
    assert train("--name", "m", *BARE, "--seed", "1", "--force").code == 0
    assert files(tmp_path) != before


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(train, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    ran = train("--dry-run", "--json", *TASKS, *ORDER)
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert said["samples"] == "14 of 14, of 10 donors"
    assert said["class condition"] == "ill 7, well 7"
    assert said["folds"].startswith("2 in 1 repeat; ")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_says_what_would_do_nothing(sctool, tiny_file):
    words = "train", "sampleclr", tiny_file, *KEYS, "--min-cells", "10", "--dry-run", "--patience", "3", "--n-hidden", "8"
    notes = [line for line in sctool(*words).err.splitlines() if "nothing" in line]
    assert len(notes) == 2
    assert "--patience does nothing" in notes[0]
    assert "--n-hidden does nothing" in notes[1]
    ran = sctool(*words, "--task", "condition", "--set", "data.validation=0.2")
    assert ran.code == 0
    assert "nothing" not in ran.err


def test_donors_that_the_file_knows_of_are_not_ignored(tiny, sctool, train, tmp_path):
    """Samples of one donor on both sides of a split would be a leak."""
    alone = ("--sample-key", "sample")
    refused(train(keys=alone), "14 samples of 10 values of obs['donor']", "--donor-key donor, or --donor-key sample")
    ran = train("--donor-key", "sample", "--dry-run", "--json", keys=alone)
    assert json.loads(ran.out)["samples"] == "14 of 14, of 14 donors"
    sexes = written(tiny, tmp_path, lambda a: a.obs.rename(columns={"donor": "OrigPatientID"}, inplace=True))
    refused(train(keys=alone, path=sexes), "14 samples of 10 values of obs['OrigPatientID']", "--donor-key OrigPatientID")


def test_json_is_strict(train, tmp_path):
    ran = train("--task", "age:regression", "--json", "--name", "m")
    assert ran.code == 0, ran.err

    def refuse(word):
        raise AssertionError(word)

    for text in (ran.out, *(path.read_text() for path in tmp_path.rglob("*.json"))):
        assert json.loads(text, parse_constant=refuse)


def test_pictures_are_drawn(sctool, home):
    shutil.copytree(results(home, "plain"), "plain")
    ran = sctool("plot", "plain", "--quiet")
    assert ran.code == 0, ran.err
    assert list(Path("plain").rglob("*.png"))


def test_too_few_cells_are_not_trained_on(tiny, tmp_path, train):
    few = (tiny.obs["sample"] != "s03") | (np.arange(tiny.n_obs) % 5 == 0)
    ran = train("--task", "condition", "--name", "m", path=written(tiny, tmp_path, lambda a: a[few.to_numpy()].copy()))
    assert ran.code == 0, ran.err
    table = read(tmp_path / "results/sampleclr/m", "embeddings").set_index("sample")
    assert table.index[~table["enough_cells"]].tolist() == ["s03"]
    assert np.isfinite(dims(table)).all()
    assert "s03" not in set(read(tmp_path / "results/sampleclr/m", "predictions")["sample"])
