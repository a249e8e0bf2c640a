"""One look for all figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sctool.artifacts.atomic import atomic_file

ARM_COLOURS = {"standard": "#4d4d4d", "ar": "#b5651d", "balanced": "#3b7ea1", "baseline": "#bdbdbd"}
PALETTE = [*plt.get_cmap("tab20").colors[::2], *plt.get_cmap("tab20").colors[1::2]]
_RC = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "sctool",
    "pdf.fonttype": 42,
}


def arm_colour(arm: str, index: int = 0) -> Any:
    """Colour of an arm, the same in every figure."""
    return ARM_COLOURS.get(arm, PALETTE[index % len(PALETTE)])


@contextmanager
def figure(path: Path, formats: list[str], width: float, height: float, columns: int = 1, rows: int = 1) -> Iterator[tuple[Any, Any]]:
    """Axes to draw on; saved as ``path`` with each of the endings when the block ends well."""
    with plt.rc_context(_RC):
        fig, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
        try:
            yield fig, axes
            for ending in formats:
                with atomic_file(path.with_suffix(f".{ending}")) as partial:
                    fig.savefig(partial, format=ending, dpi=150, metadata={"Date": None} if ending == "svg" else None)
        finally:
            plt.close(fig)
