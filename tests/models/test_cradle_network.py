"""CRADLE-VAE: identities of effects and artifacts, every setting, and what goes into the encoder."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from sctool.config import load_config
from sctool.data.minibatch import CellStore
from sctool.data.perturbation import prepare_screen
from sctool.data.screen import read_screen
from sctool.models.cradle import CradleVAE
from sctool.nn.likelihood import normal_pair_kl
from sctool.sections import CradleConfig
from tests.models.cradle_helpers import batch_of, cells, small_net, vector

# effects and artifacts


def test_effects_add_up_and_control_has_none():
    net = small_net()
    names = dict(zip(("control", "A", "B", "A+B"), range(4), strict=True))
    u = {name: net.latents(cells(3, perturbation=np.full(3, code)))[1] for name, code in names.items()}
    torch.testing.assert_close(u["A+B"], u["A"] + u["B"])
    assert u["A"].abs().sum() > 0
    assert not u["control"].any()
    before = net.latents(cells(perturbation=np.zeros(20)))
    with torch.no_grad():
        net.effect_mean_tl.add_(100)
        net.mask_logits_tl.mul_(-1)
    for a, b in zip(before, net.latents(cells(perturbation=np.zeros(20))), strict=True):
        torch.testing.assert_close(a, b)


def test_sum_is_concatenation_with_equal_blocks():
    added, joined = small_net(mode="sum"), small_net(mode="concat")
    state = added.state_dict()
    state["decoder.first.linear.weight"] = state["decoder.first.linear.weight"].repeat(1, 3)
    joined.load_state_dict(state)
    z, u, a = (torch.randn(7, 4) for _ in range(3))
    codes = torch.zeros(7, dtype=torch.long)
    torch.testing.assert_close(added.logits(z, u, a, codes), joined.logits(z, u, a, codes), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["sum", "concat"])
def test_cells_that_passed_know_nothing_of_artifacts(mode):
    net = small_net(mode=mode)
    batch, failing = cells(flags=np.zeros(20)), cells(flags=np.full(20, 3))

    def losses():
        torch.manual_seed(0)
        terms = net.loss(batch).parts
        return [float(terms[name]) for name in ("reconstruction", "kl")]

    with torch.no_grad():
        before, failed = (losses(), net.latents(batch)[0]), net.latents(failing)[0]
        net.artifact_mean_ql.add_(5)
        assert losses() == before[0]
        torch.testing.assert_close(net.latents(batch)[0], before[1], rtol=0, atol=0)
        assert (net.latents(failing)[0] - failed).abs().max() > 1e-3


def test_each_criterion_has_a_vector_of_its_own_and_they_add_up():
    """Published, all flags share one, and a cell of any flag gets all of them."""
    net = small_net()
    with torch.no_grad():
        x_nh = net.project(net.standardised(cells()), torch.zeros(20, dtype=torch.long))
        u_nl = net.latents(cells())[1]
        first, second = net.artifact_mean_ql
        assert (first - second).abs().max() > 0.1
        for flags, artifact in ((0, 0 * first), (1, second), (2, first), (3, first + second)):
            wanted = net.encode(x_nh, u_nl, artifact.expand(20, -1))[0]
            torch.testing.assert_close(net.latents(cells(flags=np.full(20, flags)))[0], wanted)
    net.loss(cells(flags=np.full(20, 1)), anneal=0.0).loss.backward()  # only the second criterion is there to learn of
    assert net.artifact_mean_ql.grad[1].abs().max() > 0
    assert not net.artifact_mean_ql.grad[0].any()


def test_flipping_the_artifact_twice_is_no_change():
    """Of a cell that failed, the counterfactual has no artifact; of one that passed, that of the usual failing cell."""
    net = small_net(counterfactual_weight=1.0)
    net.usual_q = torch.tensor([1.0, 0.0])
    with torch.no_grad():
        net.artifact_log_sd_ql.fill_(-30.0)
        net.effect_log_sd_tl.fill_(-30.0)
        net.mask_logits_tl.fill_(30.0)
        effect_tl, artifact_ql, _ = net.draw()
        for flags, flipped in ((0, artifact_ql[0]), (2, torch.zeros(4))):  # 2: failed the first criterion alone
            batch = cells(flags=np.full(20, flags))
            x_nh = net.project(net.standardised(batch), batch.codes["batch"])
            u_nl, a_nl = (net.design_pt @ effect_tl)[batch.codes["perturbation"]], flipped.expand(20, -1)
            other_nh = net.project(net.profile_kg[batch.codes["opposite"]], batch.codes["batch"])
            wanted = normal_pair_kl(*net.encode(other_nh, u_nl, a_nl), *net.encode(x_nh, u_nl, a_nl)).mean()
            assert float(net.loss(batch).parts["counterfactual"]) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("guide", ["mean_field", "correlated"])
def test_a_target_without_cells_stays_at_no_effect(guide):
    """Published, its divergence has weight 0, so that mask and effect are whatever they began as."""
    net = small_net(guide=guide)
    with torch.no_grad():
        net.mask_logits_tl.zero_()
        if guide == "mean_field":
            net.effect_mean_tl.zero_()
    rng = np.random.default_rng(0)
    perturbation = rng.integers(0, 4, 60)  # control, A, B and A+B
    x = rng.poisson(4.0, (60, 12)) * np.where(np.arange(12) == 1, np.isin(perturbation, (1, 3))[:, None] * 9 + 1, 1)
    batch = batch_of(x * np.where(np.arange(12) == 2, np.isin(perturbation, (2, 3))[:, None] * 9 + 1, 1), perturbation=perturbation)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(80):
        optimizer.zero_grad()
        net.loss(batch).loss.backward()
        optimizer.step()
    with torch.no_grad():
        effect_tl = net.draw(sample=False)[0]
    assert (net.mask_logits_tl[2].sigmoid() < 0.3).all()  # on its way from .5 to the prior
    if guide == "mean_field":
        assert effect_tl[2].abs().max() < 1e-6
    assert effect_tl[2].abs().max() < 0.3 * effect_tl[:2].abs().max(1).values.min()


# settings of the network


@pytest.mark.parametrize("model", ["cradle", "sams", "cpa", "cvae"])
@pytest.mark.parametrize("guide", ["mean_field", "correlated"])
@pytest.mark.parametrize("mode", ["sum", "concat"])
def test_every_setting_learns(model, guide, mode):
    net = small_net(model=model, guide=guide, mode=mode, counterfactual_weight=0.1).train()
    batch = cells(60)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        terms = net.loss(batch)
        terms.loss.backward()
        optimizer.step()
        losses.append(terms.loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1
    assert (net.mask_logits_tl is None) == (model in ("cpa", "cvae"))
    dead = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert all(model == "cvae" and ("log_sd" in name or "log_variance" in name) for name in dead), dead


def test_base_cells_are_remembered_and_perturbed():
    net = small_net()
    batch = cells(5, base=[-1, 2, 0, -1, 1], perturbation=np.zeros(5), flags=np.zeros(5)).codes
    x = cells(5).dense().numpy()
    whole = batch_of(x, **{key: code.numpy() for key, code in batch.items()})
    net.remember([whole])
    with torch.no_grad():
        z_nl = net.latents(whole)[0]
        torch.testing.assert_close(net.base_z_nl, z_nl[[2, 4, 1]])
        torch.testing.assert_close(net.base_total_n, torch.as_tensor(x.sum(1))[[2, 4, 1]])
        effect_l = net.draw(sample=False)[0][0]
        shares = net.proportions(effect_l)
        assert shares.shape == (3, 11)  # the last gene stands for all others
        assert (shares.sum(1) < 1).all()
        wanted = net.logits(net.base_z_nl, effect_l.expand(3, -1), torch.zeros(3, 4), torch.zeros(3, dtype=torch.long)).softmax(1)
        torch.testing.assert_close(shares, wanted[:, :-1])


# what goes into the encoder


def screen_file(path, x_ng, names, **columns):
    obs = pd.DataFrame({"perturbation": names, **columns}, index=[f"c{at}" for at in range(len(names))])
    cells = ad.AnnData(
        sp.csr_matrix(np.asarray(x_ng, np.float32)), obs=obs, var=pd.DataFrame(index=[f"g{at}" for at in range(x_ng.shape[1])])
    )
    cells.write_h5ad(path)
    return path


def prepared(path, **flags):
    keys = {"cradle.perturbation_key": "perturbation", "cradle.control": "control", "cradle.split": "none", "data.validation": 0.0}
    config = load_config(None, {**keys, "cradle.qc_key": "none", **flags}, [], "cradle")
    return prepare_screen(read_screen(path, config), config)


def test_standardisation_has_a_floor(tmp_path):
    """Published, a gene without counts in training becomes 1e6 in the first cell that has one."""
    case = vector("batch_stats")
    x_ng = case["X"].numpy()
    (empty,) = np.flatnonzero(x_ng.sum(0) == 0)
    x_ng = np.hstack([x_ng, x_ng])  # twice, for a file has ten genes at least
    depth = float(x_ng.sum(1).max()) + 100
    names = ["control", "A"] * 18 + ["control"]
    path = screen_file(tmp_path / "s.h5ad", x_ng, names, n_counts_all_genes=depth)  # all of that depth: log1p of the counts themselves
    made = prepared(path, **{"data.target_sum": depth, "data.n_top_genes": 0}).initial
    assert made["log_mean_g"].shape == (13,)  # the last stands for all other genes
    np.testing.assert_allclose(made["log_mean_g"][:6], case["log_mean"], atol=1e-5)
    own_sd_g = np.where(x_ng[:, :6].sum(0) == 0, 0.0, case["log_std"]) * np.sqrt(36 / 37)  # theirs has n - 1 below
    np.testing.assert_allclose(made["log_sd_g"][:6], np.maximum(own_sd_g, 0.1), rtol=1e-4)

    net = CradleVAE(CradleConfig(n_hidden=13, n_latent=2), n_genes=13, n_perturbations=2, n_targets=1).eval()
    with torch.no_grad():  # the encoder's first layer hands on what it gets
        net.encoder.first.linear.weight.copy_(torch.eye(13, 17))
        net.encoder.first.linear.bias.zero_()
        for name in ("log_mean_g", "log_sd_g", "target_sum"):
            getattr(net, name).copy_(torch.as_tensor(made[name]))

    def seen_by_the_encoder(query_ng):
        rest_n1 = np.maximum(depth - 2 * query_ng.sum(1, keepdims=True), 0)
        batch = batch_of(np.hstack([query_ng, query_ng, rest_n1]), depth=depth)
        with torch.no_grad():
            return net.project(net.standardised(batch), batch.codes["batch"])[:, :6].numpy()

    query_ng = case["X_query"].numpy()
    made_ng, varies = seen_by_the_encoder(query_ng), np.flatnonzero(own_sd_g > 0.1)
    assert len(varies) >= 4
    np.testing.assert_allclose(made_ng[:, varies] * np.sqrt(36 / 37), case["log_standardized"].numpy()[:, varies], atol=1e-3)
    assert np.abs(made_ng).max() < 100
    once = query_ng[:1].copy()
    once[:, empty] = 1
    assert 0 < seen_by_the_encoder(once)[0, empty] < 10


def test_the_encoder_sees_shares_not_depth():
    """Cells of twice the counts look alike; published, they do not."""
    net = small_net()
    x = cells().dense().numpy()
    torch.testing.assert_close(net.standardised(batch_of(3 * x)), net.standardised(batch_of(x)), atol=1e-4, rtol=1e-4)


def test_genes_left_out_are_one_more_gene(tmp_path):
    """Depth is that of the whole experiment, and predicted genes are those of the file."""
    rng = np.random.default_rng(0)
    x_ng = rng.poisson(2.0, (40, 30))
    path = screen_file(tmp_path / "s.h5ad", x_ng, ["control", "A"] * 20)
    made = prepared(path, **{"data.n_top_genes": 10})
    assert len(made.genes["name"]) == 10
    assert made.sizes["n_genes"] == 11
    store = CellStore(made.matrix[:, made.columns], made.codes, made.obs.index, totals=made.totals)
    np.testing.assert_allclose(store.batch(np.arange(40)).depth_n1[:, 0], x_ng.sum(1))
