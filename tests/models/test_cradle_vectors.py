"""CRADLE-VAE: the network and its loss against the published ones with their own weights and samples."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Normal

from sctool.metrics.perturbation import iwelbo
from sctool.models.cradle import Residual, straight_through
from sctool.nn.likelihood import bernoulli_kl, nb_log_likelihood
from tests.models.cradle_helpers import (
    ADDED,
    batch_of,
    decoded,
    effect_posterior,
    encoded,
    log_nb,
    parts_of,
    published,
    published_penalty,
    standardised,
    vector,
)


@pytest.mark.parametrize("mode", ["concat", "sum"])
@pytest.mark.parametrize("run", ["fix.", "aauto.", "a0.3."])
@torch.no_grad()
def test_every_distribution_is_the_published_one(mode, run):
    net, case = published(mode)
    draw = "fix." if run == "fix." else f"{run}sample."
    u_jnl, a_jnl, flipped_jnl, all_jnl = parts_of(case, run)
    near = {"atol": 2e-6, "rtol": 1e-5}
    for got, wanted in zip(encoded(net, case["X"], u_jnl, a_jnl), ("q_z_mean", "q_z_sd"), strict=True):
        torch.testing.assert_close(got, case[run + wanted], **near)
    for got, wanted in zip(effect_posterior(net, case[f"{draw}mask"]), ("q_E_mean", "q_E_sd"), strict=True):
        torch.testing.assert_close(got, case[run + wanted], **near)
    if run != "fix.":
        for got, wanted in zip(encoded(net, case["X"], u_jnl, flipped_jnl), ("q_zcf_mean", "q_zcf_sd"), strict=True):
            torch.testing.assert_close(got, case[run + wanted], **near)
    theta_g = net.log_theta.exp()
    for quality, artifact_jnl in (("good", torch.zeros_like(a_jnl)), ("bad", all_jnl)):
        logits_jng = decoded(net, case[f"{draw}z_basal"], u_jnl, artifact_jnl)
        mean_jng = case["library_size"][:, None] * logits_jng.softmax(2)
        torch.testing.assert_close(theta_g / (mean_jng + ADDED), case[f"{run}rate_{quality}"], **near)
        torch.testing.assert_close(log_nb(case["X"], mean_jng + ADDED, theta_g).float(), case[f"{run}logp_{quality}"], atol=5e-6, rtol=1e-5)
        # What the likelihood itself says, without the addition, which moves log p by at most 1e-4 (1 / mean, or 1) for each count.
        batch = batch_of(case["X"])
        moved_jn = (ADDED * (1 + case["X"] / mean_jng)).sum(2)
        for logits_ng, wanted_ng, most_n in zip(logits_jng, case[f"{run}logp_{quality}"], moved_jn, strict=True):
            assert ((nb_log_likelihood(logits_ng, net.log_theta, batch) - wanted_ng.sum(1)).abs() < most_n + 1e-5).all()


@pytest.mark.parametrize("mode", ["concat", "sum"])
@torch.no_grad()
def test_importance_weights_and_bound_are_the_published_ones(mode):
    net, case = published(mode)
    u_jnl, a_jnl, _, _ = parts_of(case, "fix.")
    mean_jnl, sd_jnl = encoded(net, case["X"], u_jnl, a_jnl)
    z_jnl = case["fix.z_basal"]
    logits_jng = decoded(net, z_jnl, u_jnl, a_jnl)
    log_ratio_jn = (Normal(0.0, 1.0).log_prob(z_jnl) - Normal(mean_jnl, sd_jnl).log_prob(z_jnl)).sum(2)
    dense_jn = log_nb(case["X"], case["library_size"][:, None] * logits_jng.softmax(2) + ADDED, net.log_theta.exp()).sum(2).float()
    torch.testing.assert_close(dense_jn + log_ratio_jn, case["fix.logw"], atol=5e-6, rtol=1e-5)
    for n in range(len(case["X"])):
        bound, _ = iwelbo((dense_jn + log_ratio_jn)[:, n : n + 1].numpy())
        assert bound == pytest.approx(float(case["fix.iwelbo"][n]), abs=1e-5)
    ours_jn = torch.stack([nb_log_likelihood(logits_ng, net.log_theta, batch_of(case["X"])) for logits_ng in logits_jng])
    assert iwelbo((ours_jn + log_ratio_jn).numpy())[0] == pytest.approx(float(case["fix.iwelbo"].mean()), abs=2e-3)


@torch.no_grad()
def test_importance_weights_of_a_draw(monkeypatch):
    """The same from the model's own method, with the published draw of ``z`` put in for its own."""
    net, case = published("concat")
    net.flags_kq.copy_(torch.tensor([[0.0], [1.0]]))
    batch = batch_of(case["X"], flags=case["qc"][:, 0])
    x_ng = standardised(net, case["X"])
    monkeypatch.setattr(net, "standardised", lambda batch: x_ng)
    u_jnl, _, _, _ = parts_of(case, "fix.")
    for j in range(2):
        noise_nl = (case["fix.z_basal"][j] - case["fix.q_z_mean"][j]) / case["fix.q_z_sd"][j]
        monkeypatch.setattr(torch, "randn_like", lambda tensor, noise_nl=noise_nl: noise_nl)
        made_n = net.log_weights(batch, u_jnl[j], torch.arange(9), case["fix.qc_E"][j])
        torch.testing.assert_close(made_n, case["fix.logw"][j], atol=5e-3, rtol=1e-4)


@pytest.mark.parametrize("mode", ["concat", "sum"])
@pytest.mark.parametrize("run", ["aauto.", "a0.3."])
@torch.no_grad()
def test_the_published_loss_term_by_term(mode, run):
    """Our functions with their weights: likelihood by the batch's share of failing cells, single draws, a sum over cells."""
    net, case = published(mode)
    u_jnl, a_jnl, flipped_jnl, all_jnl = parts_of(case, run)
    mask_jtl, effect_jtl, artifact_jql, z_jnl = (case[f"{run}sample.{name}"] for name in ("mask", "E", "qc_E", "z_basal"))
    y_n, design_nt, library_n1 = case["qc"][:, 0], case["D"], case["library_size"][:, None]
    alpha = float(y_n.mean()) if run == "aauto." else 0.3

    log_p = {}
    for quality, own_jnl in (("good", torch.zeros_like(a_jnl)), ("bad", all_jnl)):
        mean_jng = library_n1 * decoded(net, z_jnl, u_jnl, own_jnl).softmax(2) + ADDED
        log_p[quality] = log_nb(case["X"], mean_jng, net.log_theta.exp()).sum(2).float()
    reconstruction = (alpha * (1 - y_n) * log_p["good"] + (1 - alpha) * y_n * log_p["bad"]).mean()

    def plated(log_ratio, used_nt, counts_t):
        return (used_nt * torch.where(counts_t > 0, 1 / counts_t, 0)) @ log_ratio.sum(2).T

    prior = torch.tensor(net.config.mask_prior)
    mask = plated(
        Bernoulli(prior).log_prob(mask_jtl) - Bernoulli(logits=net.mask_logits_tl).log_prob(mask_jtl), design_nt, case["D_counts"]
    )
    scale = net.config.embedding_scale
    own = Normal(*effect_posterior(net, mask_jtl)).log_prob(effect_jtl)
    effect = plated(Normal(0.0, scale).log_prob(effect_jtl) - own, design_nt, case["D_counts"])
    own = Normal(case[f"{run}q_qcE_mean"], case[f"{run}q_qcE_sd"]).log_prob(artifact_jql)
    artifact = plated(Normal(0.0, scale).log_prob(artifact_jql) - own, case["qc"], case["qc_counts"])
    basal = (Normal(0.0, 1.0).log_prob(z_jnl) - Normal(*encoded(net, case["X"], u_jnl, a_jnl)).log_prob(z_jnl)).sum(2)

    second = case[f"{run}cf_sample.mask"] * case[f"{run}cf_sample.E"]
    other = encoded(net, case["cfX"], design_nt @ second, (1 - case["qc"]) @ case[f"{run}cf_sample.qc_E"])
    for got, wanted in zip(other, ("cf_q_z_mean", "cf_q_z_sd"), strict=True):
        torch.testing.assert_close(got, case[run + wanted], atol=2e-6, rtol=1e-5)
    there_n = case["cfX"].sum(1) > 0
    penalty = published_penalty(*other, *encoded(net, case["X"], u_jnl, flipped_jnl))[:, there_n].mean(0).sum()

    terms = {
        "loss_term_reconstruction": -reconstruction,
        "loss_term_mask": -mask.mean(),
        "loss_term_E": -effect.mean(),
        "loss_term_qc_E": -artifact.mean(),
        "loss_term_z_basal": -basal.mean(),
        "cf_KLdivergence": 0.5 * penalty,
    }
    for name, value in terms.items():
        assert float(value) == pytest.approx(float(case[f"{run}metric.{name}"]), rel=1e-5, abs=1e-6), name
    assert float(sum(terms.values())) == pytest.approx(float(case[f"{run}loss"]), rel=1e-5)
    if mode == "concat":
        assert float(case[f"{run}loss"]) == pytest.approx({"aauto.": 10.0182, "a0.3.": 9.8487}[run], abs=5e-5)


def test_artifacts_are_free_normals_which_their_network_of_a_constant_amounts_to():
    """They learn q(A) with a network whose input never changes."""
    _, case = published("concat")
    body, head = Residual(4, 8, 4), torch.nn.ModuleDict({"mean": torch.nn.Linear(8, 4), "log_var": torch.nn.Linear(8, 4)})
    body.load_state_dict(
        {
            f"{'first.linear' if at == 0 else f'later.{at - 1}'}.{kind}": case[f"guide.qc_encoder.mlp.layers.{at}.0.{kind}"]
            for at in range(4)
            for kind in ("weight", "bias")
        }
    )
    head.load_state_dict(
        {f"{name}.{kind}": case[f"guide.qc_encoder.{name}_encoder.{kind}"] for name in head for kind in ("weight", "bias")}
    )
    with torch.no_grad():
        h_qh = body(case["guide.qc_encoder_input"])
        mean_ql, sd_ql = head["mean"](h_qh), (head["log_var"](h_qh).exp() + 1e-4).sqrt()
    for j in range(2):
        torch.testing.assert_close(mean_ql, case["aauto.q_qcE_mean"][j], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(sd_ql, case["aauto.q_qcE_sd"][j], atol=1e-6, rtol=1e-5)
    net, _ = published("concat")
    with torch.no_grad():
        net.artifact_mean_ql.copy_(mean_ql)
        net.artifact_log_sd_ql.copy_(sd_ql.log())
        torch.manual_seed(0)
        drawn_jl = torch.cat([net.draw()[1] for _ in range(1000)])
    torch.testing.assert_close(drawn_jl.mean(0), mean_ql[0], atol=4 * float(sd_ql.max()) / 1000**0.5, rtol=0)
    torch.testing.assert_close(drawn_jl.std(0), sd_ql[0], rtol=0.1, atol=0)


def test_closed_divergences_are_the_means_of_the_published_single_draws():
    """E[log q(M) - log p(M)] over draws is the Bernoulli KL; so for effects. The published terms are one draw of each."""
    net, _ = published("concat")
    torch.manual_seed(0)
    with torch.no_grad():
        logits_tl = net.mask_logits_tl
        mask_jtl = straight_through(logits_tl.expand(20_000, -1, -1), 1.0).round()
        ratio_jtl = Bernoulli(logits=logits_tl).log_prob(mask_jtl) - Bernoulli(torch.tensor(0.05)).log_prob(mask_jtl)
    error_tl = 5 * ratio_jtl.std(0) / len(ratio_jtl) ** 0.5 + 1e-5
    assert ((ratio_jtl.mean(0) - bernoulli_kl(logits_tl, 0.05)).abs() < error_tl).all()


@torch.no_grad()
def test_average_effects_of_the_published_model():
    """Drawn from the published weights: log2(1 + 10,000 x / sum x) of treated minus control; their 4,000 particles have sd .04 to .075."""
    net, _ = published("concat")
    case = vector("model_ate")
    torch.manual_seed(1)
    particles = 12_000
    mask_jtl = straight_through(net.mask_logits_tl.expand(particles, -1, -1), net.config.temperature)
    mean_jtl, sd_jtl = effect_posterior(net, mask_jtl)
    effect_jtl = mask_jtl * (mean_jtl + sd_jtl * torch.randn_like(sd_jtl))
    codes, theta_g = torch.zeros(particles, dtype=torch.long), net.log_theta.exp()
    values = []
    for design_t in (torch.zeros(3), *case["D_alt"]):
        u_jl = (design_t[:, None] * effect_jtl).sum(1)
        mean_jg = 10_000 * net.logits(torch.randn_like(u_jl), u_jl, torch.zeros_like(u_jl), codes).softmax(1)
        x_jg = torch.poisson(torch._standard_gamma(theta_g.expand_as(mean_jg)) * mean_jg / theta_g)
        values.append(torch.stack([x_jg.mean(0), torch.log2(1 + 1e4 * x_jg / x_jg.sum(1, keepdim=True).clamp_min(1)).mean(0)]))
    change_smg = torch.stack(values[1:]) - values[0]
    difference_pg = change_smg[:, 1] - case["ate_perturbseq"]
    assert difference_pg.abs().max() < 4 * 0.075 * math.sqrt(1 + 4000 / particles)
    assert difference_pg.square().mean().sqrt() < 2 * 0.037 * math.sqrt(1 + 4000 / particles)
    # A gene's counts have an sd of about their mean, which 4,000 particles divide by 63: for a difference of two, 1.4 times as much.
    scale_g = values[0][0]
    assert ((change_smg[:, 0] - case["ate_mean"]).abs() < 4 * 3 * scale_g * math.sqrt(2 / 4000) * math.sqrt(1 + 4000 / particles)).all()


# draws of masks


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_masks_are_drawn_as_published_with_the_same_gradient(temperature):
    case = vector("gumbel_mask")
    logits = case["logits"].clone().requires_grad_()
    hard = straight_through(logits.expand(3, -1, -1), temperature, case[f"u_T{temperature}"])
    torch.testing.assert_close(hard, case[f"hard_T{temperature}"])
    torch.testing.assert_close(hard, case[f"soft_T{temperature}"].round())
    (grad,) = torch.autograd.grad((case[f"w_T{temperature}"] * hard).sum(), logits)
    torch.testing.assert_close(grad, case[f"grad_w_hard_T{temperature}"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(grad, case[f"grad_w_soft_T{temperature}"], atol=1e-6, rtol=1e-5)
    logq = -torch.nn.functional.binary_cross_entropy_with_logits(case["logits"].expand(3, -1, -1), hard, reduction="none")
    torch.testing.assert_close(logq, case[f"logq_T{temperature}"], atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(logit=st.floats(-8, 8), temperature=st.floats(0.2, 2), r=st.floats(0.001, 0.999))
def test_straight_through_is_a_rounded_draw_with_the_gradient_of_the_draw(logit, temperature, r):
    logits = torch.tensor([logit], requires_grad=True)
    hard = straight_through(logits, temperature, torch.tensor([r]))
    soft = 1 / (1 + math.exp(-(math.log(r / (1 - r)) + logit) / temperature))
    assert hard.item() in (0.0, 1.0)
    if abs(soft - 0.5) > 1e-4:
        assert hard.item() == round(soft)
    (grad,) = torch.autograd.grad(hard.sum(), logits)
    assert grad.item() == pytest.approx(soft * (1 - soft) / temperature, rel=1e-3, abs=1e-5)


def test_straight_through_draws_with_the_right_share():
    logits = torch.tensor([-4.0, -1.0, 0.0, 0.5, 3.0])
    torch.manual_seed(0)
    share = straight_through(logits.expand(100_000, -1), 1.0).mean(0)
    wanted = logits.sigmoid()
    assert ((share - wanted).abs() < 3.5 * (wanted * (1 - wanted) / 100_000).sqrt()).all()
