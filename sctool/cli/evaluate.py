"""``sctool eval``: scores with their baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sctool.cli import options as o
from sctool.cli.session import Session, score_table
from sctool.errors import SctoolError

app = typer.Typer(no_args_is_help=True, help="Score models and predictions beside simple baselines.")

Models = Annotated[list[Path] | None, typer.Option("--model", help="A model folder; give several to compare them.")]
Neighbors = Annotated[int | None, typer.Option(help="Neighbours in the vote.")]
Splits = Annotated[int | None, typer.Option(help="Random halves to average over.")]
Embeddings = Annotated[list[str] | None, typer.Option("--embedding", help="Of any tool: obsm:KEY, an .npy or a .csv.")]
IncludeTrained = Annotated[bool, typer.Option("--include-trained", help="Score cells the model was trained on too.")]


@app.command("classification")
def classification(
    data: o.Data = None,
    model: Models = None,
    embedding: Embeddings = None,
    label_key: o.LabelKey = None,
    neighbors: Neighbors = None,
    splits: Splits = None,
    include_trained: IncludeTrained = False,
    batch_key: o.BatchKey = None,
    counts_layer: o.CountsLayer = None,
    name: o.Name = None,
    out: o.Out = None,
    device: o.Device = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Zero-shot k-NN classification in the latent space, on cells the models have not seen; writes results/classification/RUN/."""
    session = Session(locals(), "scvi")
    if not model and not embedding:
        raise SctoolError("nothing to score", "give --model checkpoints/scvi/RUN, or --embedding obsm:KEY")
    path = session.data_path(data)
    results = _place(session, "classification", model or [], embedding or [])
    session.limit_threads()
    import numpy as np

    from sctool.bench.entries import load_embedding, open_entries, unseen_rows
    from sctool.bench.zero_shot import Contestant, paired_arms, zero_shot
    from sctool.data.genes import variable_genes
    from sctool.data.matrix_kind import find_counts
    from sctool.data.read import H5ad

    cfg = session.config
    file = H5ad(path)
    key = cfg.data.label_key
    if key is None:
        raise SctoolError(
            "--label-key is missing", f"give the obs column of cell types; there are: {', '.join(map(str, file.obs.columns))}"
        )
    labels = file.column(key, "--label-key").astype(object)
    entries = open_entries(model or [], path, cfg)
    rows, left_out = unseen_rows(file, [entry.folder for entry in entries], include_trained)
    rows = rows[labels.iloc[rows].notna().to_numpy()]
    session.say(f"{len(rows):,} cells to score; {left_out:,} left out because a model was trained on them")
    contestants = [Contestant(entry.name, entry.arm, entry.seed, entry.query.embed(rows)) for entry in entries]
    for spec in embedding or []:
        title, z_nl = load_embedding(spec, file)
        contestants.append(Contestant(title, title, 0, z_nl[rows]))
    if entries:
        observed = entries[0].query.observed(rows)
    else:
        counts = file.matrix(find_counts(file, cfg.data.counts_layer).source)[rows]
        observed = counts[:, variable_genes(counts, cfg.data.n_top_genes)].toarray()
    scored = zero_shot(
        contestants,
        observed,
        labels.iloc[rows].astype(str).to_numpy(),
        file.obs.index[rows].to_numpy(),
        splits=cfg.eval.split_seeds,
        neighbors=cfg.eval.neighbors,
        components=contestants[0].z_nl.shape[1],
    )
    trained_on = _training_counts(entries, key)
    per_type = scored.per_type.assign(
        training_cells=[trained_on.get((n, t)) for n, t in zip(scored.per_type.name, scored.per_type.label, strict=True)]
    )
    summary = scored.scores.groupby(["name", "arm"], sort=False)[["accuracy", "macro_f1", "macro_recall"]].mean().reset_index()
    paired = paired_arms(scored.scores)
    metrics = {
        "task": "classification",
        "cells": len(rows),
        "types": int(np.unique(labels.iloc[rows].astype(str)).size),
        "neighbors": cfg.eval.neighbors,
        "splits": cfg.eval.split_seeds,
        "scores": _scores(scored.scores, ["accuracy", "macro_precision", "macro_recall", "micro_f1", "macro_f1"]),
        "paired_with_standard": {arm: {score: vars(value) for score, value in values.items()} for arm, values in paired.items()},
    }
    tables = {"scores": scored.scores, "per_type": per_type, "predictions": scored.predictions}
    _finish(session, results, metrics, tables, summary, ["accuracy", "macro_f1", "macro_recall"], paired, "macro_f1")


@app.command("reconstruction")
def reconstruction(
    data: o.Data = None,
    model: Models = None,
    label_key: o.LabelKey = None,
    samples: Annotated[int | None, typer.Option(help="Posterior samples to average; 0 decodes the mean.")] = None,
    include_trained: IncludeTrained = False,
    batch_key: o.BatchKey = None,
    counts_layer: o.CountsLayer = None,
    name: o.Name = None,
    out: o.Out = None,
    seed: o.Seed = None,
    device: o.Device = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Correlation of decoded and observed profiles of cells the models have not seen; writes results/reconstruction/RUN/."""
    session = Session(locals(), "scvi")
    if not model:
        raise SctoolError("nothing to score", "give --model checkpoints/scvi/RUN")
    path = session.data_path(data)
    results = _place(session, "reconstruction", model, [])
    session.limit_threads()
    import pandas as pd

    from sctool.bench.entries import open_entries, unseen_rows
    from sctool.bench.reconstruct import reconstruction_baselines, reconstruction_table
    from sctool.bench.zero_shot import paired_arms
    from sctool.data.read import H5ad

    cfg = session.config
    file = H5ad(path)
    key = cfg.data.label_key
    labels = file.column(key, "--label-key").astype(object).fillna("").astype(str) if key else None
    entries = open_entries(model, path, cfg)
    rows, left_out = unseen_rows(file, [entry.folder for entry in entries], include_trained)
    session.say(f"{len(rows):,} cells to score; {left_out:,} left out because a model was trained on them")
    parts = []
    for entry in entries:
        made = reconstruction_table(entry.query.observed, entry.query.proportions(rows, cfg.eval.samples, cfg.seed))
        parts.append(made.assign(name=entry.name, arm=entry.arm, seed=entry.seed))
    size = entries[0].folder.manifest["config"]["scvi"]["n_latent"]
    baselines = reconstruction_baselines(entries[0].query.observed(rows), rows, size)
    parts.append(baselines.assign(arm="baseline", seed=-1))
    cells = pd.concat(parts, ignore_index=True)
    undefined = int(cells.loc[cells["name"] == entries[0].name, "correlation"].isna().sum())
    cells.insert(0, "cell", file.obs.index[cells.pop("row")])
    if labels is not None:
        cells.insert(1, "label", labels[cells["cell"]].to_numpy())
        by_type = cells.groupby(["name", "arm", "seed", "label"], sort=False)
        per_type = by_type.agg(cells=("cell", "size"), correlation=("correlation", "mean"), r2=("r2", "mean")).reset_index()
        trained_on = _training_counts(entries, key)
        per_type["training_cells"] = [trained_on.get((n, t)) for n, t in zip(per_type.name, per_type.label, strict=True)]
    scores = cells.groupby(["name", "arm", "seed"], sort=False)[["correlation", "r2"]].mean().reset_index()
    paired = paired_arms(scores, ("correlation", "r2"))
    metrics = {
        "task": "reconstruction",
        "cells": len(rows),
        "undefined": undefined,
        "undefined_because": "the observed or decoded profile does not vary over genes",
        "samples": cfg.eval.samples,
        "scores": _scores(scores, ["correlation", "r2"]),
        "paired_with_standard": {arm: {score: vars(value) for score, value in values.items()} for arm, values in paired.items()},
    }
    tables = {"scores": scores, "predictions": cells} | ({"per_type": per_type} if labels is not None else {})
    _finish(session, results, metrics, tables, scores, ["correlation", "r2"], paired, "correlation")


def _place(session: Session, task: str, models: list[Path], embeddings: list[str]) -> Path:
    from sctool.artifacts.result_folder import check_free

    names = [path.name for path in models] + [Path(spec.removeprefix("obsm:")).stem for spec in embeddings]
    name = session.name or (names[0] if len(names) == 1 else f"{names[0]}-and-{len(names) - 1}-more")
    results = session.out / "results" / task / name
    check_free(results, force=session.force)
    return results


def _training_counts(entries: list[Any], key: str | None) -> dict[tuple[str, str], int]:
    """How many cells of each type each model was trained on, where it was trained with the label column."""
    out: dict[tuple[str, str], int] = {}
    for entry in entries:
        cells = entry.folder.table("cells")
        if key in cells:
            counts = cells.loc[cells["split"] == "train", key].astype(str).value_counts()
            out |= {(entry.name, label): int(counts.get(label, 0)) for label in set(cells[key].astype(str))}
    return out


def _scores(table: Any, columns: list[str]) -> dict[str, Any]:
    grouped = table.groupby("name", sort=False)[columns]
    return {name: {c: {"mean": part[c].mean(), "sd": part[c].std()} for c in columns} for name, part in grouped}


def _finish(
    session: Session,
    results: Path,
    metrics: dict[str, Any],
    tables: dict[str, Any],
    summary: Any,
    columns: list[str],
    paired: Any,
    main: str,
) -> None:
    """Write the result folder and print the table; say it when a baseline wins."""
    from sctool.artifacts.atomic import write_json
    from sctool.artifacts.result_folder import result_folder

    with result_folder(results, force=session.force) as partial:
        write_json(partial / "metrics.json", metrics)
        for title, table in tables.items():
            table.to_csv(partial / f"{title}.csv", index=False)
    rows = [[row["name"], row["arm"], *(f"{row[c]:.3f}" for c in columns)] for _, row in summary.iterrows()]
    lines = [f"{arm} - standard, {main}: {values[main]}" for arm, values in paired.items()]
    best = summary.loc[summary["arm"] == "baseline"].nlargest(1, main).iloc[0]
    behind = [row["name"] for _, row in summary.iterrows() if row["arm"] != "baseline" and row[main] < best[main]]
    if behind:
        lines.append(f"behind the baseline {best['name']!r} in {main} ({best[main]:.3f}): {', '.join(behind)}")
    lines.append(str(results))
    session.result({"results": str(results), **metrics}, [score_table(metrics["task"], ["name", "arm", *columns], rows)], lines)
