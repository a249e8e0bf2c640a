"""``sctool integrate`` with wrong input, odd input, and settings that are seldom used."""

import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import silhouette_score

from sctool.data.demo import BATCHES
from tests.cli.conftest import KEYS
from tests.cli.test_inputs import assert_told
from tests.cli.test_integrate import checkpoint, results

BAD = {
    "no batches given": ((), ("--label-key", "cell_type"), "needs batches", "--batch-key"),
    "no such batch key": ((), ("--batch-key", "bach"), "no column 'bach'", "did you mean 'batch'"),
    "one batch": ((), ("--batch-key", "one"), "'same'", "--batch-key"),
    "no labels, supervised": (("--mode", "supervised"), ("--batch-key", "batch"), "needs labels", "--label-key"),
    "no labels, semi": (("--mode", "semi"), ("--batch-key", "batch"), "needs labels", "--label-key"),
    "no label at all": ((), ("--batch-key", "batch", "--label-key", "nothing"), "no training cell has a label", "unsupervised"),
    "unknown mode": (("--mode", "sometimes"), KEYS, "integrate.mode", ""),
    "unknown target": (("--target-batch", "nowhere"), KEYS, "'nowhere' is not a batch", "average"),
    "target out of range": (("--target-batch", "5"), KEYS, "'5' is not a batch", "average"),
    "unknown refinement target": (
        ("--ddpm-refine", "--set", "integrate.refine_target=nowhere"),
        KEYS,
        "'nowhere' is not a batch",
        "give one",
    ),
    "refinement without a diffusion": (("--ddpm-refine", "--set", "diffusion.train_steps=0"), KEYS, "without a diffusion", "train"),
    "no such model": (("--model", "nowhere"), KEYS, "is not a model folder", "checkpoints"),
    "no refinement steps": (("--ddpm-refine", "--refine-steps", "0"), KEYS, "refine_steps", ""),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_a_remedy(integrate, lung, tmp_path, case):
    words, keys, what, remedy = BAD[case]
    a = lung.copy()
    a.obs["one"], a.obs["nothing"] = "same", "Unknown"
    a.write_h5ad(tmp_path / "lung.h5ad")
    before = set(tmp_path.rglob("*"))
    assert_told(integrate(*words, keys=keys), what, remedy)
    assert set(tmp_path.rglob("*")) == before


def test_partly_labelled_cells_in_supervised_mode_are_allowed(integrate, tmp_path):
    """The published meaning of supervised: labels are used where there are any."""
    ran = integrate("--mode", "supervised", keys=("--batch-key", "batch", "--label-key", "partly"))
    assert ran.code == 0, ran.err


def test_a_model_without_a_diffusion(integrate, tmp_path):
    assert integrate("--set", "diffusion.train_steps=0").code == 0
    before = set(tmp_path.rglob("*"))
    ran = integrate("--model", checkpoint(tmp_path), "--ddpm-refine", "--no-score", name="x", flags=())
    assert_told(ran, "without a diffusion", "refine")
    ran = integrate("--model", checkpoint(tmp_path), "--target-batch", "nowhere", "--no-score", name="x", flags=())
    assert_told(ran, "'nowhere' is not a batch", "average")
    assert set(tmp_path.rglob("*")) == before


def test_a_model_with_a_batch_key_that_is_not_there(integrate, tmp_path):
    """A column of that name was asked for; all cells would be taken for ones of an unseen batch."""
    assert integrate().code == 0
    ran = integrate("--model", checkpoint(tmp_path), "--no-score", name="x", flags=(), keys=("--batch-key", "bach"))
    assert_told(ran, "no column 'bach'", "did you mean 'batch'")


def test_validation_cells_of_a_batch_without_training_cells(integrate, tmp_path):
    """As whole donors in validation may be."""
    words = ("--group-key", "protocol", "--set", "data.validation=0.3")
    ran = integrate(*words)
    assert ran.code == 0, ran.err


def test_odd_but_fine_columns(integrate, lung, tmp_path):
    a = lung.copy()
    number = a.obs["batch"].astype("category").cat.codes.to_numpy()
    a.obs["number"], a.obs["flag"], a.obs["odd"] = number.astype(int), number > 2, [f"a/b é {n}" for n in number]
    a.obs["gaps"] = a.obs["cell_type"].astype(object).where(np.arange(a.n_obs) % 3 > 0, np.nan)
    a.obs["small"] = np.where(np.arange(a.n_obs) < 2, "two", "rest")
    a.obs["predicted_label"], a.obs["refined"], a.obs.index.name = "x", 1, "barcode"
    a.write_h5ad(tmp_path / "lung.h5ad")
    for key, label in (("number", "gaps"), ("flag", "number"), ("odd", "gaps"), ("small", "cell_type")):
        ran = integrate(name=key, keys=("--batch-key", key, "--label-key", label))
        assert ran.code == 0, ran.err
        made = ad.read_h5ad(results(tmp_path, key) / "corrected_expression.h5ad")
        assert list(made.obs_names) == list(a.obs_names)
        table = pd.read_csv(results(tmp_path, key) / "cell_type_predictions.csv", dtype=str)
        assert made.obs["predicted_label"].astype(str).tolist() == table["label"].tolist()


@pytest.mark.parametrize(
    "extra",
    [
        ("--backed",),
        ("--set", "integrate.prior=normal"),
        ("--set", "integrate.cycle_weight=1", "--batch-size", "239"),
        ("--set", "data.validation=0.2", "--set", "integrate.finetune_epochs=0"),
        ("--set", "integrate.dispersion=gene-batch", "--set", "integrate.likelihood=zinb"),
        ("--ddpm-refine", "--set", "integrate.refine_method=none"),
    ],
)
def test_settings_that_are_seldom_used(integrate, tmp_path, extra):
    ran = integrate(*extra)
    assert ran.code == 0, ran.err
    assert np.isfinite(np.load(results(tmp_path) / "latent_embeddings.npy")).all()
    assert np.isfinite(pd.read_csv(checkpoint(tmp_path) / "history.csv")["train_loss"]).all()


def test_threads_are_as_many_as_were_asked_for(lung_file, tmp_path):
    """In training too: numba, which chooses genes, sets the number for the whole process when it first runs."""
    code = (
        "import sys; from sctool.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "import torch; print('threads', torch.get_num_threads())"
    )
    words = ["train", "scvi", lung_file, "--out", tmp_path, "--epochs", "2", "--n-top-genes", "100", "--threads", "1", "--quiet"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "threads 1" in done.stdout


@pytest.mark.gpu
def test_on_a_gpu(integrate, tmp_path):
    for device in ("cpu", "cuda"):
        ran = integrate("--device", device, "--ddpm-refine", "--set", "integrate.refine_min_confidence=0.2", name=device)
        assert ran.code == 0, ran.err
    losses = [pd.read_csv(checkpoint(tmp_path, device) / "history.csv")["train_loss"] for device in ("cpu", "cuda")]
    np.testing.assert_allclose(*losses, rtol=0.1)


@pytest.mark.slow
def test_labels_do_not_leak_into_held_out_cells(sctool, tmp_path):
    """Trained with shuffled labels, cells that were not among them lie no closer to their shuffled label than to any."""
    a = ad.read_h5ad(BATCHES.path)
    rng = np.random.default_rng(0)
    a.obs["shuffled"] = rng.permutation(a.obs["cell_type"].astype(str).to_numpy())
    a.obs["part"] = rng.choice(["train", "test"], a.n_obs, p=[0.7, 0.3])
    a.write_h5ad(tmp_path / "a.h5ad")
    labels, test = a.obs["shuffled"].to_numpy(), (a.obs["part"] == "test").to_numpy()
    for mode in ("supervised", "unsupervised"):
        words = ("--batch-key", "batch", "--label-key", "shuffled", "--mode", mode, "--hold-out", "part=test", "--epochs", "60")
        assert sctool("integrate", "a.h5ad", *words, "--no-score", "--quiet", "--name", mode).code == 0
        z = np.load(results(tmp_path, mode) / "latent_embeddings.npy")[test]
        assert silhouette_score(z, a.obs["cell_type"][test]) > 0.05
        # Against labels shuffled anew, since any labels that have nothing to do with the cells are below 0 where these are clustered.
        chance = np.mean([silhouette_score(z, rng.permutation(labels[test])) for _ in range(20)])
        assert abs(silhouette_score(z, labels[test]) - chance) < 0.03
    guessed = pd.read_csv(results(tmp_path, "supervised") / "cell_type_predictions.csv")["label"].to_numpy()
    assert (guessed == labels)[test].mean() < 0.4
    assert (guessed == labels)[~test].mean() < 0.6
