"""Runs of several stages: averaged weights and decaying rates resumed, a run killed in any stage, replay."""

import numpy as np
import pandas as pd
import pytest
import torch

from sctool.artifacts.model_folder import RunPlace
from sctool.config import Config
from sctool.data.integration import prepare_integration
from sctool.data.latents import LatentStore
from sctool.data.phases import with_replayed
from sctool.data.samplers import UniformSampler, WithReplay
from sctool.engine.integrate import integration_stages, panels, replay
from sctool.engine.run import run_training
from sctool.engine.trainer import Trainer
from sctool.errors import Interrupted
from sctool.models.diffusion import LatentDiffusion
from sctool.models.registry import BUILDERS
from sctool.sections import DiffusionConfig, IntegrateConfig, TrainConfig
from tests.engine.test_trainer import make_trainer, same_weights


@pytest.fixture(scope="module")
def counts(small):
    return small.X.tocsr()


class StopAt:
    """A reporter that breaks a run off after so many steps of the stage of a name, as a kill would."""

    def __init__(self, steps, stage=None):
        self.left, self.stage, self.now = steps, stage, None
        self.started = []

    def start(self, epochs, done, title):
        self.now = title
        self.started.append((title, done))

    def epoch(self, row): ...
    def stop(self, message): ...

    def step(self, cells):
        self.left -= self.stage in (None, self.now)
        if self.left == 0:
            raise RuntimeError("killed")


SETTINGS = {
    "average": {"ema": 0.9},
    "decay": {"lr_decay": "cosine"},
    "both": {"ema": 0.9, "lr_decay": "cosine", "grad_clip": 1.0},
}


@pytest.mark.parametrize("steps", [1, 4, 7, 15, 24])
@pytest.mark.parametrize("name", SETTINGS)
def test_averaged_weights_and_decaying_rates_resume_bit_for_bit(counts, tmp_path, name, steps):
    whole = make_trainer(counts, **SETTINGS[name])
    wanted = whole.fit()
    state = tmp_path / "state.safetensors"
    with pytest.raises(RuntimeError, match="killed"):
        make_trainer(counts, state=state, reporter=StopAt(steps), **SETTINGS[name]).fit()
    again = make_trainer(counts, state=state, **SETTINGS[name])
    made = again.fit(resume=True)
    assert same_weights(whole.model, again.model)
    assert made.history == wanted.history


def test_the_average_is_an_exponential_one(counts):
    plain, averaged = make_trainer(counts, epochs=1, rows=np.arange(128)), make_trainer(counts, epochs=1, rows=np.arange(128), ema=0.9)
    before = [p.detach().clone() for p in plain.model.parameters()]
    seen = []
    for trainer in (plain, averaged):
        trainer.validation_rows = np.empty(0, np.int64)
    step = plain._step
    plain._step = lambda rows: (step(rows), seen.append([p.detach().clone() for p in plain.model.parameters()]))
    plain.fit()
    averaged.fit()
    assert len(seen) == 2
    for made, start, *steps in zip(averaged.model.parameters(), before, *seen, strict=True):
        wanted = start
        for weights in steps:
            wanted = 0.9 * wanted + 0.1 * weights
        torch.testing.assert_close(made.detach(), wanted, atol=1e-6, rtol=1e-5)


def test_the_rate_falls_to_nothing_along_half_a_cosine(counts):
    trainer = make_trainer(counts, epochs=4, rows=np.arange(128), lr=0.01, lr_decay="cosine")
    rates, step = [], trainer._step
    trainer._step = lambda rows: (step(rows), rates.append(trainer.optimizer.param_groups[0]["lr"]))
    trainer.fit()
    wanted = 0.005 * (1 + np.cos(np.pi * np.arange(8) / 8))
    np.testing.assert_allclose(rates, wanted, rtol=1e-9)


def latent_trainer(state=None, reporter=None):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 4)).astype(np.float32)
    codes = {"type": rng.integers(0, 4, 300), "batch": rng.integers(0, 2, 300)}
    store = LatentStore(z, np.full_like(z, 0.1), codes, range(300))
    torch.manual_seed(0)
    net = LatentDiffusion(DiffusionConfig(n_hidden=16, n_layers=1), 4, 3, 2)
    config = TrainConfig(epochs=5, batch_size=64, warmup=0.0, checkpoint_seconds=0.0, ema=0.99, lr_decay="cosine", adam_eps=1e-8)
    return Trainer(net, store, UniformSampler(np.arange(300)), config, state_path=state, reporter=reporter)


@pytest.mark.parametrize("steps", [1, 13, 24])
def test_a_diffusion_resumes_bit_for_bit(tmp_path, steps):
    whole = latent_trainer()
    wanted = whole.fit()
    with pytest.raises(RuntimeError, match="killed"):
        latent_trainer(tmp_path / "state.safetensors", StopAt(steps)).fit()
    again = latent_trainer(tmp_path / "state.safetensors")
    assert again.fit(resume=True).history == wanted.history
    assert same_weights(whole.model, again.model)


@pytest.fixture(scope="module")
def file(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("stages") / "small.h5ad"
    small.write_h5ad(path)
    return path


def configured(file, **train):
    config = Config(integrate=IntegrateConfig(n_latent=4, n_hidden=16, finetune_epochs=3, n_components=4))
    return config.replaced(
        {
            "data.path": str(file),
            "data.batch_key": "batch",
            "data.label_key": "cell_type",
            "data.n_top_genes": 100,
            "data.validation": 0.1,
            "diffusion.train_steps": 20,
            "diffusion.n_hidden": 16,
            "train.epochs": 3,
            "train.checkpoint_seconds": 0.0,
            **{f"train.{key}": value for key, value in train.items()},
        }
    )


def trained(file, folder, reporter=None, resume=False, **train):
    config = configured(file, **train)
    place = RunPlace(folder, resume=resume, force=False)
    prepared = prepare_integration(file, config)
    return run_training("integrate", BUILDERS["integrate"], prepared, config, place, stages=integration_stages, reporter=reporter)


@pytest.mark.parametrize("sampler", ["uniform", "adaptive"])
@pytest.mark.parametrize("stage", ["autoencoder", "tuning", "diffusion"])
def test_a_run_killed_in_any_stage_ends_as_one_that_was_not(file, tmp_path, stage, sampler):
    whole = trained(file, tmp_path / "whole", sampler=sampler)
    with pytest.raises(RuntimeError, match="killed"):
        trained(file, tmp_path / "cut", StopAt(5, stage), sampler=sampler)
    assert (tmp_path / "cut.part").exists()
    assert not (tmp_path / "cut").exists()
    told = StopAt(-1)
    again = trained(file, tmp_path / "cut", told, resume=True, sampler=sampler)
    order = ["autoencoder", "tuning", "diffusion"]
    assert [title for title, _ in told.started] == order[order.index(stage) :]
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, again.weights()[name]), name
    pd.testing.assert_frame_equal(whole.table("history"), again.table("history"))
    pd.testing.assert_frame_equal(whole.table("cells"), again.table("cells"))
    assert whole.manifest["metrics"] == again.manifest["metrics"]
    assert not (tmp_path / "cut.part").exists()


def test_a_run_killed_between_two_stages(file, tmp_path, monkeypatch):
    """The weights of the first stage are kept, its state not yet removed."""
    from sctool.engine import run

    whole = trained(file, tmp_path / "whole")

    def killed(path, tensors, note):
        save(path, tensors, note)
        raise RuntimeError("killed")

    save = run.save_tensors
    monkeypatch.setattr(run, "save_tensors", killed)
    with pytest.raises(RuntimeError, match="killed"):
        trained(file, tmp_path / "cut")
    monkeypatch.undo()
    assert (tmp_path / "cut.part" / "state.safetensors").exists()
    again = trained(file, tmp_path / "cut", resume=True)
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, again.weights()[name]), name


def test_an_interrupted_run_says_how_to_go_on(file, tmp_path):
    import os
    import signal

    class Interrupts(StopAt):
        def step(self, cells):
            self.left -= self.stage in (None, self.now)
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="interrupted in epoch") as caught:
        trained(file, tmp_path / "cut", Interrupts(3, "tuning"))
    assert "--resume" in caught.value.hint
    assert trained(file, tmp_path / "cut", resume=True).weights()["placed"]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.8])
def test_replayed_cells_are_the_stated_share(share):
    real, made = np.arange(300), np.arange(300, 2000)
    sampler = WithReplay(UniformSampler(real), made, share)
    rng = np.random.default_rng(0)
    epochs = [sampler.rows(epoch, rng, None) for epoch in range(2)]
    for rows in epochs:
        replayed = rows >= 300
        assert replayed.mean() == pytest.approx(share, abs=0.002)
        assert sorted(rows[~replayed]) == list(real)
        assert len(set(rows[replayed])) == replayed.sum()
        if share:
            assert not np.array_equal(rows[:300], np.sort(rows[:300]))
    if share:
        assert set(epochs[0][epochs[0] >= 300]) != set(epochs[1][epochs[1] >= 300])


def test_few_replayed_cells_are_all_taken():
    sampler = WithReplay(UniformSampler(np.arange(100)), np.arange(100, 105), 0.5)
    assert sorted(sampler.rows(0, np.random.default_rng(0), None)) == list(range(105))


def test_only_real_cells_teach_the_sampler():
    told = []

    class Inner(UniformSampler):
        watches = True

        def seen(self, rows, z_nl):
            told.append((rows, z_nl))

    sampler = WithReplay(Inner(np.arange(4)), np.arange(4, 8), 0.5)
    assert sampler.watches
    rows = np.array([5, 1, 7, 3])
    sampler.seen(rows, rows[:, None].astype(np.float32))
    np.testing.assert_array_equal(told[0][0], [1, 3])
    np.testing.assert_array_equal(told[0][1][:, 0], [1, 3])


@pytest.fixture(scope="module")
def remembering(file, tmp_path_factory):
    from sctool.engine.query import load_module

    folder = trained(file, tmp_path_factory.mktemp("replay") / "m")
    return load_module(folder, BUILDERS["integrate"]), folder


def test_replay_is_counts_of_what_was_seen(remembering):
    module, _ = remembering
    module.cells_cb.zero_()
    module.cells_cb[0, 0], module.cells_cb[1, 1] = 60, 20
    n = 3000
    x, codes = replay(module, n, 0)
    assert x.shape == (n, 100)
    assert (x.data == np.round(x.data)).all()
    assert (x.data > 0).all()
    assert x.dtype == np.float32
    pairs = set(zip(codes["label"].tolist(), codes["batch"].tolist(), strict=True))
    assert pairs == {(0, 0), (1, 1)}
    assert (codes["batch"] == 0).mean() == pytest.approx(0.75, abs=0.03)
    for b in (0, 1):
        made = np.log(np.asarray(x.sum(1)).ravel()[codes["batch"] == b].clip(1))
        assert np.median(made) == pytest.approx(float(module.depth_b2[b, 0]), abs=0.3)
    again, _ = replay(module, n, 0)
    assert (x != again).nnz == 0
    other, _ = replay(module, n, 1)
    assert (x != other).nnz > 0
    empty, none = replay(module, 0, 0)
    assert empty.shape == (0, 100)
    assert len(none["batch"]) == 0


def test_replayed_cells_come_after_the_real_ones(remembering, file):
    module, _ = remembering
    prepared = prepare_integration(file, configured(file))
    made, codes = replay(module, 50, 0)
    codes["label"][:5] = -1
    n = len(prepared.obs)
    both = with_replayed(prepared, made, codes)
    assert both.matrix.shape == (n + 50, 100)
    np.testing.assert_array_equal(both.matrix[:n].toarray(), prepared.matrix[:, prepared.columns].toarray())
    np.testing.assert_array_equal(both.matrix[n:].toarray(), made.toarray())
    assert list(both.rows("replayed")) == list(range(n, n + 50))
    np.testing.assert_array_equal(both.rows("train"), prepared.rows("train"))
    np.testing.assert_array_equal(both.codes["panel"], np.repeat([0, 1], [n, 50]))
    assert (both.codes["label"][n : n + 5] == len(both.vocabularies["label"])).all()
    np.testing.assert_array_equal(both.codes["batch"][n:], codes["batch"])
    assert len(both.obs) == n + 50
    measured = panels(both, 80)
    assert measured[0].all()
    assert measured[1].tolist() == [True] * 80 + [False] * 20
