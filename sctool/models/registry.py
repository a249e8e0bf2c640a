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


BUILDERS: dict[str, Builder] = {"scvi": _scvi, "scgen": _scgen, "integrate": _integrate, "cradle": _cradle}
