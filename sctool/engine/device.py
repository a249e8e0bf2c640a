"""Devices, threads and memory: said aloud, never silently replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sctool.errors import SctoolError

T = TypeVar("T")


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto`` takes the first of CUDA, MPS, CPU that is there.

    Raises
    ------
    SctoolError
        If the device asked for is absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SctoolError(f"unknown device {name!r}", "give auto, cpu, cuda, cuda:1 or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise SctoolError(f"device {name!r} is not supported", "give auto, cpu, cuda, cuda:1 or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
        raise SctoolError(f"device {name!r} is not there: {seen}", "give --device cpu, or install a torch build for your driver")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SctoolError(f"device {name!r} is not there", "give --device cpu")
    return device


def describe_device(device: torch.device) -> str:
    """A few words for the log."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' * (threads != 1)})"


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Give back the state of torch's global generators afterwards: a caller's random numbers are not ours to move."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def in_chunks(call: Callable[[NDArray[np.int64]], T], rows: NDArray[np.int64], chunk: int) -> Iterator[tuple[NDArray[np.int64], T]]:
    """Apply ``call`` to ``chunk`` rows at a time, halving the chunk when the device runs out of memory."""
    at = 0
    while at < len(rows):
        part = rows[at : at + chunk]
        try:
            result = call(part)
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise SctoolError("out of memory on a single cell", "give --device cpu, or fewer genes") from None
            chunk = max(1, len(part) // 2)
            torch.cuda.empty_cache()
            continue
        yield part, result
        at += len(part)
