"""Figures of perturbation responses, from the tables of ``eval perturbation`` and of a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.artifacts.tables import read_table
from sctool.metrics.perturbation import CEILING, EFFECTS, FLOOR, ORACLE
from sctool.report.figures import saved
from sctool.report.style import PALETTE, arm_colour, figure

TITLES = {
    "change_r": "r of the change",
    "change_r_top20": "r, 20 most changed genes",
    "specific_r": "r beyond the mean perturbed cell",
    "change_error": "error / real change (0 is best)",
}
NAMED_GENES = 6
MOST_PANELS = 9
MOST_ROWS, MOST_COLUMNS = 60, 60
MOST_LABELS = 90


def perturbation_figures(plots: Path, formats: list[str], run: Path) -> list[Path]:
    """Everything the tables of one evaluation allow."""
    sums = read_table(run / "aggregates.csv")
    made = ladder(plots / "ladder", formats, sums)
    sizes = read_table(run / "by_effect.csv")
    if len(sizes):
        made += effect_curves(plots / "effect-size", formats, sizes, sums)
    if (run / "changes.csv").exists():
        changes = read_table(run / "changes.csv")
        each = read_table(run / "per_perturbation.csv")
        made += change_scatter(plots / "changes", formats, changes, each)
        if changes["perturbation"].nunique() > 1:
            made += effect_heatmap(plots / "effects", formats, changes)
    return made


def model_figures(plots: Path, formats: list[str], run: Path) -> list[Path]:
    """Masks and embeddings of perturbations, where a model folder has their tables."""
    made: list[Path] = []
    if (run / "masks.csv").exists():
        made += mask_heatmap(plots / "masks", formats, read_table(run / "masks.csv", index_col=0))
    if (run / "embeddings.csv").exists():
        embeddings = read_table(run / "embeddings.csv", index_col=0)
        if len(embeddings) > 2:
            made += similarity_heatmap(plots / "embeddings", formats, embeddings)
    return made


def _colours(sums: pd.DataFrame) -> dict[str, Any]:
    """A colour for each method: those that are scored stand out, baselines are grey."""
    arms = dict(zip(sums["name"], sums["arm"], strict=True))
    scored = [name for name, arm in arms.items() if arm not in ("baseline", "ceiling")]
    out: dict[str, Any] = {}
    for name, arm in arms.items():
        if name in scored:
            out[name] = arm_colour("ar" if arm == "ar" else "", 3 + 2 * scored.index(name))
        else:
            out[name] = "black" if arm == "ceiling" else "#8c8c8c"
    return out


def ladder(path: Path, formats: list[str], sums: pd.DataFrame) -> list[Path]:
    """Every method with its interval over perturbations, the best on top; what no change and real halves score are lines."""
    colours, scores = _colours(sums), [score for score in TITLES if score in set(sums["score"])]
    order = sums[(sums["score"] == "change_r") & (sums["arm"] != "ceiling")].sort_values("mean", ascending=False, kind="stable")["name"]
    names = list(order)
    with figure(path, formats, 2.7 * len(scores) + 2.0, 1.5 + 0.27 * len(names), columns=len(scores)) as (fig, axes):
        for axis, score in zip(axes[0], scores, strict=True):
            table = sums[sums["score"] == score].set_index("name")
            for name, style, label in ((FLOOR, ":", "no change"), (CEILING, "--", "real half against real half"), (ORACLE, "-", "oracle")):
                if name in table.index:
                    axis.axvline(table.loc[name, "mean"], color="black", lw=1, ls=style, label=label)
            for at, name in enumerate(names):
                if name not in table.index:
                    continue
                row = table.loc[name]
                strong = row["arm"] != "baseline"
                axis.plot([row["low"], row["high"]], [at, at], color=colours[name], lw=2.2 if strong else 1.2)
                axis.plot(row["mean"], at, "D" if strong else "o", color=colours[name], ms=6 if strong else 4.5)
            axis.set_yticks(range(len(names)), names if axis is axes[0, 0] else [""] * len(names))
            axis.set(title=TITLES[score], ylim=(len(names) - 0.4, -0.6))
            axis.grid(axis="x", color="#e5e5e5", lw=0.6)
            if score == "change_error":
                _limit(axis, table, names)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=3)
    return saved(path, formats)


def _limit(axis: Any, table: pd.DataFrame, names: list[str]) -> None:
    """Errors of one method that is far off would flatten those of all others; its value is written at the edge."""
    scored = table[table["arm"] != "baseline"]
    edge = min(max(1.15 * float(np.nanmax(np.r_[scored["mean"], scored["high"]])), 1.8), 2.5)
    axis.set_xlim(0, edge)
    mean: dict[Any, float] = table["mean"].astype(float).to_dict()
    for at, name in enumerate(names):
        if mean.get(name, 0.0) > edge:
            axis.annotate(f"{mean[name]:.3g} \u2192", (edge, at), fontsize=7, ha="right", xytext=(-2, 3), textcoords="offset points")


def effect_curves(path: Path, formats: list[str], sizes: pd.DataFrame, sums: pd.DataFrame) -> list[Path]:
    """Scores on the perturbations of weak, medium and strong true effect: what is scored, the best baselines and the ceilings."""
    scores, colours = [score for score in ("change_r", "change_error") if score in sizes], _colours(sums)
    main = sums[sums["score"] == "change_r"]
    best = list(main[main["arm"] == "baseline"].nlargest(4, "mean")["name"])
    shown = [*main[~main["arm"].isin(["baseline", "ceiling"])]["name"], *best, CEILING, ORACLE]
    n = int(sizes["perturbations"].max())
    with figure(path, formats, 3.4 * len(scores) + 2.0, 3.2, columns=len(scores)) as (fig, axes):
        for axis, score in zip(axes[0], scores, strict=True):
            for index, name in enumerate(shown):
                part = sizes[sizes["name"] == name].set_index("effect").reindex(EFFECTS)
                if part[score].notna().sum() == 0:
                    continue
                strong, ceiling = name not in best, name in (CEILING, ORACLE)
                style = {"lw": 1.2, "ls": "--" if name == CEILING else "-", "marker": "", "color": "black"} if ceiling else {}
                own = {"lw": 2.2, "marker": "D", "ms": 5, "color": colours[name]} if strong else {"lw": 1.2, "marker": "o", "ms": 3.5}
                if not strong:
                    own["color"] = PALETTE[(index + 4) % len(PALETTE)]
                axis.plot(range(3), part[score], label=name, **(style or own))
            axis.set_xticks(range(3), EFFECTS)
            axis.set(title=TITLES[score], xlabel=f"true effect ({n} perturbations each)", xlim=(-0.2, 2.2))
            axis.grid(axis="y", color="#e5e5e5", lw=0.6)
            if score == "change_error":
                top = float(sizes[sizes["name"].isin(shown)][score].max())
                axis.set_ylim(0, min(1.1 * max(top, 1.0), 3.0))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside right center")
    return saved(path, formats)


def change_scatter(path: Path, formats: list[str], changes: pd.DataFrame, each: pd.DataFrame) -> list[Path]:
    """Predicted against measured change of the genes, a panel for each of the strongest perturbations, the most changed genes named."""
    scored = each[~each["arm"].isin(["baseline", "ceiling"])].drop_duplicates("perturbation").set_index("perturbation")
    order = scored["effect"].sort_values(ascending=False, kind="stable").index
    shown = [name for name in order if name in set(changes["perturbation"])][:MOST_PANELS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    with figure(path, formats, 3.3 * columns + 0.2, 3.2 * rows, columns=columns, rows=rows) as (fig, axes):
        for axis in axes.flat[len(shown) :]:
            axis.axis("off")
        for at, (axis, name) in enumerate(zip(axes.flat, shown, strict=False)):
            part = changes[changes["perturbation"] == name].sort_values("rank")
            x, y = part["true"].to_numpy(), part["predicted"].to_numpy()
            axis.axline((0, 0), slope=1, color="#bdbdbd", lw=0.8)
            for yes, colour, label in ((False, "#a6a6a6", "not significant"), (True, "#3b7ea1", "differs from control")):
                own = part["significant"].to_numpy(bool) == yes
                axis.scatter(x[own], y[own], s=9, color=colour, lw=0, alpha=0.75, label=label)
            _name_points(axis, x, y, part["gene"].astype(str).to_list()[:NAMED_GENES])
            r, cells = scored["change_r"].get(name, np.nan), int(scored["cells"][name])
            words = f"r = {r:.2f}, {cells:,} cells" if np.isfinite(r) else "no change predicted"
            axis.set_title(f"{_short(name, 30)}\n{words}")
            axis.set(xlabel="measured change" if at >= len(shown) - columns else "", ylabel="predicted change" if at % columns == 0 else "")
            axis.margins(0.15)
            axis.set_aspect("equal", adjustable="datalim")
        handles, labels = max((axis.get_legend_handles_labels() for axis in axes.flat[: len(shown)]), key=lambda pair: len(pair[1]))
        fig.legend(handles, labels, loc="outside lower center", ncols=2, markerscale=1.6)
    return saved(path, formats)


def _name_points(axis: Any, x: NDArray[Any], y: NDArray[Any], names: list[str]) -> None:
    """Names beside the first points, on the side where there is room, none over another."""
    width = height = max(float(np.ptp(x)), float(np.ptp(y)), 1e-9)
    middle = float((x.min() + x.max()) / 2)
    taken: list[tuple[float, float]] = []
    for gene, at_x, at_y in zip(names, x, y, strict=False):
        place = at_x / width, at_y / height
        if abs(at_x) < 0.12 * np.abs(x).max() or any(abs(place[0] - other[0]) < 0.3 and abs(place[1] - other[1]) < 0.07 for other in taken):
            continue
        taken.append(place)
        offset, side = ((0, 4), "center") if at_x < 0 else ((3, 2), "left") if at_x < middle else ((-3, 2), "right")
        axis.annotate(_short(gene, 16), (at_x, at_y), fontsize=6.5, xytext=offset, textcoords="offset points", ha=side)


def effect_heatmap(path: Path, formats: list[str], changes: pd.DataFrame) -> list[Path]:
    """Measured and predicted changes side by side: perturbations by their most changed genes, both in the order of clustering."""
    true = changes.pivot(index="perturbation", columns="gene", values="true")
    predicted = changes.pivot(index="perturbation", columns="gene", values="predicted")
    complete = true.columns[true.notna().all()]
    strength = true[complete].pow(2).sum(axis=1).sort_values(ascending=False)
    rows = list(strength.index[:MOST_ROWS])
    ranked = true.loc[rows, complete].abs().max().sort_values(ascending=False)
    genes = list(ranked.index[:MOST_COLUMNS])
    rows = [rows[at] for at in _order(true.loc[rows, genes].to_numpy())]
    genes = [genes[at] for at in _order(true.loc[rows, genes].to_numpy().T)]
    high = max(float(np.quantile(np.abs(true.loc[rows, genes].to_numpy()), 0.98)), 1e-6)
    width, height = 0.11 * len(genes) + 1.2, 0.17 * len(rows)
    with figure(path, formats, max(2 * width, 6.5) + 1.6, max(height, 2.0) + 1.5, columns=2) as (fig, axes):
        for axis, table, title in zip(axes[0], (true, predicted), ("measured change", "predicted change"), strict=True):
            image = axis.imshow(table.loc[rows, genes], cmap="RdBu_r", vmin=-high, vmax=high, aspect="auto", interpolation="nearest")
            axis.set_xticks(range(len(genes)), [_short(gene, 16) for gene in genes], rotation=90, fontsize=5.5)
            axis.set_yticks(range(len(rows)), [_short(name, 30) for name in rows] if axis is axes[0, 0] else [], fontsize=6.5)
            axis.set_title(title)
            axis.tick_params(length=1.5, pad=1.5)
        fig.colorbar(image, ax=axes[0, 1], shrink=min(1.0, 2.0 / max(height, 2.0)), pad=0.02, label="log expression - control")
    return saved(path, formats)


def mask_heatmap(path: Path, formats: list[str], masks: pd.DataFrame) -> list[Path]:
    """Probability that a perturbation acts on each latent dimension, clustered; beside it how many it acts on."""
    masks = masks.iloc[_order(masks.to_numpy()), _order(masks.to_numpy().T)]
    used = masks.gt(0.5).sum(axis=1)
    height = 0.17 * min(len(masks), MOST_LABELS)
    with figure(path, formats, min(0.09 * masks.shape[1], 14.0) + 4.6, max(height, 2.0) + 1.1, columns=2) as (fig, axes):
        axes[0, 0].get_gridspec().set_width_ratios([3, 1])
        image = axes[0, 0].imshow(masks, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes[0, 0].set(xlabel=f"latent dimension ({masks.shape[1]}, ordered by likeness)", xticks=[], title="mask")
        axes[0, 1].barh(range(len(masks)), used, color="#4d4d4d", height=0.8)
        axes[0, 1].set(ylim=(len(masks) - 0.5, -0.5), xlabel="dimensions above 1/2", title=f"{used.sum() / masks.size:.0%} used")
        axes[0, 0].set_yticks(*_labels(masks.index), fontsize=6.5)
        axes[0, 1].set_yticks([])
        fig.colorbar(image, ax=axes[0, 0], shrink=min(1.0, 2.0 / max(height, 2.0)), pad=0.02, label="probability")
    return saved(path, formats)


def similarity_heatmap(path: Path, formats: list[str], embeddings: pd.DataFrame) -> list[Path]:
    """Correlation of the perturbations' embeddings, clustered."""
    values = embeddings.to_numpy(float)
    order = _order(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        likeness = np.nan_to_num(np.corrcoef(values))[np.ix_(order, order)]
    size = float(np.clip(0.17 * len(values), 2.5, 0.17 * MOST_LABELS))
    with figure(path, formats, size + 2.6, size + 1.4) as (fig, axes):
        axis = axes[0, 0]
        image = axis.imshow(likeness, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        places, names = _labels(embeddings.index[order])
        axis.set_yticks(places, names, fontsize=6.5)
        axis.set_xticks(places, names, fontsize=6.5, rotation=90)
        axis.set_title("embeddings of the perturbations")
        fig.colorbar(image, ax=axis, shrink=min(1.0, 2.0 / size), pad=0.02, label="correlation")
    return saved(path, formats)


def _labels(names: Any, most: int = MOST_LABELS) -> tuple[list[int], list[str]]:
    """Places and names of ticks; only some where there are too many to be read."""
    step = -(-len(names) // most)
    return list(range(0, len(names), step)), [_short(str(name), 18) for name in names[::step]]


def _order(rows_by_columns: NDArray[Any]) -> list[int]:
    """Order of the rows by average-linkage clustering, like next to like."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(rows_by_columns) < 3:
        return list(range(len(rows_by_columns)))
    return [int(at) for at in leaves_list(linkage(rows_by_columns, "average", optimal_ordering=len(rows_by_columns) <= 300))]


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
