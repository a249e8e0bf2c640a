"""SampleCLR: one vector for each sample, learned by contrasting random subsets of its cells.

After "Great patients embed alike: contrastive learning for sample representation from single-cell data" (OpenReview 0eenZ5FvH1) and its
public code, with these choices of our own, each for a fault of that code:

- attention is a softmax over the real cells of a view, so padding and the number of cells change nothing, and noise is drawn in training
  only: two calls give the same vector;
- the contrastive loss is the cross-entropy of X-CLR (Sobal et al. 2024) with one anchor to a softmax;
- the same unit vector is what the losses, the heads, the adversary and the user get;
- features are standardised by the training cells, numbers to predict by the training samples;
- losses are means over views and samples with weights of their own, whatever the number of minibatches.

x (cells, features) -> weights (cells, heads) -> weighted means (heads, features) -> linear map + residual MLP -> vector -> heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sctool.data.sample_store import SampleBatch, View
from sctool.models.base import Terms
from sctool.nn.contrastive import collapse, info_nce, xsample, xsample_bce
from sctool.nn.heads import ResidualMLP, class_loss, head, ordinal_loss, reverse, squared_loss
from sctool.nn.pooling import AttentionPooling, attention_weights, diversity, ess, gumbel_noise, pool
from sctool.sections import SampleCLRConfig


class Preset(NamedTuple):
    """Sizes of a network, as published."""

    n_heads: int
    n_hidden: int
    n_layers: int
    n_latent: int
    attention_hidden: int
    head_layers: int
    head_hidden: int


PRESETS = {
    "tiny": Preset(1, 32, 4, 32, 32, 2, 16),
    "middle": Preset(4, 64, 8, 64, 64, 2, 64),
    "large": Preset(8, 128, 16, 192, 128, 3, 128),
}


class SampleCLR(nn.Module):
    """The network.

    Parameters
    ----------
    config
        Sizes and losses.
    n_features
        Features of a cell.
    kinds, outputs
        ``class``, ``regression`` or ``ordinal``, and the outputs, of the head of each task.
    weights
        Of the loss of each task.
    n_batches
        Batches to hide; fewer than two need no adversary.
    n_genes
        Genes that the features are principal components of; 0 where features are given.
    """

    def __init__(
        self,
        config: SampleCLRConfig,
        n_features: int,
        *,
        kinds: Sequence[str] = (),
        outputs: Sequence[int] = (),
        weights: Sequence[float] = (),
        n_batches: int = 0,
        n_genes: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.kinds, self.weights = config, tuple(kinds), tuple(weights)
        size = PRESETS[config.preset]
        n_heads, n_hidden = config.n_heads or size.n_heads, config.n_hidden or size.n_hidden
        n_latent, hidden = config.n_latent or size.n_latent, config.attention_hidden or size.attention_hidden
        self.joint = False
        """Whether the loss has the terms of the heads and the adversary."""
        self.n_heads, self.n_features = n_heads, n_features
        for name, n in (("mean_g", n_genes), ("centre_f", n_features), ("level_f", n_features)):
            self.register_buffer(name, torch.zeros(n))
        self.register_buffer("components_gf", torch.zeros(n_genes, n_features))
        self.register_buffer("scale_f", torch.ones(n_features))
        self.register_buffer("spread_f", torch.ones(n_features))
        n_summary = n_features + n_heads * (n_features + 1)
        self.pooling = AttentionPooling(n_features, n_heads, hidden, config.attention_layers, config.norm, config.gumbel)
        self.skip = nn.Linear(n_summary, n_latent)
        self.residual = ResidualMLP(n_summary, n_hidden, n_latent, config.n_layers or size.n_layers, config.norm)
        nn.init.zeros_(self.residual.last.weight)
        nn.init.zeros_(self.residual.last.bias)
        self.heads = nn.ModuleList(head(n_latent, size.head_hidden, n, size.head_layers) for n in outputs)
        self.adversary = head(n_latent, n_hidden, n_batches, 2) if n_batches > 1 and config.batch_weight else None

    mean_g: Tensor
    components_gf: Tensor
    centre_f: Tensor
    scale_f: Tensor
    level_f: Tensor
    """Mean of the training samples' mean features, in units of the cells."""
    spread_f: Tensor
    """Their standard deviation."""

    def standard(self, x_nf: Tensor) -> Tensor:
        """Features in units of the training cells; any leading axes."""
        return (x_nf - self.centre_f) / self.scale_f

    def scores(self, x_nf: Tensor, mask: Tensor | None = None) -> Tensor:
        """Of standardised cells for each head; the first is 0 for all, so that its weights are even. Shape (..., heads + 1)."""
        scores_nh = self.pooling.scores(x_nf, mask)
        return torch.cat([scores_nh.new_zeros((*scores_nh.shape[:-1], 1)), scores_nh], -1)

    def summary(self, pooled_shf: Tensor, log_mean_sh: Tensor) -> Tensor:
        """The mean of all cells, how the mean of each head differs from it, and the log of the mean of exp(score) of each head.

        The last is what composition is: a head that scores one type of cells high tells how many of them there are.
        """
        mean_sf, heads_shf = pooled_shf[:, 0], pooled_shf[:, 1:] - pooled_shf[:, :1]
        return torch.cat([(mean_sf - self.level_f) / self.spread_f, heads_shf.flatten(1), log_mean_sh[:, 1:]], 1)

    def project(self, summary_sk: Tensor) -> Tensor:
        """Vector of unit length of a summary, which the losses and the heads see; shape (samples, dimensions)."""
        return F.normalize(self.skip(summary_sk) + self.residual(summary_sk), dim=1)

    def embedding(self, summary_sk: Tensor) -> Tensor:
        """What the user gets: the standardised mean of the features beside the learned vector, both of variance about 1 in all.

        As in contrastive learning of images, what goes into the projection keeps what the contrast of a few samples would give up.
        """
        return torch.cat([summary_sk[:, : self.n_features] / self.n_features**0.5, self.project(summary_sk)], 1)

    def view(self, view: View) -> tuple[Tensor, Tensor]:
        """Summary of a view, and the weights of its cells."""
        x_sof = self.standard(view.x_sof)
        scores_soh = self.scores(x_sof, view.mask_so)
        noise_soh = None
        if self.config.gumbel and self.training:
            noise_soh = F.pad(gumbel_noise(scores_soh[..., 1:]), (1, 0))
        w_soh = attention_weights(scores_soh, view.mask_so, noise_soh=noise_soh)
        log_sum_sh = scores_soh.masked_fill(~view.mask_so.unsqueeze(2), -torch.inf).logsumexp(1)
        log_mean_sh = log_sum_sh - view.mask_so.sum(1, keepdim=True).log()
        return self.summary(pool(x_sof, w_soh), log_mean_sh), w_soh[..., 1:]

    def embed(self, batch: SampleBatch) -> Tensor:
        """Mean vector of the two views, shape (samples, dimensions); for adaptive resampling."""
        return (self.project(self.view(batch.a)[0]) + self.project(self.view(batch.b)[0])) / 2

    def answers(self, z_sd: Tensor) -> list[Tensor]:
        """Outputs of each head: logits of classes, standardised numbers, or logits of being above each level."""
        return [one(z_sd) for one in self.heads]

    def loss(self, batch: SampleBatch, anneal: float = 1.0) -> Terms:
        """Contrast and diversity of the heads of attention; with ``joint`` also the tasks' losses and the adversary's, by ``anneal``."""
        (a_sk, wa_soh), (b_sk, wb_soh) = self.view(batch.a), self.view(batch.b)
        a_sd, b_sd = self.project(a_sk), self.project(b_sk)
        weight = self.config.joint_contrast if self.joint else 1.0
        parts = {"contrastive": self._contrast(a_sd, b_sd, batch)}
        loss = weight * parts["contrastive"]
        if self.config.diversity and wa_soh.shape[2] > 1:
            parts["diversity"] = (diversity(wa_soh) + diversity(wb_soh)) / 2
            loss = loss + self.config.diversity * parts["diversity"]
        if self.joint:
            for number, (name, y_s) in enumerate(batch.targets.items()):
                parts[name] = (self._task(number, a_sd, y_s) + self._task(number, b_sd, y_s)) / 2
                loss = loss + self.weights[number] * parts[name]
            if self.adversary is not None:
                parts["adversary"] = (
                    sum(
                        (
                            class_loss(self.adversary(reverse(z_sd, self.config.batch_weight * anneal)), batch.batch_s)
                            for z_sd in (a_sd, b_sd)
                        ),
                        start=a_sd.new_zeros(()),
                    )
                    / 2
                )
                loss = loss + parts["adversary"]
        monitors = {**collapse(a_sd, b_sd), "ess": ess(wa_soh).mean()}
        embedding_sd = (a_sd + b_sd).detach() / 2
        return Terms(loss, {name: part.detach() for name, part in {**parts, **monitors}.items()}, embedding_sd)

    def _contrast(self, a_sd: Tensor, b_sd: Tensor, batch: SampleBatch) -> Tensor:
        c = self.config
        match c.loss:
            case "xsample":
                return xsample(a_sd, b_sd, c.temperature, batch.graph_ss, c.graph_temperature, neutral_ss=batch.same_ss)
            case "xsample_bce":
                return xsample_bce(a_sd, b_sd, c.temperature, batch.graph_ss, c.graph_temperature)
            case "infonce_cosine":
                return info_nce(a_sd, b_sd, "cosine", c.temperature)
            case "infonce_cauchy":
                return info_nce(a_sd, b_sd, "cauchy", c.temperature)
            case "infonce_gaussian":
                return info_nce(a_sd, b_sd, "gaussian", c.temperature)

    def _task(self, number: int, z_sd: Tensor, y_s: Tensor) -> Tensor:
        out_sc = self.heads[number](z_sd)
        return {"class": class_loss, "regression": squared_loss, "ordinal": ordinal_loss}[self.kinds[number]](out_sc, y_s)
