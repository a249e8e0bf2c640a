"""CRADLE-VAE: the network against the published one with its own weights and samples, and the identities that the mended parts satisfy."""

import math

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, NegativeBinomial, Normal

from sctool.config import load_config
from sctool.data.minibatch import CellStore
from sctool.data.perturbation import prepare_screen
from sctool.data.screen import read_screen
from sctool.metrics.perturbation import iwelbo
from sctool.models.cradle import CradleVAE, Residual, straight_through
from sctool.nn.likelihood import bernoulli_kl, expected_log1p, nb_log_likelihood, normal_kl, normal_pair_kl
from sctool.sections import CradleConfig
from tests.conftest import VECTORS

NAMES = {
    "model.decoder.log_concentration": "log_theta",
    "model.decoder.mlp.layers.": "decoder.",
    "model.decoder.normalized_mean_decoder.0.": "rate.",
    "guide.param_dict.q_mask_logits": "mask_logits_tl",
    "guide.embedding_encoder.mlp.layers.": "effect_body.",
    "guide.embedding_encoder.mean_encoder.": "effect_head.mean.",
    "guide.embedding_encoder.log_var_encoder.": "effect_head.log_variance.",
    "guide.z_basal_encoder.mlp.layers.": "encoder.",
    "guide.z_basal_encoder.mean_encoder.": "posterior_head.mean.",
    "guide.z_basal_encoder.log_var_encoder.": "posterior_head.log_variance.",
    "guide.normalization_module.log_mean": "log_mean_g",
    "guide.normalization_module.log_scale": "log_sd_g",
}
ADDED = 1e-4
"""What the published likelihood adds to every mean."""


def vector(name):
    file = np.load(VECTORS / f"perturb_{name}.npz")
    return {key: torch.from_numpy(file[key]) if file[key].dtype.kind == "f" else file[key] for key in file.files}


def our_name(theirs):
    for old, new in NAMES.items():
        if theirs.startswith(old):
            rest = theirs.removeprefix(old)
            if rest[:1].isdigit():  # layers.0.0.weight is the first, layers.2.0.weight the second of the later ones
                layer, _, kind = rest.split(".")
                rest = f"first.linear.{kind}" if layer == "0" else f"later.{int(layer) - 1}.{kind}"
            return new + rest
    return None


def published(mode):
    """Our network with the published weights, and their file."""
    case = vector(f"tiny_{mode}")
    prior = float(case["model.p_mask_probs"][0, 0])
    config = CradleConfig(guide="correlated", mode=mode, n_hidden=8, n_latent=4, n_layers=1, mask_prior=prior, model="cradle")
    net = CradleVAE(config, n_genes=7, n_perturbations=3, n_targets=3, n_flags=2, n_criteria=1)
    missing, unexpected = net.load_state_dict({our_name(key): case[key] for key in case if our_name(key)}, strict=False)
    assert not unexpected
    assert not {name for name, _ in net.named_parameters()} & set(missing) - {"artifact_mean_ql", "artifact_log_sd_ql"}
    return net.eval(), case


def batch_of(x_ng, depth=None, **codes):
    """A minibatch of dense counts; codes that are not given are 0."""
    n = len(x_ng)
    codes = {key: np.asarray(codes.get(key, np.zeros(n)), int) for key in ("batch", "perturbation", "flags", "opposite", "base")}
    batch = CellStore(sp.csr_matrix(np.asarray(x_ng, np.float32)), codes, range(n)).batch(np.arange(n))
    return batch if depth is None else batch._replace(depth_n1=torch.as_tensor(depth, dtype=torch.float32).reshape(-1, 1).expand(n, 1))


def standardised(net, x_ng):
    """As published: log1p of counts whatever the depth, which is ours for cells that all have ``target_sum`` counts."""
    return net.standardised(batch_of(x_ng, depth=net.target_sum))


def encoded(net, x_ng, u_jnl, a_jnl):
    """Posterior means and standard deviations for each particle."""
    x_nh = net.project(standardised(net, x_ng), torch.zeros(len(x_ng), dtype=torch.long))
    made = [net.encode(x_nh, u_nl, a_nl) for u_nl, a_nl in zip(u_jnl, a_jnl, strict=True)]
    return torch.stack([mean for mean, _ in made]), torch.stack([variance for _, variance in made]).sqrt()


def decoded(net, z_jnl, u_jnl, a_jnl):
    """Log proportions for each particle."""
    codes = torch.zeros(z_jnl.shape[1], dtype=torch.long)
    return torch.stack([net.logits(z, u, a, codes) for z, u, a in zip(z_jnl, u_jnl, a_jnl, strict=True)])


def effect_posterior(net, mask_jtl):
    one_hot = torch.eye(mask_jtl.shape[1]).expand(len(mask_jtl), -1, -1)
    mean, variance = net.effect_head(net.effect_body(torch.cat([mask_jtl, one_hot], 2)))
    return mean, variance.sqrt()


def log_nb(x, mean, theta):
    """Dense, double precision."""
    mean, theta = mean.double(), theta.double()
    return NegativeBinomial(theta, logits=mean.log() - theta.log()).log_prob(x.double())


def parts_of(case, run):
    """Effects, artifacts and flags of the stored draws."""
    draw = f"{run}sample." if f"{run}sample.mask" in case else run
    effect_jtl, artifact_jql = case[f"{draw}mask"] * case[f"{draw}E"], case[f"{draw}qc_E"]
    u_jnl = case["D"] @ effect_jtl
    return u_jnl, case["qc"] @ artifact_jql, (1 - case["qc"]) @ artifact_jql, torch.ones_like(case["qc"]) @ artifact_jql


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


def published_penalty(mean, sd, other_mean, other_sd):
    """Their counterfactual term, elementwise: no divergence, for the difference of means is not divided by the other variance."""
    ratio = (sd / other_sd) ** 2
    return -0.5 * (1 + ratio.log() - (mean - other_mean) ** 2 - ratio)


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


@pytest.mark.parametrize("prior", [0.001, 0.01])
def test_bernoulli_kl_is_exact(prior):
    case = vector("gumbel_mask")
    made = bernoulli_kl(case["logits"].double(), prior)
    torch.testing.assert_close(made, case[f"kl_bernoulli_{prior}"], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(bernoulli_kl(case["logits"], prior).double(), made, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(logit=st.floats(-15, 15), prior=st.floats(1e-4, 1 - 1e-4))
def test_bernoulli_kl_is_zero_only_at_the_prior(logit, prior):
    kl = float(bernoulli_kl(torch.tensor(logit, dtype=torch.float64), prior))
    q = 1 / (1 + math.exp(-logit))
    assert kl == pytest.approx(scipy.stats.entropy([q, 1 - q], [prior, 1 - prior]), rel=1e-6, abs=1e-9)
    at_prior = torch.tensor(math.log(prior / (1 - prior)), dtype=torch.float64)
    assert float(bernoulli_kl(at_prior, prior)) == pytest.approx(0, abs=1e-9)
    if abs(logit - at_prior) > 0.1:
        assert kl > 0


def test_bernoulli_kl_of_an_even_mask():
    assert float(bernoulli_kl(torch.zeros(()), 0.01)) == pytest.approx(1.61446, abs=1e-5)
    assert math.log(0.01 / 0.99) == pytest.approx(-4.59512, abs=1e-5)


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


# divergences and the likelihood


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


def small_net(seed=0, **config):
    """Three targets A, B, C; perturbations control, A, B, A+B, C; two criteria; twelve genes; no dropout, for it is not training."""
    torch.manual_seed(seed)
    settings = {"n_latent": 4, "n_hidden": 8, "model": "cradle", "mode": "sum", "guide": "mean_field", "counterfactual_weight": 0.0}
    net = CradleVAE(
        CradleConfig(**{**settings, **config}), n_genes=12, n_perturbations=5, n_targets=3, n_flags=4, n_criteria=2, n_profiles=2, n_base=3
    )
    net.design_pt = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.float32)
    net.flags_kq = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float32)
    net.usual_q, net.failed, net.n_cells = torch.tensor([0.7, 0.6]), torch.tensor(0.2), torch.tensor(60.0)
    net.profile_kg = torch.randn(2, 12)
    with torch.no_grad():
        for parameter in (net.artifact_mean_ql, net.mask_logits_tl, *([net.effect_mean_tl] if config.get("guide") != "correlated" else [])):
            if parameter is not None:
                parameter.normal_()
    return net.eval()


def cells(n=20, seed=0, **codes):
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(1.0, 3.0, (1, 12)), (n, 12))
    x[:, 0] += 1
    return batch_of(
        x, **{"perturbation": rng.integers(0, 4, n), "flags": rng.integers(0, 4, n), "opposite": rng.integers(0, 2, n), **codes}
    )


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


def test_importance_weighted_bound():
    rng = np.random.default_rng(0)
    logw_sn = rng.normal(-5, 2, (64, 400))
    assert iwelbo(logw_sn[:1])[0] == pytest.approx(logw_sn[0].mean())  # one particle: the ELBO
    bounds = [np.mean([iwelbo(logw_sn[at : at + s])[0] for at in range(0, 64, s)]) for s in (1, 4, 16, 64)]
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0] + 0.5
    assert iwelbo(np.full((7, 3), -4.2))[0] == pytest.approx(-4.2)


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
