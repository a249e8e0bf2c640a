"""One file of tensors and JSON: safetensors with the JSON in its header. No pickle, so nothing in it can run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sctool.artifacts.atomic import atomic_file
from sctool.errors import SctoolError


def save_tensors(path: Path, tensors: dict[str, Tensor], note: dict[str, Any] | None = None) -> None:
    """Write tensors and a JSON note atomically."""
    with atomic_file(path) as partial:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, partial, metadata={"note": json.dumps(note or {})})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read them back, on the CPU.

    Raises
    ------
    SctoolError
        If the file is absent, cut short, or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, json.loads((file.metadata() or {}).get("note", "{}"))
    except FileNotFoundError:
        raise SctoolError(f"{path}: no such file", "train the model again, or copy the whole folder") from None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise SctoolError(f"{path} cannot be read: {error}", "copy it again, or train the model again") from None
