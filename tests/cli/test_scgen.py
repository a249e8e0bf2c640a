"""scGen from the command line: train, predict, eval, plot, and what goes wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sctool.config import load_config
from sctool.data.demo import TREATED
from sctool.data.response import prepare_response
from tests.conftest import VECTORS

QUICK = ("--epochs", "4", "--n-hidden", "32", "--n-latent", "8", "--quiet")
RUN = "treated-PW034-standard-seed0"


@pytest.fixture(scope="module")
def treated():
    return ad.read_h5ad(TREATED.path)


@pytest.fixture
def predicted(sctool, tmp_path):
    assert sctool("train", "scgen", *QUICK).code == 0
    ran = sctool("predict", "scgen", f"checkpoints/scgen/{RUN}", "--quiet")
    assert ran.code == 0, ran.err
    return tmp_path / "results" / "scgen" / RUN


def test_from_training_to_pictures(sctool, predicted, treated, tmp_path):
    cells = ad.read_h5ad(predicted / "predictions.h5ad")
    controls = treated.obs_names[(treated.obs["donor"] == "PW034") & (treated.obs["condition"] == "control")]
    assert list(cells.obs_names) == list(controls)
    assert list(cells.var_names) == list(treated.var_names)  # every gene is predicted
    assert set(cells.obs["condition"]) == {"predicted panobinostat"}
    assert np.isfinite(cells.X).all()

    trained = pd.read_csv(tmp_path / "checkpoints" / "scgen" / RUN / "cells.csv", dtype=str)
    held = (trained["donor"] == "PW034") & (trained["condition"] == "panobinostat")
    assert set(trained["split"][held]) == {"test"}
    assert "test" not in set(trained["split"][~held])

    weights = pd.read_csv(predicted / "weights.csv")
    assert weights["weight"].sum() == pytest.approx(1)
    assert "PW034" not in set(weights["from"])

    ran = sctool("eval", "scgen", predicted, "--quiet")
    assert ran.code == 0, ran.err
    metrics = json.loads((predicted / "metrics.json").read_text())
    names = {
        "scGen",
        "no change",
        "mean change",
        "nearest group",
        "similar groups",
        "similar groups, proportional",
        "per-gene linear",
        "real half",
    }
    assert set(metrics["scores"]) == names
    error = {name: values["change_error"]["mean"] for name, values in metrics["scores"].items()}
    assert error["no change"] == pytest.approx(1)
    assert error["real half"] < error["scGen"] < 1
    published = pd.read_csv(predicted / "published_metrics.csv")
    assert list(published.columns) == list(np.load(VECTORS / "ar_scgen_eval.npz")["csv_columns"])
    assert published["experiment_id"].unique() == ["treated-oodTrue-variable_conFalse"]

    ran = sctool("plot", predicted, "--quiet")
    assert ran.code == 0, ran.err
    assert {path.name for path in (predicted / "plots").iterdir()} >= {"groups.png", "genes.png", "umap.png", "summary.csv", "summary.tex"}
    assert "per-gene linear" in (predicted / "plots" / "summary.tex").read_text()
    assert sctool("eval", "scgen", predicted, "--quiet").code == 2  # it is there already
    assert sctool("eval", "scgen", predicted, "--quiet", "--force").code == 0


def test_predictions_for_another_file_need_the_model_only(sctool, predicted, treated, tmp_path):
    """Control cells alone, genes in another order: the same response."""
    own = ad.read_h5ad(predicted / "predictions.h5ad")
    query = treated[own.obs_names][:, treated.var_names[::-1]].copy()
    del query.obs["condition"]
    query.write_h5ad(tmp_path / "query.h5ad")
    ran = sctool("predict", "scgen", f"checkpoints/scgen/{RUN}", "query.h5ad", "--name", "query", "--quiet")
    assert ran.code == 0, ran.err
    again = ad.read_h5ad(tmp_path / "results" / "scgen" / "query" / "predictions.h5ad")
    assert list(again.var_names) == list(own.var_names)
    np.testing.assert_allclose(again.X, own.X, atol=1e-4)


def test_log_expression_is_read_as_it_is(sctool, treated, tmp_path):
    import scanpy as sc

    logged = treated.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    logged.uns.clear()
    logged.write_h5ad(tmp_path / "logged.h5ad")
    words = ("--condition-key", "condition", "--control", "control", "--group-key", "donor", "--held-out", "PW034")
    assert sctool("train", "scgen", "logged.h5ad", *words, *QUICK, "--name", "logged").code == 0
    notes = json.loads((tmp_path / "checkpoints" / "scgen" / "logged" / "manifest.json").read_text())["data"]
    assert notes["target_sum"] == pytest.approx(1e4, rel=1e-3)  # found in the values
    flags = {"data.group_key": "donor", "scgen.condition_key": "condition", "scgen.control": "control", "scgen.held_out": "PW034"}
    made = [prepare_response(path, load_config(None, flags, [], "scgen")) for path in (TREATED.path, tmp_path / "logged.h5ad")]
    np.testing.assert_allclose(made[0].matrix.toarray(), made[1].matrix.toarray(), rtol=1e-5)
    np.testing.assert_array_equal(made[0].split, made[1].split)


def test_adaptive_resampling_and_designs(sctool, tmp_path):
    assert sctool("train", "scgen", "--ar", *QUICK).code == 0
    history = pd.read_csv(tmp_path / "checkpoints" / "scgen" / "treated-PW034-ar-seed0" / "history.csv")
    assert (history["weights_ess"].iloc[1:] < 1).all()
    assert sctool("train", "scgen", "--control-share", "0", *QUICK).code == 0
    cells = pd.read_csv(tmp_path / "checkpoints" / "scgen" / "treated-PW034-share0-standard-seed0" / "cells.csv", dtype=str)
    assert set(cells["split"][cells["donor"] == "PW034"]) == {"test", "unused"}
    for words, run in (
        (("--random-share", "0.2"), "treated-random0.2-standard-seed0"),
        (("--in-distribution", "PW036"), "treated-in-PW036-standard-seed0"),
    ):
        assert sctool("train", "scgen", *words, *QUICK).code == 0
        assert sctool("predict", "scgen", f"checkpoints/scgen/{run}", "--quiet").code == 0
        ran = sctool("eval", "scgen", f"results/scgen/{run}", "--quiet")
        assert ran.code == 0, ran.err


@pytest.mark.slow
def test_the_loop_of_the_readme(tmp_path):
    """A shell script over groups, seeds and arms; run again it trains nothing."""
    train = f"""
    for g in PW030 PW034; do for a in ar no-ar; do
      sctool train scgen --held-out $g --$a --resume {" ".join(QUICK)}
    done; done
    """
    rest = """
    for r in checkpoints/scgen/*; do sctool predict scgen $r --resume --quiet; done
    sctool eval scgen results/scgen/treated-* --name loop --force --quiet
    sctool plot results/scgen/loop --quiet
    """
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    written = []
    for script in (train + rest, train):
        done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        written.append({path: path.stat().st_mtime_ns for path in tmp_path.glob("checkpoints/scgen/*/model.safetensors")})
    assert len(written[0]) == 4
    assert written[0] == written[1]
    metrics = json.loads((tmp_path / "results" / "scgen" / "loop" / "metrics.json").read_text())
    assert metrics["paired_with_standard"]["ar"]["change_r"]["pairs"] == 2
    assert len(metrics["runs"]) == 4
    assert (tmp_path / "results" / "scgen" / "loop" / "plots" / "methods.png").exists()


def test_predictions_of_another_tool(sctool, treated, tmp_path):
    """Control cells as the prediction: it scores like no change."""
    import scanpy as sc

    cells = treated[(treated.obs["donor"] == "PW034") & (treated.obs["condition"] == "control")].copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    cells.write_h5ad(tmp_path / "theirs.h5ad")
    words = (
        "--condition-key",
        "condition",
        "--control",
        "control",
        "--perturbed",
        "panobinostat",
        "--group-key",
        "donor",
        "--held-out",
        "PW034",
    )
    assert sctool("eval", "scgen", "theirs.h5ad", *words, "--quiet").code == 2
    ran = sctool("eval", "scgen", "theirs.h5ad", "--data", TREATED.path, *words, "--quiet")
    assert ran.code == 0, ran.err
    scores = pd.read_csv(tmp_path / "results" / "scgen" / "theirs" / "scores.csv").set_index("name")
    assert scores.loc["theirs", "change_error"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--held-out", "PW999"), "no group 'PW999'"),
        (("--held-out", "PW034", "--control", "dmso"), "no 'dmso'"),
        (("--group-key", "patient"), "no column 'patient'"),
        (("--control-share", "2"), "control_share"),
        (("--held-out", "PW034", "--random-share", "0.2"), "exclude each other"),
    ],
)
def test_wrong_settings_write_nothing(sctool, tmp_path, words, said):
    ran = sctool("train", "scgen", *words, *QUICK)
    assert ran.code == 2
    assert said in ran.err
    assert "fix:" in ran.err
    assert not (tmp_path / "checkpoints").exists()


def test_wrong_places(sctool, predicted, tmp_path):
    model = f"checkpoints/scgen/{RUN}"
    for words, said in (
        (("predict", "scgen", model, "--group", "PW999", "--name", "new"), "PW999"),
        (("predict", "scgen", "checkpoints/scgen/none"), "not a model folder"),
        (("predict", "scvi", model), "scgen model"),
        (("eval", "scgen", "results/scgen/none"), "no such folder"),
        (("eval", "classification", TREATED.path, "--model", model, "--label-key", "donor"), "scgen model"),
        (("predict", "scgen", model), "is there already"),
    ):
        ran = sctool(*words)
        assert ran.code == 2, words
        assert said in ran.err


def test_check_for_scgen(sctool, treated, tmp_path):
    words = ("--for", "scgen", "--group-key", "donor", "--condition-key", "condition", "--control", "control", "--held-out", "PW034")
    ran = sctool("check", TREATED.path, *words)
    assert ran.code == 0, ran.err
    assert "ready for scgen" in ran.out
    scaled = treated.copy()
    scaled.X = scaled.X.toarray() - 1.0
    scaled.write_h5ad(tmp_path / "scaled.h5ad")
    ran = sctool("check", "scaled.h5ad", *words[:-1], "PW999")
    assert ran.code == 2
    assert "scaled data" in ran.out
    assert "no group 'PW999'" in ran.out


def test_two_treatments_in_one_file_are_two_cases(sctool, treated, tmp_path):
    """Each is scored against its own real cells, and runs with other settings are not taken for each other."""
    two = treated.copy()
    condition = two.obs["condition"].astype(str).to_numpy(object)
    condition[np.flatnonzero(condition == "panobinostat")[::2]] = "other"
    two.obs["condition"] = condition
    two.write_h5ad(tmp_path / "two.h5ad")
    words = ("two.h5ad", "--condition-key", "condition", "--control", "control", "--group-key", "donor", "--held-out", "PW034", *QUICK)
    for drug in ("panobinostat", "other"):
        assert sctool("train", "scgen", *words, "--perturbed", drug, "--name", drug).code == 0
        assert sctool("predict", "scgen", f"checkpoints/scgen/{drug}", "--quiet").code == 0
        assert sctool("eval", "scgen", f"results/scgen/{drug}", "--quiet").code == 0
    assert sctool("eval", "scgen", "results/scgen/panobinostat", "results/scgen/other", "--name", "both", "--quiet").code == 0
    both = pd.read_csv(tmp_path / "results" / "scgen" / "both" / "scores.csv").query("name == 'scGen'").set_index("run")
    for drug in ("panobinostat", "other"):
        alone = pd.read_csv(tmp_path / "results" / "scgen" / drug / "scores.csv").query("name == 'scGen'")
        assert both.loc[drug, "change_r"] == pytest.approx(alone["change_r"].item(), abs=1e-6)
    ran = sctool("train", "scgen", *words, "--perturbed", "other", "--name", "panobinostat", "--resume")
    assert ran.code == 2
    assert "scgen.perturbed was 'panobinostat' and is 'other'" in ran.err


def test_a_file_is_told_by_its_cells(sctool, treated, tmp_path):
    """Moved, the design of training still holds; changed under the same name, it is refused."""
    treated.write_h5ad(tmp_path / "mine.h5ad")
    words = ("--condition-key", "condition", "--control", "control", "--group-key", "donor", "--in-distribution", "PW034", *QUICK)
    assert sctool("train", "scgen", "mine.h5ad", *words, "--name", "m").code == 0
    (tmp_path / "mine.h5ad").rename(tmp_path / "moved.h5ad")
    assert sctool("predict", "scgen", "checkpoints/scgen/m", "moved.h5ad", "--quiet").code == 0
    cells = pd.read_csv(tmp_path / "checkpoints" / "scgen" / "m" / "cells.csv", dtype=str).set_index("cell")
    predicted = ad.read_h5ad(tmp_path / "results" / "scgen" / "m" / "predictions.h5ad")
    assert set(cells.loc[predicted.obs_names, "split"]) == {"test"}
    treated[::-1].copy().write_h5ad(tmp_path / "mine.h5ad")
    ran = sctool("predict", "scgen", "checkpoints/scgen/m", "--name", "again")
    assert ran.code == 2
    assert "has other cells" in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--label-key", "celltype"), "no column 'celltype'"),
        (("--set", "data.hold_out=donor=nobody"), "no 'nobody'"),
    ],
)
def test_other_columns_are_checked(sctool, words, said):
    ran = sctool("train", "scgen", *words, *QUICK)
    assert ran.code == 2
    assert said in ran.err


def test_a_mistyped_condition_key_of_a_query_is_an_error(sctool, predicted):
    ran = sctool("predict", "scgen", f"checkpoints/scgen/{RUN}", TREATED.path, "--condition-key", "conditon", "--name", "q")
    assert ran.code == 2
    assert "no column 'conditon'" in ran.err
