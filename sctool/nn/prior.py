"""A prior of classes: each a diagonal normal of the latent space, beside one standard normal for what fits none of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def normal_kl_to(mean_nl: Tensor, variance_nl: Tensor, prior_mean_cl: Tensor, prior_log_variance_cl: Tensor) -> Tensor:
    """KL divergence of diagonal normals from those of each class in nats, shape (cells, classes)."""
    mean_n1l, variance_n1l = mean_nl.unsqueeze(1), variance_nl.unsqueeze(1)
    ratio_ncl = ((mean_n1l - prior_mean_cl).square() + variance_n1l) / prior_log_variance_cl.exp()
    return 0.5 * (ratio_ncl + prior_log_variance_cl - variance_n1l.log() - 1).sum(2)


def mixture_kl(kl_nc: Tensor, log_p_c: Tensor, q_nc: Tensor | None = None) -> Tensor:
    """``sum_c q_c KL_c + KL(q || p)``, a bound on the KL divergence from the mixture ``sum_c p_c p(z | c)``; shape (cells,).

    Parameters
    ----------
    kl_nc
        KL divergence from each class.
    log_p_c
        Log of the classes' shares.
    q_nc
        Class probabilities of each cell; None takes those for which the bound is tightest, ``q_c ~ p_c exp(-KL_c)``.
    """
    if q_nc is None:
        return -(log_p_c - kl_nc).logsumexp(1)
    return (q_nc * (kl_nc + torch.where(q_nc > 0, q_nc, 1).log() - log_p_c)).sum(1)


class ClassPrior(nn.Module):
    """``p(z) = w N(0, I) + (1 - w) sum_c p_c N(mean_c, diag exp(log_variance_c))``.

    Parameters
    ----------
    n_classes
        Classes (types or components).
    n_latent
        Latent dimensions.
    novel_weight
        w, of what belongs to no class; its column comes last.
    """

    LOG_VARIANCE = (-2.0, 0.5)  # a free scale would leave the latent space without one

    def __init__(self, n_classes: int, n_latent: int, novel_weight: float) -> None:
        super().__init__()
        self.novel_weight = novel_weight
        self.mean = nn.Parameter(torch.zeros(n_classes, n_latent))
        self.log_variance = nn.Parameter(torch.zeros(n_classes, n_latent))
        self.share = nn.Parameter(torch.zeros(n_classes))

    @torch.no_grad()
    def place(self, z_nl: Tensor, class_n: Tensor) -> None:
        """Put each class where its cells are; a class without cells stays where it is. ``class_n`` of -1 belongs to none."""
        count_c = torch.bincount(class_n[class_n >= 0], minlength=len(self.mean))
        for c in count_c.nonzero().flatten().tolist():
            own_nl = z_nl[class_n == c]
            self.mean[c] = own_nl.mean(0)
            self.log_variance[c] = (own_nl.var(0, unbiased=False) + 1e-2).log()
        self.log_variance.clamp_(*self.LOG_VARIANCE)

    @torch.no_grad()
    def weigh(self, count_c: Tensor) -> None:
        """Set the shares of the classes by their numbers of cells."""
        self.share.copy_(((count_c + 1) / (count_c + 1).sum()).log())

    def log_share(self) -> Tensor:
        """Log shares of the classes and of the rest, shape (classes + 1,)."""
        novel = self.share.new_tensor([math.log(self.novel_weight)])
        return torch.cat([self.share.log_softmax(0) + math.log1p(-self.novel_weight), novel])

    def kl(self, mean_nl: Tensor, variance_nl: Tensor) -> Tensor:
        """From each class and from the standard normal, shape (cells, classes + 1)."""
        zero_1l = self.mean.new_zeros(1, self.mean.shape[1])
        log_variance_cl = torch.cat([self.log_variance.clamp(*self.LOG_VARIANCE), zero_1l])
        return normal_kl_to(mean_nl, variance_nl, torch.cat([self.mean, zero_1l]), log_variance_cl)

    def probabilities(self, mean_nl: Tensor, variance_nl: Tensor) -> Tensor:
        """``q_c ~ p_c exp(-KL_c)``, shape (cells, classes + 1); rows sum to 1."""
        return (self.log_share() - self.kl(mean_nl, variance_nl)).softmax(1)
