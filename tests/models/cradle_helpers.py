"""What the tests of CRADLE-VAE share: the published weights and samples in our network, and a small network of its own."""

import numpy as np
import scipy.sparse as sp
import torch
from torch.distributions import NegativeBinomial

from sctool.data.minibatch import CellStore
from sctool.models.cradle import CradleVAE
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


def published_penalty(mean, sd, other_mean, other_sd):
    """Their counterfactual term, elementwise: no divergence, for the difference of means is not divided by the other variance."""
    ratio = (sd / other_sd) ** 2
    return -0.5 * (1 + ratio.log() - (mean - other_mean) ** 2 - ratio)


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
