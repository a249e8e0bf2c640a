"""How far the probabilities given to samples can be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.report.figures import saved
from sctool.report.sample_look import GREY, RIGHT, Goal, counted, short
from sctool.report.style import figure

_BINS, _Z = 5, 1.959964


def calibration(path: Path, formats: list[str], part: pd.DataFrame, shown: list[str], goal: Goal) -> list[Path]:
    """Share of samples that are what was said, by the probability said, in bins of equal number; intervals count donors."""
    two = len(goal.order) == 2
    names = [name for name in shown if part.loc[part["name"] == name, [f"p_{label}" for label in goal.order]].notna().all(axis=None)]
    if not names:
        return []
    with figure(path, formats, 3.1 * len(names) + 0.4, 3.9, columns=len(names)) as (fig, axes):
        for axis, name in zip(axes[0], names, strict=True):
            own = part[part["name"] == name]
            p_nc = own[[f"p_{label}" for label in goal.order]].to_numpy(float)
            said = p_nc[:, 1] if two else p_nc.max(1)
            hit = (own["true"] == 1).to_numpy() if two else (own["true"].to_numpy() == p_nc.argmax(1))
            axis.plot([0, 1], [0, 1], color=GREY, lw=0.9, ls="--", zorder=1)
            for yes, y in ((True, 1.035), (False, -0.035)):
                axis.plot(said[hit == yes], np.full(int((hit == yes).sum()), y), "|", color=GREY, ms=5, mew=0.5, alpha=0.5, clip_on=False)
            bins = _bins(said, own["sample"].nunique())
            rows = [(said[b].mean(), hit[b].mean(), own["donor"].to_numpy()[b]) for b in bins]
            for x, y, donors in rows:
                low, high = wilson(y, len(set(donors)))
                axis.plot([x, x], [low, high], color=RIGHT, lw=1.3)
            axis.plot([row[0] for row in rows], [row[1] for row in rows], "o-", color=RIGHT, ms=5.5, mec="white", mew=0.5, lw=1)
            axis.set(xlim=(-0.02, 1.02), ylim=(-0.06, 1.06), box_aspect=1)
            axis.set_title(f"{short(name, 30)}\n{counted(own['donor'].nunique(), 'donor')}", fontsize=9)
            axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
            axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        what = f"“{short(goal.order[1], 34)}”" if two else "its call"
        axes[0, 0].set_ylabel("share of samples" if two else "share of right calls")
        fig.supxlabel(f"predicted probability of {what} (out of fold)\nbars: 95 % interval, counting donors; ticks: samples", fontsize=8.5)
    return saved(path, formats)


def _bins(said: NDArray[Any], samples: int) -> list[NDArray[Any]]:
    """Places of the answers in bins of equal number, ties kept together; at least eight samples for a bin."""
    bins = int(np.clip(samples // 8, 1, _BINS))
    edges = np.unique(np.quantile(said, np.linspace(0, 1, bins + 1)))
    code = np.clip(np.searchsorted(edges, said, side="right") - 1, 0, max(len(edges) - 2, 0))
    return [np.flatnonzero(code == at) for at in range(max(len(edges) - 1, 1)) if (code == at).any()]


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % score interval of a share seen in ``n`` units (Wilson 1927)."""
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))
