"""SampleCLR: one vector for each sample, learned by contrasting random subsets of its cells.

After "Great patients embed alike: contrastive learning for sample representation from single-cell data" (OpenReview 0eenZ5FvH1) and its
public code, with these choices of our own, each for a fault of that code:

- attention is a softmax over the real cells of a view, so padding and the number of cells change nothing, and noise is drawn in training
  only: two calls give the same vector;
- the contrastive loss is the cross-entropy of X-CLR (Sobal et al. 2024) with one anchor to a softmax;
- the same unit vector is what the losses, the heads and the user get, in training and after;
- features are standardised by the training cells, numbers to predict by the training samples;
- losses are means over views and samples with weights of their own, whatever the number of minibatches.

Two encoders, x (cells, features) -> weights (cells, heads) -> weighted means -> vector:

- ``Contrasted`` is trained by the contrast alone and never sees a label: its vectors are the user's, beside the mean of the cells and the
  log-ratios of clusters. Its projector is linear: residual blocks added nothing on the cohorts of docs/samples.md.
- ``Told`` is trained by the tasks: their losses, and the same cross-entropy with samples of one label as each other's positives. It starts
  anew, since attention that tells donors apart looks at other cells than attention that tells groups of donors apart. There are several,
  each trained without a part of the donors, on which it is judged; their mean is more to be trusted than one of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sctool.data.sample_store import LOG_RATIO_CELLS, SampleBatch
from sctool.models.base import Terms
from sctool.nn.contrastive import between, collapse, info_nce, xsample, xsample_bce
from sctool.nn.heads import ResidualMLP, class_loss, dann, head, ordinal_loss, squared_loss
from sctool.nn.pooling import AttentionPooling, attention_weights, diversity, ess, gumbel_noise, pool
from sctool.sections import SampleCLRConfig


class Preset(NamedTuple):
    """Sizes of a network: units, layers of the projector (half of the published ones), dimensions, units of the attention."""

    n_hidden: int
    n_layers: int
    n_latent: int
    attention_hidden: int


PRESETS = {
    "tiny": Preset(32, 2, 32, 32),
    "middle": Preset(64, 4, 64, 64),
    "large": Preset(128, 8, 192, 128),
}


class Encoder(nn.Module, ABC):
    """From the cells of a sample to its vector: scores, values, and what is made of their weighted means.

    Parameters
    ----------
    config
        Sizes.
    n_features
        Features of a cell, in units of the training cells.
    n_layers
        Of the network that scores cells.
    """

    n_values: int
    """Numbers a cell is read as."""

    def __init__(self, config: SampleCLRConfig, n_features: int, n_layers: int) -> None:
        super().__init__()
        size = PRESETS[config.preset]
        self.n_features, self.n_heads, self.n_latent = n_features, config.n_heads, config.n_latent or size.n_latent
        self.hidden = config.attention_hidden or size.attention_hidden
        self.pooling = AttentionPooling(n_features, config.n_heads, self.hidden, n_layers, config.norm, config.gumbel)

    def scores(self, x_nf: Tensor, mask: Tensor | None = None) -> Tensor:
        """Of cells for each head; the first is 0 for all, so that its weights are even. Shape (..., heads + 1)."""
        scores_nh = self.pooling.scores(x_nf, mask)
        return torch.cat([scores_nh.new_zeros((*scores_nh.shape[:-1], 1)), scores_nh], -1)

    @abstractmethod
    def value(self, x_nf: Tensor) -> Tensor:
        """What is averaged of each cell, shape (..., values)."""

    @abstractmethod
    def project(self, pooled_shv: Tensor, log_sum_sh: Tensor, batch_s: Tensor) -> Tensor:
        """Vector of unit length.

        Parameters
        ----------
        pooled_shv
            Weighted means of each head, the even one first.
        log_sum_sh
            Log of the sum of exp(score) over the cells; of the even head the log of their number.
        batch_s
            Code of each sample's batch, -1 where it is unknown.
        """

    def forward(self, x_sof: Tensor, mask_so: Tensor, batch_s: Tensor) -> tuple[Tensor, Tensor]:
        """Vector of a view, and the weights of its cells in the learned heads."""
        scores_soh = self.scores(x_sof, mask_so)
        noise_soh = F.pad(gumbel_noise(scores_soh[..., 1:]), (1, 0)) if self.pooling.gumbel and self.training else None
        w_soh = attention_weights(scores_soh, mask_so, noise_soh=noise_soh)
        log_sum_sh = scores_soh.masked_fill(~mask_so.unsqueeze(2), -torch.inf).logsumexp(1)
        return self.project(pool(self.value(x_sof), w_soh), log_sum_sh, batch_s), w_soh[..., 1:]


class Contrasted(Encoder):
    """A linear map of four things, with scores that are linear, too.

    The mean of the cells; how the mean of each head differs from it; the log of the mean of exp(score) of each head; and the log-ratios of
    clusters of cells.
    """

    def __init__(self, config: SampleCLRConfig, n_features: int, n_clusters: int, n_batches: int) -> None:
        super().__init__(config, n_features, 1)
        self.n_values = n_features + n_clusters
        self.projector = nn.Linear(self.n_values + config.n_heads * (n_features + 1), self.n_latent)
        self.register_buffer("centre_kf", torch.zeros(n_clusters, n_features))
        self.register_buffer("metric_f", torch.ones(n_features))
        self.register_buffer("level_bv", torch.zeros(n_batches + 1, self.n_values))
        self.register_buffer("spread_v", torch.ones(self.n_values))

    centre_kf: Tensor
    """Centres of the clusters of training cells."""
    metric_f: Tensor
    """What a unit of each feature is worth in the distance to a centre."""
    level_bv: Tensor
    """Mean over training samples of their means and log-ratios, of each batch to hide, and last of all samples."""
    spread_v: Tensor
    """Their standard deviation."""

    def value(self, x_nf: Tensor) -> Tensor:
        """The features, and a 1 for the nearest centre."""
        if not len(self.centre_kf):
            return x_nf
        distance_nk = torch.cdist((x_nf * self.metric_f).flatten(0, -2), self.centre_kf * self.metric_f)
        own_nk = F.one_hot(distance_nk.argmin(1), len(self.centre_kf)).to(x_nf)
        return torch.cat([x_nf, own_nk.unflatten(0, x_nf.shape[:-1])], -1)

    def plain(self, mean_sv: Tensor) -> Tensor:
        """From means of values to the mean of the features and the centred log-ratio of the clusters, shape (samples, values).

        Log-ratios are as of ``LOG_RATIO_CELLS`` cells and one more of each cluster, whatever the number of cells: views have fewer than
        samples have.
        """
        mean_sf, share_sk = mean_sv.split([self.n_features, len(self.centre_kf)], 1)
        log_sk = (LOG_RATIO_CELLS * share_sk + 1).log()
        return torch.cat([mean_sf, log_sk - log_sk.mean(1, keepdim=True)], 1) if len(self.centre_kf) else mean_sf

    def standardised(self, pooled_shv: Tensor, batch_s: Tensor) -> Tensor:
        """:meth:`plain` of all cells in units of the training samples, less the mean of the sample's batch if batches are to be hidden."""
        return (self.plain(pooled_shv[:, 0]) - self.level_bv[batch_s]) / self.spread_v

    def project(self, pooled_shv: Tensor, log_sum_sh: Tensor, batch_s: Tensor) -> Tensor:
        """Vector of unit length, which the contrast sees."""
        heads_shf = (pooled_shv[:, 1:] - pooled_shv[:, :1])[..., : self.n_features]
        learned = heads_shf.flatten(1), log_sum_sh[:, 1:] - log_sum_sh[:, :1]
        return F.normalize(self.projector(torch.cat([self.standardised(pooled_shv, batch_s), *learned], 1)), dim=1)

    def embedding(self, pooled_shv: Tensor, log_sum_sh: Tensor, batch_s: Tensor) -> Tensor:
        """Standardised mean and log-ratios beside the vector, each of length about 1; shape (samples, values + dimensions).

        What goes into a projection keeps what the contrast of a few samples would give up, as is known from images (Chen et al. 2020).
        """
        own = self.standardised(pooled_shv, batch_s) / self.n_values**0.5
        return torch.cat([own, self.project(pooled_shv, log_sum_sh, batch_s)], 1)


class Told(Encoder):
    """A residual MLP of the weighted means of each head, of values that a network reads from cells."""

    def __init__(self, config: SampleCLRConfig, n_features: int) -> None:
        super().__init__(config, n_features, config.attention_layers)
        size = PRESETS[config.preset]
        self.n_values = config.n_values or n_features
        self.read = head(n_features, self.hidden, config.n_values, 2) if config.n_values else nn.Identity()
        n_hidden, n_layers = config.n_hidden or size.n_hidden, config.n_layers or size.n_layers
        self.projector = ResidualMLP(config.n_heads * self.n_values, n_hidden, self.n_latent, n_layers, config.norm)

    def value(self, x_nf: Tensor) -> Tensor:
        """What the network reads."""
        return self.read(x_nf)

    def forward(self, x_sof: Tensor, mask_so: Tensor, batch_s: Tensor) -> tuple[Tensor, Tensor]:
        """As any encoder, without the even head, which it has no use for."""
        scores_soh = self.pooling.scores(x_sof, mask_so)
        noise_soh = gumbel_noise(scores_soh) if self.pooling.gumbel and self.training else None
        w_soh = attention_weights(scores_soh, mask_so, noise_soh=noise_soh)
        pooled_shv = pool(self.value(x_sof), w_soh)
        return F.normalize(self.projector(pooled_shv.flatten(1)), dim=1), w_soh

    def project(self, pooled_shv: Tensor, log_sum_sh: Tensor, batch_s: Tensor) -> Tensor:
        """Vector of unit length, which the heads of the tasks see."""
        return F.normalize(self.projector(pooled_shv[:, 1:].flatten(1)), dim=1)


class SampleCLR(nn.Module):
    """The encoders and the heads.

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
    n_networks
        Networks for the tasks, each trained without a part of the donors.
    n_batches
        Batches to hide; 0 or 1 for none.
    n_genes
        Genes that the features are principal components of; 0 where features are given.
    n_clusters
        Of cells, whose shares are part of the embedding.
    """

    def __init__(
        self,
        config: SampleCLRConfig,
        n_features: int,
        *,
        kinds: Sequence[str] = (),
        outputs: Sequence[int] = (),
        weights: Sequence[float] = (),
        n_networks: int = 0,
        n_batches: int = 0,
        n_genes: int = 0,
        n_clusters: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.kinds, self.weights = config, tuple(kinds), tuple(weights)
        self.on: int | None = None
        """The network for the tasks that is trained; None: the encoder of the contrast."""
        self.register_buffer("mean_g", torch.zeros(n_genes))
        self.register_buffer("components_gf", torch.zeros(n_genes, n_features))
        self.register_buffer("centre_f", torch.zeros(n_features))
        self.register_buffer("scale_f", torch.ones(n_features))
        self.encoder = Contrasted(config, n_features, n_clusters, n_batches)
        self.hides = n_batches > 1
        n_latent = self.encoder.n_latent
        self.told = nn.ModuleList(Told(config, n_features) for _ in range(n_networks))
        self.heads = nn.ModuleList(nn.ModuleList(nn.Linear(n_latent, n) for n in outputs) for _ in self.told)
        for number, n in enumerate(outputs):
            self.register_buffer(f"balance_{number}", torch.ones(n))

    centre_f: Tensor
    scale_f: Tensor

    def trained(self) -> list[nn.Parameter]:
        """What this stage trains: an encoder, and the heads that belong to it."""
        parts = [self.encoder] if self.on is None else [self.told[self.on], self.heads[self.on]]
        return [parameter for part in parts for parameter in part.parameters()]

    def standard(self, x_nf: Tensor) -> Tensor:
        """Features in units of the training cells; any leading axes."""
        return (x_nf - self.centre_f) / self.scale_f

    def answers(self, z_sd: Tensor, network: int) -> list[Tensor]:
        """Outputs of each head of a network: logits of classes, standardised numbers, or logits of being above each level."""
        return [
            one(z_sd * z_sd.shape[1] ** 0.5) for one in cast(nn.ModuleList, self.heads[network])
        ]  # of variance 1, as a layer is made for

    def embed(self, batch: SampleBatch) -> Tensor:
        """Mean vector of the two views, shape (samples, dimensions); for adaptive resampling."""
        a_sd, b_sd, _ = self._views(batch)
        return (a_sd + b_sd) / 2

    def _views(self, batch: SampleBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of both views, and the weights of the cells of both."""
        encoder = self.encoder if self.on is None else self.told[self.on]
        z_sd, w_soh = encoder(self.standard(batch.views.x_sof), batch.views.mask_so, batch.batch_s.repeat(2))
        return (*z_sd.chunk(2), w_soh)

    def loss(self, batch: SampleBatch, anneal: float = 1.0) -> Terms:
        """The contrast, or that by labels and the tasks' losses; diversity of the heads of attention; what tells batches."""
        a_sd, b_sd, w_soh = self._views(batch)
        if self.on is None:
            parts, weighted = {"contrastive": self._contrast(a_sd, b_sd, batch)}, {"contrastive": 1.0}
        else:
            parts = self._by_labels(a_sd, b_sd, batch.targets, self.on)
            weighted = {"contrastive": self.config.joint_contrast, **dict(zip(batch.targets, self.weights, strict=True))}
        if self.config.diversity and w_soh.shape[2] > 1:
            parts["diversity"] = diversity(w_soh)
            weighted["diversity"] = self.config.diversity
        if self.hides:
            parts["batches"], weighted["batches"] = between(a_sd, b_sd, batch.batch_s), dann(anneal, self.config.batch_weight)
        loss = torch.stack([weight * parts[name] for name, weight in weighted.items()]).sum()
        monitors = {**(collapse(a_sd, b_sd) if self.on is None else {}), "ess": ess(w_soh).mean()}
        return Terms(loss, {name: part.detach() for name, part in {**parts, **monitors}.items()}, (a_sd + b_sd).detach() / 2)

    def _by_labels(self, a_sd: Tensor, b_sd: Tensor, targets: Mapping[str, Tensor], network: int) -> dict[str, Tensor]:
        """Losses of the heads, and the contrast in which samples are as alike as their labels."""
        parts = {"contrastive": xsample(a_sd, b_sd, self.config.label_temperature, -self._apart(targets), self.config.graph_temperature)}
        outputs = self.answers(torch.cat([a_sd, b_sd]), network)
        for number, (name, y_s) in enumerate(targets.items()):
            parts[name] = self._task(number, outputs[number], y_s.repeat(2))
        return parts

    def _apart(self, targets: Mapping[str, Tensor]) -> Tensor:
        """How far samples are apart by their labels, 0 to about 1, shape (samples, samples); 1 where a label is unknown, 0 from itself.

        Classes: 1 if they differ. Numbers: standard deviations. Levels: steps as a share of all. Several tasks: the mean.
        """
        found = []
        for number, y_s in enumerate(targets.values()):
            apart_ss = (y_s.unsqueeze(0) - y_s.unsqueeze(1)).abs()
            if self.kinds[number] == "class":
                apart_ss = torch.where(apart_ss.isnan(), apart_ss, (apart_ss > 0).to(apart_ss))
            elif self.kinds[number] == "ordinal":
                apart_ss = apart_ss / self.get_parameter(f"heads.0.{number}.bias").shape[0]
            found.append(apart_ss.nan_to_num(1.0))
        return torch.stack(found).mean(0).fill_diagonal_(0.0)

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

    def _task(self, number: int, out_sc: Tensor, y_s: Tensor) -> Tensor:
        match self.kinds[number]:
            case "class":
                return class_loss(out_sc, y_s, self.get_buffer(f"balance_{number}"), self.config.label_smoothing)
            case "regression":
                return squared_loss(out_sc, y_s)
            case _:
                return ordinal_loss(out_sc, y_s)
