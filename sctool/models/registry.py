"""Models by name: how each is built from its section of the configuration and its sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sctool.artifacts.model_folder import ModelFolder
from sctool.config import Config
from sctool.errors import SctoolError


def _scvi(config: Config, sizes: dict[str, int]) -> Any:
    from sctool.models.scvi import SCVI

    return SCVI(config.scvi, **sizes)


BUILDERS: dict[str, Callable[[Config, dict[str, int]], Any]] = {"scvi": _scvi}


def load_model(folder: ModelFolder) -> Any:
    """The trained module of a model folder, in evaluation mode on the CPU."""
    name = folder.manifest["model"]
    if name not in BUILDERS:
        raise SctoolError(f"{folder.path} holds an unknown model {name!r}", f"this version knows {', '.join(BUILDERS)}; update sctool")
    module = BUILDERS[name](Config.model_validate(folder.manifest["config"]), folder.manifest["sizes"])
    try:
        module.load_state_dict(folder.weights())
    except RuntimeError as error:
        raise SctoolError(f"{folder.path}: the weights do not fit the manifest ({str(error).splitlines()[0]})", "train again") from None
    return module.eval()
