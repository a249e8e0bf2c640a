"""The diffusion: its closed forms against reference arrays, and its samplers under exact scores."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sctool.models.diffusion import Diffusion, betas, time_embedding
from tests.conftest import VECTORS

CASE = np.load(VECTORS / "integration_ddpm.npz")
BRIDGE = np.load(VECTORS / "integration_bridge.npz")
KINDS = ("linear", "quadratic", "cosine")
T = 400


def close(made, wanted, tolerance=1e-12):
    np.testing.assert_allclose(np.asarray(made, dtype=np.float64), wanted, rtol=tolerance, atol=tolerance)


def tensor(key):
    return torch.from_numpy(CASE[key])


@pytest.fixture(scope="module")
def process():
    return Diffusion(betas("cosine", T))


def published(kind):
    """The schedules of the reference arrays, whose linear and quadratic ones are those made for 1,000 steps."""
    return Diffusion(betas(kind, T, rescale=False))


@pytest.mark.parametrize("kind", KINDS)
def test_schedules(kind):
    made = published(kind)
    close(made.beta, CASE[f"beta_{kind}"])
    close(made.abar, CASE[f"abar_{kind}"], 1e-9)
    assert len(made) == T
    assert made.beta.dtype == torch.float64


def test_values_of_the_schedules_in_print():
    wanted = {
        "linear": (0.9999, 0.957977, 0.773125, 0.362071, 0.017473),
        "quadratic": (0.9999, 0.988696, 0.924711, 0.644689, 0.055638),
        "cosine": (0.999888, 0.972093, 0.847012, 0.493844, 1.518e-8),
    }
    for kind, values in wanted.items():
        np.testing.assert_allclose(published(kind).abar[[0, 39, 99, 199, 399]], values, rtol=5e-4, atol=5e-7 if kind != "cosine" else 1e-11)


@pytest.mark.parametrize("steps", [2, 50, 400, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_code_is_left_in_the_noise(kind, steps):
    beta = betas(kind, steps)
    assert beta.shape == (steps,)
    assert ((beta > 0) & (beta <= 0.999)).all()
    made = Diffusion(beta)
    assert (made.abar.diff() < 0).all()
    if steps >= 50:
        assert made.abar[-1] < 1e-3
        assert made.terminal_kl(torch.full((1, 20), 3.0, dtype=torch.float64)) < 0.1
    assert ((made.posterior_variance >= 0) & (made.posterior_variance <= beta)).all()


def test_a_thousand_steps_are_left_as_published():
    close(betas("linear", 1000), np.linspace(1e-4, 2e-2, 1000))
    close(betas("quadratic", 1000), np.linspace(1e-4**0.5, 2e-2**0.5, 1000) ** 2)


@pytest.mark.parametrize("kind", KINDS)
def test_single_steps_add_up_to_the_closed_form(kind):
    for rescale in (True, False):
        made = Diffusion(betas(kind, T, rescale=rescale))
        close(made.alpha + made.beta, 1, 1e-15)
        mean, variance = 1.0, 0.0
        for i in range(T):
            alpha = float(made.alpha[i])
            mean, variance = alpha**0.5 * mean, alpha * variance + float(made.beta[i])
            assert mean == pytest.approx(float(made.abar[i]) ** 0.5, abs=1e-12)
            assert variance == pytest.approx(1 - float(made.abar[i]), abs=1e-12)


def test_noise_velocity_and_posterior(process):
    z0, eps, index = tensor("z0"), tensor("eps"), tensor("t_index0")
    zt, v = process.noised(z0, index, eps), process.velocity(z0, index, eps)
    close(zt, CASE["zt"])
    close(v, CASE["v_target"])
    mean, variance = process.posterior(z0, zt, index)
    close(mean, CASE["post_mean"], 1e-10)
    close(variance.squeeze(1), CASE["post_var"], 1e-9)
    close(process.posterior_z0[index], CASE["post_c0"], 1e-9)
    close(process.posterior_zt[index], CASE["post_ct"], 1e-9)
    np.testing.assert_allclose(zt[2], (-0.827267, -1.075755, -0.971183, -0.044596), atol=1e-6)
    np.testing.assert_allclose(mean[2], (-0.824783, -1.079406, -0.964281, -0.042905), atol=1e-6)
    assert float(variance[2]) == pytest.approx(3.26537e-3, rel=1e-5)


def test_one_index_for_all_cells_is_the_same_as_one_for_each(process):
    z0, eps = tensor("z0"), tensor("eps")
    index = torch.full((len(z0),), 123)
    for call in (process.noised, process.velocity):
        close(call(z0, 123, eps), call(z0, index, eps))
    for made, wanted in zip(process.posterior(z0, eps, 123), process.posterior(z0, eps, index), strict=True):
        close(made.expand_as(wanted), wanted)


def test_reverse_mean_and_its_divergence(process):
    """The mean that a noise prediction implies, and the KL of the reverse step: beta^2 / (2 var alpha (1 - abar)) |eps - eps_hat|^2."""
    z0, index, eps, eps_hat = tensor("z0"), tensor("t_index0"), tensor("eps"), tensor("eps_hat")
    zt = process.noised(z0, index, eps)
    abar, alpha, beta = (x[index].unsqueeze(1) for x in (process.abar, process.alpha, process.beta))
    z0_hat = (zt - (1 - abar).sqrt() * eps_hat) / abar.sqrt()
    v_hat = (zt * abar.sqrt() - z0_hat) / (1 - abar).sqrt()
    back, noise = process.split(zt, index, v_hat)
    close(back, z0_hat, 1e-7)
    close(noise, eps_hat, 1e-7)
    mean, variance = process.posterior(z0, zt, index)
    close(mean, (zt - beta / (1 - abar).sqrt() * eps) / alpha.sqrt(), 1e-6)
    mean_hat, _ = process.posterior(z0_hat, zt, index)
    close(mean_hat, CASE["mu_hat"], 1e-6)
    kl = (mean - mean_hat).square().sum(1) / (2 * variance.squeeze(1))
    weight = (beta**2 / (2 * variance * alpha * (1 - abar))).squeeze(1)
    np.testing.assert_allclose(kl, CASE["kl_sigma_tilde"], rtol=1e-5)
    np.testing.assert_allclose(weight, CASE["simple_weight"], rtol=1e-6)
    np.testing.assert_allclose(weight * (eps - eps_hat).square().sum(1), CASE["kl_sigma_tilde"], rtol=1e-6)
    later = index > 0
    precision = (1 / (1 - process.abar_before) + process.alpha / process.beta)[index][later]
    np.testing.assert_allclose(1 / variance.squeeze(1)[later], precision, rtol=1e-9)


def test_the_first_step_has_no_posterior_noise(process):
    assert process.posterior_variance[0] == 0
    mean, variance = process.posterior(tensor("z0"), tensor("eps"), 0)
    close(mean, CASE["z0"], 1e-12)
    assert variance == 0


@pytest.mark.parametrize("kind", KINDS)
def test_terminal_divergence(kind):
    made = published(kind).terminal_kl(tensor("z0"))
    np.testing.assert_allclose(made, CASE[f"terminal_kl_{kind}"], rtol=1e-6, atol=1e-14)
    if kind == "linear":
        np.testing.assert_allclose(made, (0.00427879, 0.0266499, 0.0220339, 0.0662004, 0.0147462), rtol=1e-5)
    if kind == "cosine":
        assert made.max() < 6e-8


def test_time_embedding():
    at = torch.from_numpy(CASE["temb_t"])
    np.testing.assert_allclose(time_embedding(at, 8), CASE["temb_dim8"], atol=1e-4)
    printed = (-0.643538, -0.529836, 0.361615, 0.036992, 0.765414, -0.848100, 0.932327, 0.999316)
    np.testing.assert_allclose(time_embedding(torch.tensor([37]), 8)[0], printed, atol=1e-5)


def test_weights_of_the_loss(process):
    index = torch.arange(T)
    snr = process.abar / (1 - process.abar)
    close(process.weight(index), torch.minimum(snr, torch.tensor(5.0)) / (snr + 1), 1e-12)
    close(process.weight(index, cap=1e30), process.abar, 1e-12)  # without a cap it is the error of z_0 times SNR


def law(process, mean, sd):
    """Exact v of normal data."""

    def predict(z, i):
        abar = process.abar[i].to(z)
        total = abar * sd**2 + 1 - abar
        eps = (1 - abar).sqrt() * (z - abar.sqrt() * mean) / total
        z0 = mean + abar.sqrt() * sd**2 * (z - abar.sqrt() * mean) / total
        return abar.sqrt() * eps - (1 - abar).sqrt() * z0

    return predict


def test_the_least_error_of_the_noise(process):
    """Of standard normal codes no prediction of the noise does better than abar."""
    close(process.abar, CASE["irreducible_eps_mse_N01_cosine"], 1e-9)
    means = [float(published(kind).abar.mean()) for kind in KINDS]
    np.testing.assert_allclose(means, CASE["irreducible_mean_over_t"], rtol=1e-9)
    generator = torch.Generator().manual_seed(0)
    z0, eps = (torch.randn(200_000, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    for i in (10, 100, 300):
        zt = process.noised(z0, i, eps)
        _, eps_hat = process.split(zt, i, law(process, 0.0, 1.0)(zt, i))
        assert float((eps - eps_hat).square().mean()) == pytest.approx(float(process.abar[i]), abs=0.01)


@pytest.mark.parametrize("row", [0, 1, 2, 3])
def test_full_chain_under_the_exact_score(row):
    """Mean and variance of samples that start from N(0, 1)."""
    kind = ("linear", "linear", "cosine", "cosine")[row]
    made = published(kind)
    mean, variance = CASE["gauss_target"]
    predict = law(made, float(mean), float(variance) ** 0.5)
    wanted_mean, wanted_variance = CASE["gauss_full_chain_mean_var"][row]
    if row % 2:  # DDIM is affine, so two points give mean and variance
        z = made.descend(predict, torch.tensor([[0.0], [1.0]], dtype=torch.float64), range(T)).flatten()
        assert float(z[0]) == pytest.approx(wanted_mean, abs=1e-9)
        assert float((z[1] - z[0]) ** 2) == pytest.approx(wanted_variance, abs=1e-9)
        return
    n = 100_000
    generator = torch.Generator().manual_seed(row)
    z = made.sample(predict, torch.randn(n, 1, generator=generator, dtype=torch.float64), T - 1, generator)
    assert abs(float(z.mean()) - wanted_mean) < 4 * (wanted_variance / n) ** 0.5
    assert abs(float(z.var()) - wanted_variance) < 4 * wanted_variance * (2 / n) ** 0.5


def test_noising_and_denoising_without_a_batch(process):
    """The share of a deviation that is left; the chain started at 2.4 for the law N(1.5, 0.3^2)."""
    n = 20_000
    for last, abar, mean, variance, _ in CASE["sdedit_table"]:
        last = int(last)
        assert float(process.abar[last]) == pytest.approx(abar, rel=1e-6)
        generator = torch.Generator().manual_seed(last)
        z0 = torch.full((n, 1), 2.4, dtype=torch.float64)
        noised = process.noised(z0, last, torch.randn(n, 1, generator=generator, dtype=torch.float64))
        z = process.sample(law(process, 1.5, 0.3), noised, last, generator)
        assert abs(float(z.mean()) - mean) < 4 * (variance / n) ** 0.5 + 1e-9
        assert abs(float(z.var()) - variance) < 4 * variance * (2 / n) ** 0.5 + 1e-9


def test_bridge_under_exact_scores(process):
    source, target = (law(process, *map(float, BRIDGE[key])) for key in ("source", "target"))
    z = torch.from_numpy(BRIDGE["z"]).unsqueeze(1)
    for row in BRIDGE["table"]:
        last = int(row[0])
        assert float(process.abar[last]) == pytest.approx(row[1], rel=1e-6)
        made = process.bridge(source, target, z, range(last + 1)).squeeze(1)
        close(made, row[2:5], 1e-9)
    np.testing.assert_allclose(made, BRIDGE["affine_limit"], atol=0.02)
    strided = process.bridge(source, target, z, process.grid(T - 1, 50)).squeeze(1)
    np.testing.assert_allclose(strided, BRIDGE["affine_limit"], atol=0.1)
    assert (strided.diff() > 0).all()


@pytest.mark.parametrize("last", [10, 40, 100, 200, 399])
def test_a_bridge_to_the_same_law_is_the_identity(process, last):
    own = law(process, 1.5, 0.3)
    z = torch.from_numpy(BRIDGE["z"]).unsqueeze(1)
    assert float((process.bridge(own, own, z, range(last + 1)) - z).abs().max()) < 0.01


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, T - 1), st.sampled_from(KINDS), st.integers(1, 9))
def test_parts_of_a_noised_code_can_be_told_apart(seed, i, kind, latent):
    made, generator = Diffusion(betas(kind, T)), torch.Generator().manual_seed(seed)
    z0, eps = (3 * torch.randn(4, latent, generator=generator, dtype=torch.float64) for _ in range(2))
    zt, v = made.noised(z0, i, eps), made.velocity(z0, i, eps)
    for got, wanted in zip(made.split(zt, i, v), (z0, eps), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(zt.square() + v.square(), z0.square() + eps.square(), atol=1e-9, rtol=1e-9)  # a rotation
    mean, _ = made.posterior(z0, zt, i)
    assert (made.terminal_kl(z0) >= 0).all()
    if i == 0:
        torch.testing.assert_close(mean, z0, atol=1e-9, rtol=1e-9)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, T - 1), st.integers(1, 600))
def test_grids(last, points):
    grid = Diffusion(betas("cosine", T)).grid(last, points)
    assert grid[0] == 0
    assert grid[-1] == last
    assert len(grid) <= max(2, points)
    assert all(a < b for a, b in itertools.pairwise(grid))
    if points > last:
        assert grid == list(range(last + 1))


def test_sampling_and_refining_in_single_precision_stay_finite(process):
    z = process.sample(law(process, 0.0, 1.0), torch.randn(50, 3), T - 1)
    assert z.dtype == torch.float32
    assert torch.isfinite(z).all()
    assert 0.5 < float(z.std()) < 1.5
