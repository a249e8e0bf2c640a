"""Attention pooling against reference arrays, and what must not change a sample's vector."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sctool.errors import SctoolError
from sctool.nn.pooling import AttentionPooling, Streamed, attention_weights, diversity, ess, gumbel_noise, pool
from tests.conftest import VECTORS
from tests.nn.published import loaded

ARRAYS = np.load(VECTORS / "samples_aggregator.npz")
X = torch.from_numpy(ARRAYS["x"])
REAL = X.norm(dim=2) > 0
NETWORKS = [(1, "LayerNorm"), (2, "LayerNorm"), (3, "LayerNorm"), (2, "BatchNorm")]


def near(made, key, tolerance=1e-5):
    np.testing.assert_allclose(made.detach(), ARRAYS[key], rtol=tolerance, atol=tolerance)


def network(n_layers, norm="LayerNorm", **options):
    module = AttentionPooling(5, 4, 6, n_layers, "batch" if norm == "BatchNorm" else "layer", **options).eval()
    loaded(module.score, ARRAYS, f"L{n_layers}_{norm}__param__head.")
    return module


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "relu"])
@pytest.mark.parametrize(("n_layers", "norm"), NETWORKS)
def test_published_form(n_layers, norm, activation):
    """A sum, in which padded cells have the score 0 instead of none."""
    key = f"{activation}_L{n_layers}_{norm}"
    scores = network(n_layers, norm).scores(X)
    near(scores, f"{key}__rawlogits")
    w = attention_weights(scores * REAL.unsqueeze(2), activation=activation)
    near(w, f"{key}__weights")
    near(pool(X, w).flatten(1), f"{key}__agg", 1e-4)
    near(diversity(w) * 3 / 4, f"{key}__diversity")


def test_pruned_and_given_noise():
    scores = network(1).scores(X) * REAL.unsqueeze(2)
    w = attention_weights(scores, activation="sigmoid", prune=0.5)
    near(w, "sigmoid_L1_prune0.5__weights")
    near(pool(X, w).flatten(1), "sigmoid_L1_prune0.5__agg", 1e-4)
    near(scores, "gumbel_tau0.7_L1__masked_logits")
    w = attention_weights(scores, noise_soh=torch.from_numpy(ARRAYS["gumbel_tau0.7_L1__noise"]), tau=0.7)
    near(w, "gumbel_tau0.7_L1__weights")
    near(pool(X, w).flatten(1), "gumbel_tau0.7_L1__agg", 1e-4)


def test_diversity_of_given_weights():
    near(diversity(torch.from_numpy(ARRAYS["diversity_in"])) * 2 / 3, "diversity_out")
    near(diversity(torch.from_numpy(ARRAYS["diversity_in"])[:, :, :1]), "diversity_H1_out")
    same = torch.rand(2, 6, 1).tile(1, 1, 3)
    assert float(diversity(same)) == pytest.approx(1, abs=1e-6)
    assert float(diversity(torch.eye(3).unsqueeze(0))) == 0


def test_softmax_over_valid_cells():
    pooled, w = network(1)(X, REAL)
    near(w, "corrected_softmax_L1__weights")
    near(pooled.flatten(1), "corrected_softmax_L1__agg", 1e-4)
    assert (w[~REAL] == 0).all()


def test_noise_is_of_training_only():
    module = network(1, gumbel=True)
    assert not np.allclose(ARRAYS["gumbel_eval_mode_5seeds"][0], ARRAYS["gumbel_eval_mode_5seeds"][1], atol=0.1)  # as published
    first, second = module(X, REAL)[0], module(X, REAL)[0]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, network(1)(X, REAL)[0])
    module.train()
    drawn = [module(X, REAL, 0.7, torch.Generator().manual_seed(seed))[1] for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2], atol=0.01)
    assert (drawn[0][~REAL] == 0).all()
    torch.testing.assert_close(drawn[0].sum(1), torch.ones(3, 4))
    assert torch.equal(network(1).train()(X, REAL)[0], first)  # none asked for
    noise = gumbel_noise(torch.empty(200, 100), torch.Generator().manual_seed(0))
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.03)
    assert float(noise.var()) == pytest.approx(np.pi**2 / 6, abs=0.05)


def cells(seed, n_samples=3, n_cells=11, n_features=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((n_samples, n_cells, n_features), generator=generator)
    kept = torch.randint(1, n_cells + 1, (n_samples, 1), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = AttentionPooling(n_features, 3, 8, 2).eval()
    with torch.no_grad():
        module.score.last.weight *= 20  # scores that differ
    return x, torch.arange(n_cells) < kept, module, generator


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_what_changes_no_vector(seed):
    x, mask, module, generator = cells(seed)
    pooled, w = module(x, mask)
    torch.testing.assert_close(w.sum(1), torch.ones(3, 3))
    assert torch.equal(module(x, mask)[0], pooled)
    order = torch.randperm(11, generator=generator)
    torch.testing.assert_close(module(x[:, order], mask[:, order])[0], pooled, rtol=0, atol=1e-5)
    more = 100 * torch.randn((3, 5, 4), generator=generator)
    padded = module(torch.cat([x, more], 1), torch.cat([mask, torch.zeros(3, 5, dtype=torch.bool)], 1))
    torch.testing.assert_close(padded[0], pooled, rtol=0, atol=1e-5)
    assert (padded[1][:, 11:] == 0).all()
    torch.testing.assert_close(module(torch.cat([x, x], 1), torch.cat([mask, mask], 1))[0], pooled, rtol=0, atol=1e-5)
    for s in range(3):
        torch.testing.assert_close(module(x[s : s + 1, mask[s]])[0][0], pooled[s], rtol=0, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.floats(0.1, 1000))
def test_streamed_is_one_shot(seed, block, scale):
    x, mask, module, generator = cells(seed)
    with torch.no_grad():
        scores = module.scores(x) * scale  # up to where exp overflows
    w = attention_weights(scores, mask)
    pooled = pool(x, w)
    sample = torch.where(mask, torch.arange(3)[:, None], -1).flatten()
    order = torch.randperm(33, generator=generator)
    flat_scores, flat_x, sample = scores.flatten(0, 1)[order], x.flatten(0, 1)[order], sample[order]
    stream = Streamed(4, 3, 4)
    for start in range(0, 33, block):
        part = slice(start, start + block)
        stream.add(flat_scores[part], flat_x[part], sample[part])
    torch.testing.assert_close(stream.pooled_shf[:3].float(), pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stream.ess_sh[:3].float(), ess(w), rtol=1e-4, atol=1e-5)
    valid = scores.masked_fill(~mask.unsqueeze(2), -torch.inf)
    torch.testing.assert_close(stream.log_normaliser_sh[:3].float(), valid.logsumexp(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stream.weights(flat_scores, sample).float(), w.flatten(0, 1)[order], rtol=1e-4, atol=1e-6)
    assert stream.pooled_shf[3].isnan().all()  # a sample without cells
    assert (stream.log_normaliser_sh[3] == -torch.inf).all()


def test_weights_that_are_no_softmax():
    scores = torch.tensor([[[1.0], [-2.0], [3.0]]])
    mask = torch.tensor([[True, True, False]])
    assert attention_weights(scores, mask, "relu").flatten().tolist() == [1, 0, 0]
    sigmoid = attention_weights(scores, mask, "sigmoid")
    assert sigmoid[0, 2] == 0
    with pytest.raises(SctoolError, match="'tanh'"):
        attention_weights(scores, mask, "tanh")


def test_effective_numbers():
    even, one = torch.full((1, 8, 1), 0.125), torch.eye(8)[None, :, :1]
    assert float(ess(even)) == pytest.approx(8)
    assert float(ess(one)) == pytest.approx(1)
    assert float(ess(3 * even)) == pytest.approx(8)


def test_a_sample_without_cells():
    mask = REAL.clone()
    mask[1] = False
    with pytest.raises(SctoolError, match="1 of 3 samples"):
        network(1)(X, mask)
    scores = network(1).scores(X).detach().requires_grad_()
    w = attention_weights(scores, mask)
    assert (w[1] == 0).all()
    assert torch.isfinite(torch.autograd.grad(w.square().sum(), scores)[0]).all()


def test_statistics_of_a_batch_norm_are_of_valid_cells():
    torch.manual_seed(0)
    module = AttentionPooling(5, 4, 6, 2, "batch").train()
    scores = module.scores(X, REAL)
    alone = module.score(X[REAL])
    torch.testing.assert_close(scores[REAL], alone)
    assert (scores[~REAL] == 0).all()
    more = torch.cat([X, torch.full((3, 4, 5), 9.0)], 1)
    wide = torch.cat([REAL, torch.zeros(3, 4, dtype=torch.bool)], 1)
    torch.testing.assert_close(module(more, wide)[0], module(X, REAL)[0])
