"""Changes by perturbations, shrunk as far as noise and the other perturbations say: a hierarchical additive model, empirical Bayes.

Row n of Y is the mean log expression over the cells of one perturbation, row 0 over the control cells, in units of the gene's standard
deviation between cells. For each gene g independently

    Y_ng = c_g + sum_e X_ne B_eg + S_ng + noise,     noise ~ N(0, d_n),  d_n = (variance of row n relative to the others) / cells
    B_:g ~ sum_sl pi_sl N(0, w_l K_s),    c_g flat,    S_ng ~ sum_k eta_k N(0, v_k),  mostly 0;  S_0g = 0

X has a column for each target, and one for each training combination: what the sum of its targets' effects leaves (the interaction).
The control is a parameter like others: with few control cells and many weak perturbations it is learned from all of them. Effects on
one gene go together over perturbations in one of three ways (mash, Urbut 2019):

    own       K_1 = diag K                      each perturbation has its own strength and nothing else is shared
    common    K_2 = 0.8 diag K + 0.2 k k'       all perturbations lean to one side; k is the root of the diagonal
    similar   K_3 = K                           perturbations resemble each other as they do on other genes

and w_l is a grid of scales with 0, a gene that never responds. S takes what is large in one perturbation only, as its own target may be.
pi, eta and K come from EM, with S given the rest by its leave-one-row-out distribution; K_3 has an inverse-Wishart prior around K_1
that weighs as many genes as there are targets, and interactions have one strength relative to their targets'.

Choices beyond the model: a target that was not seen changes as the mean effect, times the factor by which the mean effect of the others
best predicts a training target (in relative squared error). A measured target changes itself by the share of its control expression
that training targets do; where that was seen it is not shrunk, since nothing else looks like it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sctool.data.perturbation_names import design, targets_of
from sctool.models.perturbation.means import Means
from sctool.models.perturbation.mixture import Array, Prior, responsibilities, spikes

SCALES: Array = np.geomspace(1 / 64, 256, 8)
SPIKES: Array = np.array([0.0, 8.0, 64.0, 512.0])
"""Variances of rare changes, relative to the noise of a row."""
ROUNDS = 6
GENES = 1000
"""EM learns from at most so many genes, evenly over the range of variances."""
INTERACTION = 0.1
"""Variance of an interaction as a share of its targets', until combinations say otherwise."""
COMMON = 0.2
"""Correlation of all perturbations in the covariance ``common``."""
STRENGTH = 1e-4
"""No target is weaker than this share of the mean variance."""
WEIGHT = 0.1
"""Least factor of the mean effect: its direction is of use even where its size is not."""


def shrunken(means: Means, wanted: Sequence[str]) -> Array:
    """Posterior mean of the change of each wanted perturbation, shape (wanted, G)."""
    return Effects.fit(means).change(wanted)


def posterior(means: Means, wanted: Sequence[str]) -> tuple[Array, Array]:
    """Posterior mean and standard deviation of the true change of each wanted perturbation, each (wanted, G)."""
    effects = Effects.fit(means)
    return effects.change(wanted), effects.deviation(wanted)


@dataclass(frozen=True)
class Effects:
    """The fitted model.

    Attributes
    ----------
    targets, combinations
        What has effects: T targets seen in training, and the combinations, which have interactions.
    control_g
        Mean of control.
    effect_eg
        Posterior means of effects: targets', then interactions.
    weight
        Factor of the mean effect for a target that was not seen.
    share, share_deviation
        Change of a measured target itself as a share of its control expression, and how far training targets are from it.
    own
        Variance of the measured change of a target itself, by target.
    interaction
        Variance of an interaction as a share of its targets'.
    kept_g, scale_g
        Genes that vary, and the standard deviation of those between cells.
    rare_eg
        Variance of the rare change in what each effect was seen by, at scale 1.
    priors, rotated, weights
        The three priors, the rows of Y in their coordinates, and the posterior probabilities of their scales for each gene.
    """

    genes: dict[str, int]
    targets: tuple[str, ...]
    combinations: tuple[str, ...]
    control_g: Array
    effect_eg: Array
    weight: float
    share: float
    share_deviation: float
    own: dict[str, float]
    interaction: float
    kept_g: NDArray[np.bool_]
    scale_g: Array
    rare_eg: Array
    priors: list[Prior]
    rotated: list[Array]
    weights: list[Array]

    @classmethod
    @lru_cache(maxsize=4)  # its posterior is asked for in several ways
    def fit(cls, means: Means) -> Effects:
        """Learn from training means."""
        genes, targets = {gene: at for at, gene in enumerate(means.genes)}, means.targets
        combinations = tuple(name for name in means.perturbations if len(targets_of(name)) > 1)
        cells_n = np.r_[means.control_cells, means.cells_p]
        degrees_n = np.maximum(cells_n - 1, 0.1)
        variance_ng = np.vstack([means.control_variance_g, means.variance_pg])
        pooled_g = degrees_n @ variance_ng / degrees_n.sum()
        kept_g = pooled_g > 1e-6 * pooled_g.max()
        scale_g = np.sqrt(pooled_g[kept_g])
        y_ng = np.vstack([means.control_g, means.mean_pg])[:, kept_g] / scale_g
        ratio_n = (variance_ng[:, kept_g] / scale_g**2).sum(1) / max(len(scale_g), 1)
        noise_n = (ratio_n * degrees_n + 10) / (degrees_n + 10) / cells_n
        x_pe = _columns(means.perturbations, targets, combinations)
        x_ne = np.vstack([np.zeros_like(x_pe[:1]), x_pe])

        order = np.argsort(scale_g, kind="stable")
        some = order[np.linspace(0, len(order) - 1, min(GENES, len(order))).astype(int)]
        priors, pi, interaction, eta_k = _learn(y_ng[:, some], x_ne, noise_n, len(targets))
        spike_ng, variance_of_spike_ng = np.zeros((2, *y_ng.shape))
        for _ in range(3):
            rotated, weights = _place(y_ng - spike_ng, priors, pi)
            spike_ng, variance_of_spike_ng, _ = spikes(priors, rotated, weights, spike_ng, SPIKES * np.median(noise_n), eta_k)
        rotated, weights = _place(y_ng - spike_ng, priors, pi)
        parts = list(zip(priors, rotated, weights, strict=True))
        control_g, effect_eg = means.control_g.copy(), np.zeros((x_pe.shape[1], len(kept_g)))
        if not kept_g.all():
            effect_eg[:, ~kept_g] = np.linalg.lstsq(x_pe, means.change_pg[:, ~kept_g], rcond=None)[0]
        control_g[kept_g] = scale_g * sum((weight_lg * prior.control_lg(r_ng)).sum(0) for prior, r_ng, weight_lg in parts)
        effect_eg[:, kept_g] = scale_g * sum(prior.mean_eg(r_ng, weight_lg) for prior, r_ng, weight_lg in parts)
        last_p = x_pe.shape[1] - 1 - x_pe[:, ::-1].argmax(1)
        effect_eg[np.ix_(last_p, kept_g)] += spike_ng[1:] * scale_g
        rare_eg = np.zeros((len(effect_eg), len(scale_g)))
        rare_eg[last_p] = variance_of_spike_ng[1:]
        weight = _weight(effect_eg[: len(targets)], means)

        own = {}
        for at, name in enumerate(means.perturbations):
            if name in genes:
                gene = genes[name]
                effect_eg[targets.index(name), gene] = means.mean_pg[at, gene] - control_g[gene]
                own[name] = float(variance_ng[at + 1, gene] / cells_n[at + 1] + variance_ng[0, gene] / cells_n[0])
        share, spread = _share(
            np.array([control_g[genes[name]] for name in own]), np.array([effect_eg[targets.index(name), genes[name]] for name in own])
        )
        return cls(
            genes, targets, combinations, control_g, effect_eg, weight, share, spread, own, interaction, kept_g, scale_g,
            rare_eg, priors, rotated, weights,
        )  # fmt: skip

    def change(self, wanted: Sequence[str]) -> Array:
        """Posterior mean of the change, shape (wanted, G)."""
        change_wg = _columns(wanted, self.targets, self.combinations) @ self.effect_eg
        mean_g = self.weight * self.effect_eg[: len(self.targets)].mean(0)
        for at, target in self._unseen(wanted):
            change_wg[at] += mean_g
            if self.own and target in self.genes:
                change_wg[at, self.genes[target]] = self.share * self.control_g[self.genes[target]]
        return change_wg

    def deviation(self, wanted: Sequence[str]) -> Array:
        """Posterior standard deviation of the true change, shape (wanted, G)."""
        n_targets, n_genes = len(self.targets), len(self.kept_g)
        x_we = _columns(wanted, self.targets, self.combinations)
        first_wg, second_wg = np.zeros((2, len(wanted), len(self.scale_g)))
        prior_tg = np.zeros((n_targets, len(self.scale_g)))
        for prior, r_ng, weight_lg in zip(self.priors, self.rotated, self.weights, strict=True):
            prior.add_moments(x_we, r_ng, weight_lg, first_wg, second_wg)
            prior_tg += np.outer(np.diag(prior.covariance_ee)[:n_targets], prior.scale_l @ weight_lg)
        second_wg += x_we @ self.rare_eg
        new_w = (x_we[:, :n_targets].sum(1) > 1) & (x_we[:, n_targets:].sum(1) == 0)
        second_wg += self.interaction * (new_w[:, None] * x_we[:, :n_targets]) @ prior_tg
        variance_wg, unseen_g = np.zeros((len(wanted), n_genes)), np.zeros(n_genes)
        variance_wg[:, self.kept_g] = (second_wg - first_wg**2) * self.scale_g**2
        unseen_g[self.kept_g] = prior_tg.mean(0) * self.scale_g**2
        for at, target in self._unseen(wanted):
            variance_wg[at] += unseen_g
            if self.own and target in self.genes:
                gene = self.genes[target]
                variance_wg[at, gene] = (self.share_deviation * self.control_g[gene]) ** 2
        for at, name in enumerate(wanted):
            for target in targets_of(name):
                if target in self.own:
                    gene = self.genes[target]
                    variance_wg[at, gene] = max(variance_wg[at, gene], self.own[target])
        return np.sqrt(np.maximum(variance_wg, 0.0))

    def _unseen(self, wanted: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Places and names of targets without an effect."""
        known = set(self.targets)
        return ((at, target) for at, name in enumerate(wanted) for target in targets_of(name) if target not in known)


def _columns(names: Sequence[str], targets: Sequence[str], combinations: Sequence[str]) -> Array:
    """Which effects each perturbation is the sum of, shape (names, targets + combinations)."""
    place = {name: at for at, name in enumerate(combinations)}
    together = np.zeros((len(names), len(combinations)))
    for at, name in enumerate(names):
        if name in place:
            together[at, place[name]] = 1.0
    return np.hstack([design(names, targets), together])


def _learn(y_ng: Array, x_ne: Array, noise_n: Array, n_targets: int) -> tuple[list[Prior], list[Array], float, Array]:
    """EM, from moments: priors of effects, weights of their scales, strength of interactions, weights of rare changes."""
    n_genes = max(y_ng.shape[1], 1)
    change_pg = y_ng[1:] - y_ng[0]
    solve_tp = np.linalg.pinv(x_ne[1:, :n_targets])
    signal_pp = change_pg @ change_pg.T / n_genes - np.diag(noise_n[1:]) - noise_n[0]
    value_t, vector_tt = np.linalg.eigh(solve_tp @ signal_pp @ solve_tp.T)
    k_tt = (vector_tt * np.maximum(value_t, 1e-3 * noise_n.mean())) @ vector_tt.T
    size, interaction = np.trace(k_tt), INTERACTION
    together_dt = x_ne[x_ne[:, n_targets:].any(1), :n_targets]
    eta_k = np.r_[0.97, np.full(len(SPIKES) - 1, 0.03 / (len(SPIKES) - 1))]
    spike_ng = np.zeros_like(y_ng)
    priors = _priors(k_tt, interaction, x_ne, noise_n, n_genes)
    n_weights = sum(len(prior.scale_l) for prior in priors)
    pi = [np.full(len(prior.scale_l), 1 / n_weights) for prior in priors]
    for _ in range(ROUNDS):
        rotated, weights = _place(y_ng - spike_ng, priors, pi)
        pi = [(weight_lg.sum(1) + 0.5) / (n_genes + 0.5 * n_weights) for weight_lg in weights]
        spike_ng, _, eta_k = spikes(priors, rotated, weights, spike_ng, SPIKES * np.median(noise_n), eta_k)
        eta_k = (eta_k + 1e-6) / (1 + 1e-6 * len(eta_k))
        moments = [prior.moment_ee(r_ng, weight_lg) for prior, r_ng, weight_lg in zip(priors, rotated, weights, strict=True)]
        moment_ee = np.sum(moments, 0)
        k_tt = moment_ee[:n_targets, :n_targets]
        if len(together_dt):
            interaction = float(np.diag(moment_ee)[n_targets:].sum() / (together_dt @ np.diag(k_tt)).sum())
        k_tt = k_tt * (size / np.trace(k_tt))
        priors = _priors(k_tt, interaction, x_ne, noise_n, n_genes)
    return priors, pi, interaction, eta_k


def _place(y_ng: Array, priors: list[Prior], pi: list[Array]) -> tuple[list[Array], list[Array]]:
    """Rows in the coordinates of each prior, and the posterior probabilities of its scales."""
    rotated = [prior.rotate_nn @ y_ng for prior in priors]
    return rotated, responsibilities(priors, rotated, pi)


def _priors(k_tt: Array, interaction: float, x_ne: Array, noise_n: Array, n_genes: int) -> list[Prior]:
    """The three covariances of effects, own (with scale 0), common and similar, with interactions."""
    n_targets = len(k_tt)
    strength_t = np.maximum(np.diag(k_tt), STRENGTH * np.diag(k_tt).mean())
    together_dt = x_ne[x_ne[:, n_targets:].argmax(0), :n_targets]
    own_ee = np.diag(np.r_[strength_t, interaction * together_dt @ strength_t])
    block = np.ix_(range(n_targets), range(n_targets))
    common_ee, similar_ee = own_ee.copy(), own_ee.copy()
    common_ee[block] = COMMON * np.sqrt(np.outer(strength_t, strength_t))
    similar_ee[block] = k_tt * (n_genes / (n_genes + n_targets))
    for covariance_ee in (common_ee, similar_ee):
        np.fill_diagonal(covariance_ee, np.diag(own_ee))
    scales = (np.r_[0.0, SCALES], SCALES, SCALES)
    return [Prior.of(*pair, x_ne, noise_n) for pair in zip((own_ee, common_ee, similar_ee), scales, strict=True)]


def _weight(effect_tg: Array, means: Means) -> float:
    """Factor by which the mean effect of the others best predicts a target, errors relative to the measured squared change."""
    if len(effect_tg) < 2:
        return WEIGHT
    others_tg = (effect_tg.sum(0) - effect_tg) / (len(effect_tg) - 1)
    noise = (means.variance_pg / means.cells_p[:, None]).sum(1).mean() + means.control_variance_g.sum() / means.control_cells
    size_t = (effect_tg**2).sum(1) + max(noise, 1e-12)
    explained = ((effect_tg * others_tg).sum(1) / size_t).sum()
    return float(np.clip(explained / max(((others_tg**2).sum(1) / size_t).sum(), 1e-12), WEIGHT, 1.0))


def _share(control_k: Array, change_k: Array) -> tuple[float, float]:
    """Share of control expression that measured targets change themselves by, and its error, with one more target that is all wrong."""
    expressed = control_k.sum()
    if expressed <= 0:
        return 0.0, 1.0
    share = max(float(change_k.sum() / expressed), -1.0)
    missed_k = change_k - share * control_k
    return share, float(np.sqrt(missed_k @ missed_k / (control_k @ control_k) + share**2 / len(control_k)))
