"""``eval perturbation`` on predictions of any tool, and on runs."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from sctool.artifacts.model_folder import save_model
from sctool.config import Config
from tests.perturbation_eval.conftest import DOUBLES, GENES


def keys(files, *more):
    given = ["--data", files / "screen.h5ad", "--perturbation-key", "guide", "--control", "ctrl", "--delimiter", "_"]
    return [*given, "--split-key", "part", *more]


def test_tables_and_cells_of_any_tool(files, sctool, evaluation):
    expected = evaluation.scores.set_index("name")
    ran = sctool(
        "eval",
        "perturbation",
        *(files / name for name in ("change.tsv", "mean.csv", "own-control.csv", "long.csv")),
        *keys(files, "--name", "all"),
    )
    assert ran.code == 0, ran.err
    scores = pd.read_csv("results/perturbation/all/scores.csv").set_index("name")
    for name in ("change", "mean", "own-control", "long", "additive"):
        for column in ("change_r", "change_error", "discrimination_l2"):
            assert scores.loc[name, column] == pytest.approx(expected.loc["additive", column], abs=1e-3), (name, column)
    assert "change.tsv: its values are taken as changes" in ran.err
    assert "mean.csv: its values are taken as mean log expression" in ran.err
    assert "perturbed_mean" in ran.out

    ran = sctool("eval", "perturbation", files / "cells.h5ad", *keys(files, "--json"))
    assert ran.code == 0, ran.err
    made = json.loads(ran.out)
    assert made["results"] == "results/perturbation/cells"
    assert made["scores"]["cells"]["energy_distance"]["mean"] < made["scores"]["additive"]["energy_distance"]["mean"]
    assert pd.read_csv("results/perturbation/cells/changes.csv").shape == (4 * len(GENES), 6)
    assert sctool("eval", "perturbation", files / "cells.h5ad", *keys(files)).code == 2  # is there already


def test_without_a_split_all_cells_are_scored_and_baselines_learn_from_the_others(files, sctool):
    ran = sctool("eval", "perturbation", files / "change.tsv", *keys(files)[:-2])
    assert ran.code == 0, ran.err
    for words in ("no --split-key, so all perturbed cells are scored", "random half of the 120", "in turn"):
        assert words in ran.err
    scores = pd.read_csv("results/perturbation/change/scores.csv").set_index("name")
    assert scores.loc["change", "perturbations"] == 9
    assert 0 < scores.loc["additive", "change_r"] < scores.loc["change", "change_r"]  # the single ones are not known to it


BAD = {
    "no file": (["nowhere.csv"], "no such folder or file", "sctool predict cradle"),
    "no data": (["mean.csv"], "the real cells are not known", "--data"),
    "no column": (["cells.h5ad", "--perturbation-key", "gide"], "no column 'gide'", "guide"),
    "no such split": (["mean.csv", "--split-key", "guide"], "has no 'train' cell", "train, validation and test"),
    "another format": (["screen.loom"], "neither an .h5ad nor a table", ".csv"),
    "not a number": (["text.csv"], "A_B, g3 is 'high', not a number", "every gene"),
    "a gap": (["gap.csv"], "A_B, g3 is empty", "every gene"),
    "no name": (["unnamed.csv"], "a row without a perturbation", "name it"),
    "transposed": (["transposed.csv"], "genes as rows", "transpose it"),
    "twice": (["twice.csv"], "'A+B' more than once", "one row"),
    "other genes": (["genes.csv"], "0 of the 65 genes", "name its genes"),
    "other perturbations": (["others.csv"], "none of the 4 held-out perturbations", "parts joined"),
    "no value": (["novalue.csv"], "no column change, mean or value", "add one"),
    "no predictions": (["empty"], "holds no predictions of perturbations", "predict cradle"),
    "empty": (["nothing.csv"], "cannot be read", "header"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_says_what_is_wrong(case, files, sctool):
    mean = pd.read_csv(files / "mean.csv", index_col=0)
    (files / "empty").mkdir(exist_ok=True)
    (files / "screen.loom").touch()
    (files / "nothing.csv").touch()
    mean.astype(object).where(~((mean.index == "A_B")[:, None] & (mean.columns == "g3")), "high").to_csv(files / "text.csv")
    mean.where(~((mean.index == "A_B")[:, None] & (mean.columns == "g3"))).to_csv(files / "gap.csv")
    mean.rename(index={"A_B": ""}).to_csv(files / "unnamed.csv")
    mean.T.rename_axis("gene").to_csv(files / "transposed.csv")
    pd.concat([mean, mean.loc[["A_B"]].set_axis(["B_A"])]).to_csv(files / "twice.csv")
    mean.add_prefix("x").to_csv(files / "genes.csv")
    mean.loc[["A", "B"]].to_csv(files / "others.csv")
    pd.DataFrame({"perturbation": ["A"], "gene": ["g1"], "x": [1]}).to_csv(files / "novalue.csv", index=False)
    (name, *flags), words, remedy = BAD[case]
    given = keys(files) if case != "no data" else []
    ran = sctool("eval", "perturbation", files / name, *given, *flags)
    assert ran.code == 2
    assert words in ran.err
    assert remedy in ran.err
    assert "Traceback" not in ran.err


def write_run(out, name, data, table, names, split, fail=None, **more):
    """A model folder and its predictions, as training and prediction leave them."""
    trained = Config().replaced({"cradle.perturbation_key": "guide", "cradle.control": "ctrl", "cradle.delimiter": "_"})
    cells = pd.DataFrame({"cell": [f"c{at}" for at in range(len(names))], "split": split, "perturbation": names})
    cells["quality"] = "pass" if fail is None else np.where(fail, "fail", "pass")
    about = {"config": trained.model_dump(), "seed": 3, "sampler": "uniform", "data": {"file": str(data)}}
    folder = save_model(out / "checkpoints/cradle" / name, "cradle", {"x": torch.zeros(1)}, about, {"cells": cells}).path
    result = out / "results/cradle" / name
    result.mkdir(parents=True)
    table.rename_axis("perturbation").to_csv(result / "predictions.csv")
    note = {"task": "perturbation", "model": str(folder), "run": name, "seed": 3, "sampler": "uniform", "target_sum": 1e4}
    note |= {"kind": "cradle", "file": str(data), "perturbations": list(table.index), **more}
    (result / "prediction.json").write_text(json.dumps(note))
    return result


@pytest.fixture
def table(additive, means):
    """Predicted means, 1 too high for the control too."""
    own = pd.DataFrame([means.control_g], index=["control"], columns=GENES)
    return pd.concat([own, pd.DataFrame(additive, index=GENES).T + means.control_g]) + 1


def test_a_run_is_scored_on_the_cells_it_never_saw(files, made, table, sctool, tmp_path):
    names, split, _, _ = made
    fail = np.zeros(len(names), bool)
    fail[::7] = True
    result = write_run(tmp_path, "mine", files / "screen.h5ad", table, names, split, fail, quality="pass")
    ran = sctool("eval", "perturbation", result)
    assert ran.code == 0, ran.err
    assert "passing cells are scored" in ran.err
    scores = pd.read_csv(result / "scores.csv").set_index("name")
    assert scores.loc["cradle", ["seed", "arm", "run"]].tolist() == [3, "standard", "mine"]
    each = pd.read_csv(result / "per_perturbation.csv").query("name == 'cradle'").set_index("perturbation")
    expected = pd.Series(names[(split == "test") & ~fail]).value_counts()
    assert each["cells"].to_dict() == expected.drop("control").to_dict()
    assert each["control_cells"].iloc[0] == expected["control"]

    # beside a run, predictions of other tools are scored on its held-out cells; here on all of them
    ran = sctool("eval", "perturbation", files / "mean.csv", result, "--set", "cradle.qc_key=none", "--name", "both")
    assert ran.code == 0, ran.err
    assert "passing cells" not in ran.err
    both = pd.read_csv("results/perturbation/both/scores.csv").set_index("name")["change_r"]
    assert both["cradle"] == pytest.approx(both["additive"], abs=1e-4)
    assert both["mean"] == pytest.approx(both["additive"], abs=1e-4)


def test_runs_on_other_splits_have_their_own_truth_and_baselines(files, made, table, sctool, tmp_path):
    names, split, _, _ = made
    other = np.where(np.isin(names, DOUBLES[:2]), "train", split)
    runs = [
        write_run(tmp_path, name, files / "screen.h5ad", table, names, part, sampler=sampler)
        for name, part, sampler in (("a", split, "uniform"), ("a-ar", split, "adaptive"), ("b", other, "uniform"))
    ]
    ran = sctool("eval", "perturbation", *runs, "--name", "splits", "--json")
    assert ran.code == 0, ran.err
    scores = pd.read_csv("results/perturbation/splits/scores.csv").set_index(["name", "split", "seed"])["perturbations"]
    counted = scores.to_dict()
    assert counted["cradle", "a", 3] == counted["cradle ar", "a", 3] == 4
    assert counted["cradle", "b", 3] == counted["additive", "b", -1] == counted["split half", "b", 0] == 2
    assert ("cradle ar", "b", 3) not in counted
    assert json.loads(ran.out)["paired_with_standard"]["ar"]["change_r"]["pairs"] == 1
