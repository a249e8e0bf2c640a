import os
import signal

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

from sctool.data.minibatch import CellStore
from sctool.data.prepare import default_epochs
from sctool.data.samplers import AdaptiveResampler, UniformSampler, WeightedSampler, balanced_weights
from sctool.engine.device import choose_device, in_chunks
from sctool.engine.samplers import make_sampler
from sctool.engine.trainer import Trainer
from sctool.errors import Interrupted, SctoolError
from sctool.models.base import Terms
from sctool.models.scvi import SCVI
from sctool.sections import ARConfig, SCVIConfig, TrainConfig


@pytest.fixture(scope="module")
def counts(small):
    return sp.csr_matrix(small.X)


def make_trainer(counts, sampler=None, state=None, seed=0, reporter=None, rows=None, **settings):
    n = counts.shape[0]
    config = TrainConfig(**{"epochs": 6, "batch_size": 64, "checkpoint_seconds": 0.0, "warmup": 0.0, **settings})
    store = CellStore(counts, {"batch": np.zeros(n, int)}, [f"cell{i}" for i in range(n)])
    torch.manual_seed(seed)
    model = SCVI(SCVIConfig(n_latent=4, n_hidden=16), counts.shape[1])
    train = np.arange(n - 50) if rows is None else rows
    sampler = sampler(train) if sampler else UniformSampler(train)
    return Trainer(model, store, sampler, config, seed=seed, validation_rows=np.arange(n - 50, n), state_path=state, reporter=reporter)


SAMPLERS = {
    "uniform": UniformSampler,
    "adaptive": lambda rows: make_sampler(rows, TrainConfig(sampler="adaptive"), ARConfig()),
    "online": lambda rows: make_sampler(rows, TrainConfig(sampler="adaptive"), ARConfig(refresh="online")),
    "knn": lambda rows: make_sampler(rows, TrainConfig(sampler="adaptive"), ARConfig(density="knn", draw="systematic", temper=0.5)),
}


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class StopAt:
    """A reporter that stops the run after so many steps, as a kill would."""

    def __init__(self, steps, how):
        self.left, self.how = steps, how

    def start(self, epochs, done, title): ...
    def epoch(self, row): ...
    def stop(self, message): ...

    def step(self, cells):
        self.left -= 1
        if self.left == 0:
            if self.how == "kill":
                raise RuntimeError("killed")
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("steps", [1, 4, 7, 15])
@pytest.mark.parametrize("how", ["kill", "ctrl-c"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(counts, tmp_path, name, steps, how):
    whole = make_trainer(counts, SAMPLERS[name])
    wanted = whole.fit()
    state = tmp_path / "state.safetensors"
    with pytest.raises(RuntimeError if how == "kill" else Interrupted):
        make_trainer(counts, SAMPLERS[name], state, reporter=StopAt(steps, how)).fit()
    again = make_trainer(counts, SAMPLERS[name], state, seed=0)
    made = again.fit(resume=True)
    assert same_weights(whole.model, again.model)
    assert made.history == wanted.history


def test_same_seed_same_weights_and_the_callers_randomness_is_left_alone(counts):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second, other = (make_trainer(counts, seed=s) for s in (0, 0, 1))
    torch.set_rng_state(before)
    for trainer in (first, second, other):
        trainer.fit()
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(first.model, second.model)
    assert not same_weights(first.model, other.model)


def test_best_weights_are_restored(counts):
    trainer = make_trainer(counts, epochs=40, lr=0.05, patience=0)
    fit = trainer.fit()
    losses = [row["validation_loss"] for row in fit.history]
    assert fit.best_epoch == int(np.argmin(losses)) + 1 < 40
    assert trainer.score(trainer.validation_rows)["loss"] == pytest.approx(min(losses), rel=1e-6)


def test_early_stopping(counts):
    fit = make_trainer(counts, epochs=300, lr=0.05, patience=5).fit()
    assert len(fit.history) == fit.best_epoch + 5
    assert "5 epochs" in fit.reason


def test_loss_falls_and_score_does_not_move_the_training_stream(counts):
    trainer = make_trainer(counts, epochs=10)
    history = trainer.fit().history
    assert history[-1]["validation_loss"] < history[0]["validation_loss"]
    assert trainer.score(np.arange(20)) == trainer.score(np.arange(20))


class Diverges(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))
        self.steps = 0

    def loss(self, batch, anneal=1.0):
        self.steps += self.training
        loss = self.w.sum() * (float("nan") if self.steps == 6 else 1.0)
        return Terms(loss, {}, torch.zeros(batch.n_cells, 1))


def test_nan_guard_names_epoch_minibatch_and_cells(counts):
    trainer = make_trainer(counts)
    trainer.model = Diverges()
    trainer.optimizer = torch.optim.Adam(trainer.model.parameters())
    with pytest.raises(SctoolError, match=r"epoch 2, minibatch 2 \(cells cell\d+, cell\d+, cell\d+") as caught:
        trainer.fit()
    assert "--lr" in caught.value.hint


def test_a_last_minibatch_of_one_cell_is_merged(counts):
    trainer = make_trainer(counts, rows=np.arange(129), epochs=1)
    trainer.fit()
    assert np.isfinite(trainer.fit_so_far.history[0]["train_loss"])


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunk_is_halved_when_memory_runs_out(chunk):
    sizes = []

    def call(part):
        if len(part) > 5:
            raise torch.OutOfMemoryError
        sizes.append(len(part))
        return part.sum()

    made = list(in_chunks(call, np.arange(40), chunk))
    assert np.concatenate([rows for rows, _ in made]).tolist() == list(range(40))
    assert max(sizes) <= 5


def test_a_single_cell_that_does_not_fit_is_an_error():
    def call(part):
        raise torch.OutOfMemoryError

    with pytest.raises(SctoolError, match="single cell"):
        list(in_chunks(call, np.arange(3), 2))


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "meta"])
def test_absent_device_is_an_error(name):
    with pytest.raises(SctoolError, match=name.split(":")[0]):
        choose_device(name)


def test_epochs_by_the_number_of_cells():
    assert [default_epochs(n) for n in (100, 20_000, 40_000, 80_000_000)] == [400, 400, 200, 1]


def test_uniform_epoch_is_a_permutation():
    rows = np.array([3, 5, 9, 11])
    drawn = UniformSampler(rows).rows(0, np.random.default_rng(0), None)
    assert sorted(drawn) == list(rows)


def test_systematic_draws_are_within_one_of_their_expectation():
    rng = np.random.default_rng(0)
    w = rng.random(500)
    w /= w.sum()
    drawn = WeightedSampler(np.arange(500), w, "systematic").rows(0, rng, None)
    counted = np.bincount(drawn, minlength=500)
    assert (np.abs(counted - 500 * w) < 1).all()


def test_two_epochs_of_adaptive_draws_differ_and_stay_in_the_training_cells():
    rows = np.arange(10, 60)
    sampler = AdaptiveResampler(rows, lambda z: np.full(len(z), 1 / len(z)))
    rng = np.random.default_rng(0)
    z = rng.normal(size=(100, 3)).astype(np.float32)
    warm, first, second = (sampler.rows(epoch, rng, lambda r: z[r]) for epoch in (0, 1, 2))
    assert sorted(warm) == list(rows)
    assert set(first) <= set(rows)
    assert len(first) == len(rows)
    assert not np.array_equal(first, second)


def test_online_refresh_uses_the_codes_met_in_training():
    rows = np.arange(5, 25)
    given = []
    sampler = AdaptiveResampler(rows, lambda z: given.append(z.copy()) or np.full(len(z), 1 / len(z)), refresh="online")
    rng = np.random.default_rng(0)
    order = sampler.rows(0, rng, None)
    sampler.seen(order, order[:, None].astype(np.float32))
    sampler.rows(1, rng, None)
    np.testing.assert_array_equal(given[0][:, 0], rows)


def test_balanced_weights_are_equal_by_label_up_to_the_cap():
    labels = np.array(["a"] * 900 + ["b"] * 90 + ["c"] * 10)
    free = balanced_weights(labels, cap=1e9)
    assert [free[labels == x].sum() for x in "abc"] == pytest.approx([1 / 3] * 3)
    capped = balanced_weights(labels, cap=5.0)
    assert capped.max() / capped[labels == "b"].min() == pytest.approx(5.0 / (1000 / 270))


def test_unknown_sampler_needs():
    with pytest.raises(SctoolError, match="needs labels"):
        make_sampler(np.arange(5), TrainConfig(sampler="balanced"), ARConfig())


@pytest.mark.gpu
def test_trains_on_a_gpu_as_on_a_cpu(counts):
    n = counts.shape[0]
    losses = {}
    for device in ("cpu", "cuda"):
        store = CellStore(counts, {"batch": np.zeros(n, int)}, [""] * n, device=device)
        torch.manual_seed(0)
        model = SCVI(SCVIConfig(n_latent=4, n_hidden=16), counts.shape[1]).to(device)
        trainer = Trainer(model, store, UniformSampler(np.arange(n)), TrainConfig(epochs=20, warmup=0.0))
        trainer.fit()
        losses[device] = trainer.score(np.arange(n))["loss"]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.02)
