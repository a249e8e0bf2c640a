"""A metric is a function of arrays; the registry knows its best value and its direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Metric:
    """A registered metric."""

    name: str
    function: Callable[..., Any]
    best: float
    higher_is_better: bool


METRICS: dict[str, Metric] = {}


def metric(*, best: float, higher_is_better: bool = True) -> Callable[[F], F]:
    """Register a function under its own name."""

    def register(function: F) -> F:
        METRICS[function.__name__] = Metric(function.__name__, function, best, higher_is_better)
        return function

    return register
