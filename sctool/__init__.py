"""sctool: single-cell machine learning from one command line.

Importing this module imports no heavy library; the public names are resolved when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["SctoolError", "__version__", "resampling_weights"]

if TYPE_CHECKING:
    from sctool.data.resampling import resampling_weights
    from sctool.errors import SctoolError

_HOMES = {"resampling_weights": "sctool.data.resampling", "SctoolError": "sctool.errors"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sctool' has no attribute {name!r}")
