"""Figures, each from one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sctool.report.style import PALETTE, arm_colour, figure


def saved(path: Path, formats: list[str]) -> list[Path]:
    """The files a figure was written to."""
    return [path.with_suffix(f".{ending}") for ending in formats]


def training_curves(path: Path, formats: list[str], histories: dict[str, pd.DataFrame]) -> list[Path]:
    """Loss by epoch; the validation loss solid, its best epoch marked. One panel for each stage, where a run has several."""
    parts = {
        name: {str(stage): part for stage, part in h.groupby("stage", sort=False)} if "stage" in h else {"": h}
        for name, h in histories.items()
    }
    stages = list(dict.fromkeys(stage for own in parts.values() for stage in own))
    # A contrast of samples is watched for collapse; its loss is none of single cells.
    of_samples = any(f"{part}_pairwise_cosine" in h for h in histories.values() for part in ("train", "validation"))
    unit = "loss" if of_samples else "loss (nats per cell)"
    with figure(path, formats, 5.0 if len(stages) == 1 else 3.8 * len(stages), 3.2, columns=len(stages)) as (_, axes):
        for axis, stage in zip(axes[0], stages, strict=True):
            _curves(axis, {name: own[stage].dropna(axis=1, how="all") for name, own in parts.items() if stage in own}, stage, unit)
    return saved(path, formats)


def _curves(axis: Any, histories: dict[str, pd.DataFrame], stage: str, unit: str) -> None:
    for index, (name, history) in enumerate(histories.items()):
        colour = PALETTE[index % len(PALETTE)]
        alone = bool(stage) and "validation_loss" not in history  # as the diffusion always is
        label = f"{name}, training" if alone else None if index else "training"
        axis.plot(history["epoch"], history["train_loss"], color=colour, alpha=1 if alone else 0.35, lw=1.3 if alone else 1, label=label)
        if "validation_loss" in history:
            best = int(np.nanargmin(history["validation_loss"].to_numpy(float)))
            axis.plot(history["epoch"], history["validation_loss"], color=colour, lw=1.3, label=f"{name}, validation")
            axis.plot(history["epoch"].iloc[best], history["validation_loss"].iloc[best], "o", color=colour, ms=4)
    # The first epochs are far above the rest and would flatten it.
    losses = [(h, column) for h in histories.values() for column in ("train_loss", "validation_loss") if column in h]
    values = np.concatenate([h[column].to_numpy(float)[min(3, len(h) - 1) :] for h, column in losses])
    high = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    low = min(h[column].min() for h, column in losses)
    room = max(high - low, 1e-6)
    axis.set_ylim(low - 0.05 * room, max(high, low) + 0.05 * room)
    unit = "weighted squared error of v" if stage == "diffusion" else unit
    axis.set(xlabel="epoch", ylabel=unit, title=stage.capitalize() or "Training")
    axis.legend()


def weight_curves(path: Path, formats: list[str], history: pd.DataFrame) -> list[Path]:
    """How uneven the resampling weights are, by epoch."""
    names = {"weights_ess": "effective sample size / n", "weights_entropy": "entropy / ln n", "weights_top1": "mass on the top 1 %"}
    with figure(path, formats, 5.0, 3.0) as (_, axes):
        axis = axes[0, 0]
        epochs = np.arange(1, len(history) + 1)  # the stages of a run one after the other
        for index, (column, title) in enumerate(names.items()):
            axis.plot(epochs, history[column], color=PALETTE[index], label=title)
        axis.set(xlabel="epoch", ylim=(0, 1.03), title="Resampling weights")
        axis.legend()
    return saved(path, formats)


def latent_maps(path: Path, formats: list[str], cells: pd.DataFrame) -> list[Path]:
    """UMAP of the latent space by each column of the table: categories, and the resampling weight."""
    kinds = [c for c in cells.columns if c not in ("cell", "umap_1", "umap_2")]
    kinds = [c for c in kinds if c == "weight" or cells[c].astype(str).nunique() <= len(PALETTE)][:6]
    if not kinds:
        kinds = [""]
    size = float(np.clip(12_000 / len(cells), 0.5, 12))
    columns = min(2, len(kinds))
    rows = -(-len(kinds) // columns)
    with figure(path, formats, 5.6 * columns, 3.6 * rows, columns=columns, rows=rows) as (fig, axes):
        for axis in axes.flat[len(kinds) :]:
            axis.axis("off")
        for axis, column in zip(axes.flat, kinds, strict=False):
            axis.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title=column or "cells")
            if column == "weight":
                seen = cells.dropna(subset=["weight"]).sort_values("weight")
                rest = cells[cells["weight"].isna()]
                axis.scatter(rest["umap_1"], rest["umap_2"], s=size, c="#e5e5e5", lw=0, rasterized=True)
                high = float(seen["weight"].quantile(0.99))
                dots = axis.scatter(
                    seen["umap_1"], seen["umap_2"], s=size, c=seen["weight"].clip(upper=high), cmap="viridis", lw=0, rasterized=True
                )
                axis.set_title("resampling weight (1 = uniform; grey = not trained on)")
                fig.colorbar(dots, ax=axis, shrink=0.7)
            elif not column:
                axis.scatter(cells["umap_1"], cells["umap_2"], s=size, c=PALETTE[0], lw=0, rasterized=True)
            else:
                values = cells[column].astype(object).where(cells[column].notna(), "missing").astype(str)
                for index, value in enumerate(values.value_counts().index):
                    own = (values == value).to_numpy()
                    axis.scatter(
                        cells["umap_1"][own],
                        cells["umap_2"][own],
                        s=size,
                        color=PALETTE[index % len(PALETTE)],
                        lw=0,
                        label=value,
                        rasterized=True,
                    )
                axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=max(1.0, 5 / size**0.5), handletextpad=0.2)
    return saved(path, formats)


def arm_bars(path: Path, formats: list[str], scores: pd.DataFrame, columns: list[str]) -> list[Path]:
    """Mean score of each arm with a dot per training run; baselines beside."""
    runs = scores.groupby(["arm", "name", "seed"], sort=False)[columns].mean().reset_index()
    runs["arm"] = runs["arm"].where(runs["arm"] != "embedding", runs["name"])  # each of another tool stands for itself
    arms = [arm for arm in dict.fromkeys(runs["arm"]) if arm != "baseline"]
    arms.sort(key=lambda arm: (arm != "standard", arm))
    groups = [(arm, runs[runs["arm"] == arm]) for arm in arms]
    groups += [(str(name), part) for name, part in runs[runs["arm"] == "baseline"].groupby("name", sort=False)]
    with figure(path, formats, max(4.0, 0.9 * len(groups) * len(columns) + 1), 3.4, columns=len(columns)) as (_, axes):
        for axis, column in zip(axes[0], columns, strict=True):
            for at, (title, part) in enumerate(groups):
                colour = arm_colour(title if title in arms else "baseline", at)
                axis.bar(at, part[column].mean(), color=colour, width=0.7)
                if len(part) > 1:
                    axis.errorbar(at, part[column].mean(), part[column].std(), color="black", capsize=3, lw=1)
                    axis.plot(np.full(len(part), at), part[column], "o", color="white", mec="black", ms=3.5, mew=0.7)
                top = part[column].mean() + (part[column].std() if len(part) > 1 else 0)
                axis.text(at, top + 0.01, f"{part[column].mean():.3f}", ha="center", va="bottom", fontsize=7)
            axis.set_xticks(range(len(groups)), [title for title, _ in groups], rotation=30, ha="right")
            axis.set(ylim=(0, 1.05), title=column.replace("_", " "))
    return saved(path, formats)


def per_type_bars(path: Path, formats: list[str], per_type: pd.DataFrame, value: str) -> list[Path]:
    """Score of each type, the rarest in training first, one bar per arm."""
    table = per_type[per_type["arm"] != "baseline"] if (per_type["arm"] != "baseline").any() else per_type
    table = table.assign(arm=table["arm"].where(table["arm"] != "embedding", table["name"]))
    frequency = "training_cells" if "training_cells" in table and table["training_cells"].notna().any() else "cells"
    size = table.groupby("label")[frequency].mean().sort_values()
    arms = sorted(table["arm"].unique(), key=lambda arm: (arm != "standard", arm))
    wide = table.pivot_table(index="label", columns="arm", values=value).loc[size.index, arms]
    spread = table.pivot_table(index="label", columns="arm", values=value, aggfunc="std").reindex(index=size.index, columns=arms)
    height = 0.8 / len(arms)
    with figure(path, formats, 6.0, 1.2 + 0.28 * len(size) * max(1, len(arms) / 2)) as (_, axes):
        axis = axes[0, 0]
        for index, arm in enumerate(arms):
            at = np.arange(len(size)) + (index - (len(arms) - 1) / 2) * height
            error = spread[arm].to_numpy() if arm in spread and spread[arm].notna().any() else None
            axis.barh(at, wide[arm], height, color=arm_colour(arm, index), label=arm, xerr=error, error_kw={"lw": 0.8})
        words = "training cells" if frequency == "training_cells" else "cells"
        axis.set_yticks(range(len(size)), [f"{label} ({n:.0f})" for label, n in size.items()])
        axis.set(xlim=(0, 1), xlabel=value, title=f"{value.capitalize()} by type ({words} in brackets)")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return saved(path, formats)
