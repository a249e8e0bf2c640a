"""Models by name: how each is built from the configuration and its sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sctool.config import Config

Builder = Callable[[Config, dict[str, int]], Any]


def _scvi(config: Config, sizes: dict[str, int]) -> Any:
    from sctool.models.scvi import SCVI

    return SCVI(config.scvi, **sizes)


def _scgen(config: Config, sizes: dict[str, int]) -> Any:
    from sctool.models.scgen import SCGen

    return SCGen(config.scgen, **sizes)


def _integrate(config: Config, sizes: dict[str, int]) -> Any:
    from sctool.models.integrate import Integrator

    return Integrator(config.integrate, config.diffusion, **sizes)


def _cradle(config: Config, sizes: dict[str, int]) -> Any:
    from sctool.models.cradle import NETWORKS, CradleVAE, MeanChanges

    return (CradleVAE if config.cradle.model in NETWORKS else MeanChanges)(config.cradle, **sizes)


def _sampleclr(config: Config, sizes: dict[str, int]) -> Any:
    from sctool.models.sampleclr import SampleCLR

    settings = config.sampleclr
    tasks = [said.rpartition(":") for said in settings.tasks]
    return SampleCLR(
        settings,
        sizes["n_features"],
        kinds=[kind for _, _, kind in tasks],
        outputs=[sizes[f"n_outputs_{number}"] for number in range(len(tasks))],
        weights=[settings.task_weights.get(column, 1.0) for column, _, _ in tasks],
        n_networks=sizes["n_networks"],
        n_batches=sizes["n_batches"],
        n_genes=sizes["n_genes"],
        n_clusters=sizes["n_clusters"],
    )


BUILDERS: dict[str, Builder] = {"scvi": _scvi, "scgen": _scgen, "integrate": _integrate, "cradle": _cradle, "sampleclr": _sampleclr}
