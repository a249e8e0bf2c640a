"""The network of the diffusion: conditions, losses, and what a trained one does to codes of cells."""

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_samples

from sctool.data.latents import LatentBatch, LatentStore
from sctool.data.samplers import UniformSampler
from sctool.engine.trainer import Trainer
from sctool.models.diffusion import LatentDiffusion
from sctool.sections import DiffusionConfig, TrainConfig

SMALL = DiffusionConfig(n_hidden=32, n_layers=2)


def latent_batch(n=40, latent=5, types=3, batches=2, seed=0):
    rng = np.random.default_rng(seed)
    z = torch.from_numpy(rng.normal(2, 3, (n, latent))).float()
    codes = {"type": torch.from_numpy(rng.integers(0, types + 1, n)), "batch": torch.from_numpy(rng.integers(0, batches, n))}
    return LatentBatch(z, torch.full_like(z, 0.1), codes)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return LatentDiffusion(SMALL, 5, 3, 2)


def shaken(net):
    """With an output layer that is not zero any more."""
    torch.nn.init.normal_(net.denoiser.outward.weight, std=0.3)
    return net.eval()


def test_an_untrained_one_predicts_zero(net):
    batch = latent_batch()
    for i in (0, 200, 399):
        assert not net.predict(batch.codes["type"], batch.codes["batch"])(batch.mean_nl, i).any()
    torch.manual_seed(0)
    assert net.loss(batch).loss.item() > 0


@pytest.mark.parametrize("n", [1, 2, 3, 257])
def test_the_loss_is_finite_and_reaches_all_weights(net, n):
    batch = latent_batch(n)
    net.set_scale(batch.mean_nl, batch.sd_nl)
    terms = shaken(net).loss(batch)
    terms.loss.backward()
    assert torch.isfinite(terms.loss)
    assert set(terms.parts) == {"eps"}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_scale_is_that_of_the_aggregate_posterior(net):
    batch = latent_batch(4000)
    net.set_scale(batch.mean_nl, batch.sd_nl)
    z = batch.mean_nl + batch.sd_nl * torch.randn_like(batch.mean_nl)
    standard = net.standard(z)
    np.testing.assert_allclose(standard.mean(0), np.zeros(5), atol=0.02)
    np.testing.assert_allclose(standard.std(0), np.ones(5), atol=0.02)
    assert {"centre_l", "scale_l"} <= set(net.state_dict())


def test_conditions_are_dropped_as_often_as_said():
    seen = {}

    class Looks(torch.nn.Module):
        def forward(self, z_nl, index_n, type_n, batch_n):
            seen.update(type=type_n, batch=batch_n, index=index_n)
            return torch.zeros_like(z_nl)

    for drop_type, drop_batch in ((0.0, 0.0), (0.15, 0.3), (0.99, 0.5)):
        net = LatentDiffusion(SMALL.model_copy(update={"drop_type": drop_type, "drop_batch": drop_batch}), 5, 3, 2)
        net.denoiser = Looks()
        batch = latent_batch(20_000)
        batch.codes["type"].clamp_(max=2)
        net.loss(batch)
        for key, share, null in (("type", drop_type, 3), ("batch", drop_batch, 2)):
            dropped = seen[key] == null
            assert float(dropped.float().mean()) == pytest.approx(share, abs=0.015)
            assert torch.equal(seen[key][~dropped], batch.codes[key][~dropped])
        assert int(seen["index"].min()) == 0
        assert int(seen["index"].max()) == 399


def test_a_bridge_takes_the_null_tokens_and_is_the_same_each_time(net):
    batch = latent_batch()
    net.set_scale(batch.mean_nl, batch.sd_nl)
    shaken(net)
    null = torch.full_like(batch.codes["type"], 3), torch.full_like(batch.codes["batch"], 2)
    before = torch.get_rng_state()
    made = [net.bridge(batch.mean_nl, null[0], batch.codes["batch"], null[1], 399, 50) for _ in range(2)]
    assert torch.equal(*made)
    assert torch.equal(torch.get_rng_state(), before)
    halves = [net.bridge(batch.mean_nl[s], null[0][s], batch.codes["batch"][s], null[1][s], 399, 50) for s in (slice(7), slice(7, None))]
    torch.testing.assert_close(torch.cat(halves), made[0], atol=1e-4, rtol=1e-4)
    edited = [net.sdedit(batch.mean_nl, batch.codes["type"], 40, 4, seed=1) for _ in range(2)]
    assert torch.equal(*edited)
    assert not torch.equal(edited[0], net.sdedit(batch.mean_nl, batch.codes["type"], 40, 4, seed=2))
    new = [net.generate(batch.codes["type"], batch.codes["batch"], torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*new)
    assert new[0].shape == batch.mean_nl.shape


def synthetic(n, latent=20, seed=0):
    """Codes of four types in three batches: biology within types, an offset of each batch, and one of each type in each batch."""
    rng = np.random.default_rng(seed)
    shares = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.4, 0.2, 0.3], [0.25] * 4])
    batch = rng.integers(0, 3, n)
    kind = np.array([rng.choice(4, p=shares[b]) for b in batch])
    within = np.einsum("nlf,nf->nl", (0.45 * rng.normal(size=(4, latent, 4)))[kind], rng.normal(size=(n, 4)))
    within += 0.3 * rng.normal(size=(n, latent))
    means = 1.5 * rng.normal(size=(4, latent))
    offset = (0.35 * rng.normal(size=(3, latent)))[batch] + (0.15 * rng.normal(size=(4, 3, latent)))[kind, batch]
    return (means[kind] + within + offset).astype(np.float32), within, means[kind] + within, kind, batch


def trained_on(z, kind, batch, epochs, **sizes):
    torch.manual_seed(0)
    net = LatentDiffusion(DiffusionConfig(**sizes), z.shape[1], 4, 3)
    sd = np.full_like(z, 0.05)
    net.set_scale(torch.from_numpy(z), torch.from_numpy(sd))
    store = LatentStore(z, sd, {"type": kind, "batch": batch}, range(len(z)))
    settings = {"batch_size": 256, "lr": 1e-3, "lr_decay": "cosine", "ema": 0.99, "adam_eps": 1e-8, "warmup": 0.0, "grad_clip": 1.0}
    fit = Trainer(net, store, UniformSampler(np.arange(len(z))), TrainConfig(epochs=epochs, **settings)).fit()
    return net, fit


def within_correlation(z, within, kind, batch):
    """Mean over types of the correlation between deviations from the mean of a type, in all batches, and its true biology."""
    found = []
    for k in range(4):
        own = kind == k
        a, b = (x[own] - x[own].mean(0) for x in (z, within))
        found.append(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    return float(np.mean(found))


def kept_order(z, new, kind, batch):
    found = []
    for k in range(4):
        for b in range(3):
            own = (kind == k) & (batch == b)
            a, c = (x[own] - x[own].mean(0) for x in (z, new))
            found.append(np.corrcoef(a.ravel(), c.ravel())[0, 1])
    return float(np.mean(found))


def offset_left(z, kind, batch):
    """Root mean square distance of the means of a type in two batches."""
    means = np.array([[z[(kind == k) & (batch == b)].mean(0) for b in range(3)] for k in range(4)])
    return float(np.sqrt((means - means.mean(1, keepdims=True)) ** 2).mean())


def carried(net, z, kind, batch, target, last=399):
    kind, batch = torch.from_numpy(kind), torch.from_numpy(batch)
    goal = batch if target is None else torch.full_like(batch, target)
    return net.bridge(torch.from_numpy(z), kind, batch, goal, last, 50).numpy()


def test_a_short_training_already_carries_batches_together():
    z, _, _, kind, batch = synthetic(2000)
    net, fit = trained_on(z, kind, batch, 50, n_hidden=64, n_layers=2)
    losses = [row["train_loss"] for row in fit.history]
    assert losses[-1] < 0.7 * losses[0]
    new = carried(net, z, kind, batch, 0)
    assert offset_left(new, kind, batch) < 0.6 * offset_left(z, kind, batch)
    assert kept_order(z, new, kind, batch) > 0.9
    same = carried(net, z, kind, batch, None)
    assert np.sqrt(((same - z) ** 2).mean() / z.var(0).mean()) < 0.1


@pytest.mark.slow
def test_refinement_of_synthetic_codes_as_required():
    """Correlation with true biology, mixing within types, and what other refinements do, for a fully trained one."""
    z, within, _, kind, batch = synthetic(6000)
    net, _ = trained_on(z, kind, batch, 170, n_hidden=192, n_layers=3)
    before = within_correlation(z, within, kind, batch)
    new = carried(net, z, kind, batch, 0)
    assert within_correlation(new, within, kind, batch) >= 0.98 > before

    def mixing(codes):
        kept = [1 - np.abs(silhouette_samples(codes[kind == k], batch[kind == k])).mean() for k in range(4)]
        return float(np.mean(kept))

    assert mixing(new) >= 0.95 > mixing(z)
    same = carried(net, z, kind, batch, None)
    assert (np.sqrt(((same - z) ** 2).mean(0)) / z.std(0)).mean() <= 0.05
