"""scVI: a variational autoencoder of counts (Lopez et al. 2018, Nature Methods 15:1053).

    z ~ N(0, I);  rho = softmax(f(z, s));  x_g ~ NB(mean = l rho_g, inverse dispersion theta_g), or ZINB with logits h(z, s)

- ``l`` is the observed total of the cell over the model's genes; ``s`` its batch.
- The encoder sees log(1 + x), or log1p of counts per 10,000, and the batch; its posterior is a diagonal normal.
- The batch enters as a learned offset in every hidden layer of encoder and decoder; a batch never seen gets the mean offset.
- ``theta`` is one per gene, or one per gene and batch.
- Loss: - log p(x | z) + anneal * KL(q(z | x) || N(0, I)), one sample of z.

Sizes, initialisation, BatchNorm and dropout follow scvi-tools; labels never enter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sctool.data.minibatch import Minibatch
from sctool.models.base import Terms
from sctool.nn.layers import MLP, NormalEncoder
from sctool.nn.likelihood import nb_log_likelihood, normal_kl, zinb_log_likelihood
from sctool.sections import SCVIConfig


class SCVI(nn.Module):
    """The scVI network.

    Parameters
    ----------
    config
        Sizes and likelihood.
    n_genes
        Genes of the counts.
    n_batches
        Known batches; 1 makes the model blind to the batch.
    """

    def __init__(self, config: SCVIConfig, n_genes: int, n_batches: int = 1) -> None:
        super().__init__()
        self.config = config
        categories, norm = (n_batches,), config.norm
        self.encoder = NormalEncoder(n_genes, config.n_hidden, config.n_latent, config.n_layers, config.dropout, categories, norm=norm)
        self.decoder = MLP(config.n_latent, config.n_hidden, config.n_layers, 0.0, categories, norm=norm)
        self.rate = nn.Linear(config.n_hidden, n_genes)
        self.zero = nn.Linear(config.n_hidden, n_genes) if config.likelihood == "zinb" else None
        self.panels_pg: Tensor | None = None
        by_batch = config.dispersion == "gene-batch" and n_batches > 1
        self.log_theta = nn.Parameter(torch.randn(n_batches, n_genes) if by_batch else torch.randn(n_genes))

    panels_pg: Tensor | None
    """Which genes were measured, by the code ``panel`` of a cell; None: all in every cell. Genes that were not have no likelihood."""

    def inputs(self, batch: Minibatch) -> Tensor:
        """What the encoder sees of the counts, shape (cells, genes); scaled up for genes that were not measured."""
        if self.config.input == "counts":
            return batch.dense(batch.value_e.log1p())
        per_count_n = 1e4 / batch.depth_n1.squeeze(1).clamp_min(1)
        x_ng = batch.dense((batch.value_e * per_count_n.index_select(0, batch.row_e)).log1p())
        if self.panels_pg is None:
            return x_ng
        scale_p1 = self.panels_pg.shape[1] / self.panels_pg.sum(1, keepdim=True)
        return x_ng * scale_p1[batch.codes["panel"]]

    def posterior(self, batch: Minibatch) -> tuple[Tensor, Tensor]:
        """Mean and variance of ``q(z | x)``, shapes (cells, latent)."""
        return self.encoder(self.inputs(batch), batch.codes["batch"])

    def log_likelihood(self, z_nl: Tensor, batch: Minibatch) -> Tensor:
        """``log p(x | z)`` summed over genes, shape (cells,)."""
        h_nh = self.decoder(z_nl, batch.codes["batch"])
        log_theta = self.log_dispersion(batch.codes["batch"])
        logits_ng = self.rate(h_nh)
        if self.panels_pg is not None:
            logits_ng = logits_ng.masked_fill(~self.panels_pg[batch.codes["panel"]], -1e4)
        if self.zero is None:
            return nb_log_likelihood(logits_ng, log_theta, batch)
        return zinb_log_likelihood(logits_ng, log_theta, self.zero(h_nh), batch)

    def log_dispersion(self, batch_n: Tensor) -> Tensor:
        """Log inverse dispersion, shape (genes,), or (cells, genes) where it differs between batches; an unknown batch gets the mean."""
        if self.log_theta.ndim == 1:
            return self.log_theta
        return torch.cat([self.log_theta, self.log_theta.mean(0, keepdim=True)])[batch_n]

    def loss(self, batch: Minibatch, anneal: float = 1.0) -> Terms:
        """Negative evidence lower bound, in nats per cell."""
        mean_nl, variance_nl = self.posterior(batch)
        mean_nl = mean_nl.float()
        z_nl = mean_nl + variance_nl.sqrt() * torch.randn_like(variance_nl)
        reconstruction = -self.log_likelihood(z_nl, batch).mean()
        kl = normal_kl(mean_nl, variance_nl).mean()
        parts = {"reconstruction": reconstruction.detach(), "kl": kl.detach()}
        return Terms(reconstruction + anneal * kl, parts, mean_nl.detach())

    def embed(self, batch: Minibatch) -> Tensor:
        """Posterior means of shape (cells, latent)."""
        return self.posterior(batch)[0]

    def proportions(self, z_nl: Tensor, codes: dict[str, Tensor]) -> Tensor:
        """Expected share of each gene in a cell's counts, shape (cells, genes), rows sum to 1."""
        return self.rate(self.decoder(z_nl, codes["batch"])).float().softmax(1)
