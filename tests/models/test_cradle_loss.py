"""CRADLE-VAE: the mended loss, its divergences and its likelihood, and what of it is spread over cells."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from sctool.nn.likelihood import bernoulli_kl, expected_log1p, nb_log_likelihood, normal_kl, normal_pair_kl
from tests.models.cradle_helpers import ADDED, batch_of, cells, log_nb, published, published_penalty, small_net, vector


@pytest.mark.parametrize("mode", ["concat", "sum"])
def test_the_loss_is_the_mended_formula(mode):
    """Dense, by hand, from the same draws: likelihood with weight 1, closed divergences, a true KL averaged over cells."""
    net, case = published(mode)
    net.config = net.config.model_copy(update={"counterfactual_weight": 0.5, "particles": 2, "embedding_scale": 0.7})
    with torch.no_grad():
        net.artifact_mean_ql.copy_(case["aauto.q_qcE_mean"][0])
        net.artifact_log_sd_ql.copy_(case["aauto.q_qcE_sd"][0].log())
    net.design_pt, net.flags_kq = torch.eye(3), torch.tensor([[0.0], [1.0]])
    net.usual_q, net.n_cells = torch.ones(1), torch.tensor(100.0)
    net.profile_kg = torch.randn(2, 7)
    net.design_pt = case["D"]  # each cell is a perturbation of its own
    flags_n, opposite_n = case["qc"][:, 0].long(), torch.tensor([0, 1, 2] * 3)  # 2: no counterfactual
    batch = batch_of(case["X"], perturbation=np.arange(9), flags=flags_n, opposite=opposite_n)
    torch.manual_seed(3)
    terms = net.loss(batch, anneal=0.25)

    torch.manual_seed(3)
    x_nh = net.project(net.standardised(batch), batch.codes["batch"])
    wanted = []
    with torch.no_grad():
        for _ in range(2):
            effect_tl, artifact_ql, kl = net.draw()
            u_nl, a_nl = case["D"] @ effect_tl, case["qc"] @ artifact_ql
            mean_nl, variance_nl = net.encode(x_nh, u_nl, a_nl)
            z_nl = mean_nl + variance_nl.sqrt() * torch.randn_like(variance_nl)
            share_ng = net.logits(z_nl, u_nl, a_nl, batch.codes["batch"]).softmax(1)
            log_p = log_nb(case["X"], share_ng * case["X"].sum(1, keepdim=True), net.log_theta.exp()).sum(1).mean()
            kl_z = torch.distributions.kl_divergence(Normal(mean_nl, variance_nl.sqrt()), Normal(0.0, 1.0)).sum(1).mean()
            own = opposite_n < 2
            flipped_nl = (1 - case["qc"][own]) @ artifact_ql
            other = net.encode(net.project(net.profile_kg[opposite_n[own]], opposite_n[own] * 0), u_nl[own], flipped_nl)
            mine = net.encode(x_nh[own], u_nl[own], flipped_nl)
            pair = [Normal(mean, variance.sqrt()) for mean, variance in (other, mine)]
            counterfactual = torch.distributions.kl_divergence(*pair).sum(1).mean()
            wanted.append([-log_p, kl_z, kl / 100, counterfactual])
    reconstruction, kl_z, kl_global, counterfactual = np.mean([[float(value) for value in row] for row in wanted], 0)
    made = {name: float(value) for name, value in terms.parts.items()}
    assert made == pytest.approx(
        {"reconstruction": reconstruction, "kl": kl_z, "kl_global": kl_global, "counterfactual": counterfactual}, rel=1e-4
    )
    assert terms.loss.item() == pytest.approx(reconstruction + 0.25 * (kl_z + kl_global) + 0.5 * counterfactual, rel=1e-4)


# divergences


@pytest.mark.parametrize("prior", [0.001, 0.01])
def test_bernoulli_kl_is_exact(prior):
    case = vector("gumbel_mask")
    made = bernoulli_kl(case["logits"].double(), prior)
    torch.testing.assert_close(made, case[f"kl_bernoulli_{prior}"], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(bernoulli_kl(case["logits"], prior).double(), made, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(logit=st.floats(-15, 15), prior=st.floats(1e-4, 1 - 1e-4))
@example(logit=0.0, prior=0.01)  # an even mask
def test_bernoulli_kl_is_zero_only_at_the_prior(logit, prior):
    kl = float(bernoulli_kl(torch.tensor(logit, dtype=torch.float64), prior))
    q = 1 / (1 + math.exp(-logit))
    assert kl == pytest.approx(scipy.stats.entropy([q, 1 - q], [prior, 1 - prior]), rel=1e-6, abs=1e-9)
    at_prior = torch.tensor(math.log(prior / (1 - prior)), dtype=torch.float64)
    assert float(bernoulli_kl(at_prior, prior)) == pytest.approx(0, abs=1e-9)
    if abs(logit - at_prior) > 0.1:
        assert kl > 0


def test_counterfactual_divergence_is_a_true_one():
    """The published formula is one only where the second standard deviation is 1."""
    case = vector("cf_kl")
    flat = [case[name].reshape(-1, 1) for name in ("mu1", "sd1", "mu2", "sd2")]
    made = normal_pair_kl(flat[0], flat[1] ** 2, flat[2], flat[3] ** 2).reshape(2, 6, 3)
    torch.testing.assert_close(made, case["true_elementwise"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.mean(0).sum(0), case["true_sum_over_cells_mean_particles"], rtol=1e-5, atol=1e-6)
    assert float(made.mean(0).sum()) == pytest.approx(27.5469, abs=1e-4)
    theirs = published_penalty(case["mu1"], case["sd1"], case["mu2"], case["sd2"])
    torch.testing.assert_close(theirs.mean(0).sum(0), case["ref_vec"], rtol=1e-5, atol=1e-6)
    assert float(theirs.mean(0).sum()) == pytest.approx(float(case["ref_total"]), rel=1e-5)
    one = torch.ones_like(case["sd1"])
    unit = normal_pair_kl(flat[0], flat[1] ** 2, flat[2], one.reshape(-1, 1)).reshape(2, 6, 3).mean(0).sum(0)
    torch.testing.assert_close(published_penalty(case["mu1"], case["sd1"], case["mu2"], one).mean(0).sum(0), unit, rtol=1e-5, atol=1e-6)
    both = normal_pair_kl(flat[0], one.reshape(-1, 1), flat[2], one.reshape(-1, 1)).reshape(2, 6, 3).mean(0).sum(0)
    torch.testing.assert_close(both, case["true_equal_unit_sd"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both, case["ref_equal_sd"], rtol=1e-5, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(st.tuples(st.floats(-5, 5), st.floats(0.05, 4), st.floats(-5, 5), st.floats(0.05, 4)))
def test_normal_divergence(numbers):
    mean, sd, other, other_sd = numbers
    a, b, c, d = (torch.tensor([[value]], dtype=torch.float64) for value in (mean, sd**2, other, other_sd**2))
    kl = float(normal_pair_kl(a, b, c, d))
    assert kl == pytest.approx(math.log(other_sd / sd) + (sd**2 + (mean - other) ** 2) / (2 * other_sd**2) - 0.5, rel=1e-9, abs=1e-12)
    assert kl >= -1e-12
    assert float(normal_pair_kl(a, b, a, b)) == pytest.approx(0, abs=1e-12)
    assert float(normal_pair_kl(a, b, 0 * a, torch.ones_like(b))) == pytest.approx(float(normal_kl(a, b)), rel=1e-9, abs=1e-12)


# the likelihood

FILLER = 1e-6


def log_pmf(x, mean, theta):
    """Our likelihood of single counts; a second gene, so dispersed that it adds nothing, takes the rest of the depth."""
    x, mean, theta = (torch.as_tensor(value, dtype=torch.float32).reshape(-1) for value in (x, mean, theta))
    depth = 2 * mean + 1
    logits = torch.stack([mean.log(), (depth - mean).log()], 1)
    log_theta = torch.stack([theta.log(), torch.full_like(theta, math.log(FILLER))], 1)
    batch = batch_of(torch.stack([x, 0 * x], 1))._replace(depth_n1=depth[:, None])
    return nb_log_likelihood(logits, log_theta, batch) + FILLER * torch.log1p((depth - mean) / FILLER)


def test_counts_have_the_published_likelihood():
    case = vector("nb_likelihood")
    x, mean, theta = case["x"], case["mu"] + ADDED, case["theta"]
    made = log_pmf(x, mean, theta).reshape(x.shape).double()
    torch.testing.assert_close(made, case["logp_f64"], atol=1e-4, rtol=1e-5)
    wanted = scipy.stats.nbinom.logpmf(x.double(), theta.double(), theta.double() / (theta.double() + mean.double()))
    np.testing.assert_allclose(made, wanted, atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(case["var_f64"], (mean + mean**2 / theta).double(), rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(mean=st.floats(0.05, 20), theta=st.floats(0.3, 100))
def test_the_likelihood_sums_to_one_with_the_mean_and_variance_it_says(mean, theta):
    x = np.arange(3000)
    p = log_pmf(x, np.full(len(x), mean), np.full(len(x), theta)).double().exp().numpy()
    assert p.sum() == pytest.approx(1, abs=1e-3)
    assert p @ x == pytest.approx(mean, rel=1e-3)
    assert p @ x**2 - (p @ x) ** 2 == pytest.approx(mean + mean**2 / theta, rel=5e-3)


def test_without_dispersion_it_is_poisson():
    x = np.arange(30)
    made = log_pmf(x, np.full(30, 4.0), np.full(30, 2e4)).numpy()
    wanted = scipy.stats.poisson.logpmf(x, 4.0)
    np.testing.assert_allclose(made[:15], wanted[:15], atol=0.02)


def test_means_sum_to_the_depth_whatever_the_logits():
    """Adding a constant to the logits changes nothing; twice the depth is twice each mean."""
    rng = np.random.default_rng(0)
    x = rng.poisson(2.0, (6, 9)).astype(np.float32)
    logits, log_theta = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 2, 9)
    base = nb_log_likelihood(logits, log_theta, batch_of(x))
    torch.testing.assert_close(nb_log_likelihood(logits + 3.7, log_theta, batch_of(x)), base, rtol=1e-5, atol=1e-5)
    for depth in (x.sum(1), 2 * x.sum(1)):
        mean = torch.as_tensor(depth)[:, None] * logits.softmax(1)
        torch.testing.assert_close(mean.sum(1), torch.as_tensor(depth))
        wanted = log_nb(torch.as_tensor(x), mean, log_theta.exp()).sum(1).float()
        batch = batch_of(x)._replace(depth_n1=torch.as_tensor(depth)[:, None])
        torch.testing.assert_close(nb_log_likelihood(logits, log_theta, batch), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("theta", [0.3, 2.0, 50.0])
def test_mean_of_log_expression_is_that_of_drawn_counts(theta):
    mean = torch.tensor([[0.02, 0.5, 3.0, 7.9, 8.1, 60.0, 900.0]], dtype=torch.float64)
    theta_g, scale = torch.full((7,), theta, dtype=torch.float64), torch.tensor([[0.5]], dtype=torch.float64)
    made = expected_log1p(mean, theta_g, scale)[0].numpy()
    for value, m in zip(made, mean[0].tolist(), strict=True):
        x = np.arange(int(m + 60 * math.sqrt(m + m**2 / theta) + 60))
        wanted = scipy.stats.nbinom.pmf(x, theta, theta / (theta + m)) @ np.log1p(0.5 * x)
        assert value == pytest.approx(wanted, rel=0.02), m


# what is spread over cells


def test_plates_share_a_target_out_over_its_cells():
    """Summed over cells, the published weights give each observed target's term once; a target without cells adds nothing."""
    case = vector("plate_reweight")
    weight_nt = torch.where(case["counts"] > 0, case["D"] / case["counts"].clamp_min(1), 0)
    made = torch.einsum("nt,jtl->jnl", weight_nt, case["term"])
    torch.testing.assert_close(made, case["reweighted"])
    observed_t = (case["D"].sum(0) > 0).float()
    torch.testing.assert_close(case["reweighted"].sum(1), torch.einsum("t,jtl->jl", observed_t, case["term"]))


@pytest.mark.parametrize("size", [5, 20, 60])
def test_global_divergences_are_shared_out_over_all_training_cells(size):
    """Summed over an epoch they count once, as the plates make them, whatever the size of a minibatch."""
    net = small_net()
    with torch.no_grad():
        kl_global = float(net.loss(cells(size)).parts["kl_global"])
        wanted = bernoulli_kl(net.mask_logits_tl, net.config.mask_prior).sum()
        wanted += normal_kl(net.effect_mean_tl, (2 * net.effect_log_sd_tl).exp()).sum()
        wanted += normal_kl(net.artifact_mean_ql, (2 * net.artifact_log_sd_ql).exp()).sum()
    assert kl_global * 60 == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5, 0.9])
def test_class_weights_have_mean_one_over_the_training_cells(share):
    """The published weights have mean 2 f (1 - f), and 0 where no cell failed."""
    net = small_net()
    net.failed = torch.tensor(share)
    passed, failed = net.class_weights(torch.tensor([0, 2])).tolist()
    assert (1 - share) * passed + share * failed == pytest.approx(1, abs=1e-5)
    assert 0 < passed < 10
    if 0.1 <= share <= 0.9:  # within the clip both classes weigh alike
        assert (1 - share) * passed == pytest.approx(share * failed, rel=1e-4)
    assert net.class_weights(torch.tensor([1, 3])).tolist() == [failed, failed]


def test_class_weights_do_not_depend_on_the_minibatch():
    net = small_net(class_weight="balanced")
    flags_n = torch.tensor([0, 0, 0, 1, 2, 3])
    torch.testing.assert_close(net.class_weights(flags_n)[:2], net.class_weights(flags_n[:2]))


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_minibatches_without_a_failing_cell_are_trained(class_weight):
    """Published, their likelihood has weight 0."""
    net = small_net(class_weight=class_weight)
    batch = cells(flags=np.zeros(20))
    torch.manual_seed(5)
    terms = net.loss(batch)
    (grad,) = torch.autograd.grad(terms.loss, net.rate.weight)
    assert grad.abs().max() > 1e-3
    torch.manual_seed(5)
    plain = small_net(class_weight="none")
    torch.manual_seed(5)
    weight = 1.0 if class_weight == "none" else float(net.class_weights(torch.zeros(1, dtype=torch.long)))
    assert weight > 0.5
    assert float(terms.parts["reconstruction"]) == pytest.approx(weight * float(plain.loss(batch).parts["reconstruction"]), rel=1e-5)
    assert terms.parts["reconstruction"] > 1


def test_the_counterfactual_term_does_not_grow_with_the_minibatch():
    """Published, it is a sum over cells, so that its weight is the size of the minibatch."""
    net = small_net(counterfactual_weight=1.0, counterfactual_cells=1000)
    with torch.no_grad():
        for parameter in (net.artifact_log_sd_ql, net.effect_log_sd_tl):
            parameter.fill_(-30.0)
        net.mask_logits_tl.fill_(30.0)  # nothing is drawn but z, which the term does not see
        once, twice = cells(), cells()
        rows = np.r_[np.arange(20), np.arange(20)]
        x, codes = once.dense().numpy(), {key: code.numpy()[rows] for key, code in once.codes.items()}
        twice = batch_of(x[rows], **codes)
        single, double = (float(net.loss(batch).parts["counterfactual"]) for batch in (once, twice))
        assert single > 0
        assert double == pytest.approx(single, rel=1e-5)
        left_out = batch_of(x[rows], **{**codes, "opposite": np.r_[codes["opposite"][:20], np.full(20, 2)]})
        assert float(net.loss(left_out).parts["counterfactual"]) == pytest.approx(single, rel=1e-5)  # cells without one are not averaged in
        none = batch_of(x[rows], **{**codes, "opposite": np.full(40, 2)})
        assert float(net.loss(none).parts["counterfactual"]) == 0
