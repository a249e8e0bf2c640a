"""CRADLE-VAE: sparse effects of perturbations, apart from artifacts (Baek et al. 2025, AAAI 39:15; on SAMS-VAE, Bereket & Karaletsos 2023).

    M_tl ~ Bernoulli(p);  E_tl ~ N(0, s^2);  u = sum over the targets t of a cell of M_t * E_t       effect of its perturbation
    A_ql ~ N(0, s^2);     a = sum over the flags q it failed of A_q                                  artifact
    z ~ N(0, I);          rho = softmax(f(z + u + a, s));   x_g ~ NB(mean = l rho_g, inverse dispersion theta_g)

- ``t`` counts targets (genes that are perturbed), so the effects of a combination add up; ``l`` is the total of the cell, ``s`` its batch.
- ``mode: concat`` decodes ``[z; u; a]``, as published, instead of the sum.
- ``q(M)`` is Bernoulli, drawn straight through a relaxed one; ``q(E)`` and ``q(A)`` are normal, or, with ``guide: correlated``, ``q(E)``
  comes from a network of the drawn mask. ``q(z | x, u, a)`` sees the expression, the effect and the artifact.
- Loss per cell: - w log p(x | z, u, a) + anneal * (KL_z + (KL_M + KL_E + KL_A) / N) + b * KL(q(z | x', u, a') || q(z | x, u, a')), where
  ``x'`` is the mean profile of cells of the same perturbation and the opposite quality and ``a'`` the flipped artifact. All divergences
  are in closed form. The published objective drops cells that passed where a batch has no failing one, lets the last term grow with the
  batch and takes its profiles from unrelated cells.
- The encoder does not see a random half of the genes of a minibatch, so that it cannot tell the perturbation by its strongest genes and
  leaves that to ``u``. The last gene is all that is not modelled: ``l`` is the total over all genes of the experiment.
- Without artifacts it is SAMS-VAE (``sams``); without masks, CPA-VAE (``cpa``); with plain parameters for effects, a conditional VAE
  (``cvae``).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sctool.data.minibatch import Minibatch
from sctool.models.base import Terms
from sctool.nn.layers import CodedLinear
from sctool.nn.likelihood import bernoulli_kl, expected_log1p, nb_log_likelihood, normal_kl, normal_pair_kl
from sctool.sections import CradleConfig

NETWORKS = ("cradle", "sams", "cpa", "cvae")
"""Settings of the network; every other model is made of means."""
SLOPE = 0.01
VARIANCE_FLOOR = 1e-4
EMBEDDING_LAYERS = 4


class Residual(nn.Module):
    """Linear layers with leaky ReLU: the first plain, the later ones added to what they get."""

    def __init__(self, n_in: int, n_hidden: int, n_layers: int, n_batches: int = 1) -> None:
        super().__init__()
        self.first = CodedLinear(n_in, n_hidden, (n_batches,))
        self.later = nn.ModuleList(nn.Linear(n_hidden, n_hidden) for _ in range(n_layers - 1))

    def forward(self, x_ni: Tensor, batch_n: Tensor | None = None, offset_nh: Tensor | None = None) -> Tensor:
        """Shape (cells, n_in) to (cells, n_hidden); ``offset_nh`` is added to what the first layer makes."""
        h_nh = self.first(x_ni, *(() if batch_n is None else (batch_n,)))
        return self.rest(h_nh if offset_nh is None else h_nh + offset_nh)

    def rest(self, h_nh: Tensor) -> Tensor:
        """From what the first linear layer made."""
        h_nh = nn.functional.leaky_relu(h_nh, SLOPE)
        for linear in self.later:
            h_nh = h_nh + nn.functional.leaky_relu(linear(h_nh), SLOPE)
        return h_nh


class NormalHead(nn.Module):
    """Mean and variance ``exp(.) + 1e-4`` of a normal."""

    def __init__(self, n_hidden: int, n_latent: int) -> None:
        super().__init__()
        self.mean = nn.Linear(n_hidden, n_latent)
        self.log_variance = nn.Linear(n_hidden, n_latent)

    def forward(self, h_nh: Tensor) -> tuple[Tensor, Tensor]:
        """Both of shape (..., latent)."""
        return self.mean(h_nh).float(), self.log_variance(h_nh).float().exp() + VARIANCE_FLOOR


def straight_through(logits: Tensor, temperature: float, uniform: Tensor | None = None) -> Tensor:
    """A draw in {0, 1} of Bernoulli(sigmoid(logits)) with the gradient of the relaxed one (Jang et al. 2017; Maddison et al. 2017).

    Parameters
    ----------
    uniform
        Numbers of (0, 1) of the shape of ``logits``; None draws them.
    """
    eps = torch.finfo(logits.dtype).eps
    r = (torch.rand_like(logits) if uniform is None else uniform).clamp(eps, 1 - eps)
    soft = ((r.logit() + logits) / temperature).sigmoid()
    return soft.round().detach() + (soft - soft.detach())


class MeanChanges(nn.Module):
    """What the means of a screen tell, without a network.

    Parameters
    ----------
    config
        The section ``cradle``.
    n_genes
        Of the minibatches; the last is all other genes of the experiment, which are never predicted.
    n_perturbations
        Perturbation 0 is the control.
    """

    mean_pg: Tensor
    """Mean log expression of the known cells of each perturbation."""
    variance_pg: Tensor
    """Its variance over the cells."""
    cells_p: Tensor
    """Known cells of each perturbation."""

    def __init__(self, config: CradleConfig, n_genes: int, n_perturbations: int, **of_networks: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean_pg", torch.zeros(n_perturbations, n_genes - 1))
        self.register_buffer("variance_pg", torch.zeros(n_perturbations, n_genes - 1))
        self.register_buffer("cells_p", torch.zeros(n_perturbations))


class CradleVAE(MeanChanges):
    """The network.

    Parameters
    ----------
    config
        Sizes and the terms of the loss.
    n_genes, n_perturbations
        See :class:`MeanChanges`.
    n_targets
        Genes that are perturbed in training.
    n_flags
        Combinations of quality flags that occur; 0 is "passed".
    n_criteria
        Columns of the flags.
    n_batches
        Known batches; 1 makes the model blind to the batch.
    n_profiles
        Counterfactual profiles; 0 leaves their term out.
    n_base
        Control cells that predictions start from.
    """

    design_pt: Tensor
    """Targets (t) of each perturbation (p), 0 or 1."""
    flags_kq: Tensor
    """Criteria (q) failed by each combination of flags (k), 0 or 1."""
    usual_q: Tensor
    """Of the training cells that failed, the share that failed each criterion."""
    profile_kg: Tensor
    """Mean profiles of cells of one perturbation and quality, as :meth:`standardised` gives them; by the code ``opposite``."""
    target_sum: Tensor
    log_share_g: Tensor
    """Log of each gene's share of all counts; the decoder learns the rest."""
    log_mean_g: Tensor
    log_sd_g: Tensor
    n_cells: Tensor
    """Training cells, over which the divergences of masks and effects are spread."""
    failed: Tensor
    """Share of training cells that failed, for balanced class weights."""
    base_z_nl: Tensor
    """Posterior means of the control cells that predictions start from, by the code ``base``; with their totals and batches."""
    base_total_n: Tensor
    base_batch_n: Tensor
    network_pg: Tensor
    """Change of mean log expression by each training perturbation."""

    def __init__(
        self,
        config: CradleConfig,
        n_genes: int,
        n_perturbations: int,
        n_targets: int,
        n_flags: int = 1,
        n_criteria: int = 0,
        n_batches: int = 1,
        n_profiles: int = 0,
        n_base: int = 0,
    ) -> None:
        super().__init__(config, n_genes, n_perturbations)
        hidden, latent = config.n_hidden, config.n_latent
        wide = latent if config.mode == "sum" else 3 * latent
        self.encoder = Residual(n_genes + 2 * latent, hidden, config.n_layers, n_batches)
        self.posterior_head = NormalHead(hidden, latent)
        self.decoder = Residual(wide, hidden, config.n_layers + 1, n_batches)
        self.rate = nn.Linear(hidden, n_genes)
        nn.init.zeros_(self.rate.bias)
        self.log_theta = nn.Parameter(torch.zeros(n_genes))
        self.mask_logits_tl = nn.Parameter(torch.zeros(n_targets, latent)) if config.model in ("cradle", "sams") else None
        if config.guide == "correlated":
            self.effect_body = Residual(latent + n_targets, hidden, EMBEDDING_LAYERS)
            self.effect_head = NormalHead(hidden, latent)
        else:
            self.effect_mean_tl = nn.Parameter(torch.zeros(n_targets, latent))
            self.effect_log_sd_tl = nn.Parameter(torch.full((n_targets, latent), -2.0))
        self.artifact_mean_ql = nn.Parameter(torch.zeros(n_criteria, latent))
        self.artifact_log_sd_ql = nn.Parameter(torch.full((n_criteria, latent), -2.0))
        self.register_buffer("network_pg", torch.zeros(n_perturbations, n_genes - 1))
        self.register_buffer("design_pt", torch.zeros(n_perturbations, n_targets))
        self.register_buffer("flags_kq", torch.zeros(n_flags, n_criteria))
        self.register_buffer("profile_kg", torch.zeros(n_profiles, n_genes))
        self.register_buffer("usual_q", torch.zeros(n_criteria))
        self.register_buffer("target_sum", torch.tensor(1e4))
        self.register_buffer("log_share_g", torch.zeros(n_genes))
        self.register_buffer("log_mean_g", torch.zeros(n_genes))
        self.register_buffer("log_sd_g", torch.ones(n_genes))
        self.register_buffer("n_cells", torch.ones(()))
        self.register_buffer("failed", torch.zeros(()))
        self.register_buffer("base_z_nl", torch.zeros(n_base, latent))
        self.register_buffer("base_total_n", torch.ones(n_base))
        self.register_buffer("base_batch_n", torch.zeros(n_base, dtype=torch.long))

    def standardised(self, batch: Minibatch) -> Tensor:
        """log1p of counts per ``target_sum`` in standard deviations, shape (cells, genes); :meth:`project` takes off the means."""
        scale_e = (self.target_sum / batch.depth_n1.clamp_min(1)).squeeze(1).index_select(0, batch.row_e)
        return batch.dense((batch.value_e * scale_e).log1p_().div_(self.log_sd_g.index_select(0, batch.col_e)))

    def draw(self, sample: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Effects of the targets, of the criteria, and the divergence of masks, effects and artifacts from their priors.

        Parameters
        ----------
        sample
            Draw masks and effects; False takes expectations.

        Returns
        -------
        effect_tl, artifact_ql, kl
        """
        config = self.config
        logits_tl = self.mask_logits_tl
        if config.guide == "correlated":
            mask_tl = self._mask(sample)
            one_hot = torch.eye(self.design_pt.shape[1], device=mask_tl.device)
            mean_tl, variance_tl = self.effect_head(self.effect_body(torch.cat([mask_tl, one_hot], 1)))
        else:
            mask_tl = self._mask(sample)
            mean_tl, variance_tl = self.effect_mean_tl, (2 * self.effect_log_sd_tl).exp()
        spread_ql = self.artifact_log_sd_ql.exp()
        if config.model == "cvae":
            effect_tl, kl = mean_tl, mean_tl.new_zeros(())
        else:
            effect_tl = mean_tl + variance_tl.sqrt() * torch.randn_like(mean_tl) * sample
            kl = normal_kl(mean_tl / config.embedding_scale, variance_tl / config.embedding_scale**2).sum()
        if logits_tl is not None:
            kl = kl + bernoulli_kl(logits_tl, config.mask_prior).sum()
        artifact_ql = self.artifact_mean_ql + spread_ql * torch.randn_like(spread_ql) * sample
        kl = kl + normal_kl(self.artifact_mean_ql / config.embedding_scale, (spread_ql / config.embedding_scale).square()).sum()
        return mask_tl * effect_tl, artifact_ql, kl

    def _mask(self, sample: bool) -> Tensor:
        if self.mask_logits_tl is None:
            return torch.ones_like(self.design_pt[:1].T.expand(-1, self.config.n_latent))
        return straight_through(self.mask_logits_tl, self.config.temperature) if sample else self.mask_logits_tl.sigmoid()

    def encode(self, x_nh: Tensor, u_nl: Tensor, a_nl: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of ``q(z | x, u, a)``; ``x_nh`` is what :meth:`project` makes of the expression."""
        n = self.config.n_latent
        weight = self.encoder.first.linear.weight[:, -2 * n :]
        return self.posterior_head(self.encoder.rest(x_nh + u_nl @ weight[:, :n].T + a_nl @ weight[:, n:].T))

    def hidden_genes(self) -> Tensor | None:
        """In training: 0 for the genes that a minibatch is not shown, and the factor of the others; shape (genes,)."""
        rate = self.config.dropout if self.training else 0.0
        return nn.functional.dropout(torch.ones_like(self.log_mean_g), rate) if rate else None

    def project(self, x_ng: Tensor, batch_n: Tensor, keep_g: Tensor | None = None) -> Tensor:
        """The share of the expression and the batch in the encoder's first layer, which both artifact states have in common.

        Genes that ``keep_g`` hides are taken for average.
        """
        first = self.encoder.first
        weight_hg, centre_g = first.linear.weight[:, : -2 * self.config.n_latent], self.log_mean_g / self.log_sd_g
        if keep_g is not None:
            weight_hg = weight_hg * keep_g
        h_nh = nn.functional.linear(x_ng, weight_hg, first.linear.bias - weight_hg @ centre_g)
        return h_nh + first.offset(batch_n) if len(first.offsets) else h_nh

    def logits(self, z_nl: Tensor, u_nl: Tensor, a_nl: Tensor, batch_n: Tensor) -> Tensor:
        """Log proportions of the genes before normalisation, shape (cells, genes)."""
        h_nl = z_nl + u_nl + a_nl if self.config.mode == "sum" else torch.cat([z_nl, u_nl, a_nl], 1)
        return self.log_share_g + self.rate(self.decoder(h_nl, batch_n))

    def loss(self, batch: Minibatch, anneal: float = 1.0) -> Terms:
        """The terms at the head of this file, in nats per cell, averaged over ``particles`` draws."""
        config, codes = self.config, batch.codes
        keep_g = self.hidden_genes()
        x_nh = self.project(self.standardised(batch), codes["batch"], keep_g)
        rounds = [self._particle(batch, x_nh, keep_g) for _ in range(config.particles)]
        reconstruction, kl_z, kl_global, counterfactual = (torch.stack(part).mean() for part in zip(*(r[:4] for r in rounds), strict=True))
        kl_global = kl_global / self.n_cells
        loss = reconstruction + anneal * (kl_z + kl_global) + config.counterfactual_weight * counterfactual
        parts = {"reconstruction": reconstruction, "kl": kl_z, "kl_global": kl_global, "counterfactual": counterfactual}
        return Terms(loss, {name: part.detach() for name, part in parts.items()}, rounds[0][4])

    def _particle(self, batch: Minibatch, x_nh: Tensor, keep_g: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        codes = batch.codes
        effect_tl, artifact_ql, kl_global = self.draw()
        u_nl, a_kl = (self.design_pt @ effect_tl)[codes["perturbation"]], self.flags_kq @ artifact_ql
        a_nl = a_kl[codes["flags"]]
        mean_nl, variance_nl = self.encode(x_nh, u_nl, a_nl)
        z_nl = mean_nl + variance_nl.sqrt() * torch.randn_like(variance_nl)
        likelihood_n = nb_log_likelihood(self.logits(z_nl, u_nl, a_nl, codes["batch"]), self.log_theta, batch)
        if self.config.class_weight == "balanced":
            likelihood_n = likelihood_n * self.class_weights(codes["flags"])
        counterfactual = likelihood_n.new_zeros(())
        if self.config.counterfactual_weight and len(self.profile_kg):
            counterfactual = self._counterfactual(batch, x_nh, keep_g, u_nl, artifact_ql)
        embedding_nl = (mean_nl + u_nl).detach()
        return -likelihood_n.mean(), normal_kl(mean_nl, variance_nl).mean(), kl_global, counterfactual, embedding_nl

    @torch.no_grad()
    def log_weights(self, batch: Minibatch, effect_pl: Tensor, perturbation_n: Tensor, artifact_ql: Tensor) -> Tensor:
        """``log p(x | z, u, a) + log p(z) - log q(z | x, u, a)`` for one draw of ``z`` of each cell, shape (cells,).

        Parameters
        ----------
        effect_pl, perturbation_n
            Effects, and which of them each cell has.
        artifact_ql
            Effects of the criteria that the codes ``flags`` stand for.
        """
        codes = batch.codes
        u_nl, a_nl = effect_pl[perturbation_n], (self.flags_kq @ artifact_ql)[codes["flags"]]
        mean_nl, variance_nl = self.encode(self.project(self.standardised(batch), codes["batch"]), u_nl, a_nl)
        noise_nl = torch.randn_like(variance_nl)
        z_nl = mean_nl + variance_nl.sqrt() * noise_nl
        ratio_n = 0.5 * (noise_nl.square() + variance_nl.log() - z_nl.square()).sum(1)
        return nb_log_likelihood(self.logits(z_nl, u_nl, a_nl, codes["batch"]), self.log_theta, batch) + ratio_n

    def class_weights(self, flags_n: Tensor) -> Tensor:
        """Weights by quality whose mean over the training cells is 1, clipped to 0.5 to 5; shape (cells,)."""
        share = self.failed.clamp(1e-6, 1 - 1e-6)
        weights = torch.stack([0.5 / (1 - share), 0.5 / share]).clamp(0.5, 5.0)
        weights = weights / (weights[0] * (1 - share) + weights[1] * share)
        return weights[(flags_n > 0).long()]

    def _counterfactual(self, batch: Minibatch, x_nh: Tensor, keep_g: Tensor | None, u_nl: Tensor, artifact_ql: Tensor) -> Tensor:
        """Mean over cells with a counterfactual of KL(q(z | x', u, a') || q(z | x, u, a')), from some of the minibatch."""
        codes = batch.codes
        own = (codes["opposite"] < len(self.profile_kg)).nonzero().squeeze(1)[: self.config.counterfactual_cells]
        if not len(own):
            return x_nh.new_zeros(())
        # A cell that failed gets no artifact; one that passed, that of the usual failing cell.
        a_nl = (codes["flags"][own] == 0).unsqueeze(1) * (self.usual_q @ artifact_ql)
        other_nh = self.project(self.profile_kg[codes["opposite"][own]], codes["batch"][own], keep_g)
        return normal_pair_kl(*self.encode(other_nh, u_nl[own], a_nl), *self.encode(x_nh[own], u_nl[own], a_nl)).mean()

    @torch.no_grad()
    def latents(self, batch: Minibatch) -> tuple[Tensor, Tensor]:
        """Posterior mean of ``z``, and ``u``, with expected masks and effects; both of shape (cells, latent)."""
        effect_tl, artifact_ql, _ = self.draw(sample=False)
        codes = batch.codes
        u_nl, a_nl = (self.design_pt @ effect_tl)[codes["perturbation"]], (self.flags_kq @ artifact_ql)[codes["flags"]]
        return self.encode(self.project(self.standardised(batch), codes["batch"]), u_nl, a_nl)[0], u_nl

    def embed(self, batch: Minibatch) -> Tensor:
        """``z + u`` of shape (cells, latent): the state of the cell and what its perturbation did to it."""
        z_nl, u_nl = self.latents(batch)
        return z_nl + u_nl

    @torch.inference_mode()
    def remember(self, batches: Iterable[Minibatch]) -> None:
        """Keep the posterior means of the control cells that have a code ``base``, and what each known perturbation changes."""
        for batch in batches:
            own = (batch.codes["base"] >= 0).nonzero().squeeze(1)
            at = batch.codes["base"][own]
            self.base_z_nl[at] = self.latents(batch)[0][own]
            self.base_total_n[at] = batch.depth_n1[own, 0]
            self.base_batch_n[at] = batch.codes["batch"][own]
        effect_pl = self.design_pt @ self.draw(sample=False)[0]
        control_g = self.log_profile(effect_pl[0])
        for p in range(1, len(effect_pl)):
            self.network_pg[p] = self.log_profile(effect_pl[p]) - control_g

    @torch.inference_mode()
    def log_profile(self, effect_l: Tensor, artifact_l: Tensor | None = None) -> Tensor:
        """Mean log expression of the base cells, were they perturbed, and with an artifact if one is given; shape (genes,)."""
        total_n1 = self.base_total_n[:, None]
        mean_ng = total_n1 * self.proportions(effect_l, artifact_l)
        return expected_log1p(mean_ng, self.log_theta.exp()[:-1], self.target_sum / total_n1).mean(0)

    @torch.inference_mode()
    def proportions(self, effect_l: Tensor, artifact_l: Tensor | None = None) -> Tensor:
        """Expected share of each gene in the counts of the base cells, were they perturbed, shape (base cells, genes).

        Parameters
        ----------
        effect_l
            Effect of the perturbation, from :meth:`draw`.
        artifact_l
            Artifact; None is a cell that passes quality control.
        """
        u_nl = effect_l.expand_as(self.base_z_nl)
        a_nl = torch.zeros_like(u_nl) if artifact_l is None else artifact_l.expand_as(u_nl)
        return self.logits(self.base_z_nl, u_nl, a_nl, self.base_batch_n).float().softmax(1)[:, :-1]
