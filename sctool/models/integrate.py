"""Integration: a conditional autoencoder of counts with a prior of classes, and a diffusion of its latent codes.

    p(c) p(z | c) p(x | z, b),   p(z | c) = N(mu_c, diag sigma_c^2);   q(z | x, b) = N(mean, variance);   q(c | z) a linear classifier

- The autoencoder is scVI's, with LayerNorm and log1p of counts per 10,000 as input; now and then the encoder is not told the batch,
  so that it can place cells of batches it has never seen.
- Labels act through the loss alone: the class normals, and the cross-entropy of the classifier (scANVI: Xu et al. 2021; M2: Kingma et
  al. 2014). They never enter the encoder, and embedding a cell never reads one.
- Unlabelled cells: the sum over classes is exact, with a standard normal for what belongs to none. Without any labels the classes are
  free components.
- It is trained with the standard normal prior first; then the classes are placed where their cells are, and it is tuned with them.
- Cycle term (Hrovatin et al. 2023): a cell decoded as if from another batch should be encoded to where it was.
- The diffusion (``models/diffusion.py``) is trained on the codes of the frozen autoencoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sctool.data.minibatch import Minibatch
from sctool.models.base import Terms
from sctool.models.diffusion import LatentDiffusion
from sctool.models.scvi import SCVI
from sctool.nn.likelihood import normal_kl
from sctool.nn.prior import ClassPrior, mixture_kl
from sctool.sections import DiffusionConfig, IntegrateConfig, SCVIConfig


class Integrator(nn.Module):
    """The autoencoder with its prior and classifier; ``diffusion`` holds the second stage.

    Parameters
    ----------
    config, diffusion
        Sizes and weights of the two stages.
    n_genes, n_batches
        Of the counts.
    n_labels
        Known labels; 0 makes the classes free components.
    """

    def __init__(self, config: IntegrateConfig, diffusion: DiffusionConfig, n_genes: int, n_batches: int = 1, n_labels: int = 0) -> None:
        super().__init__()
        shared = {key: getattr(config, key) for key in ("n_latent", "n_hidden", "n_layers", "dropout", "likelihood", "dispersion")}
        self.config, self.n_batches, self.n_labels = config, n_batches, n_labels
        self.network = SCVI(SCVIConfig(**shared, norm="layer", input="proportions"), n_genes, n_batches)
        self.n_classes = n_labels or config.n_components
        self.prior = ClassPrior(self.n_classes, config.n_latent, config.novel_weight)
        self.classifier = nn.Linear(config.n_latent, self.n_classes)
        self.diffusion = LatentDiffusion(diffusion, config.n_latent, self.n_classes, n_batches)
        self.anchor: tuple[float, Mapping[str, Tensor]] | None = None
        self.register_buffer("placed", torch.zeros((), dtype=torch.bool))
        self.register_buffer("depth_b2", torch.zeros((n_batches, 2)))
        self.register_buffer("cells_cb", torch.zeros((self.n_classes, n_batches), dtype=torch.long))

    anchor: tuple[float, Mapping[str, Tensor]] | None
    """Weight and place of an L2 penalty that draws parameters to where they were (L2-SP: Li et al. 2018)."""
    placed: Tensor
    """Whether the classes are where their cells are; until then the prior is the standard normal."""
    depth_b2: Tensor
    """Mean and standard deviation of the log total counts of a cell, by batch."""
    cells_cb: Tensor
    """Training cells of each predicted class and batch: what the diffusion has seen."""

    def measured(self, panels_pg: Tensor) -> None:
        """Say which genes were measured, by the code ``panel`` of a cell; shape (panels, genes)."""
        self.network.panels_pg = panels_pg.to(self.depth_b2.device)

    def posterior(self, batch: Minibatch) -> tuple[Tensor, Tensor]:
        """Mean and variance of ``q(z | x, b)``, shapes (cells, latent)."""
        return self.network.posterior(batch)

    def embed(self, batch: Minibatch) -> Tensor:
        """Posterior means of shape (cells, latent)."""
        return self.network.embed(batch)

    def loss(self, batch: Minibatch, anneal: float = 1.0) -> Terms:
        """Nats per cell; ``codes["label"]`` is ``n_labels`` where a cell has none."""
        config, batch_n = self.config, batch.codes["batch"]
        told_n = batch_n
        if self.training and config.batch_dropout:
            told_n = torch.where(torch.rand(batch_n.shape, device=batch_n.device) < config.batch_dropout, self.n_batches, batch_n)
        mean_nl, variance_nl = self.network.encoder(self.network.inputs(batch), told_n)
        mean_nl = mean_nl.float()
        z_nl = mean_nl + variance_nl.sqrt() * torch.randn_like(variance_nl)
        reconstruction = -self.network.log_likelihood(z_nl, batch).mean()
        label_n = batch.codes["label"] if self.n_labels else None
        kl = self._kl(mean_nl, variance_nl, label_n).mean()
        loss, parts = reconstruction + anneal * config.kl_weight * kl, {"reconstruction": reconstruction, "kl": kl}
        if label_n is not None and bool(self.placed):
            known = label_n < self.n_labels
            crossed_n = nn.functional.cross_entropy(self.classifier(mean_nl), label_n.clamp(max=self.n_labels - 1), reduction="none")
            parts["classification"] = (crossed_n * known).sum() / known.sum().clamp_min(1)
            loss = loss + config.classification_weight * parts["classification"]
        if self.training and config.cycle_weight and self.n_batches > 1:
            parts["cycle"] = self._cycle(z_nl, mean_nl, batch_n)
            loss = loss + config.cycle_weight * parts["cycle"]
        if self.training and self.anchor is not None:
            weight, here = self.anchor
            own = dict(self.named_parameters())
            parts["anchor"] = torch.stack([(own[name] - there).square().sum() for name, there in here.items()]).sum()
            loss = loss + weight * parts["anchor"]
        return Terms(loss, {name: value.detach() for name, value in parts.items()}, mean_nl.detach())

    def _kl(self, mean_nl: Tensor, variance_nl: Tensor, label_n: Tensor | None) -> Tensor:
        """From the standard normal, from the class of a labelled cell, or from the mixture; shape (cells,)."""
        if not bool(self.placed):
            return normal_kl(mean_nl, variance_nl)
        log_p_c, kl_nc = self.prior.log_share(), self.prior.kl(mean_nl, variance_nl)
        mixed_n = mixture_kl(kl_nc, log_p_c)
        if label_n is None:
            return mixed_n
        own_n = label_n.clamp(max=self.n_labels - 1)
        own_kl_n = kl_nc.gather(1, own_n.unsqueeze(1)).squeeze(1) - log_p_c[own_n]
        return torch.where(label_n < self.n_labels, own_kl_n, mixed_n)

    def _cycle(self, z_nl: Tensor, mean_nl: Tensor, batch_n: Tensor) -> Tensor:
        """Squared distance, in units of the latent spread, between where half of the cells are and where they are put again."""
        half = max(1, len(z_nl) // 2)
        shift_n = torch.randint(1, self.n_batches, (half,), device=batch_n.device)
        other_n = (batch_n[:half] + shift_n) % self.n_batches
        again_ng = (1e4 * self.network.proportions(z_nl[:half], {"batch": other_n})).log1p()
        again_nl, _ = self.network.encoder(again_ng, other_n)
        spread_l = mean_nl.detach().std(0, unbiased=False).clamp_min(0.05)
        return ((again_nl - mean_nl[:half]) / spread_l).square().sum(1).mean()

    @torch.inference_mode()
    def classify(self, batch: Minibatch) -> Tensor:
        """Probability of each class and of none of them, shape (cells, classes + 1), from the class normals; rows sum to 1.

        Of hidden labels they get more right than the linear classifier, whose part is to pull the classes apart.
        """
        return self.prior.probabilities(*self.posterior(batch))

    @torch.inference_mode()
    def remember(self, batches: Iterable[Minibatch]) -> None:
        """Count the training cells of each predicted class and batch, and keep how deep each batch is measured.

        Of batches that are not among them it keeps what it knew.
        """
        seen = [
            (self.classify(batch)[:, : self.n_classes].argmax(1), batch.codes["batch"], batch.depth_n1.squeeze(1).clamp_min(1).log())
            for batch in batches
        ]
        class_n, batch_n, depth_n = (torch.cat(parts) for parts in zip(*seen, strict=True))
        for b in batch_n[batch_n < self.n_batches].unique().tolist():
            own = batch_n == b
            self.cells_cb[:, b] = torch.bincount(class_n[own], minlength=self.n_classes)
            self.depth_b2[b] = torch.stack([depth_n[own].mean(), depth_n[own].std(unbiased=False)])

    def proportions(self, z_nl: Tensor, codes: dict[str, Tensor]) -> Tensor:
        """Expected share of each gene in a cell's counts, shape (cells, genes), rows sum to 1."""
        return self.network.proportions(z_nl, codes)
