"""The commands from end to end, in the folders and files the contract names."""

import json
import re
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sctool.config import Config, load_config
from tests.conftest import QUICK

ROOT = Path(__file__).parents[2]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def strict_json(path):
    def refuse(word):
        raise ValueError(word)

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["train", "scvi", "--help"], ["eval", "--help"], ["check", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys; sys.argv = ['sctool', *sys.argv[1:]]\n"
        "from sctool.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'scanpy', 'anndata', 'sklearn', 'scipy', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_sctool_imports_no_torch():
    code = "import sys, sctool; assert 'torch' not in sys.modules; sctool.resampling_weights; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_config_yaml_holds_every_default():
    assert load_config(ROOT / "config.yaml") == Config()
    import yaml

    text = re.sub(r"^  # (\w+: )", r"  \1", (ROOT / "config.yaml").read_text(), flags=re.M)  # those that differ between models
    assert yaml.safe_load(text) == Config().model_dump()


def test_flag_wins_over_set_over_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("seed: 3\ntrain: {lr: 1e-4, epochs: 7}\n")
    made = load_config(file, {"train.epochs": 9}, ["train.epochs=8", "scvi.n_latent=5"])
    assert (made.seed, made.train.lr, made.train.epochs, made.scvi.n_latent, made.train.batch_size) == (3, 1e-4, 9, 5, 128)


def test_same_seed_twice_same_files(sctool, small_file, tmp_path):
    for flags in (
        ["--ar"],
        ["--ar", "--ar-refresh", "online"],
        ["--batch-key", "batch", "--likelihood", "zinb"],
        ["--sampler", "balanced", "--label-key", "cell_type"],
    ):
        made = []
        for _ in range(2):
            assert sctool("train", "scvi", small_file, *flags, *QUICK, "--name", "r", "--force").code == 0
            made.append(files(tmp_path / "checkpoints" / "scvi" / "r"))
        assert set(made[0]) == {"model.safetensors", "manifest.json", "history.csv", "cells.csv"}
        assert made[0] == made[1]
    assert sctool("train", "scvi", small_file, *flags, *QUICK, "--name", "r", "--force", "--seed", "1").code == 0
    assert files(tmp_path / "checkpoints" / "scvi" / "r")["model.safetensors"] != made[0]["model.safetensors"]


def test_manifest_says_what_made_the_model(trained):
    manifest = strict_json(trained / "manifest.json")
    assert manifest["format"] == 1
    assert manifest["model"] == "scvi"
    assert len(manifest["genes"]["name"]) == manifest["sizes"]["n_genes"] == 100
    assert manifest["vocabularies"]["batch"] == ["b1", "b2"]
    assert manifest["seed"] == 0
    assert len(manifest["data"]["fingerprint"]) == 64
    assert manifest["versions"]["torch"]
    assert manifest["command"].startswith("sctool train scvi")
    history = pd.read_csv(trained / "history.csv")
    assert list(history["epoch"]) == [1, 2, 3]
    cells = pd.read_csv(trained / "cells.csv")
    assert set(cells["split"]) == {"train", "validation", "test"}
    assert not (trained.parent / "m.part").exists()


def test_nothing_of_the_test_cells_reaches_the_model(sctool, small, tmp_path):
    """Other counts in the held-out cells leave genes and weights as they are."""
    made = []
    for change in (False, True):
        a = small.copy()
        if change:
            x = a.X.toarray()
            test = (a.obs["part"] == "test").to_numpy()
            x[test] = np.random.default_rng(0).poisson(3, x[test].shape)
            a.X = x
        a.write_h5ad(tmp_path / "a.h5ad")
        assert sctool("train", "scvi", "a.h5ad", "--hold-out", "part=test", "--ar", *QUICK, "--name", f"r{change}").code == 0
        made.append(files(tmp_path / "checkpoints" / "scvi" / f"r{change}")["model.safetensors"])
    assert made[0] == made[1]


def test_predict(trained, sctool, small, small_file, tmp_path):
    assert sctool("predict", "scvi", trained, small_file, "--quiet").code == 0
    results = tmp_path / "results" / "scvi" / "m"
    z = np.load(results / "latent.npy")
    made = ad.read_h5ad(results / "predictions.h5ad")
    assert z.shape == (small.n_obs, 4)
    np.testing.assert_array_equal(made.obsm["X_scvi"], z)
    assert list(made.obs_names) == list(small.obs_names)
    assert made.n_vars == 100
    np.testing.assert_allclose(np.asarray(made.layers["normalized"]).sum(1), 1e4, rtol=1e-4)
    np.testing.assert_allclose(made.X, np.log1p(made.layers["normalized"]), rtol=1e-5)
    assert strict_json(results / "metrics.json")["gene_coverage"] == 1.0
    assert next(iter(pd.read_csv(results / "cells.csv").columns)) == "cell"


def test_a_shuffled_versioned_partial_query_of_new_batches(trained, sctool, small, small_file, tmp_path):
    """Genes are matched by name in any order; a batch the model has not seen is said and decoded as an average one."""
    assert sctool("predict", "scvi", trained, small_file, "--name", "plain", "--quiet").code == 0
    order = np.random.default_rng(0).permutation(small.n_vars)
    other = small[:, order].copy()
    other.write_h5ad(tmp_path / "other.h5ad")
    assert sctool("predict", "scvi", trained, "other.h5ad", "--name", "other", "--quiet").code == 0
    plain, shuffled = (np.load(tmp_path / "results" / "scvi" / name / "latent.npy") for name in ("plain", "other"))
    np.testing.assert_allclose(plain, shuffled, atol=1e-5)
    new = small.copy()
    new.obs["batch"] = "b99"
    new.write_h5ad(tmp_path / "new.h5ad")
    ran = sctool("predict", "scvi", trained, "new.h5ad", "--name", "new")
    assert "100% of the cells are from batches the model has not seen" in ran.err
    z = np.load(tmp_path / "results" / "scvi" / "new" / "latent.npy")
    assert np.isfinite(z).all()
    assert not np.allclose(z, plain)


def test_backed_gives_the_same_model(sctool, small_file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = []
    for flags in ([], ["--backed"], ["--backed"]):
        assert sctool("train", "scvi", small_file, *QUICK, *flags, "--name", "r", "--force").code == 0
        weights.append(files(tmp_path / "checkpoints" / "scvi" / "r")["model.safetensors"])
    assert weights[0] == weights[1] == weights[2]
    assert len(list((tmp_path / "cache" / "sctool").iterdir())) == 1


def test_an_atlas_file_replaces_cells_of_the_base(sctool, small, tmp_path):
    is_b = (small.obs["cell_type"] == "B cell").to_numpy()
    base, atlas = small[~is_b].copy(), small[is_b][:, np.arange(small.n_vars)[::-1]].copy()
    base.write_h5ad(tmp_path / "base.h5ad")
    atlas.write_h5ad(tmp_path / "atlas.h5ad")
    flags = ["--atlas", "atlas.h5ad", "--label-key", "cell_type", "--set", "data.validation=0"]
    for n in (0, 7):
        assert sctool("train", "scvi", "base.h5ad", *flags, "--atlas-count", n, *QUICK, "--name", f"n{n}").code == 0
        cells = pd.read_csv(tmp_path / "checkpoints" / "scvi" / f"n{n}" / "cells.csv")
        used = cells[cells["split"] == "train"]
        assert len(used) == base.n_obs
        assert (used["cell_type"] == "B cell").sum() == n


def test_whole_donors_are_validated_on(sctool, small, small_file, tmp_path):
    assert sctool("train", "scvi", small_file, "--group-key", "donor", *QUICK, "--name", "r").code == 0
    cells = pd.read_csv(tmp_path / "checkpoints" / "scvi" / "r" / "cells.csv").set_index("cell")
    sides = cells["split"].groupby(small.obs["donor"].astype(str)).nunique()
    assert (sides == 1).all()


def test_given_embedding_weighs_once(sctool, small, tmp_path):
    a = small.copy()
    a.obsm["X_pca"] = np.random.default_rng(0).normal(size=(a.n_obs, 5)).astype(np.float32)
    a.write_h5ad(tmp_path / "a.h5ad")
    assert sctool("train", "scvi", "a.h5ad", "--ar", "--ar-embedding", "X_pca", *QUICK, "--name", "r").code == 0
    from sctool import resampling_weights

    cells = pd.read_csv(tmp_path / "checkpoints" / "scvi" / "r" / "cells.csv")
    train = (cells["split"] == "train").to_numpy()
    wanted = resampling_weights(a.obsm["X_pca"][train], 100, 1e-4) * train.sum()
    np.testing.assert_allclose(cells["weight"][train], wanted, rtol=1e-6)


def test_compare_arms(sctool, small_file, tmp_path):
    flags = ["--hold-out", "part=test", "--label-key", "cell_type"]
    models = []
    for seed in (0, 1):
        for arm in ("ar", "no-ar"):
            assert sctool("train", "scvi", small_file, f"--{arm}", "--seed", seed, "--name", f"{arm}-{seed}", *flags, *QUICK).code == 0
            models += ["--model", f"checkpoints/scvi/{arm}-{seed}"]
    ran = sctool("eval", "classification", small_file, *models, *flags, "--name", "c", "--json")
    assert ran.code == 0
    said = json.loads(ran.out)
    assert set(said["scores"]) == {"ar-0", "no-ar-0", "ar-1", "no-ar-1", "pca", "log expression", "majority"}
    assert said["paired_with_standard"]["ar"]["macro_f1"]["pairs"] == 2
    results = tmp_path / "results" / "classification" / "c"
    assert strict_json(results / "metrics.json")["cells"] == said["cells"]
    predictions = pd.read_csv(results / "predictions.csv")
    assert next(iter(predictions.columns)) == "cell"
    trained_on = pd.read_csv(tmp_path / "checkpoints" / "scvi" / "ar-0" / "cells.csv")
    assert not set(predictions["cell"]) & set(trained_on["cell"][trained_on["split"] != "test"])
    per_type = pd.read_csv(results / "per_type.csv")
    assert {"label", "cells", "recall", "f1", "training_cells"} <= set(per_type.columns)
    assert sctool("eval", "reconstruction", small_file, *models, *flags, "--name", "c", "--quiet").code == 0
    recon = strict_json(tmp_path / "results" / "reconstruction" / "c" / "metrics.json")
    assert set(recon["scores"]) >= {"ar-0", "mean profile", "pca"}
    assert sctool("predict", "scvi", "checkpoints/scvi/ar-0", small_file, "--quiet").code == 0
    ran = sctool(
        "plot",
        "checkpoints/scvi/ar-0",
        "checkpoints/scvi/no-ar-0",
        "results/scvi/ar-0",
        results,
        "results/reconstruction/c",
        "--format",
        "png",
        "--format",
        "svg",
    )
    assert ran.code == 0
    drawn = [tmp_path / line for line in ran.out.split()]
    assert {path.name for path in drawn} >= {
        "training.png",
        "weights.png",
        "training-side-by-side.svg",
        "umap.png",
        "scores.png",
        "per-type.svg",
    }
    assert all(path.stat().st_size > 2000 for path in drawn)
    assert drawn[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def staged(folder, stages, **columns):
    """A history as a run of several stages writes it, its epochs counted anew in each."""
    rows = [
        pd.DataFrame({"epoch": np.arange(1, n + 1), "train_loss": top / np.arange(1, n + 1), "stage": stage})
        for stage, (n, top) in stages.items()
    ]
    folder.mkdir(parents=True)
    pd.concat(rows).assign(**columns).to_csv(folder / "history.csv", index=False)
    return folder


def test_a_panel_for_each_stage_of_training(sctool, tmp_path, monkeypatch):
    from sctool.report import figures

    stages = {"autoencoder": (30, 4000.0), "tuning": (9, 900.0), "diffusion": (4, 1.0)}
    first = staged(tmp_path / "checkpoints" / "integrate" / "a", stages, weights_ess=0.5, weights_entropy=0.4, weights_top1=0.1)
    second = staged(tmp_path / "checkpoints" / "integrate" / "b", {"transfer": (5, 800.0), "diffusion": (4, 1.0)})
    plain = staged(tmp_path / "checkpoints" / "scvi" / "c", {"": (5, 800.0)})
    pd.read_csv(plain / "history.csv").drop(columns="stage").to_csv(plain / "history.csv", index=False)
    drawn = []
    curves = figures._curves

    def watched(axis, histories, stage, unit):
        curves(axis, histories, stage, unit)
        lines = [line.get_xdata() for line in axis.get_lines()]
        assert all((np.diff(epochs) > 0).all() for epochs in lines)
        drawn.append((" ".join(histories), stage, axis.get_ylabel(), [len(epochs) for epochs in lines]))

    monkeypatch.setattr(figures, "_curves", watched)
    ran = sctool("plot", first, second, plain)
    assert ran.code == 0, ran.err
    assert {Path(line).name for line in ran.out.split()} == {"training.png", "weights.png", "training-side-by-side.png"}
    nats, squared = "loss (nats per cell)", "weighted squared error of v"
    each = {
        "a": [("a", "autoencoder", nats, [30]), ("a", "tuning", nats, [9]), ("a", "diffusion", squared, [4])],
        "b": [("b", "transfer", nats, [5]), ("b", "diffusion", squared, [4])],
        "c": [("c", "", nats, [5])],
    }
    beside = [*each["a"][:2], ("a b", "diffusion", squared, [4, 4]), *each["b"][:1], *each["c"]]
    assert drawn == [*each["a"], *each["b"], *each["c"], *beside]


def test_models_of_the_same_name_are_told_apart(sctool, small_file):
    flags = ("--hold-out", "part=test", "--label-key", "cell_type")
    for out, seed in (("here", 0), ("there", 1)):
        assert sctool("train", "scvi", small_file, *flags, *QUICK, "--name", "m", "--out", out, "--seed", seed).code == 0
    models = ("--model", "here/checkpoints/scvi/m", "--model", "there/checkpoints/scvi/m")
    ran = sctool("eval", "classification", small_file, *models, "--embedding", "obsm:X_pca", *flags, "--json", "--backed")
    assert ran.code == 2  # there is no such embedding
    ran = sctool("eval", "classification", small_file, *models, *flags, "--json", "--set", "data.cache_dir=cache", "--backed")
    assert {"here/checkpoints/scvi/m", "there/checkpoints/scvi/m"} <= set(json.loads(ran.out)["scores"])


def test_an_embedding_of_another_tool(sctool, small, small_file, tmp_path):
    np.save(tmp_path / "z.npy", np.eye(4)[small.obs["cell_type"].astype("category").cat.codes.to_numpy() % 4])
    ran = sctool("eval", "classification", small_file, "--embedding", "z.npy", "--label-key", "cell_type", "--json")
    assert ran.code == 0
    scores = json.loads(ran.out)["scores"]
    assert scores["z"]["accuracy"]["mean"] > scores["majority"]["accuracy"]["mean"]


def test_check_of_a_good_file(sctool, small_file):
    ran = sctool("check", small_file, "--for", "scvi", "--batch-key", "batch", "--json")
    assert ran.code == 0
    said = json.loads(ran.out)
    assert said["problems"] == []
    assert "raw counts" in said["about"]["X"]


def test_files_of_a_newer_anndata_are_read(sctool, tmp_path):
    path = ROOT / "tests" / "data" / "anndata_0_13.h5ad"
    flags = ("--epochs", "2", "--batch-key", "donor", "--quiet", "--name", "r")
    assert sctool("train", "scvi", path, *flags).code == 0
    manifest = strict_json(tmp_path / "checkpoints" / "scvi" / "r" / "manifest.json")
    assert manifest["genes"]["symbol"][0].startswith("S")
    a = ad.read_h5ad(path)
    symbols = ad.AnnData(a.layers["counts"], var=pd.DataFrame(index=a.var["symbol"].astype(str).to_numpy(object)))
    symbols.write_h5ad(tmp_path / "symbols.h5ad")
    assert sctool("predict", "scvi", "checkpoints/scvi/r", path, "--name", "same", "--quiet").code == 0
    ran = sctool("predict", "scvi", "checkpoints/scvi/r", "symbols.h5ad")
    assert "100%" in ran.err
    assert "'symbol'" in ran.err


def test_demo_is_used_and_said_when_no_file_is_given(sctool, tmp_path):
    ran = sctool("train", "scvi", "--ar", "--atlas-count", "100", "--epochs", "1", "--name", "r")
    assert ran.code == 0
    assert "bundled demo cells.h5ad" in ran.err
    cells = pd.read_csv(tmp_path / "checkpoints" / "scvi" / "r" / "cells.csv")
    used = cells[cells["split"].isin(["train", "validation"])]
    assert len(used) == 1952
    assert used["cell_type"].isin(["CD34+", "CD14+ Monocyte"]).sum() == 100


def test_held_out_cells_of_an_atlas_stay_out(sctool, small, tmp_path):
    is_b = (small.obs["cell_type"] == "B cell").to_numpy()
    small[~is_b].write_h5ad(tmp_path / "base.h5ad")
    small[is_b].write_h5ad(tmp_path / "atlas.h5ad")
    flags = ("--atlas", "atlas.h5ad", "--atlas-count", "20", "--hold-out", "donor=d1", *QUICK, "--name", "r")
    assert sctool("train", "scvi", "base.h5ad", *flags).code == 0
    cells = pd.read_csv(tmp_path / "checkpoints" / "scvi" / "r" / "cells.csv", dtype={"cell": str}).set_index("cell")
    used = cells.index[cells["split"].isin(["train", "validation"])]
    assert not (small.obs.loc[used, "donor"] == "d1").any()
    ran = sctool("train", "scvi", "base.h5ad", "--atlas", "atlas.h5ad", *QUICK)
    assert ran.code == 2
    assert "without --atlas-count" in ran.err


def test_an_interrupted_replacement_is_resumed_and_not_taken_for_the_old_run(trained, sctool):
    from sctool.artifacts.model_folder import RunPlace

    place = RunPlace(trained, resume=False, force=True)
    place.open({"seed": 1})
    place.state.write_bytes(b"state")
    place.close()
    assert place.state.exists()
    assert not RunPlace(trained, resume=True, force=False).finished


def test_embeddings_of_one_name_are_told_apart(sctool, small, small_file, tmp_path):
    codes = small.obs["cell_type"].astype("category").cat.codes.to_numpy()
    for folder, z in (("good", np.eye(9)[codes]), ("bad", np.random.default_rng(0).normal(size=(small.n_obs, 3)))):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "pca.npy", z)
    both = ("--embedding", "good/pca.npy", "--embedding", "bad/pca.npy")
    ran = sctool("eval", "classification", small_file, *both, "--label-key", "cell_type", "--json")
    scores = json.loads(ran.out)["scores"]
    assert scores["good/pca.npy"]["accuracy"]["mean"] > 0.99 > scores["bad/pca.npy"]["accuracy"]["mean"] + 0.2
    assert set(scores) >= {"pca", "good/pca.npy", "bad/pca.npy"}
