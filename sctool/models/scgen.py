"""scGen: the response of a group of cells to a perturbation it was never seen under (Lotfollahi et al. 2019, Nature Methods 16:715).

    z ~ q(z | x) = N(mu(x), sigma^2(x));  x_hat = f(z);  loss = 0.5 |x - x_hat|^2 + 0.5 beta KL(q(z | x) || N(0, I))

    delta_k = mean of z over the perturbed cells of group k - mean over its control cells
    response of a control cell x of a new group = f(z + sum_k w_k delta_k)                                   (published: latent arithmetic)

- ``x`` is log-normalised expression; conditions and groups never enter the network.
- delta comes from groups that have both conditions. The reference averages controls of the held-out group in, too, which biases it.
- ``w_k`` are by default proportional to |mean control of the new group - mean control of group k|^-p, so that like groups count more.
  ``p`` is what predicts each known group best from the other known ones; the reference weighs all alike (p = 0).
- A cell keeps what the decoder cannot tell of it: x + f(z + delta) - f(z). The reference's f(z + delta) has a small part of the real
  variance.
- ``f(z + delta) - f(z)`` is averaged, in the share ``blend``, with the change of means seen in the other groups, carried over as a
  proportion: (m + c) (p + c) / (q + c) - (m + c), where p and q are the weighted perturbed and control means of the other groups, m is
  the mean control of the new one and c, ``floor``, keeps genes that are hardly expressed from exploding. Their errors differ, so the
  average is nearer than either.

Sizes, initialisation and BatchNorm follow the published network.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctool.data.minibatch import Minibatch
from sctool.models.base import Terms
from sctool.nn.layers import MLP, NormalEncoder
from sctool.nn.likelihood import normal_kl
from sctool.sections import SCGenConfig

SLOPE = 0.01
POWERS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
Weighting = Literal["similar", "mean", "nearest"]


class SCGen(nn.Module):
    """The scGen network, with what it remembers of the groups it was trained on.

    Parameters
    ----------
    config
        Sizes, and how a response is made.
    n_genes
        Genes of the expression.
    n_groups
        Groups of the training file.
    """

    latent_ksl: Tensor
    """Mean latent code of each group (k) and condition (s: control, perturbed)."""
    mean_ksg: Tensor
    """Mean expression of each group and condition."""
    cells_ks: Tensor
    """Cells behind those means."""

    def __init__(self, config: SCGenConfig, n_genes: int, n_groups: int = 1) -> None:
        super().__init__()
        self.config = config
        self.encoder = NormalEncoder(n_genes, config.n_hidden, config.n_latent, config.n_layers, config.dropout, slope=SLOPE)
        self.decoder = MLP(config.n_latent, config.n_hidden, config.n_layers, config.dropout, slope=SLOPE)
        self.out = nn.Linear(config.n_hidden, n_genes)
        self.register_buffer("latent_ksl", torch.zeros(n_groups, 2, config.n_latent))
        self.register_buffer("mean_ksg", torch.zeros(n_groups, 2, n_genes))
        self.register_buffer("cells_ks", torch.zeros(n_groups, 2))

    def posterior(self, batch: Minibatch) -> tuple[Tensor, Tensor]:
        """Mean and variance of ``q(z | x)``, shapes (cells, latent)."""
        return self.encoder(batch.dense())

    def decode(self, z_nl: Tensor) -> Tensor:
        """Expected log expression, shape (cells, genes)."""
        return self.out(self.decoder(z_nl))

    def loss(self, batch: Minibatch, anneal: float = 1.0) -> Terms:
        """Half the squared error and the weighted KL divergence, per cell. The KL weight is constant; ``anneal`` is not used."""
        x_ng = batch.dense()
        mean_nl, variance_nl = self.encoder(x_ng)
        mean_nl = mean_nl.float()
        z_nl = mean_nl + variance_nl.sqrt() * torch.randn_like(variance_nl)
        reconstruction = 0.5 * (x_ng - self.decode(z_nl)).square().sum(1).mean()
        kl = normal_kl(mean_nl, variance_nl).mean()
        parts = {"reconstruction": reconstruction.detach(), "kl": kl.detach()}
        return Terms(reconstruction + 0.5 * self.config.kl_weight * kl, parts, mean_nl.detach())

    def embed(self, batch: Minibatch) -> Tensor:
        """Posterior means of shape (cells, latent)."""
        return self.posterior(batch)[0]

    @torch.inference_mode()
    def remember(self, batches: Iterable[Minibatch]) -> None:
        """Keep the mean code and expression of each group and condition; the cells carry both as codes.

        Parameters
        ----------
        batches
            All cells the model may know, each once.
        """
        for buffer in (self.latent_ksl, self.mean_ksg, self.cells_ks):
            buffer.zero_()
        for batch in batches:
            at = batch.codes["group"], batch.codes["condition"]
            self.latent_ksl.index_put_(at, self.embed(batch).float(), accumulate=True)
            self.mean_ksg.index_put_(at, batch.dense(), accumulate=True)
            self.cells_ks.index_put_(at, torch.ones_like(batch.depth_n1[:, 0]), accumulate=True)
        self.latent_ksl /= self.cells_ks.clamp_min(1)[:, :, None]
        self.mean_ksg /= self.cells_ks.clamp_min(1)[:, :, None]

    def weights(self, control_g: Tensor, own: int = -1) -> Tensor:
        """How much each remembered group counts for the response of a new one, shape (groups,), sums to 1.

        Parameters
        ----------
        control_g
            Mean control expression of the new group.
        own
            Its number, where it is among the remembered ones; if it was seen under both conditions, it alone counts.
        """
        enough = min(float(self.config.min_cells), float(self.cells_ks.min(1).values.max()))
        usable = (self.cells_ks >= max(enough, 1.0)).all(1)
        w_k = torch.zeros(len(usable), device=control_g.device)
        if own >= 0 and usable[own]:
            w_k[own] = 1.0
            return w_k
        known_ksg, power = self.mean_ksg[usable], self.config.similarity
        if power is None:
            power = learned_power(known_ksg, self.config.floor)
        w_k[usable] = group_weights((known_ksg[:, 0] - control_g).norm(dim=1), self.config.delta, power)
        return w_k

    def respond(self, batch: Minibatch, control_g: Tensor, w_k: Tensor) -> Tensor:
        """Predicted perturbed expression of control cells, shape (cells, genes); it may be slightly below zero.

        Parameters
        ----------
        batch
            Control cells of a group.
        control_g
            Mean expression of all control cells of that group.
        w_k
            Weights of the remembered groups, from :meth:`weights`.
        """
        x_ng = batch.dense()
        z_nl = self.encoder(x_ng)[0]
        moved_ng = self.decode(z_nl + w_k @ (self.latent_ksl[:, 1] - self.latent_ksl[:, 0]))
        if not self.config.residual:
            return moved_ng
        blend, seen_g = self.config.blend, proportional_change(control_g, self.mean_ksg, w_k, self.config.floor)
        return x_ng + blend * (moved_ng - self.decode(z_nl)) + (1 - blend) * seen_g


def proportional_change(control_g: Tensor, mean_ksg: Tensor, w_k: Tensor, floor: float) -> Tensor:
    """The change of the weighted means of known groups, carried over to a new group as a proportion, shape (genes,).

    Parameters
    ----------
    control_g
        Mean control expression of the new group.
    mean_ksg
        Mean expression of each known group under control and perturbed.
    w_k
        Weights of the groups.
    floor
        Log expression below which the change is absolute rather than proportional.
    """
    ratio_g = (w_k @ mean_ksg[:, 1] + floor) / (w_k @ mean_ksg[:, 0] + floor)
    return (control_g + floor) * (ratio_g - 1)


def learned_power(mean_ksg: Tensor, floor: float) -> float:
    """The power of the distance that predicts the change of each known group best from the others; 0 where there are under three.

    Best is the least mean over groups of squared error / squared change. No cell of a group to be predicted is involved.
    """
    n = len(mean_ksg)
    if n < 3:
        return 0.0
    errors = torch.zeros(len(POWERS))
    for k in range(n):
        others = [other for other in range(n) if other != k]
        distance_k = (mean_ksg[others, 0] - mean_ksg[k, 0]).norm(dim=1)
        change_g = mean_ksg[k, 1] - mean_ksg[k, 0]
        for at, power in enumerate(POWERS):
            made_g = proportional_change(mean_ksg[k, 0], mean_ksg[others], group_weights(distance_k, "similar", power), floor)
            errors[at] += float((made_g - change_g).square().sum() / change_g.square().sum().clamp_min(1e-12))
    return POWERS[int(errors.argmin())]


def group_weights(distance_k: Tensor, rule: Weighting, power: float) -> Tensor:
    """Weights of groups by the distance of their mean controls from a new group's, shape (groups,), sum to 1.

    ``similar``: distance to the power ``-power``, whatever its scale; ``nearest``: the nearest alone; ``mean``: all alike.
    """
    if rule == "mean":
        return torch.full_like(distance_k, 1.0 / len(distance_k))
    if rule == "nearest":
        return torch.nn.functional.one_hot(distance_k.argmin(), len(distance_k)).to(distance_k)
    nearness_k = (distance_k.clamp_min(1e-6) / distance_k.clamp_min(1e-6).min()).pow(-power)
    return nearness_k / nearness_k.sum()


def balanced_rows(labels: NDArray[Any], rng: np.random.RandomState) -> NDArray[np.int64]:
    """The reference's balancing: of every label, in sorted order, as many rows with replacement as the largest label has.

    Parameters
    ----------
    labels
        Shape (cells,).
    rng
        NumPy's legacy generator, whose stream the reference draws from.
    """
    names, counts = np.unique(labels, return_counts=True)
    return np.concatenate([np.flatnonzero(labels == name)[rng.randint(0, n, counts.max())] for name, n in zip(names, counts, strict=True)])


def published_delta(
    z_nl: NDArray[np.floating], perturbed: NDArray[np.bool_], labels: NDArray[Any], seed: int
) -> tuple[NDArray[np.floating], NDArray[np.int64], NDArray[np.int64]]:
    """The reference's latent arithmetic, draw for draw; biased where a group has controls only (see the head of this file).

    Parameters
    ----------
    z_nl
        Posterior means of the training cells, shape (cells, latent).
    perturbed, labels
        Condition and group of each, shape (cells,).
    seed
        Of the run.

    Returns
    -------
    delta_l, control_rows, perturbed_rows
        And the rows it was made from.
    """
    rng = np.random.RandomState(seed)
    sides = [np.flatnonzero(~perturbed), np.flatnonzero(perturbed)]
    balanced = [side[balanced_rows(labels[side], rng)] for side in sides]
    n = min(map(len, balanced))
    control, moved = (side[rng.choice(len(side), n, replace=False)] for side in balanced)
    return z_nl[moved].mean(0) - z_nl[control].mean(0), control, moved


def published_split(n_cells: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The reference's training and validation rows: ``random.sample`` of a fifth of the cells for validation."""
    validation = random.Random(seed).sample(range(n_cells), n_cells // 5)  # noqa: S311 (its stream, draw for draw)
    return np.setdiff1d(np.arange(n_cells), validation), np.array(validation)
