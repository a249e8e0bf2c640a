"""Growing a trained integration to more genes, batches and labels, and what of it may still change (scArches: Lotfollahi et al. 2022).

Genes, batches and labels of the old model come first in the new one, in their old order, so growing is padding:

| new | starts as |
|---|---|
| gene | encoder column 0; decoder row 0, its bias and its dispersion the median of the old |
| batch | mean of the old batches' offsets, plus a little noise |
| label | prior of the standard normal, until it is placed where its cells are; classifier row 0; null token of the diffusion |
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sctool.models.integrate import Integrator

NOISE = 0.01


@torch.no_grad()
def grow(module: Integrator, old: Mapping[str, Tensor], old_labels: int, seed: int = 0) -> dict[str, Tensor]:
    """Load the weights of a smaller model.

    Parameters
    ----------
    module
        The new one, with at least the old genes and batches.
    old
        Tensors of the old one.
    old_labels
        How many it knew; where it knew none and the new one does, its free components are forgotten.

    Returns
    -------
    The old tensors that are carried over.
    """
    generator = torch.Generator().manual_seed(seed)
    forget = old_labels == 0 and module.n_labels > 0
    forgotten = ("prior.", "classifier.", "diffusion.denoiser.of_type", "placed", "cells_cb")
    carried = {name: tensor for name, tensor in old.items() if not (forget and name.startswith(forgotten))}
    for name, tensor in module.state_dict().items():
        if name not in carried:
            if ".offsets." in name:
                tensor.zero_()
            continue
        was = old[name].to(tensor)
        if was.shape == tensor.shape:
            tensor.copy_(was)
        elif "of_type" in name or "of_batch" in name:  # the last row is the null token
            tensor.copy_(was[-1].expand_as(tensor))
            tensor[: len(was) - 1] = was[:-1]
        elif ".offsets." in name or (name.endswith("log_theta") and was.ndim == 2 and len(was) < len(tensor)):
            new = was.mean(0) + NOISE * torch.randn(len(tensor) - len(was), was.shape[1], generator=generator).to(tensor)
            tensor[: len(was), : was.shape[1]] = was
            tensor[len(was) :, : was.shape[1]] = new
            tensor[:, was.shape[1] :] = was.median()
        elif name.endswith(("rate.bias", "zero.bias", "log_theta")):
            tensor[..., : was.shape[-1]] = was
            tensor[..., was.shape[-1] :] = was.median()
        else:
            tensor.zero_()
            tensor[tuple(slice(0, n) for n in was.shape)] = was
    return carried


def keep_old(module: Integrator, old: Mapping[str, Tensor]) -> None:
    """Surgery: let only the offsets of batches, and the rows and columns of what is new, be trained."""
    for name, parameter in module.named_parameters():
        if name.startswith("diffusion.") or name not in old:
            continue
        free = torch.zeros_like(parameter)
        if ".offsets." in name:
            free[len(old[name]) :] = 1
        else:
            free.fill_(1)[tuple(slice(0, n) for n in old[name].shape)] = 0
        if free.any():
            parameter.register_hook(lambda grad, free=free: grad * free)
        else:
            parameter.requires_grad_(False)
