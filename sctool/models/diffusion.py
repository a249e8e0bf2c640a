"""Latent diffusion: the DDPM of Ho et al. 2020, predicting v (Salimans & Ho 2022), on the codes of a frozen encoder (Rombach et al. 2022).

    q(z_t | z_0) = N(sqrt(abar_t) z_0, (1 - abar_t) I),   abar_t = prod_{s <= t} (1 - beta_s),   t = 1 .. T
    v_t = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0

- Schedule: cosine with beta <= 0.999 (Nichol & Dhariwal 2021); linear and quadratic with betas times 1000 / T, so that z_T is noise.
- Loss: squared error of v, weighted by min(SNR, 5) / (SNR + 1) (Hang et al. 2023).
- Latent codes are standardised per dimension, so that the schedule means the same for every model.
- Conditions: the type and the batch of a cell, each dropped to a null token now and then, so that either can be left out later.
- Refinement is a deterministic bridge (Su et al. 2023): a code is turned into noise under its own batch and back under another.

In the code the index ``i`` = t - 1 counts from 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sctool.data.latents import LatentBatch
from sctool.models.base import Terms
from sctool.sections import DiffusionConfig

Predict = Callable[[Tensor, int], Tensor]
"""From noised codes of shape (cells, latent), all at one index, to v."""


def betas(kind: str, steps: int, *, rescale: bool = True) -> Tensor:
    """Variances of the forward steps, float64 of shape (steps,).

    Parameters
    ----------
    kind
        ``cosine``, ``linear`` or ``quadratic``.
    steps
        T.
    rescale
        Multiply linear and quadratic betas, which were made for 1,000 steps, by 1000 / T; else z_T keeps part of the signal.
    """
    if kind == "cosine":
        at = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2
        level = at.cos().square()
        return (1 - level[1:] / level[:-1]).clamp(max=0.999)
    scale = 1000 / steps if rescale else 1.0
    power = {"linear": 1, "quadratic": 2}[kind]
    root = torch.linspace(1e-4 ** (1 / power), 2e-2 ** (1 / power), steps, dtype=torch.float64)
    return (scale * root.pow(power)).clamp(max=0.999)


class Diffusion:
    """The forward process, its posterior, and the samplers; no network.

    Parameters
    ----------
    beta
        As :func:`betas` gives them.
    """

    def __init__(self, beta: Tensor) -> None:
        self.beta, self.alpha = beta, 1 - beta
        self.abar = self.alpha.cumprod(0)
        self.abar_before = torch.cat([beta.new_ones(1), self.abar[:-1]])
        self.posterior_variance = (1 - self.abar_before) / (1 - self.abar) * beta
        self.posterior_z0 = self.abar_before.sqrt() * beta / (1 - self.abar)
        self.posterior_zt = self.alpha.sqrt() * (1 - self.abar_before) / (1 - self.abar)

    def __len__(self) -> int:
        return len(self.beta)

    def _at(self, values: Tensor, index_n: Tensor | int, like: Tensor) -> Tensor:
        """Of each cell, as a column, where ``like`` is."""
        picked = values[index_n.cpu() if isinstance(index_n, Tensor) else index_n].to(like)
        return picked.unsqueeze(-1) if picked.ndim else picked

    def noised(self, z0_nl: Tensor, index_n: Tensor | int, eps_nl: Tensor) -> Tensor:
        """z_t of z_0 and the noise."""
        abar = self._at(self.abar, index_n, z0_nl)
        return abar.sqrt() * z0_nl + (1 - abar).sqrt() * eps_nl

    def velocity(self, z0_nl: Tensor, index_n: Tensor | int, eps_nl: Tensor) -> Tensor:
        """The v to predict."""
        abar = self._at(self.abar, index_n, z0_nl)
        return abar.sqrt() * eps_nl - (1 - abar).sqrt() * z0_nl

    def split(self, zt_nl: Tensor, index_n: Tensor | int, v_nl: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 and noise that belong to z_t and v."""
        abar = self._at(self.abar, index_n, zt_nl)
        return abar.sqrt() * zt_nl - (1 - abar).sqrt() * v_nl, (1 - abar).sqrt() * zt_nl + abar.sqrt() * v_nl

    def posterior(self, z0_nl: Tensor, zt_nl: Tensor, index_n: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(z_{t-1} | z_t, z_0)."""
        mean_nl = self._at(self.posterior_z0, index_n, zt_nl) * z0_nl + self._at(self.posterior_zt, index_n, zt_nl) * zt_nl
        return mean_nl, self._at(self.posterior_variance, index_n, zt_nl)

    def terminal_kl(self, z0_nl: Tensor) -> Tensor:
        """KL(q(z_T | z_0) || N(0, I)) in nats, shape (cells,): what of a code is left in the noise."""
        abar, latent = self.abar[-1].to(z0_nl), z0_nl.shape[-1]
        return 0.5 * (latent * (1 - abar) + abar * z0_nl.square().sum(-1) - latent - latent * torch.log1p(-abar))

    def weight(self, index_n: Tensor, cap: float = 5.0) -> Tensor:
        """Of the squared error of v: min(SNR, cap) / (SNR + 1), shape (cells,)."""
        abar = self.abar[index_n.cpu()]
        snr = abar / (1 - abar)
        return snr.clamp(max=cap) / (snr + 1)

    def grid(self, last: int, points: int) -> list[int]:
        """At most ``points`` indices from 0 to ``last``, evenly spaced."""
        return sorted({round(float(i)) for i in torch.linspace(0, last, max(2, points), dtype=torch.float64)})

    def sample(self, predict: Predict, z_nl: Tensor, last: int, generator: torch.Generator | None = None) -> Tensor:
        """Ancestral sampling from the noised codes at index ``last`` down to z_0; the last step adds no noise."""
        for i in range(last, -1, -1):
            z0_nl, _ = self.split(z_nl, i, predict(z_nl, i))
            z_nl, variance = self.posterior(z0_nl, z_nl, i)
            if i:
                z_nl = z_nl + variance.sqrt() * torch.randn(z_nl.shape, generator=generator, dtype=z_nl.dtype).to(z_nl)
        return z_nl

    def ascend(self, predict: Predict, z_nl: Tensor, grid: Sequence[int]) -> Tensor:
        """Codes to noise by DDIM inversion (eta = 0): the network is asked at the less noisy end of each step; a code has no noise."""
        z_nl = self.noised(z_nl, grid[0], torch.zeros_like(z_nl))
        for i, after in itertools.pairwise(grid):
            z0_nl, eps_nl = self.split(z_nl, i, predict(z_nl, i))
            z_nl = self.noised(z0_nl, after, eps_nl)
        return z_nl

    def descend(self, predict: Predict, z_nl: Tensor, grid: Sequence[int]) -> Tensor:
        """Noise at the last index of the grid to codes by DDIM (Song et al. 2021, eta = 0)."""
        for i, before in zip(grid[::-1], [*grid[-2::-1], None], strict=True):
            z0_nl, eps_nl = self.split(z_nl, i, predict(z_nl, i))
            z_nl = z0_nl if before is None else self.noised(z0_nl, before, eps_nl)
        return z_nl

    def bridge(self, source: Predict, target: Predict, z_nl: Tensor, grid: Sequence[int]) -> Tensor:
        """To noise under one condition and back under another: for normal laws m2 + (s2 / s1) (z - m1), so ranks within are kept."""
        return self.descend(target, self.ascend(source, z_nl, grid), grid)


def time_embedding(index_n: Tensor, size: int) -> Tensor:
    """``[sin(i f_k), cos(i f_k)]`` with f_k = 10000 ** (-2 k / size), shape (cells, size)."""
    frequency = torch.exp(-math.log(10_000) * torch.arange(size // 2, device=index_n.device) / (size // 2))
    angle = index_n.float().unsqueeze(1) * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


class Denoiser(nn.Module):
    """v of noised codes, their index, type and batch: residual blocks whose norms are scaled and shifted by the conditions (FiLM).

    The output layer starts at zero. The last code of each condition is its null token.
    """

    def __init__(self, config: DiffusionConfig, n_latent: int, n_types: int, n_batches: int) -> None:
        super().__init__()
        width = config.n_hidden
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.of_type = nn.Embedding(n_types + 1, width)
        self.of_batch = nn.Embedding(n_batches + 1, width)
        self.inward = nn.Linear(n_latent, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(config.n_layers))
        self.films = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(config.n_layers))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(config.n_layers)
        )
        self.outward = nn.Linear(width, n_latent)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, z_nl: Tensor, index_n: Tensor, type_n: Tensor, batch_n: Tensor) -> Tensor:
        """Shape (cells, latent)."""
        condition_nh = nn.functional.silu(self.time(time_embedding(index_n, 64)) + self.of_type(type_n) + self.of_batch(batch_n))
        h_nh = self.inward(z_nl)
        for norm, film, block in zip(self.norms, self.films, self.blocks, strict=True):
            scale_nh, shift_nh = film(condition_nh).chunk(2, 1)
            h_nh = h_nh + block(norm(h_nh) * (1 + scale_nh) + shift_nh)
        return self.outward(h_nh)


class LatentDiffusion(nn.Module):
    """The denoiser with its schedule and the scale of the latent space.

    Parameters
    ----------
    config
        Sizes, schedule, how often a condition is dropped.
    n_latent, n_types, n_batches
        Of the latent space and of the conditions; the code after the last is the null token.
    """

    def __init__(self, config: DiffusionConfig, n_latent: int, n_types: int, n_batches: int) -> None:
        super().__init__()
        self.config, self.n_types, self.n_batches = config, n_types, n_batches
        self.process = Diffusion(betas(config.schedule, config.steps))
        self.denoiser = Denoiser(config, n_latent, n_types, n_batches)
        self.register_buffer("centre_l", torch.zeros(n_latent))
        self.register_buffer("scale_l", torch.ones(n_latent))

    centre_l: Tensor
    scale_l: Tensor

    @torch.no_grad()
    def set_scale(self, mean_nl: Tensor, sd_nl: Tensor) -> None:
        """Centre and scale of the aggregate posterior, by which codes are standardised."""
        self.centre_l.copy_(mean_nl.mean(0))
        self.scale_l.copy_((mean_nl.var(0, unbiased=False) + sd_nl.square().mean(0)).sqrt())

    def loss(self, batch: LatentBatch, anneal: float = 1.0) -> Terms:
        """Weighted squared error of v at one random index per cell, mean over dimensions; ``eps`` is the unweighted error of the noise."""
        n, device = len(batch.mean_nl), batch.mean_nl.device
        z_nl = batch.mean_nl + batch.sd_nl * torch.randn_like(batch.sd_nl)
        z_nl = (z_nl - self.centre_l) / self.scale_l
        index_n = torch.randint(len(self.process), (n,))  # on the CPU, where the tables are
        eps_nl = torch.randn_like(z_nl)
        zt_nl, v_nl = self.process.noised(z_nl, index_n, eps_nl), self.process.velocity(z_nl, index_n, eps_nl)
        type_n, batch_n = batch.codes["type"], batch.codes["batch"]
        type_n = torch.where(torch.rand(n, device=device) < self.config.drop_type, self.n_types, type_n)
        batch_n = torch.where(torch.rand(n, device=device) < self.config.drop_batch, self.n_batches, batch_n)
        error_n = (self.denoiser(zt_nl, index_n.to(device), type_n, batch_n) - v_nl).square().mean(1)
        eps_error = (self.process.abar[index_n].to(error_n) * error_n).mean()
        loss = (self.process.weight(index_n).to(error_n) * error_n).mean()
        return Terms(loss, {"eps": eps_error.detach()}, batch.mean_nl)

    def predict(self, type_n: Tensor, batch_n: Tensor) -> Predict:
        """V under the types and batches of some cells."""
        return lambda z_nl, i: self.denoiser(z_nl, torch.full((len(z_nl),), i, device=z_nl.device), type_n, batch_n)

    @torch.inference_mode()
    def bridge(self, z_nl: Tensor, type_n: Tensor, source_n: Tensor, target_n: Tensor, last: int, points: int) -> Tensor:
        """Codes carried from their batch to another under their type; deterministic. Shape (cells, latent)."""
        moved_nl = self.process.bridge(
            self.predict(type_n, source_n), self.predict(type_n, target_n), self.standard(z_nl), self.process.grid(last, points)
        )
        return self.centre_l + self.scale_l * moved_nl

    @torch.inference_mode()
    def sdedit(self, z_nl: Tensor, type_n: Tensor, last: int, draws: int, seed: int) -> Tensor:
        """Mean of ``draws`` codes noised to an index and denoised without a batch (Meng et al. 2022); shape (cells, latent).

        It takes a share of every deviation from the mean of a type away, biology and batch alike.
        """
        generator = torch.Generator().manual_seed(seed)
        predict = self.predict(type_n, torch.full_like(type_n, self.n_batches))
        total_nl = torch.zeros_like(z_nl)
        for _ in range(draws):
            eps_nl = torch.randn(z_nl.shape, generator=generator).to(z_nl)
            noised_nl = self.process.noised(self.standard(z_nl), last, eps_nl)
            total_nl += self.process.sample(predict, noised_nl, last, generator)
        return self.centre_l + self.scale_l * total_nl / draws

    @torch.inference_mode()
    def generate(self, type_n: Tensor, batch_n: Tensor, generator: torch.Generator, points: int = 50) -> Tensor:
        """New codes of some types and batches by DDIM from noise, shape (cells, latent)."""
        z_nl = torch.randn((len(type_n), len(self.centre_l)), generator=generator).to(self.centre_l)
        grid = self.process.grid(len(self.process) - 1, points)
        return self.centre_l + self.scale_l * self.process.descend(self.predict(type_n, batch_n), z_nl, grid)

    def standard(self, z_nl: Tensor) -> Tensor:
        """Codes in the units of the diffusion."""
        return (z_nl - self.centre_l) / self.scale_l
