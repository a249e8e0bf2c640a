"""Losses that ask two views of a sample to embed alike and unlike other samples, and signs that an embedding has collapsed.

Everywhere ``a_sd`` and ``b_sd`` hold one view each of the same S samples in the same order: row s of both is sample s. A loss is in nats
and a mean over samples, so that batches of different size compare.

References
----------
van den Oord et al. 2018 (InfoNCE, arXiv 1807.03748); Böhm et al. 2023 (Cauchy and Gaussian similarities, t-SimCNE, arXiv 2210.09879);
Sobal et al. 2024 (a graph of samples as target, X-CLR, arXiv 2407.18134); Wang and Isola 2020 (alignment and uniformity,
arXiv 2005.10242); Roy and Vetterli 2007 (effective rank).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sctool.errors import SctoolError

Similarity = Literal["cosine", "cauchy", "gaussian"]


def info_nce(
    a_sd: Tensor,
    b_sd: Tensor,
    similarity: Similarity = "cosine",
    temperature: float = 0.1,
    exaggeration: float = 1.0,
    batch_s: Tensor | None = None,
    batch_weight: float = 0.5,
    weigh_positives: bool = False,
) -> Tensor:
    """Cross-entropy of finding the other view of a sample among all other views of the batch.

    Parameters
    ----------
    a_sd, b_sd
        Embeddings of the two views; the cosine normalises rows, the others use them as they are.
    similarity
        Its log is ``cos / T`` (``cosine``), ``-log(1 + (T d)^2)`` (``cauchy``) or ``-(T d)^2`` (``gaussian``), d the Euclidean distance.
    temperature
        T. It divides the cosine and multiplies the distance: lower is sharper for the cosine only.
    exaggeration
        Factor of the attraction between the two views.
    batch_s
        Technical batch of each sample, as codes; None where all weigh alike.
    batch_weight
        Factor of the similarity of samples of one batch: below 1 they repel less, so that a batch need not fall apart into what makes
        its samples differ.
    weigh_positives
        Also weigh the two views of one sample, as the published code does: for parity tests only.

    Returns
    -------
    loss
        In nats, a scalar.
    """
    _check(a_sd, b_sd, temperature)
    if similarity not in get_args(Similarity):
        raise SctoolError(f"no similarity is called {similarity!r}", hint=f"one of: {', '.join(get_args(Similarity))}")
    z_vd = torch.cat([a_sd, b_sd])
    log_vv = _log_similarity(z_vd, similarity, temperature)
    positive_v = _other_view(log_vv)
    if batch_s is not None:
        if not batch_weight > 0:
            raise SctoolError(f"the weight of samples of one batch is {batch_weight}", hint="above 0; 1 weighs all alike")
        batch_v = torch.cat([batch_s, batch_s])
        same_vv = batch_v[:, None] == batch_v
        if weigh_positives:
            positive_v = positive_v + math.log(batch_weight)
        else:
            same_vv = same_vv & ~_views_of_one(len(a_sd), a_sd.device)
        log_vv = torch.where(same_vv, log_vv + math.log(batch_weight), log_vv)
    return (_without_self(log_vv).logsumexp(1) - exaggeration * positive_v).mean()


def xsample(
    a_sd: Tensor,
    b_sd: Tensor,
    temperature: float,
    graph_ss: Tensor | None = None,
    graph_temperature: float = 0.2,
    mix: float = 1.0,
    neutral_ss: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the softmax over all other views against that of a graph of samples; without a graph, ``info_nce`` with the cosine.

    Each view u predicts ``p_uv``, the softmax of ``cos(u, v) / T`` over the views ``v != u``. The target ``q_uv`` is the softmax over the
    same views of ``graph[sample of u, sample of v] / T_g``.

    Parameters
    ----------
    a_sd, b_sd
        Embeddings of the two views; rows are normalised here.
    temperature
        T of the predictions.
    graph_ss
        Similarity of the batch's samples, larger is more alike; only differences within a row count. None: the other view is the target.
    graph_temperature
        T_g; lower leaves less of the target to other samples. ``target_summary`` says how much.
    mix
        Share of the graph in the target, the rest is the other view: ``(1 - mix) onehot + mix q``.
    neutral_ss
        True for pairs of samples that neither attract nor repel, such as other samples of one donor. The diagonal is ignored.

    Returns
    -------
    loss
        In nats, a scalar.
    """
    log_p_vv, q_vv = predicted_and_target(a_sd, b_sd, temperature, graph_ss, graph_temperature, mix, neutral_ss)
    return -(q_vv * log_p_vv.masked_fill(q_vv == 0, 0)).sum(1).mean()


def predicted_and_target(
    a_sd: Tensor,
    b_sd: Tensor,
    temperature: float,
    graph_ss: Tensor | None = None,
    graph_temperature: float = 0.2,
    mix: float = 1.0,
    neutral_ss: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``log p`` and ``q`` of ``xsample``, both of shape (2S, 2S), the views of ``a_sd`` first; -inf and 0 for pairs left out."""
    _check(a_sd, b_sd, temperature)
    out_vv = _left_out(len(a_sd), neutral_ss, a_sd.device)
    log_p_vv = _log_similarity(torch.cat([a_sd, b_sd]), "cosine", temperature).masked_fill(out_vv, -torch.inf).log_softmax(1)
    onehot_vv = torch.eye(len(log_p_vv), dtype=log_p_vv.dtype, device=log_p_vv.device).roll(len(a_sd), 1)
    if graph_ss is None:
        return log_p_vv, onehot_vv
    q_vv = _graph_target(graph_ss.to(log_p_vv), graph_temperature, out_vv)
    return log_p_vv, (1 - mix) * onehot_vv + mix * q_vv


def target_summary(graph_ss: Tensor, graph_temperature: float, neutral_ss: Tensor | None = None) -> dict[str, float]:
    """What a graph asks for: ``own``, the mean target of the other view, and ``perplexity``, how many views share a target.

    A graph whose ``own`` is 1 (perplexity 1) asks for nothing that the views alone do not.
    """
    q_vv = _graph_target(graph_ss.double(), graph_temperature, _left_out(len(graph_ss), neutral_ss, graph_ss.device))
    return {"own": float(_other_view(q_vv).mean()), "perplexity": float(torch.special.entr(q_vv).sum(1).mean().exp())}


def xsample_bce(a_sd: Tensor, b_sd: Tensor, temperature: float, graph_ss: Tensor | None = None, graph_temperature: float = 0.2) -> Tensor:
    """Graph loss as in the published code, for parity tests; use ``xsample``.

    Its softmax mixes the similarities of two anchors, rows of targets face columns of predictions, and the elementwise binary
    cross-entropy shrinks as 1 / S, so that its values for batches of different size do not compare.
    """
    _check(a_sd, b_sd, temperature)
    a_sd, b_sd = F.normalize(a_sd, dim=1), F.normalize(b_sd, dim=1)
    ab_ss, aa_ss, bb_ss = a_sd @ b_sd.T / temperature, a_sd @ a_sd.T / temperature, b_sd @ b_sd.T / temperature
    own_ss = torch.eye(len(a_sd), dtype=torch.bool, device=a_sd.device)
    q_ss = own_ss.to(ab_ss) if graph_ss is None else (graph_ss.to(ab_ss) / graph_temperature).softmax(1)
    q0_ss, aa_ss, bb_ss = q_ss.masked_fill(own_ss, 0), aa_ss.masked_fill(own_ss, -torch.inf), bb_ss.masked_fill(own_ss, -torch.inf)
    first = F.binary_cross_entropy(torch.cat([ab_ss.T, bb_ss]).softmax(0), torch.cat([q_ss, q0_ss]))
    second = F.binary_cross_entropy(torch.cat([aa_ss, ab_ss]).softmax(0), torch.cat([q0_ss, q_ss]))
    return (first + second) / 2


def between(a_sd: Tensor, b_sd: Tensor, batch_s: Tensor) -> Tensor:
    """Variance of the embeddings that is between batches: how well an adversary tells them that is linear and always at its best.

    The witness of unit norm that tells a batch from all samples best gains the distance of their means (maximum mean discrepancy with a
    linear kernel, Gretton et al. 2012), so that no adversary need be trained beside, which in a few hundred steps of a few dozen samples
    does not keep up. Samples of batch -1 are left out.

    Returns
    -------
    variance
        Mean over samples and views of the squared distance of their batch's mean to that of all, a scalar.
    """
    known_s = batch_s >= 0
    if int(known_s.sum()) < 2:
        return a_sd.sum() * 0
    one_sb = F.one_hot(batch_s[known_s]).to(a_sd)
    share_b = one_sb.mean(0)
    parts = []
    for z_sd in (a_sd[known_s], b_sd[known_s]):
        mean_bd = one_sb.T @ z_sd / one_sb.sum(0).clamp_min(1).unsqueeze(1)
        parts.append((share_b * (mean_bd - z_sd.mean(0)).square().sum(1)).sum())
    return (parts[0] + parts[1]) / 2


@torch.no_grad()
def collapse(a_sd: Tensor, b_sd: Tensor) -> dict[str, Tensor]:
    """Signs of an embedding in which all samples are alike, each a scalar of the normalised rows but for the rank.

    Returns
    -------
    signs
        ``alignment``: mean squared distance of the two views of a sample, 0 is perfect. ``uniformity``: log of the mean of
        ``exp(-2 d^2)`` over pairs of samples within a view, 0 where all coincide, lower where they spread. ``effective_rank``: exp of the
        entropy of the eigenvalues' shares of the covariance of the embeddings, 1 for a line and at most min(S - 1, D); 0 for a point.
        ``pairwise_cosine``: mean cosine of different samples within a view, 1 where all coincide.
    """
    _check(a_sd, b_sd, 1.0)
    a_sd, b_sd = a_sd.double(), b_sd.double()
    alignment = (F.normalize(a_sd, dim=1) - F.normalize(b_sd, dim=1)).square().sum(1).mean()
    row_p, column_p = torch.triu_indices(len(a_sd), len(a_sd), 1, device=a_sd.device)
    cosine_vp = torch.stack([(z_sd @ z_sd.T)[row_p, column_p] for z_sd in (F.normalize(a_sd, dim=1), F.normalize(b_sd, dim=1))])
    uniformity = (4 * (cosine_vp - 1)).exp().mean().log()  # d^2 of unit vectors is 2 - 2 cos
    z_sd = (a_sd + b_sd) / 2
    spread_k = torch.linalg.svdvals(z_sd - z_sd.mean(0)).square()
    flat = spread_k.sum() <= 1e-12 * z_sd.square().sum()  # all that differs is rounding
    rank = torch.where(flat, 0.0, torch.special.entr(spread_k / spread_k.sum().clamp_min(1e-300)).sum().exp())
    return {"alignment": alignment, "uniformity": uniformity, "effective_rank": rank, "pairwise_cosine": cosine_vp.mean()}


def _check(a_sd: Tensor, b_sd: Tensor, temperature: float) -> None:
    if a_sd.shape != b_sd.shape or a_sd.ndim != 2:
        found = f"{tuple(a_sd.shape)} and {tuple(b_sd.shape)}"
        raise SctoolError(f"two views need one shape, (samples, dimensions); found {found}", hint="embed both views of the same samples")
    if len(a_sd) < 2:
        raise SctoolError(f"a contrastive loss compares samples; this batch has {len(a_sd)}", hint="batches of two samples or more")
    if not temperature > 0:
        raise SctoolError(f"temperature is {temperature}", hint="a number above 0")


def _log_similarity(z_vd: Tensor, similarity: Similarity, temperature: float) -> Tensor:
    if similarity == "cosine":
        unit_vd = F.normalize(z_vd, dim=1)
        return unit_vd @ unit_vd.T / temperature
    # squared distances from differences: those from inner products lose all digits for close points, and roots have no gradient at 0
    squared_vv = temperature**2 * (z_vd[:, None] - z_vd).square().sum(2)
    return -squared_vv.log1p() if similarity == "cauchy" else -squared_vv


def _other_view(x_vv: Tensor) -> Tensor:
    """Entries of each view with the other view of its sample."""
    n = len(x_vv) // 2
    return torch.cat([x_vv.diagonal(n), x_vv.diagonal(-n)])


def _without_self(x_vv: Tensor) -> Tensor:
    return x_vv.masked_fill(torch.eye(len(x_vv), dtype=torch.bool, device=x_vv.device), -torch.inf)


def _views_of_one(n: int, device: torch.device) -> Tensor:
    return torch.eye(n, dtype=torch.bool, device=device).tile(2, 2)


def _left_out(n: int, neutral_ss: Tensor | None, device: torch.device) -> Tensor:
    """Pairs of views that are in no softmax: each with itself, and all views of two different samples that are neutral."""
    self_vv = torch.eye(2 * n, dtype=torch.bool, device=device)
    if neutral_ss is None:
        return self_vv
    return self_vv | (neutral_ss.to(device).bool().tile(2, 2) & ~_views_of_one(n, device))


def _graph_target(graph_ss: Tensor, graph_temperature: float, out_vv: Tensor) -> Tensor:
    n = len(out_vv) // 2
    if graph_ss.shape != (n, n):
        raise SctoolError(
            f"a graph of shape {tuple(graph_ss.shape)} for {n} samples", hint="give the rows and columns of the batch's samples"
        )
    if not bool(graph_ss.isfinite().all()):
        raise SctoolError(f"a graph with {int((~graph_ss.isfinite()).sum())} values that are no number", hint="a similarity for every pair")
    return (graph_ss.tile(2, 2) / graph_temperature).masked_fill(out_vv, -torch.inf).softmax(1)
