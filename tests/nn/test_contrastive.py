"""The contrastive losses against reference arrays with gradients, and what must hold for any embedding."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sctool.errors import SctoolError
from sctool.nn.contrastive import between, collapse, info_nce, predicted_and_target, target_summary, xsample, xsample_bce
from tests.conftest import VECTORS

LOSSES = np.load(VECTORS / "samples_contrastive_losses.npz")
BATCH = torch.from_numpy(LOSSES["batch_labels"])
N = int(LOSSES["batch_size"])
_ORDER = [list(LOSSES["graph_index"]).index(name) for name in LOSSES["sample_ids"]]
GRAPH = torch.from_numpy(LOSSES["graph_values"][np.ix_(_ORDER, _ORDER)])


def penalised(a, b):
    return info_nce(a, b, "cosine", 0.5) + 0.01 * (torch.cat([a, b]).norm(dim=1) - 5).square().mean()


def elementwise(graph):
    """Binary cross-entropy, over pairs of different views, of what ``xsample`` compares."""

    def loss(a, b):
        log_p, q = predicted_and_target(a, b, 0.1, graph, 0.2)
        return F.binary_cross_entropy(log_p.exp(), q, reduction="sum") / (len(q) * (len(q) - 1))

    return loss


REFERENCE = {
    **{
        f"{kind}_T{t}": (lambda a, b, k=kind, t=t: info_nce(a, b, k, t))
        for kind in ("cosine", "cauchy", "gaussian")
        for t in (0.1, 0.5, 1.0)
    },
    "cosine_T0.5_reg": penalised,
    "cauchy_T1_exag2": lambda a, b: info_nce(a, b, "cauchy", 1.0, exaggeration=2.0),
    "batchaware_T1_w0.5_nolabels": lambda a, b: info_nce(a, b, "cauchy", 1.0, batch_weight=0.5),
    "batchaware_T1_w0.5_labels": lambda a, b: info_nce(a, b, "cauchy", 1.0, batch_s=BATCH, batch_weight=0.5, weigh_positives=True),
    **{f"xsample_T{t}_nograph": (lambda a, b, t=t: xsample_bce(a, b, t)) for t in (0.1, 0.5)},
    **{f"xsample_T{t}_graph_gt{g}": (lambda a, b, t=t, g=g: xsample_bce(a, b, t, GRAPH, g)) for t in (0.1, 0.5) for g in (0.1, 0.2, 1.0)},
    "corrected_ce_nograph_T0.1_gt0.2": lambda a, b: xsample(a, b, 0.1),
    "corrected_ce_graph_T0.1_gt0.2": lambda a, b: xsample(a, b, 0.1, GRAPH, 0.2),
    "corrected_bce_nograph_T0.1_gt0.2": elementwise(None),
    "corrected_bce_graph_T0.1_gt0.2": elementwise(GRAPH),
}


def test_every_reference_loss_is_here():
    assert set(REFERENCE) == {key.removesuffix("__loss") for key in LOSSES.files if key.endswith("__loss")}


@pytest.mark.parametrize("name", REFERENCE)
def test_value_and_gradient(name):
    z = torch.from_numpy(LOSSES["feat"]).requires_grad_()
    loss = REFERENCE[name](z[:N], z[N:])
    (gradient,) = torch.autograd.grad(loss, z)
    np.testing.assert_allclose(loss.item(), LOSSES[f"{name}__loss"], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(gradient, LOSSES[f"{name}__grad"], rtol=1e-6, atol=1e-9)


def views(seed, n=5, d=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn((n, d), generator=generator, dtype=dtype)
    b = a + 0.5 * torch.randn((n, d), generator=generator, dtype=dtype)
    graph = torch.rand((n, n), generator=generator, dtype=dtype)
    return a, b, graph


def by_hand(a, b, temperature, graph, graph_temperature, neutral):
    """The corrected objective, one view after the other."""
    z, n = F.normalize(torch.cat([a, b]), dim=1), len(a)
    total = 0.0
    for u in range(2 * n):
        others = [v for v in range(2 * n) if v != u and (u % n == v % n or not neutral[u % n, v % n])]
        log_p = (z[others] @ z[u] / temperature).log_softmax(0)
        total -= float((graph[u % n, [v % n for v in others]] / graph_temperature).softmax(0) @ log_p)
    return total / (2 * n)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.05, 0.1, 1.0]), st.floats(0.1, 2))
def test_objective_of_a_graph(seed, temperature, graph_temperature):
    a, b, graph = views(seed)
    donor = torch.tensor([0, 0, 1, 2, 1])
    neutral = donor[:, None] == donor  # with the diagonal, which must not count
    for pairs, table in ((neutral, neutral), (None, torch.zeros(5, 5, dtype=torch.bool))):
        made = float(xsample(a, b, temperature, graph, graph_temperature, neutral_ss=pairs))
        assert made == pytest.approx(by_hand(a, b, temperature, graph, graph_temperature, table), rel=1e-9)
    ends = [float(xsample(a, b, temperature, graph, graph_temperature, mix, neutral)) for mix in (0.0, 0.3, 1.0)]
    assert ends[1] == pytest.approx(0.7 * ends[0] + 0.3 * ends[2], rel=1e-9)
    assert ends[0] == pytest.approx(float(xsample(a, b, temperature, neutral_ss=neutral)), rel=1e-9)
    log_p, q = predicted_and_target(a, b, temperature, graph, graph_temperature, neutral_ss=neutral)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(10, dtype=torch.float64))
    torch.testing.assert_close(q.sum(1), torch.ones(10, dtype=torch.float64))
    assert ends[2] >= torch.special.entr(q).sum(1).mean() - 1e-12  # a cross-entropy is least where p is q


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 1.5))
def test_what_changes_no_loss(seed, temperature):
    a, b, graph = views(seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    batch = torch.tensor([0, 0, 1, 1, 1])
    for kind in ("cosine", "cauchy", "gaussian"):
        value = info_nce(a, b, kind, temperature, batch_s=batch)
        torch.testing.assert_close(info_nce(a[order], b[order], kind, temperature, batch_s=batch[order]), value)
        torch.testing.assert_close(info_nce(b, a, kind, temperature, batch_s=batch), value)
        torch.testing.assert_close(info_nce(a, b, kind, temperature, batch_s=batch, batch_weight=1.0), info_nce(a, b, kind, temperature))
    value = xsample(a, b, temperature, graph)
    torch.testing.assert_close(xsample(a[order], b[order], temperature, graph[order][:, order]), value)
    torch.testing.assert_close(xsample(3 * a, b / 7, temperature, graph + 5), value)
    torch.testing.assert_close(xsample(a, b, temperature), info_nce(a, b, "cosine", temperature))


def test_weight_of_a_batch_spares_the_two_views_of_a_sample():
    a, b, _ = views(3)
    one, far = torch.zeros(5, dtype=torch.long), torch.arange(5)
    plain = info_nce(a, b, "cauchy", 1.0)
    torch.testing.assert_close(info_nce(a, b, "cauchy", 1.0, batch_s=far), plain)  # no two samples of one batch
    loss = [info_nce(a, b, "cauchy", 1.0, batch_s=one, batch_weight=w) for w in (0.5, 1e-9)]
    assert loss[1] < loss[0] < plain
    assert loss[1] < 1e-6  # nothing is left to tell apart
    torch.testing.assert_close(info_nce(a, b, "cauchy", 1.0, batch_s=one, weigh_positives=True), plain)  # the published form: no effect


def test_small_temperatures_and_coincident_views_stay_finite():
    a, _, graph = views(0, dtype=torch.float32)
    a = a.requires_grad_()
    for loss in (
        xsample(a, a, 0.005, graph, 1e-3),
        info_nce(a, a, "cosine", 0.005),
        info_nce(a, a, "cauchy", 50.0),
        info_nce(a, a, "gaussian", 50.0),
    ):
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, a)[0]).all()


def test_what_a_graph_asks_for():
    made = target_summary(torch.ones(4, 4), 0.2)
    assert made["own"] == pytest.approx(1 / 7)
    assert made["perplexity"] == pytest.approx(7)
    strict = target_summary(torch.eye(4), 0.01)
    assert strict["own"] == pytest.approx(1)
    assert strict["perplexity"] == pytest.approx(1)
    assert target_summary(torch.ones(4, 4), 0.2, torch.ones(4, 4, dtype=torch.bool))["own"] == pytest.approx(1)
    assert 1 < target_summary(GRAPH, 0.2)["perplexity"] < target_summary(GRAPH, 1.0)["perplexity"] < 2 * N


def test_collapse_of_known_embeddings():
    corners = torch.eye(4)
    signs = collapse(corners, 2 * corners)
    assert {name: round(float(value), 6) for name, value in signs.items()} == {
        "alignment": 0.0,
        "uniformity": -4.0,  # all at squared distance 2
        "effective_rank": 3.0,
        "pairwise_cosine": 0.0,
    }
    point = torch.tensor([[3.0, 4.0]]).tile(5, 1)
    signs = collapse(point, point)
    assert [round(float(signs[k]), 6) for k in ("alignment", "uniformity", "effective_rank", "pairwise_cosine")] == [0, 0, 0, 1]
    line = torch.linspace(-1, 1, 6)[:, None] * torch.tensor([[1.0, 2.0, 3.0]]) + 1
    assert float(collapse(line, line)["effective_rank"]) == pytest.approx(1, abs=1e-4)
    assert float(collapse(corners, -corners)["alignment"]) == pytest.approx(4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: info_nce(torch.ones(3, 2), torch.ones(2, 2)), r"found \(3, 2\) and \(2, 2\)"),
        (lambda: xsample(torch.ones(1, 2), torch.ones(1, 2), 0.1), "this batch has 1"),
        (lambda: info_nce(torch.ones(3, 2), torch.ones(3, 2), "dot"), "'dot'"),
        (lambda: xsample(torch.ones(3, 2), torch.ones(3, 2), 0.0), "temperature is 0.0"),
        (lambda: xsample(torch.ones(3, 2), torch.ones(3, 2), 0.1, torch.ones(4, 4)), "for 3 samples"),
        (lambda: xsample(torch.ones(2, 2), torch.ones(2, 2), 0.1, torch.full((2, 2), torch.nan)), "4 values"),
        (lambda: info_nce(torch.ones(2, 2), torch.ones(2, 2), batch_s=torch.ones(2), batch_weight=0.0), "is 0.0"),
    ],
)
def test_mistakes_are_said(call, says):
    with pytest.raises(SctoolError, match=says):
        call()


def test_what_tells_batches_is_the_variance_between_them():
    rng = np.random.default_rng(0)
    a_sd, b_sd = (torch.as_tensor(rng.normal(size=(6, 3))) for _ in range(2))
    batch_s = torch.tensor([0, 1, 0, 1, -1, 1])
    wanted = []
    for z_sd in (a_sd.numpy(), b_sd.numpy()):
        own = z_sd[[0, 2, 1, 3, 5]]
        means = np.array([own[:2].mean(0)] * 2 + [own[2:].mean(0)] * 3)
        wanted.append(np.square(means - own.mean(0)).sum(1).mean())
    assert float(between(a_sd, b_sd, batch_s)) == pytest.approx(np.mean(wanted))
    assert float(between(a_sd, a_sd.clone(), torch.zeros(6, dtype=torch.long))) == pytest.approx(0)
    assert float(between(a_sd, b_sd, torch.full((6,), -1))) == 0
