"""Projector, heads, ordinal targets and the adversary against reference arrays, and one whole step of joint training."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sctool.errors import SctoolError
from sctool.nn.contrastive import xsample_bce
from sctool.nn.heads import (
    ResidualMLP,
    class_loss,
    dann,
    decode_ordinal,
    head,
    ordinal_loss,
    ordinal_probabilities,
    squared_loss,
)
from sctool.nn.pooling import AttentionPooling, attention_weights, diversity, pool
from tests.conftest import VECTORS
from tests.nn.published import loaded, weights

NETWORKS = np.load(VECTORS / "samples_networks.npz")
ORDINAL = np.load(VECTORS / "samples_ordinal.npz")
STEP = np.load(VECTORS / "samples_training.npz")
X = torch.from_numpy(NETWORKS["x"])
NORMS = {"BatchNorm": "batch", "LayerNorm": "layer", "None": "none"}


def near(made, wanted, tolerance=1e-4):
    np.testing.assert_allclose(made.detach(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("n_layers", "norm"), [(2, "BatchNorm"), (4, "BatchNorm"), (3, "LayerNorm"), (3, "None")])
def test_projector(n_layers, norm):
    key = f"proj_L{n_layers}_{norm}__"
    module = loaded(ResidualMLP(10, 8, 6, n_layers, NORMS[norm]), NETWORKS, f"{key}param__")
    if norm == "BatchNorm":
        before = module.norms[0].running_mean.clone()
        near(module.train()(X), NETWORKS[f"{key}train"])
        assert not torch.equal(module.norms[0].running_mean, before)
        loaded(module, NETWORKS, f"{key}param__")
    module.eval()
    near(module(X), NETWORKS[f"{key}eval"])
    near(module.hidden(X), NETWORKS[f"{key}repr"])
    torch.testing.assert_close(module(X.reshape(2, 2, 10)), module(X).reshape(2, 2, 6))


@pytest.mark.parametrize(("n_layers", "norm"), [(1, False), (2, False), (3, True)])
@pytest.mark.parametrize("kind", ["clf", "reg", "ord"])
def test_heads(kind, n_layers, norm):
    key = f"{kind}_L{n_layers}_{norm}__"
    wanted = NETWORKS[f"{key}out"]
    made = loaded(head(10, 5, 1 if wanted.ndim == 1 else wanted.shape[1], n_layers, norm), NETWORKS, f"{key}param__mlp.")(X)
    near((made.sigmoid() if kind == "ord" else made).reshape(wanted.shape), wanted)


def test_discriminator():
    x = X.clone().requires_grad_()
    module = loaded(head(10, 5, 3, 1), NETWORKS, "disc__param__discriminator.")
    logits = module(x)
    loss = class_loss(logits, torch.from_numpy(NETWORKS["disc__labels"]))
    grad_x, grad_w = torch.autograd.grad(loss, [x, module[0].weight])
    near(logits, NETWORKS["disc__logits"])
    near(loss, NETWORKS["disc__loss"])
    near(-0.25 * grad_x, NETWORKS["disc__grad_x_lambda0.25"])  # reversed there, which ours is not: see contrastive.between
    near(grad_w, NETWORKS["disc__grad_w"])


def test_weight_of_the_adversary_rises():
    weight = [dann(p, 0.4) for p in np.linspace(0, 1, 11)]
    assert weight[0] == 0
    assert weight[-1] == pytest.approx(0.4, abs=1e-4)
    assert (np.diff(weight) > 0).all()
    assert dann(0.1, 1.0) == pytest.approx(np.tanh(0.5))


def test_ordinal_loss():
    logits = torch.from_numpy(ORDINAL["logits"]).requires_grad_()
    loss = ordinal_loss(logits, torch.from_numpy(ORDINAL["target"]))
    (gradient,) = torch.autograd.grad(loss, logits)
    near(loss, ORDINAL["loss_float32"], 1e-6)
    # the reference rounds its targets and probabilities to float32
    near(gradient, ORDINAL["grad_logits"], 1e-6)
    p, above = torch.from_numpy(ORDINAL["probas"]), ORDINAL["target"][:, None] > np.arange(4)
    near(loss, F.binary_cross_entropy(p, torch.from_numpy(above.astype(float))), 1e-9)
    for missing in (torch.tensor([torch.nan]), torch.tensor([-1.0])):
        level = torch.cat([torch.from_numpy(ORDINAL["target"]).float(), missing])
        torch.testing.assert_close(ordinal_loss(torch.cat([logits, logits[:1]]), level), loss)


def test_ordinal_decoding():
    probability = torch.from_numpy(ORDINAL["probas"])
    level, rank = decode_ordinal(probability)
    assert level.tolist() == ORDINAL["pred_correct_monotone"].tolist()
    near(rank, ORDINAL["expected_rank"], 1e-9)
    falling = probability.cummin(1).values
    assert decode_ordinal(falling)[0].tolist() == (falling > 0.5).sum(1).tolist() == level.tolist()
    assert decode_ordinal(torch.full((1, 3), 0.3))[0].item() == 0  # the reference says 2
    assert (ORDINAL["pred_reference_buggy"] != level.numpy()).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_probabilities_of_levels(seed, thresholds):
    above = torch.rand((4, thresholds), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p = ordinal_probabilities(above)
    assert p.shape == (4, thresholds + 1)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(4, dtype=torch.float64))
    level, rank = decode_ordinal(above)
    assert ((level >= 0) & (level <= thresholds) & (rank >= 0) & (rank <= thresholds)).all()
    median = (p.cumsum(1) < 0.5).sum(1)  # the level holds half of the probability
    assert torch.equal(level, median)
    falling = above.sort(1, descending=True).values
    torch.testing.assert_close((ordinal_probabilities(falling) * torch.arange(thresholds + 1)).sum(1), decode_ordinal(falling)[1])


def test_losses_without_labels_are_zero_and_have_a_gradient():
    x, nan = torch.randn(3, 2, requires_grad=True), torch.full((3,), torch.nan)
    for loss in (class_loss(x, nan), class_loss(x, torch.full((3,), -1)), ordinal_loss(x, nan), squared_loss(x[:, :1], nan)):
        assert loss == 0
        assert (torch.autograd.grad(loss, x)[0] == 0).all()
    even = class_loss(torch.zeros(4, 2), torch.tensor([0.0, 0.0, 1.0, torch.nan]), torch.tensor([1.0, 2.0]))
    assert float(even) == pytest.approx(np.log(2))
    certain = class_loss(torch.tensor([[0.0, 3.0], [0.0, 3.0]]), torch.tensor([0, 1]), torch.tensor([0.0, 1.0]))
    assert float(certain) == pytest.approx(np.log1p(np.exp(-3)))  # classes of weight 0 do not count


@pytest.mark.parametrize("call", [lambda: ResidualMLP(3, 4, 2, 0), lambda: head(3, 4, 2, 0), lambda: ResidualMLP(3, 4, 2, 2, "instance")])
def test_mistakes_are_said(call):
    with pytest.raises(SctoolError, match=r"0 layers|'instance'"):
        call()


def step_networks():
    aggregator = AttentionPooling(6, 2, 8, 2)
    loaded(aggregator.score, STEP, "step__aggregator__init__head.")
    projector = loaded(ResidualMLP(12, 8, 5, 3, "batch"), STEP, "step__projector__init__")
    heads = {name: loaded(head(5, 8, n, 1), STEP, f"step__{name}__init__mlp.") for name, n in HEADS.items()}
    return aggregator, projector, heads


HEADS = {"classifier": 3, "regressor": 1, "ordinal": 2}


def test_one_step_of_joint_training():
    """Losses, gradients, and weights after Adam, with the published loss, sum pooling and a batch norm that sees each view alone."""
    aggregator, projector, heads = step_networks()
    parts = {"aggregator": aggregator.score, "projector": projector, **heads}
    optimizer = torch.optim.Adam([p for part in parts.values() for p in part.parameters()], lr=1e-3, weight_decay=0.0054298503547461335)
    truth = {name: torch.from_numpy(STEP[f"step__{name}"]) for name in ("status", "age", "outcome")}
    features, total = [], torch.zeros(())
    supervised = {"class": 0.0, "reg": 0.0, "ord": 0.0}
    for view in (1, 2):
        x = torch.from_numpy(STEP[f"step__x{view}"])
        w = attention_weights(aggregator.scores(x), activation="sigmoid")
        if view == 1:
            near(w, STEP["step__attn1"])
        spread = diversity(w) / 2  # two heads: (H - 1) / H
        near(spread, STEP[f"step__diversity{view}"])
        z = projector.train()(pool(x, w).flatten(1))
        near(z, STEP[f"step__features{view}_train"])
        features.append(z)
        total = total + spread / 2
        supervised["class"] += class_loss(heads["classifier"](z), truth["status"])
        supervised["reg"] += squared_loss(heads["regressor"](z), truth["age"])
        supervised["ord"] += ordinal_loss(heads["ordinal"](z), truth["outcome"])
    contrastive = xsample_bce(*features, 0.1)
    near(contrastive, STEP["step__contrastive"])
    for name, loss in supervised.items():
        near(loss, STEP[f"step__{name}"][0])
    total = total + contrastive + sum(supervised.values())
    near(total, STEP["step__total"])
    optimizer.zero_grad()
    total.backward()
    for name, part in parts.items():
        inner = {"aggregator": "head.", "projector": ""}.get(name, "mlp.")
        for key, gradient in weights(STEP, f"step__{name}__grad__{inner}").items():
            near(part.get_parameter(key).grad, gradient, 1e-3 if gradient.abs().max() > 10 else 1e-4)
    optimizer.step()
    for name, part in parts.items():
        inner = {"aggregator": "head.", "projector": ""}.get(name, "mlp.")
        state = part.state_dict()
        for key, value in weights(STEP, f"step__{name}__after__{inner}").items():
            near(state[key], value)
