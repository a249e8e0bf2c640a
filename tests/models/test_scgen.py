"""scGen: the network against the published one, the published arithmetic draw for draw, and what a response must satisfy."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sctool.data.minibatch import CellStore
from sctool.models.scgen import SCGen, balanced_rows, group_weights, learned_power, published_delta, published_split
from sctool.nn.likelihood import normal_kl
from sctool.sections import SCGenConfig
from tests.conftest import VECTORS

NAMES = {"z_encoder.encoder.fc_layers.Layer ": "encoder.body.", "decoder.decoder.fc_layers.Layer ": "decoder."}


def published_weights(case):
    """The published parameters under our names."""
    out = {}
    for key in case.files:
        if not key.startswith("param__"):
            continue
        name = key.removeprefix("param__")
        for theirs, ours in NAMES.items():
            if name.startswith(theirs):
                layer, kind, rest = name.removeprefix(theirs).split(".")
                name = f"{ours}{'linears' if kind == '0' else 'norms'}.{layer}.{'linear.' if kind == '0' else ''}{rest}"
        name = name.replace("z_encoder.mean_encoder", "encoder.mean").replace("z_encoder.var_encoder", "encoder.log_variance")
        out[name.replace("decoder.linear_out", "out")] = torch.from_numpy(case[key])
    return out


def published_network(case):
    net = SCGen(SCGenConfig(n_latent=5, n_hidden=16), n_genes=40)
    missing, unexpected = net.load_state_dict(published_weights(case), strict=False)
    assert not unexpected
    assert set(missing) == {"latent_ksl", "mean_ksg", "cells_ks"}
    return net.eval()


def batch_of(x_ng, **codes):
    return CellStore(sp.csr_matrix(x_ng), {key: np.asarray(value) for key, value in codes.items()}, range(len(x_ng))).batch(
        np.arange(len(x_ng))
    )


def test_network_and_loss_are_the_published_ones():
    case = np.load(VECTORS / "ar_scgenvae.npz")
    net = published_network(case)
    batch = batch_of(case["x"])
    with torch.inference_mode():
        mean_nl, variance_nl = net.posterior(batch)
        decoded = net.decode(torch.from_numpy(case["z"]))
    np.testing.assert_allclose(mean_nl, case["qz_m"], atol=1e-5)
    np.testing.assert_allclose(variance_nl, case["qz_v"], atol=1e-5)
    np.testing.assert_allclose(decoded, case["px"], atol=1e-5)
    error = ((torch.from_numpy(case["x"]) - decoded) ** 2).sum(1)
    kl = normal_kl(mean_nl, variance_nl)
    np.testing.assert_allclose(error, case["rl"], rtol=1e-5)
    np.testing.assert_allclose(kl, case["kl"], rtol=1e-4)
    assert float((0.5 * error + 0.5 * 5e-5 * kl).mean()) == pytest.approx(float(case["loss"]), rel=1e-5)


def test_the_loss_is_that_formula():
    case = np.load(VECTORS / "ar_scgenvae.npz")
    net = published_network(case)
    batch = batch_of(case["x"])
    torch.manual_seed(0)
    terms = net.loss(batch, anneal=0.0)  # its KL weight is constant
    torch.manual_seed(0)
    mean_nl, variance_nl = net.posterior(batch)
    decoded = net.decode(mean_nl + variance_nl.sqrt() * torch.randn_like(variance_nl))
    error = ((batch.dense() - decoded) ** 2).sum(1)
    assert terms.loss.item() == pytest.approx((0.5 * error + 0.5 * 5e-5 * normal_kl(mean_nl, variance_nl)).mean().item(), rel=1e-5)


def test_published_latent_arithmetic_draw_for_draw():
    case = np.load(VECTORS / "ar_scgen_predict.npz")
    perturbed = case["condition"] == "LPS6"
    held_out = np.isin(np.arange(len(perturbed)), case["test_rows"])
    known = np.flatnonzero(~(held_out & perturbed))
    delta_l, control, moved = published_delta(case["latent_mean"][known], perturbed[known], case["species"][known], int(case["seed"]))
    np.testing.assert_array_equal(known[control], case["ctrl_rows_used"])
    np.testing.assert_array_equal(known[moved], case["stim_rows_used"])
    np.testing.assert_allclose(delta_l, case["delta"], atol=1e-6)
    net = published_network(case)
    with torch.inference_mode():
        z_nl = net.embed(batch_of(case["X"]))
        np.testing.assert_allclose(z_nl, case["latent_mean"], atol=1e-5)
        np.testing.assert_allclose(net.decode(z_nl[case["test_rows"]] + torch.from_numpy(delta_l)), case["pred"], atol=1e-5)


def test_published_balancing_and_split():
    case = np.load(VECTORS / "ar_balancer.npz")
    np.testing.assert_array_equal(balanced_rows(case["labels"], np.random.RandomState(int(case["seed"]))), case["selected_rows"])
    case = np.load(VECTORS / "ar_splits.npz")
    for n, seed in ((103, 100), (500, 300), (11, 0)):
        train, validation = published_split(n, seed)
        np.testing.assert_array_equal(validation, case[f"scgen_valid_n{n}_seed{seed}"])
        np.testing.assert_array_equal(train, case[f"scgen_train_n{n}_seed{seed}"])


@pytest.fixture
def remembering():
    """A small network that remembers three groups: 0 and 1 under both conditions, 2 under control only."""
    rng = np.random.default_rng(0)
    x_ng = rng.poisson(1.0, (90, 40)).astype(np.float32)
    group, condition = np.repeat([0, 1, 2], 30), np.tile([0, 1], 45)
    condition[60:] = 0
    x_ng[condition == 1, :5] += 2
    torch.manual_seed(0)
    net = SCGen(SCGenConfig(n_latent=4, n_hidden=8), 40, 3).eval()
    store = CellStore(sp.csr_matrix(x_ng), {"group": group, "condition": condition}, range(90))
    net.remember(store.batch(rows) for rows in (np.arange(50), np.arange(50, 90)))
    return net, store, x_ng, group, condition


def test_it_remembers_means_over_all_minibatches(remembering):
    net, store, x_ng, group, condition = remembering
    with torch.inference_mode():
        z_nl = net.embed(store.batch(np.arange(90))).numpy()
    for k in range(3):
        for s in (0, 1):
            own = (group == k) & (condition == s)
            assert net.cells_ks[k, s] == own.sum()
            if own.any():
                np.testing.assert_allclose(net.mean_ksg[k, s], x_ng[own].mean(0), atol=1e-5)
                np.testing.assert_allclose(net.latent_ksl[k, s], z_nl[own].mean(0), atol=1e-5)


def test_delta_comes_from_groups_with_both_conditions(remembering):
    """The reference averages the controls of the held-out group in as well, which biases delta."""
    net, _, x_ng, group, _ = remembering
    w_k = net.weights(torch.from_numpy(x_ng[group == 2].mean(0)))
    assert w_k[2] == 0
    assert float(w_k.sum()) == pytest.approx(1)
    moved = net.latent_ksl[2].clone()
    net.latent_ksl[2] += 100
    batch = batch_of(x_ng[group == 2])
    before = net.respond(batch, torch.zeros(40), w_k)
    net.latent_ksl[2] = moved
    torch.testing.assert_close(net.respond(batch, torch.zeros(40), w_k), before)


def test_no_change_in_the_other_groups_leaves_a_cell_as_it_is(remembering):
    """With the residual kept: the decoder's faults cancel. Without it the cell becomes its decoded self."""
    net, _, x_ng, group, _ = remembering
    net.latent_ksl[:, 1], net.mean_ksg[:, 1] = net.latent_ksl[:, 0], net.mean_ksg[:, 0]
    own = x_ng[group == 2]
    control_g = torch.from_numpy(own.mean(0))
    batch = batch_of(own)
    torch.testing.assert_close(net.respond(batch, control_g, net.weights(control_g)), torch.from_numpy(own), atol=1e-5, rtol=1e-5)
    net.config = net.config.model_copy(update={"residual": False})
    decoded = net.decode(net.embed(batch))
    torch.testing.assert_close(net.respond(batch, control_g, net.weights(control_g)), decoded, atol=1e-5, rtol=1e-5)


def test_a_known_group_gets_its_own_change_back(remembering):
    """It alone counts, and the carried-over part is then exact: m (p + c) / (q + c) with q = m."""
    net, _, x_ng, group, condition = remembering
    net.config = net.config.model_copy(update={"blend": 0.0})
    own = x_ng[(group == 0) & (condition == 0)]
    control_g = torch.from_numpy(own.mean(0))
    got = net.respond(batch_of(own), control_g, net.weights(control_g, own=0)).mean(0).detach()
    np.testing.assert_allclose(got, x_ng[(group == 0) & (condition == 1)].mean(0), atol=1e-3)


def test_groups_with_few_cells_count_only_if_there_are_no_others(remembering):
    net, *_ = remembering
    net.cells_ks[0] = 3
    assert net.weights(net.mean_ksg[2, 0])[0] == 0
    net.cells_ks[1] = 3
    assert net.weights(net.mean_ksg[2, 0])[0] > 0


def test_the_power_is_the_one_that_fits_the_known_groups():
    """Where like groups change alike it is large, where likeness says nothing it is 0."""
    rng = np.random.default_rng(0)
    at_k = torch.tensor([0.0, 1, 2, 20, 21, 22])  # groups on a line, in two clusters
    direction_g, near_g, far_g = (torch.from_numpy(rng.normal(size=30)).float() for _ in range(3))
    control_kg = 5 + 0.05 * at_k[:, None] * direction_g
    alike = near_g * (at_k[:, None] < 3) + far_g * (at_k[:, None] >= 3)
    unlike = torch.from_numpy(rng.normal(size=(6, 30))).float() + near_g
    assert learned_power(torch.stack([control_kg, control_kg + alike], 1), 0.3) >= 3
    assert learned_power(torch.stack([control_kg, control_kg + unlike], 1), 0.3) <= 0.5
    assert learned_power(torch.stack([control_kg, control_kg + alike], 1)[:2], 0.3) == 0  # two say nothing of each other


distances = st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=8).map(lambda values: torch.tensor(values, dtype=torch.float32))


@settings(max_examples=60, deadline=None)
@given(distances, st.sampled_from(["similar", "mean", "nearest"]), st.floats(0.5, 8))
def test_weights_of_groups(distance_k, rule, power):
    w_k = group_weights(distance_k, rule, power)
    assert torch.isfinite(w_k).all()
    assert float(w_k.sum()) == pytest.approx(1, abs=1e-5)
    assert (w_k >= 0).all()
    assert w_k[distance_k.argmin()] >= w_k.max() - 1e-6  # the nearest counts most
    if rule != "nearest" or len(distance_k.unique()) == len(distance_k):
        torch.testing.assert_close(group_weights(distance_k.flip(0), rule, power), w_k.flip(0))
    scaled = group_weights((distance_k + 1) * 7, rule, power)
    torch.testing.assert_close(scaled, group_weights(distance_k + 1, rule, power), atol=1e-4, rtol=1e-3)  # no scale to choose
