"""Sequential integration: data sets learned one after the other, with other batches, genes and labels."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml

from sctool.artifacts.model_folder import open_model
from sctool.data.demo import BATCHES
from sctool.data.phases import Phase, read_phases
from sctool.engine.query import load_module
from sctool.models.registry import BUILDERS
from tests.cli.conftest import FLAGS, KEYS
from tests.cli.test_commands import files, strict_json
from tests.cli.test_inputs import assert_told
from tests.cli.test_integrate import MODEL, checkpoint, results
from tests.engine.test_stages import StopAt


@pytest.fixture
def parts(lung, tmp_path):
    """Two files: disjoint batches, a fifth of the genes different, one label new and one missing in the second."""
    protocol = lung.obs["batch"].isin(["sc_celseq2", "sc_dropseq"]).to_numpy()
    kind = lung.obs["cell_type"].astype(str).to_numpy()
    first = lung[protocol & (kind != "A549"), :160].copy()
    second = lung[~protocol & (kind != "H2228"), 40:].copy()
    for name, part in (("first", first), ("second", second)):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    return {"first": first, "second": second}


def write_phases(tmp_path, *phases, wrap=None):
    path = tmp_path / "phases.yaml"
    path.write_text(yaml.safe_dump({wrap: list(phases)} if wrap else list(phases)))
    return path


def phase(tmp_path, name, data=None, **keys):
    return {"name": name, "data": str(tmp_path / f"{data or name}.h5ad"), "epochs": 2, **keys}


@pytest.fixture
def in_phases(sctool, parts, tmp_path):
    def run(*phases, words=(), name="r"):
        path = write_phases(tmp_path, *phases)
        return sctool("integrate", "--phases", path, *KEYS, *FLAGS, "--name", name, *words)

    return run


def weights(tmp_path, name):
    return open_model(checkpoint(tmp_path, name)).weights()


@pytest.mark.parametrize("transfer", ["replay", "finetune", "surgery"])
def test_two_phases_with_other_batches_genes_and_labels(in_phases, parts, tmp_path, transfer):
    ran = in_phases(phase(tmp_path, "first"), phase(tmp_path, "second", transfer=transfer))
    assert ran.code == 0, ran.err
    assert set(files(results(tmp_path))) == {"phases.csv", "metrics.json"}
    assert set(files(checkpoint(tmp_path, "r-first"))) == set(files(checkpoint(tmp_path, "r-second"))) == MODEL
    assert not list(tmp_path.rglob("*.part"))
    table = pd.read_csv(results(tmp_path) / "phases.csv")
    assert table[["after", "cells_of"]].to_numpy().tolist() == [["first", "first"], ["second", "first"], ["second", "second"]]
    assert list(table["cells"]) == [parts["first"].n_obs, parts["first"].n_obs, parts["second"].n_obs]
    assert table["accuracy"].between(0, 1).all()
    assert strict_json(results(tmp_path) / "metrics.json")["task"] == "phases"
    old, new = (open_model(checkpoint(tmp_path, f"r-{name}")) for name in ("first", "second"))
    assert old.manifest["vocabularies"]["label"] == ["H1975", "H2228"]
    assert new.manifest["vocabularies"]["label"] == ["H1975", "H2228", "A549"]
    batches = [model.manifest["vocabularies"]["batch"] for model in (old, new)]
    assert batches[1][:2] == batches[0] == ["sc_celseq2", "sc_dropseq"]
    assert len(batches[1]) == 5
    genes = [model.manifest["genes"]["name"] for model in (old, new)]
    assert (len(genes[0]), len(genes[1])) == (160, 200)
    assert genes[1][:160] == genes[0]
    history = new.table("history")
    assert list(history["stage"].unique()) == ["transfer", "diffusion"]
    assert (history["stage"] == "transfer").sum() == 2
    assert list(new.table("cells")["cell"]) == list(parts["second"].obs_names)
    module = load_module(new, BUILDERS["integrate"])
    seen = module.cells_cb.sum(0).tolist()
    assert all(n > 0 for n in seen), seen  # it remembers the cells of the first phase too
    assert seen[2:] == [int((parts["second"].obs["batch"] == name).sum()) for name in batches[1][2:]]
    assert (module.depth_b2[:, 0] > 0).all()
    if transfer == "surgery":
        was, now = weights(tmp_path, "r-first"), weights(tmp_path, "r-second")
        for name in ("network.rate.weight", "network.encoder.mean.weight", "prior.mean"):
            kept = tuple(slice(0, n) for n in was[name].shape)
            np.testing.assert_array_equal(now[name][kept], was[name])


def test_labels_may_come_and_go(in_phases, lung, tmp_path):
    """Supervised, unsupervised, supervised: each loads the one before it, and the labels are kept on the way."""
    ran = in_phases(
        phase(tmp_path, "first", mode="supervised"),
        phase(tmp_path, "second", mode="unsupervised"),
        phase(tmp_path, "third", "second", supervised=True, batch_key="protocol"),
    )
    assert ran.code == 0, ran.err
    models = [open_model(checkpoint(tmp_path, f"r-{name}")) for name in ("first", "second", "third")]
    assert [model.manifest["data"]["mode"] for model in models] == ["supervised", "unsupervised", "supervised"]
    assert [model.manifest["vocabularies"].get("label") for model in models] == [["H1975", "H2228"]] * 2 + [["H1975", "H2228", "A549"]]
    for model in models:
        load_module(model, BUILDERS["integrate"])
    table = pd.read_csv(results(tmp_path) / "phases.csv")
    assert len(table) == 6
    assert table["accuracy"].notna().all()


@pytest.mark.parametrize("transfer", ["replay", "finetune", "surgery"])
def test_from_no_labels_to_labels_and_on(in_phases, tmp_path, transfer):
    """Free components are forgotten for labels; what is replayed of them has no label."""
    ran = in_phases(
        phase(tmp_path, "first", mode="unsupervised"),
        phase(tmp_path, "second", mode="supervised", transfer=transfer),
        phase(tmp_path, "again", "first", mode="unsupervised", transfer=transfer),
    )
    assert ran.code == 0, ran.err
    made = [open_model(checkpoint(tmp_path, f"r-{name}")) for name in ("first", "second", "again")]
    assert [model.manifest["vocabularies"].get("label") for model in made] == [None, ["A549", "H1975"], ["A549", "H1975"]]
    prior = weights(tmp_path, "r-second")["prior.share"].softmax(0)
    labels = open_model(checkpoint(tmp_path, "r-second")).table("cells")["cell_type"]
    shares = np.array([(labels == name).mean() for name in ("A549", "H1975")])
    np.testing.assert_allclose(prior, shares, atol=0.1)


def test_a_phase_with_nothing_new(in_phases, tmp_path):
    for transfer in ("finetune", "surgery"):
        phases = phase(tmp_path, "first"), phase(tmp_path, "more", "first", transfer=transfer)
        ran = in_phases(*phases, name=transfer)
        assert ran.code == 0, ran.err
        assert "taken for the same" in ran.err


def test_variants_can_go_through_phases(in_phases, tmp_path):
    variant = ("--set", "integrate.dispersion=gene-batch", "--set", "integrate.likelihood=zinb")
    ran = in_phases(phase(tmp_path, "first"), phase(tmp_path, "second"), words=variant)
    assert ran.code == 0, ran.err
    ran = in_phases(phase(tmp_path, "first"), phase(tmp_path, "second"), words=("--ar",), name="ar")
    assert ran.code == 0, ran.err


def test_phases_twice_and_resumed(in_phases, tmp_path):
    phases = phase(tmp_path, "first"), phase(tmp_path, "second")
    assert in_phases(*phases, name="a").code == 0
    assert in_phases(*phases, name="b").code == 0
    for name in ("first", "second"):
        assert (
            files(checkpoint(tmp_path, f"a-{name}"))["model.safetensors"] == files(checkpoint(tmp_path, f"b-{name}"))["model.safetensors"]
        )
    pd.testing.assert_frame_equal(*(pd.read_csv(results(tmp_path, n) / "phases.csv") for n in ("a", "b")))
    assert_told(in_phases(*phases, name="a"), "is there already", "--force")
    kept = files(checkpoint(tmp_path, "a-first"))
    times = (checkpoint(tmp_path, "a-first") / "model.safetensors").stat().st_mtime_ns
    ran = in_phases(*phases, phase(tmp_path, "third", "first"), name="a", words=("--resume", "--json"))
    assert ran.code == 0, ran.err
    assert files(checkpoint(tmp_path, "a-first")) == kept
    assert (checkpoint(tmp_path, "a-first") / "model.safetensors").stat().st_mtime_ns == times
    assert len(json.loads(ran.out)["phases"]) == 6


@pytest.mark.parametrize("stage", ["transfer", "diffusion"])
def test_a_phase_killed_and_resumed_ends_as_one_that_was_not(in_phases, tmp_path, monkeypatch, stage):
    phases = phase(tmp_path, "first"), phase(tmp_path, "second")
    kept = ("--set", "train.checkpoint_seconds=0", "--batch-size", "32")
    assert in_phases(*phases, name="whole", words=kept).code == 0

    reporters = iter([StopAt(-1), StopAt(3, stage)])  # of the first phase, and of the second
    monkeypatch.setattr("sctool.engine.progress.TerminalReporter", lambda console: next(reporters))
    with pytest.raises(RuntimeError, match="killed"):
        in_phases(*phases, name="cut", words=kept)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert not checkpoint(tmp_path, "cut-second").exists()
    ran = in_phases(*phases, name="cut", words=(*kept, "--resume"))
    assert ran.code == 0, ran.err
    for name in ("first", "second"):
        was, now = weights(tmp_path, f"whole-{name}"), weights(tmp_path, f"cut-{name}")
        for key, tensor in was.items():
            np.testing.assert_array_equal(now[key], tensor)
    pd.testing.assert_frame_equal(*(pd.read_csv(results(tmp_path, n) / "phases.csv") for n in ("whole", "cut")))


def test_going_on_from_a_trained_model(in_phases, sctool, tmp_path):
    assert in_phases(phase(tmp_path, "first")).code == 0
    ran = in_phases(phase(tmp_path, "second"), words=("--model", checkpoint(tmp_path, "r-first")), name="on")
    assert ran.code == 0, ran.err
    there = in_phases(phase(tmp_path, "second", resume_from=str(checkpoint(tmp_path, "r-first"))), name="file")
    assert there.code == 0, there.err
    both = in_phases(phase(tmp_path, "first"), phase(tmp_path, "second"), name="both")
    assert both.code == 0
    made = [files(checkpoint(tmp_path, f"{name}-second"))["model.safetensors"] for name in ("on", "file", "both")]
    assert made[0] == made[1] == made[2]


def test_a_replay_needs_a_diffusion(in_phases, tmp_path):
    none = ("--set", "diffusion.train_steps=0")
    ran = in_phases(phase(tmp_path, "first"), phase(tmp_path, "second"), words=none)
    assert_told(ran, "no diffusion to replay from", "finetune")
    ran = in_phases(phase(tmp_path, "first"), phase(tmp_path, "second", transfer="finetune"), words=none, name="x")
    assert ran.code == 0, ran.err


def test_what_a_phase_does_not_say_is_left_as_it_is():
    assert Phase(name="a").settings() == {}
    assert Phase(name="a", n_epochs=3, data_path="x.h5ad", supervised=False).settings() == {
        "data.path": "x.h5ad",
        "integrate.mode": "unsupervised",
        "train.epochs": 3,
    }
    assert Phase(name="a", supervised=True).settings()["integrate.mode"] in ("auto", "supervised")


@pytest.mark.parametrize("wrap", [None, "phases", "sessions"])
def test_ways_to_write_the_list(tmp_path, wrap):
    path = write_phases(tmp_path, {"name": "a", "epochs": 3}, {"name": "b", "transfer": "surgery"}, wrap=wrap)
    assert [made.name for made in read_phases(path)] == ["a", "b"]


BROKEN = {
    "unknown key": ("- {name: a, epoch: 3}", "phase 1: epoch", "keys: "),
    "unknown key of the second": ("- {name: a}\n- {name: b, modus: auto}", "phase 2: modus", "keys: "),
    "no name": ("- {epochs: 3}", "phase 1: name", "keys: "),
    "a name with a slash": ("- {name: a/b}", "phase 1: name", "keys: "),
    "no epochs": ("- {name: a, epochs: 0}", "phase 1: epochs", "keys: "),
    "a mode that is none": ("- {name: a, mode: sometimes}", "phase 1: mode", "keys: "),
    "a transfer that is none": ("- {name: a, transfer: magic}", "phase 1: transfer", "keys: "),
    "no mapping": ("- a\n- b", "phase 1", ""),
    "no list": ("name: a", "no list of phases", "write: "),
    "empty": ("", "no list of phases", "write: "),
    "an empty list": ("[]", "no list of phases", "write: "),
    "a word": ("phases", "no list of phases", "write: "),
    "not YAML": ("- {name: a", "not valid YAML", "mend"),
    "twice the same name": ("- {name: a}\n- {name: a}", "same name", "its own"),
    "an absent file": ("- {name: a, data: nowhere.h5ad}", "nowhere.h5ad", "data"),
    "an absent file later": ("- {name: a, data: first.h5ad}\n- {name: b, data: nowhere.h5ad}", "nowhere.h5ad", "data"),
    "an absent column": ("- {name: a, data: first.h5ad, batch_key: bach}", "no column 'bach'", "did you mean 'batch'"),
    "an absent column later": (
        "- {name: a, data: first.h5ad}\n- {name: b, data: second.h5ad, label_key: celltype}",
        "no column 'celltype'",
        "did you mean 'cell_type'",
    ),
    "an absent model": ("- {name: a, data: first.h5ad, resume_from: nowhere}", "not a model folder", "checkpoints"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_line_and_a_remedy(sctool, parts, tmp_path, case):
    text, what, remedy = BROKEN[case]
    (tmp_path / "phases.yaml").write_text(text)
    before = set(tmp_path.rglob("*"))
    assert_told(sctool("integrate", "--phases", "phases.yaml", *KEYS, *FLAGS, "--name", "r"), what, remedy)
    assert set(tmp_path.rglob("*")) == before


def test_no_file_of_phases(sctool, tmp_path):
    assert_told(sctool("integrate", "--phases", "nowhere.yaml", *KEYS, *FLAGS), "no such file", "--phases")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_cells_of_the_first_phase_keep_their_types(sctool, lung, tmp_path):
    """After a second phase with other batches, genes and labels; what the model replays is all it has of the first."""
    a = ad.read_h5ad(BATCHES.path)
    own = a.obs["batch"].isin(["sc_celseq2", "sc_dropseq"]).to_numpy()
    first, second = a[own, :800].copy(), a[~own & (a.obs["cell_type"] != "H2228").to_numpy(), 160:960].copy()
    for name, part in (("first", first), ("second", second)):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    phases = [{"name": name, "data": f"{name}.h5ad", "epochs": 80} for name in ("first", "second")]
    write_phases(tmp_path, *phases)
    assert sctool("integrate", "--phases", "phases.yaml", *KEYS, "--name", "r", "--no-score", "--quiet").code == 0
    tables = []
    for name in ("first", "second"):
        words = ("--model", checkpoint(tmp_path, f"r-{name}"), "--name", name, "--no-score", "--quiet")
        assert sctool("integrate", "first.h5ad", *words).code == 0
        tables.append(pd.read_csv(results(tmp_path, name) / "cell_type_predictions.csv"))
    assert (tables[0]["label"].to_numpy() == first.obs["cell_type"].to_numpy()).mean() > 0.95
    assert (tables[0]["label"] == tables[1]["label"]).mean() >= 0.98
