"""Count likelihoods evaluated exactly from the non-zero entries.

With mean ``m``, inverse dispersion ``t`` and ``u = m / t``::

    log NB(x) = -t log(1 + u) + [x > 0] ( x (log m - log t - log(1 + u)) + lgamma(x + t) - lgamma(t) - lgamma(x + 1) )

so the expensive terms run on the 3-15 % of entries that are not zero.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sctool.data.minibatch import Minibatch


def nb_log_likelihood(logits_ng: Tensor, log_theta: Tensor, batch: Minibatch) -> Tensor:
    """Log-likelihood of each cell under NB with mean ``depth * softmax(logits)``, depth being the total counts of the cell.

    Parameters
    ----------
    logits_ng
        Decoder output of shape (cells, genes).
    log_theta
        Log inverse dispersion, shape (genes,) or (cells, genes). Variance is ``m + m ** 2 / theta``.
    batch
        The observed counts.

    Returns
    -------
    log_likelihood_n
        Natural log, shape (cells,).
    """
    return _NegativeBinomial.apply(logits_ng.float(), log_theta.float(), batch)


class _NegativeBinomial(torch.autograd.Function):
    """The softmax, the likelihood and both gradients in closed form: few passes over (cells x genes), block by block in cache."""

    @staticmethod
    def forward(ctx: Any, logits_ng: Tensor, log_theta: Tensor, batch: Minibatch) -> Tensor:
        """Sum over genes of log NB."""
        theta = log_theta.exp()
        shift_n1 = logits_ng.logsumexp(1, keepdim=True).sub_(_log_depth(batch))
        u_ng, log1p_u_ng = torch.empty_like(logits_ng), torch.empty_like(logits_ng)
        total_n = logits_ng.new_empty(len(logits_ng))
        for block in _blocks(logits_ng):
            u, log1p_u = u_ng[block], log1p_u_ng[block]
            torch.sub(logits_ng[block], shift_n1[block], out=u).sub_(_rows(log_theta, block)).exp_()
            torch.log1p(u, out=log1p_u)
            total_n[block] = -(log1p_u @ theta if theta.ndim == 1 else (theta[block] * log1p_u).sum(1))
        x_e = batch.value_e
        log_u_e = _pick(logits_ng, batch) - shift_n1.squeeze(1).index_select(0, batch.row_e) - _at(log_theta, batch)
        more = (x_e != 1).nonzero().squeeze(1)
        positive_e = x_e * (log_u_e - _pick(log1p_u_ng, batch)) + _log_gamma_ratio(x_e, log_theta, theta, batch, more)
        total_n.scatter_add_(0, batch.row_e, positive_e)
        ctx.save_for_backward(theta, u_ng, log1p_u_ng, more)
        ctx.batch = batch
        return total_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_n: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients with respect to the logits and the log inverse dispersion."""
        theta, u_ng, log1p_u_ng, more = ctx.saved_tensors
        batch: Minibatch = ctx.batch
        x_e, theta_e = batch.value_e, _at(theta, batch)
        u_e = _pick(u_ng, batch)
        rest_e = x_e / (1 + u_e)  # x t / (m + t)
        rest_n = torch.zeros_like(grad_n).scatter_add_(0, batch.row_e, rest_e)
        depth_n = batch.depth_n1.squeeze(1).clamp_min(1)

        # By log m it is -t q + rest with q = m / (m + t); through the softmax, with m = depth * p, less p times the sum of it.
        q_ng, grad_logits_ng = torch.empty_like(u_ng), torch.empty_like(u_ng)
        grad_n1 = grad_n.unsqueeze(1)
        for block in _blocks(u_ng):
            u, q, grad, theta_g = u_ng[block], q_ng[block], grad_logits_ng[block], _rows(theta, block)
            torch.add(u, 1, out=q)
            torch.div(u, q, out=q)
            sum_n = rest_n[block] - (q @ theta if theta.ndim == 1 else (q * theta_g).sum(1))
            torch.mul(u, (sum_n / depth_n[block]).unsqueeze(1), out=grad)
            grad.add_(q).mul_(-theta_g).mul_(grad_n1[block])
        grad_e = grad_n.index_select(0, batch.row_e)
        grad_logits_ng.view(-1).scatter_add_(0, batch.flat_e, rest_e * grad_e)

        grad_e *= _digamma_difference(x_e, theta, batch, more) - rest_e / theta_e
        if theta.ndim == 1:
            grad_theta = grad_n @ q_ng - grad_n @ log1p_u_ng
            grad_theta.scatter_add_(0, batch.col_e, grad_e)
        else:
            grad_theta = (q_ng - log1p_u_ng) * grad_n1
            grad_theta.view(-1).scatter_add_(0, batch.flat_e, grad_e)
        return grad_logits_ng, grad_theta * theta, None


def zinb_log_likelihood(logits_ng: Tensor, log_theta: Tensor, zero_logits_ng: Tensor, batch: Minibatch) -> Tensor:
    """Log-likelihood of each cell under zero-inflated NB; ``zero_logits_ng`` are the logits of a structural zero.

    Shapes and units as in :func:`nb_log_likelihood`.
    """
    logits_ng, log_theta, pi_ng = logits_ng.float(), log_theta.float(), zero_logits_ng.float()
    theta = log_theta.exp()
    log_m_ng = logits_ng - (logits_ng.logsumexp(1, keepdim=True) - _log_depth(batch))
    log1p_u_ng = (log_m_ng - log_theta).exp().log1p()
    nb_zero_ng = -theta * log1p_u_ng
    zero_ng = F.softplus(nb_zero_ng - pi_ng) - F.softplus(-pi_ng)
    x_e = batch.value_e
    pi_e, nb_zero_e = _pick(pi_ng, batch), _pick(nb_zero_ng, batch)
    log_theta_e, theta_e = _at(log_theta, batch), _at(theta, batch)
    positive_e = nb_zero_e + x_e * (_pick(log_m_ng, batch) - log_theta_e - _pick(log1p_u_ng, batch))
    positive_e = positive_e + torch.lgamma(x_e + theta_e) - torch.lgamma(theta_e) - torch.lgamma(x_e + 1)
    return zero_ng.sum(1).index_add(0, batch.row_e, positive_e - pi_e - F.softplus(nb_zero_e - pi_e))


def normal_kl(mean_nl: Tensor, variance_nl: Tensor) -> Tensor:
    """KL divergence of diagonal normals from the standard normal, summed over latent dimensions; shape (cells,)."""
    return 0.5 * (mean_nl.square() + variance_nl - variance_nl.log() - 1).sum(1)


def normal_pair_kl(mean_nl: Tensor, variance_nl: Tensor, other_mean_nl: Tensor, other_variance_nl: Tensor) -> Tensor:
    """KL divergence of diagonal normals from others, summed over latent dimensions; shape (cells,)."""
    ratio_nl = variance_nl / other_variance_nl
    return 0.5 * (ratio_nl - ratio_nl.log() - 1 + (mean_nl - other_mean_nl).square() / other_variance_nl).sum(1)


def bernoulli_kl(logits: Tensor, prior: float) -> Tensor:
    """KL divergence of Bernoulli(sigmoid(logits)) from Bernoulli(prior), elementwise."""
    q = logits.sigmoid()
    return q * (F.logsigmoid(logits) - math.log(prior)) + (1 - q) * (F.logsigmoid(-logits) - math.log1p(-prior))


SMALL_MEAN, SMALL_COUNTS, NODES = 8.0, 64, 32


def expected_log1p(mean_ng: Tensor, theta_g: Tensor, scale_n1: Tensor) -> Tensor:
    """``E[log(1 + scale * x)]`` for ``x ~ NB(mean, theta)``, shape (cells, genes): the mean of log expression, not the log of the mean.

    Small means are summed over counts, large ones are averaged over quantiles of the Gamma mixture of Poissons.

    Parameters
    ----------
    mean_ng, theta_g
        Mean and inverse dispersion.
    scale_n1
        Counts per cell of the log expression over those of the cell, shape (cells, 1).
    """
    highest_g = mean_ng.max(0).values
    terms_g = (highest_g + 8 * (highest_g + highest_g.square() / theta_g).sqrt() + 4).clamp_max(SMALL_COUNTS)
    few = terms_g < SMALL_COUNTS / 3  # most genes need few terms
    if few.any() and not few.all():
        total_ng = torch.empty_like(mean_ng)
        for some in (few, ~few):
            total_ng[:, some] = expected_log1p(mean_ng[:, some], theta_g[some], scale_n1)
        return total_ng
    q_ng = mean_ng / (theta_g + mean_ng)
    p_ng = (-theta_g * torch.log1p(mean_ng / theta_g)).exp()
    total_ng, left_ng, counts_ng = torch.zeros_like(mean_ng), 1 - p_ng, mean_ng.clone()
    for x in range(1, int(terms_g.max()) + 2):
        p_ng = p_ng * q_ng * ((x - 1 + theta_g) / x)
        total_ng += p_ng * torch.log1p(x * scale_n1)
        left_ng -= p_ng
        counts_ng -= x * p_ng
    left_ng = left_ng.clamp_min(0)
    beyond_ng = (counts_ng / left_ng.clamp_min(1e-6)).clamp_min(float(terms_g.max()))  # mean of the counts that were not summed
    total_ng += left_ng * torch.log1p(beyond_ng * scale_n1)
    large = (mean_ng > SMALL_MEAN).any(0).nonzero().squeeze(1)
    if len(large):
        from scipy.stats import gamma

        theta = theta_g[large].clamp(1e-2, 1e6)
        shape_g, edge = theta.cpu().double().numpy(), np.linspace(0, 1, NODES + 1)
        # The mean of the mixing Gamma inside each of its quantiles.
        below = gamma.cdf(gamma.ppf(edge[:, None], shape_g), shape_g + 1)
        node_jg = torch.from_numpy(np.diff(below, axis=0) * NODES).to(mean_ng)
        mean, many = mean_ng[:, large], torch.zeros_like(mean_ng[:, large])
        for node_g in node_jg:
            rate = mean * node_g
            many += torch.log1p(rate * scale_n1) - 0.5 * rate * (scale_n1 / (1 + rate * scale_n1)).square()  # Poisson noise, second order
        total_ng[:, large] = torch.where(mean > SMALL_MEAN, many / NODES, total_ng[:, large])
    return total_ng


def _log_depth(batch: Minibatch) -> Tensor:
    return batch.depth_n1.clamp_min(1).log()  # a cell with no counts has no information about its depth


def _blocks(x_ng: Tensor) -> list[slice]:
    """Rows in blocks of about 1 MB, which stay in the cache of a CPU from one pass to the next."""
    rows = len(x_ng) if x_ng.is_cuda else max(1, 2**18 // x_ng.shape[1])
    return [slice(start, start + rows) for start in range(0, len(x_ng), rows)]


def _rows(parameter: Tensor, block: slice) -> Tensor:
    return parameter if parameter.ndim == 1 else parameter[block]


def _pick(x_ng: Tensor, batch: Minibatch) -> Tensor:
    """Values of a dense matrix at the entries; ``index_select`` is two to three times as fast as indexing."""
    return x_ng.reshape(-1).index_select(0, batch.flat_e)


def _at(parameter: Tensor, batch: Minibatch) -> Tensor:
    return parameter.index_select(0, batch.col_e) if parameter.ndim == 1 else _pick(parameter, batch)


def _log_gamma_ratio(x_e: Tensor, log_theta: Tensor, theta: Tensor, batch: Minibatch, more: Tensor) -> Tensor:
    """``lgamma(x + t) - lgamma(t) - lgamma(x + 1)``, which is ``log t`` but for the entries ``more``, whose count is not one."""
    x, at = x_e.index_select(0, more), (batch.col_e if theta.ndim == 1 else batch.flat_e).index_select(0, more)
    theta_e, lgamma_e = theta.reshape(-1).index_select(0, at), theta.lgamma().reshape(-1).index_select(0, at)
    return _at(log_theta, batch).index_copy_(0, more, torch.lgamma(x + theta_e) - lgamma_e - torch.lgamma(x + 1))


def _digamma_difference(x_e: Tensor, theta: Tensor, batch: Minibatch, more: Tensor) -> Tensor:
    """``digamma(x + t) - digamma(t)``, which is ``1 / t`` but for the entries ``more``."""
    x, at = x_e.index_select(0, more), (batch.col_e if theta.ndim == 1 else batch.flat_e).index_select(0, more)
    theta_e, digamma_e = theta.reshape(-1).index_select(0, at), theta.digamma().reshape(-1).index_select(0, at)
    return _at(theta, batch).reciprocal_().index_copy_(0, more, torch.digamma(x + theta_e) - digamma_e)
