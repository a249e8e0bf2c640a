"""Which cells a network of samples looks at, and what a type of cells does to its answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sctool.engine.samples import Blocks, Embedded
from sctool.nn.pooling import Streamed


def cell_weights(module: Any, embedded: Embedded, blocks: Blocks) -> Iterator[NDArray[np.float64]]:
    """Second pass: weight of each cell in its sample in each learned head, shape (block, heads); they sum to 1 over a sample."""
    for x_nf, sample_n in blocks():
        scores_nh, _ = _read(module, embedded.encoder, x_nf)
        yield embedded.streamed.weights(scores_nh, torch.as_tensor(sample_n)).numpy()[:, 1:]


@torch.no_grad()  # not around the generator: it would leave it set for whoever reads from it
def _read(module: Any, encoder: Any, x_nf: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of cells and the values that are averaged, on the CPU."""
    x = module.standard(torch.as_tensor(x_nf).to(module.centre_f.device))
    return encoder.scores(x).cpu(), encoder.value(x).cpu()


@torch.no_grad()
def type_effects(
    module: Any, embedded: Embedded, network: int, blocks: Blocks, type_n: NDArray[np.int64], n_types: int
) -> list[NDArray[np.float64]]:
    """By how much the cells of a type raise each output of each head: the output of all cells less that without them.

    Logits of classes are centred, so an effect is on one class against the others. A change of the weights of single cells would say
    less: weights sum to 1, so that a type which has all of the attention already changes nothing.

    Parameters
    ----------
    type_n
        Code of the type of each cell, -1 for none; in the order of the blocks.

    Returns
    -------
    For each task an array of shape (samples, types, outputs); NaN where a sample has no cells of the type, or none else.
    """
    n_samples, encoder = len(embedded.n_cells_s), embedded.encoder
    groups = Streamed(n_samples * n_types, encoder.n_heads + 1, encoder.n_values)
    at = 0
    for x_nf, sample_n in blocks():
        scores_nh, value_nv = _read(module, encoder, x_nf)
        own = type_n[at : at + len(sample_n)]
        at += len(sample_n)
        groups.add(scores_nh, value_nv, torch.as_tensor(np.where((sample_n >= 0) & (own >= 0), sample_n * n_types + own, -1)))
    log_gh = groups.log_normaliser_sh.unflatten(0, (n_samples, n_types))
    log_all_sh, pooled_shv = embedded.streamed.log_normaliser_sh, embedded.streamed.pooled_shf
    share_gh = (log_gh - log_all_sh.unsqueeze(1)).exp()  # of the sum of exp(score), 0 for types a sample lacks
    rest_gh = 1 - share_gh
    there_g = torch.isfinite(log_gh[..., 0]) & (rest_gh[..., 0] > 1e-9)
    mean_ghv = groups.pooled_shf.unflatten(0, (n_samples, n_types)).nan_to_num(0.0)
    rest_ghv = (pooled_shv.unsqueeze(1) - share_gh.unsqueeze(-1) * mean_ghv) / rest_gh.clamp_min(1e-9).unsqueeze(-1)
    log_rest_gh = log_all_sh.unsqueeze(1) + rest_gh.clamp_min(1e-9).log()
    device = module.centre_f.device
    unknown = torch.full((n_samples * n_types,), -1, device=device)
    without = encoder.project(rest_ghv.flatten(0, 1).float().to(device), log_rest_gh.flatten(0, 1).float().to(device), unknown)
    made = []
    with_all = module.answers(torch.as_tensor(embedded.z_sd).to(device), network)
    for kind, all_sc, without_gc in zip(module.kinds, with_all, module.answers(without, network), strict=True):
        change = all_sc.unsqueeze(1) - without_gc.unflatten(0, (n_samples, n_types))
        change = change - change.mean(2, keepdim=True) if kind == "class" else change
        made.append(torch.where(there_g.to(device).unsqueeze(2), change, torch.nan).double().cpu().numpy())
    return made
