"""Effects of many genes under a mixture of Gaussian priors, solved in the space of perturbations.

For each gene ``y_n = c + X b + noise`` with ``noise ~ N(0, diag(noise_n))``, flat c, and ``b ~ sum_sl pi_sl N(0, scale_l prior_s)``.
One eigendecomposition per prior makes rows independent for every scale and gene, so all else is elementwise or one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """A covariance of effects, and the rotation of rows that makes it and the noise diagonal.

    Attributes
    ----------
    covariance_ee
        Covariance of the E effects at scale 1.
    scale_l
        Scales it comes in.
    rotate_nn
        Takes rows to independent ones of noise 1, whose prior variance is ``scale * value_n``.
    one_n
        The control, a column of ones, there.
    back_en
        Takes rotated rows, divided by their variance, to effects at scale 1.
    """

    covariance_ee: Array
    scale_l: Array
    rotate_nn: Array
    value_n: Array
    one_n: Array
    back_en: Array

    @classmethod
    def of(cls, covariance_ee: Array, scale_l: Array, x_ne: Array, noise_n: Array) -> Prior:
        """Rotate the rows of a design of shape (N, E)."""
        half_n = noise_n**-0.5
        value_n, vector_nn = np.linalg.eigh((half_n[:, None] * x_ne) @ covariance_ee @ (x_ne.T * half_n))
        rotate_nn = vector_nn.T * half_n
        back_en = covariance_ee @ x_ne.T @ rotate_nn.T
        return cls(covariance_ee, scale_l, rotate_nn, np.maximum(value_n, 0.0), rotate_nn.sum(1), back_en)

    @property
    def precision_ln(self) -> Array:
        """One over the variance of the rotated rows at each scale."""
        return 1.0 / (1.0 + self.scale_l[:, None] * self.value_n)

    def control_lg(self, r_ng: Array) -> Array:
        """The control by generalised least squares at each scale, of rotated rows."""
        weight_ln = self.precision_ln * self.one_n
        return (weight_ln @ r_ng) / (weight_ln @ self.one_n)[:, None]

    def log_density_lg(self, r_ng: Array) -> Array:
        """Log density of each gene at each scale, control integrated out, up to a constant common to all priors."""
        precision_ln = self.precision_ln
        information_l = precision_ln @ self.one_n**2
        square_lg = precision_ln @ r_ng**2 - information_l[:, None] * self.control_lg(r_ng) ** 2
        return -0.5 * (square_lg + (np.log(information_l) - np.log(precision_ln).sum(1))[:, None])

    def mean_eg(self, r_ng: Array, weight_lg: Array) -> Array:
        """Posterior mean of effects, added up over scales with the given weights."""
        gain_nl = (self.scale_l[:, None] * self.precision_ln).T
        mixed_ng = r_ng * (gain_nl @ weight_lg) - self.one_n[:, None] * (gain_nl @ (weight_lg * self.control_lg(r_ng)))
        return self.back_en @ mixed_ng

    def moment_ee(self, r_ng: Array, weight_lg: Array) -> Array:
        """Posterior second moment of effects at scale 1, added up over genes and scales above 0 with the given weights."""
        total_nn = np.zeros((len(self.one_n), len(self.one_n)))
        responding = 0.0
        for scale, precision_n, control_g, weight_g in zip(self.scale_l, self.precision_ln, self.control_lg(r_ng), weight_lg, strict=True):
            if scale == 0:
                continue
            some = weight_g > 1e-3
            responding += weight_g[some].sum()
            seen_n = precision_n * self.one_n
            rest_ng = precision_n[:, None] * (r_ng[:, some] - self.one_n[:, None] * control_g[some]) * np.sqrt(scale * weight_g[some])
            known_nn = np.diag(precision_n) - np.outer(seen_n, seen_n) / (seen_n @ self.one_n)
            total_nn += rest_ng @ rest_ng.T - scale * weight_g[some].sum() * known_nn
        return self.back_en @ total_nn @ self.back_en.T + responding * self.covariance_ee

    def left_out(self, r_ng: Array, weight_lg: Array) -> tuple[Array, Array]:
        """What each row says beyond the others: precision times its error if left out, and that precision, each (N, G) over scales."""
        precision_ln = self.precision_ln
        seen_ln = precision_ln * self.one_n
        mixed_ng = r_ng * (precision_ln.T @ weight_lg) - self.one_n[:, None] * (precision_ln.T @ (weight_lg * self.control_lg(r_ng)))
        known_nl = self.rotate_nn.T**2 @ precision_ln.T - (self.rotate_nn.T @ seen_ln.T) ** 2 / (seen_ln @ self.one_n)
        return self.rotate_nn.T @ mixed_ng, known_nl @ weight_lg

    def add_moments(self, x_we: Array, r_ng: Array, weight_lg: Array, first_wg: Array, second_wg: Array) -> None:
        """Add the first and second posterior moments of sums of effects, over scales with the given weights."""
        cross_wn = x_we @ self.back_en
        prior_w = ((x_we @ self.covariance_ee) * x_we).sum(1)
        for scale, precision_n, control_g, weight_g in zip(self.scale_l, self.precision_ln, self.control_lg(r_ng), weight_lg, strict=True):
            seen_n = precision_n * self.one_n
            known_w = cross_wn**2 @ precision_n - (cross_wn @ seen_n) ** 2 / (seen_n @ self.one_n)
            mean_wg = scale * ((cross_wn * precision_n) @ r_ng - np.outer(cross_wn @ seen_n, control_g))
            first_wg += weight_g * mean_wg
            second_wg += weight_g * (mean_wg**2 + np.maximum(scale * prior_w - scale**2 * known_w, 0.0)[:, None])


def responsibilities(priors: list[Prior], rotated: list[Array], pi: list[Array]) -> list[Array]:
    """Posterior probability of each prior's scales for each gene, each (scales, G)."""
    sizes = [len(prior.scale_l) for prior in priors]
    log_kg = np.vstack([p.log_density_lg(r) + np.log(pi_l)[:, None] for p, r, pi_l in zip(priors, rotated, pi, strict=True)])
    weight_kg = np.exp(log_kg - log_kg.max(0))
    return np.split(weight_kg / weight_kg.sum(0), np.cumsum(sizes)[:-1])


def spikes(
    priors: list[Prior], rotated: list[Array], weights: list[Array], old_ng: Array, spike_k: Array, weight_k: Array
) -> tuple[Array, Array, Array]:
    """Values of single rows which no effect explains: ``s_ng ~ sum_k weight_k N(0, spike_k)``, none in the first row, the control.

    Parameters
    ----------
    old_ng
        The spikes that were taken off the rotated rows.

    Returns
    -------
    Posterior mean and variance of the spikes, each (N, G), and the weights they speak for.
    """
    parts = [prior.left_out(r_ng, weight_lg) for prior, r_ng, weight_lg in zip(priors, rotated, weights, strict=True)]
    precision_ng = np.maximum(np.sum([known_ng for _, known_ng in parts], 0), 1e-12)
    error_pg = (np.sum([rest_ng for rest_ng, _ in parts], 0) / precision_ng + old_ng)[1:]
    noise_pg = 1 / precision_ng[1:]
    mean_ng, variance_ng = np.zeros((2, *precision_ng.shape))
    taken_k = np.zeros(len(spike_k))
    for at, (error_g, noise_g) in enumerate(zip(error_pg, noise_pg, strict=True), start=1):
        total_kg = noise_g + spike_k[:, None]
        log_kg = np.log(weight_k / np.sqrt(total_kg).T).T - 0.5 * error_g**2 / total_kg
        chance_kg = np.exp(log_kg - log_kg.max(0))
        chance_kg /= chance_kg.sum(0)
        gain_kg = spike_k[:, None] / total_kg
        factor_g = (chance_kg * gain_kg).sum(0)
        mean_ng[at] = factor_g * error_g
        variance_ng[at] = factor_g * noise_g + ((chance_kg * gain_kg**2).sum(0) - factor_g**2) * error_g**2
        taken_k += chance_kg.sum(1)
    return mean_ng, variance_ng, taken_k / error_pg.size
