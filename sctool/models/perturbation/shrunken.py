"""Changes by perturbations, shrunk as far as noise and the other perturbations say: a hierarchical additive model, empirical Bayes.

Row n of Y is the mean log expression of the cells of one perturbation, row 0 that of control, in units of the gene's standard
deviation between cells. For each gene g independently,

    Y_ng = c_g + sum_e X_ne B_eg + noise,     noise ~ N(0, d_n),  d_n = (variance of row n against the other rows) / cells
    B_:g ~ sum_js pi_js N(0, w_s K_j),        c_g flat

X has a column for each target, and one for each training double: what its targets' effects do not explain by their sum (interaction).
The control is a parameter like the others: with few control cells and many weak perturbations it is learned from all of them.
How the effects of one gene go together over perturbations is one of three covariances K_j (as in Urbut 2019, mash):

    own       diag(K)                        each perturbation has its own strength, nothing else is shared
    common    (1 - rho) diag(K) + rho kk'    and effects of all perturbations lean the same way, k = sqrt(diag K)
    similar   K                              perturbations resemble each other as they do on the other genes

and w_s is a grid of scales with 0 (the gene does not respond). pi and K come from EM; K has an inverse-Wishart prior around ``common``
that weighs as much as one gene per effect, and interactions share one strength against the sum of their targets'. All scales of one K_j
are solved by a single eigendecomposition in the space of perturbations, so no gene x gene matrix is ever made.

A target never seen changes as the mean effect, times the factor with which the mean effect of the other targets predicts a training
target best (relative squared error); a target that is measured itself changes by the share of its control expression that training
targets change theirs by, and is not shrunk where it was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sctool.models.perturbation.means import Means, design, targets_of

Array = NDArray[np.float64]

SCALES = 4.0 ** np.arange(-3, 5)
ROUNDS = 20
GENES = 2000
"""EM learns pi and K from so many genes, evenly over the range of variances."""
INTERACTION = 0.1
"""Variance of an interaction as a share of its targets', before there are doubles to learn it from."""


@dataclass(frozen=True)
class Effects:
    """What :func:`fit` learned.

    Attributes
    ----------
    targets
        The T targets seen in training.
    control_g
        The denoised mean of control.
    effect_eg
        Posterior means of effects: of targets, then of the interactions of :attr:`doubles`.
    mean_g, mean_weight
        Mean effect over the targets and the factor it is used with for a target that was not seen.
    own_share
        Change of a measured target itself, as a share of its control expression.
    """

    genes: tuple[str, ...]
    targets: tuple[str, ...]
    doubles: tuple[str, ...]
    control_g: Array
    effect_eg: Array
    mean_g: Array
    mean_weight: float
    own_share: float
    means: Means
    kept_g: NDArray[np.bool_]
    scale_g: Array
    shapes: tuple[_Shape, ...]
    weight_slg: Array
    interaction: float

    def change(self, wanted: Sequence[str]) -> Array:
        """Posterior mean of the change of each wanted perturbation, shape (wanted, G)."""
        row = {gene: at for at, gene in enumerate(self.genes)}
        known = set(self.targets)
        change_wg = _columns(wanted, self.targets, self.doubles).astype(float) @ self.effect_eg
        for at, name in enumerate(wanted):
            for target in targets_of(name):
                if target not in known:
                    change_wg[at] += self.mean_weight * self.mean_g
                    if target in row:
                        change_wg[at, row[target]] = self.own_share * self.control_g[row[target]]
        return change_wg


@dataclass(frozen=True)
class _Shape:
    """One covariance of effects, with the rows of Y rotated so that prior and noise are diagonal for every scale.

    ``value_n``: prior variance over noise of each rotated row; ``rotate_nn`` takes Y there; ``back_en`` takes weighted rows to effects.
    """

    prior_ee: Array
    value_n: Array
    rotate_nn: Array
    one_n: Array
    back_en: Array

    @classmethod
    def of(cls, prior_ee: Array, x_ne: Array, noise_n: Array) -> _Shape:
        half_n = noise_n**-0.5
        value_n, vector_nn = np.linalg.eigh((half_n[:, None] * x_ne) @ prior_ee @ (x_ne.T * half_n))
        rotate_nn = vector_nn.T * half_n
        return cls(prior_ee, np.maximum(value_n, 0.0), rotate_nn, rotate_nn.sum(1), prior_ee @ x_ne.T @ rotate_nn.T)

    def keep_ln(self, scale_l: Array) -> Array:
        """Noise over noise and prior, by scale and rotated row."""
        return 1.0 / (1.0 + scale_l[:, None] * self.value_n)

    def control_lg(self, y_ng: Array, scale_l: Array) -> Array:
        """Generalised least-squares control of each scale, of rotated rows."""
        keep_ln = self.keep_ln(scale_l)
        return (keep_ln * self.one_n) @ y_ng / (keep_ln @ self.one_n**2)[:, None]

    def log_density_lg(self, y_ng: Array, scale_l: Array) -> Array:
        """Log marginal density of the genes at each scale, control integrated out, up to a constant."""
        keep_ln = self.keep_ln(scale_l)
        information_l = keep_ln @ self.one_n**2
        control_lg = self.control_lg(y_ng, scale_l)
        square_lg = keep_ln @ y_ng**2 - information_l[:, None] * control_lg**2
        return -0.5 * (square_lg + (np.log(information_l) - np.log(keep_ln).sum(1))[:, None])

    def effect_eg(self, y_ng: Array, scale_l: Array, weight_lg: Array) -> Array:
        """Posterior mean of effects, summed over scales with their weights."""
        scaled_nl = (scale_l[:, None] * self.keep_ln(scale_l)).T
        mixed_ng = y_ng * (scaled_nl @ weight_lg) - self.one_n[:, None] * (scaled_nl @ (weight_lg * self.control_lg(y_ng, scale_l)))
        return self.back_en @ mixed_ng

    def second_moment_ee(self, y_ng: Array, scale_l: Array, weight_lg: Array) -> Array:
        """Posterior second moment of effects over their scale, summed over genes and scales."""
        keep_ln, control_lg = self.keep_ln(scale_l), self.control_lg(y_ng, scale_l)
        total_nn = np.zeros((len(self.value_n),) * 2)
        for scale, keep_n, control_g, weight_g in zip(scale_l, keep_ln, control_lg, weight_lg, strict=True):
            some = weight_g > 1e-3
            residual_ng = keep_n[:, None] * (y_ng[:, some] - self.one_n[:, None] * control_g[some]) * np.sqrt(scale * weight_g[some])
            ones_n = keep_n * self.one_n
            lost_nn = np.diag(keep_n) - np.outer(ones_n, ones_n) / (ones_n @ self.one_n)
            total_nn += residual_ng @ residual_ng.T - scale * weight_g[some].sum() * lost_nn
        return self.back_en @ total_nn @ self.back_en.T + weight_lg.sum() * self.prior_ee

    def variance_wl(self, x_we: Array, scale_l: Array) -> Array:
        """Posterior variance of sums of effects at each scale."""
        keep_ln = self.keep_ln(scale_l)
        prior_w = ((x_we @ self.prior_ee) * x_we).sum(1)
        cross_wn = x_we @ self.back_en
        known_wl = cross_wn**2 @ keep_ln.T - (cross_wn @ (keep_ln * self.one_n).T) ** 2 / (keep_ln @ self.one_n**2)
        return np.maximum(scale_l * prior_w[:, None] - scale_l**2 * known_wl, 0.0)


def shrunken(means: Means, wanted: Sequence[str]) -> Array:
    """Posterior mean of the change of each wanted perturbation, shape (wanted, G)."""
    return fit(means).change(wanted)


def fit(means: Means) -> Effects:
    """Learn the model."""
    targets = means.targets
    doubles = tuple(name for name in means.perturbations if len(targets_of(name)) > 1)
    degrees_n = np.maximum(np.r_[means.control_cells, means.cells_p] - 1, 0.1)
    variance_ng = np.vstack([means.control_variance_g, means.variance_pg])
    pooled_g = degrees_n @ variance_ng / degrees_n.sum()
    kept_g = pooled_g > 1e-6 * pooled_g.max()
    scale_g = np.sqrt(pooled_g[kept_g])
    y_ng = np.vstack([means.control_g, means.mean_pg])[:, kept_g] / scale_g
    ratio_n = (variance_ng[:, kept_g] / scale_g**2).mean(1)
    noise_n = (ratio_n * degrees_n + 10) / (degrees_n + 10) / np.r_[means.control_cells, means.cells_p]
    x_ne = np.vstack([np.zeros(len(targets) + len(doubles)), _columns(means.perturbations, targets, doubles)])

    order = np.argsort(pooled_g[kept_g], kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(GENES, len(order))).astype(int)]
    prior_ee, pi_l, interaction = _learn(y_ng[:, chosen], x_ne, noise_n, len(targets))
    shapes, scales = _shapes(prior_ee, x_ne, noise_n, len(targets))
    weights = _responsibility(shapes, scales, y_ng, pi_l)[0]
    effect_eg = np.zeros((x_ne.shape[1], len(means.genes)))
    control_g = means.control_g.copy()
    control_g[kept_g] = 0.0
    for shape, scale_l, weight_lg in zip(shapes, scales, weights, strict=True):
        rotated_ng = shape.rotate_nn @ y_ng
        effect_eg[:, kept_g] += shape.effect_eg(rotated_ng, scale_l, weight_lg) * scale_g
        control_g[kept_g] += (weight_lg * shape.control_lg(rotated_ng, scale_l)).sum(0) * scale_g
    return _finish(means, targets, doubles, control_g, effect_eg, (noise_n, kept_g, scale_g, shapes, weights, interaction))
