"""New cells against what a trained model knows: detectors of :mod:`sctool.bench.novelty`, or distances in the latent space of scVI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sctool.artifacts.model_folder import ModelFolder, open_model
from sctool.bench.novelty import BASELINES, Novelty, judge
from sctool.config import Config
from sctool.data.expression import find_expression, read_matrix
from sctool.data.genes import match_genes
from sctool.data.novelty import no_empty_cells, truth
from sctool.data.read import H5ad
from sctool.errors import SctoolError
from sctool.models.novelty.cells import Cells, Expression
from sctool.models.novelty.model import NoveltyModel
from sctool.models.novelty.registry import LATENT

Say = Callable[[str], None]
HAS_LATENT = ("scvi", "integrate")


def score_query(path: Path, query: Path, config: Config, say: Say = lambda text: None) -> Novelty:
    """Score the cells of a file.

    Parameters
    ----------
    path
        A model folder: ``checkpoints/novelty/RUN``, ``checkpoints/scvi/RUN`` or ``checkpoints/integrate/RUN``.
    query
        The .h5ad file.
    config
        ``novelty.novel_key`` names a column that says which cells are novel, if any does; ``novelty.methods`` may ask for some only.

    Raises
    ------
    SctoolError
        If it is another kind of model, or lacks a method asked for.
    """
    folder = open_model(path)
    kind = folder.manifest["model"]
    if kind not in ("novelty", *HAS_LATENT):
        raise SctoolError(
            f"{path} is a {kind} model, which says nothing of novelty", "give checkpoints/novelty/RUN or checkpoints/scvi/RUN"
        )
    has = folder.manifest["methods"] if kind == "novelty" else [LATENT]
    wanted = config.novelty.methods or has
    absent = [method for method in wanted if method not in has]
    if absent:
        raise SctoolError(f"{path} has no {absent[0]!r}; it has: {', '.join(has)}", "leave --methods out, or fit a model with it")
    file = H5ad(query)
    novel_n = None
    if config.novelty.novel_key:
        novel_n = truth(file.column(config.novelty.novel_key, "--novel-key"), config.novelty.novel_key, config.novelty.novel_value)
    scores, model, about = (_by_detectors if kind == "novelty" else _by_latent)(folder, file, config, say)
    return _result(
        file.obs.index, {name: scores[name] for name in wanted}, model, novel_n, about | {"model": str(path), "query": str(query)}
    )


def load_novelty(folder: ModelFolder, threads: int | None = None) -> NoveltyModel:
    """The detectors of a model folder."""
    manifest = folder.manifest
    arrays = {name: tensor.numpy() for name, tensor in folder.weights().items()}
    try:
        return NoveltyModel.from_arrays(arrays, manifest["methods"], manifest["thresholds"], threads)
    except KeyError as error:
        raise SctoolError(f"{folder.path} is not complete: {error} is missing", "copy the folder again, or fit the model again") from None


def _by_detectors(folder: ModelFolder, file: H5ad, config: Config, say: Say) -> tuple[dict[str, Any], NoveltyModel, dict[str, Any]]:
    about = folder.manifest["data"]
    layer = about["source"].removeprefix("layers/")
    if config.data.counts_layer is None and about["source"].startswith("layers/") and layer in file.layers:
        config = config.replaced({"data.counts_layer": layer})
    found = find_expression(file, config.data)
    if found.kind.is_linear != (about["target_sum"] is not None):
        has, learned = ("counts", "logarithms") if found.kind.is_linear else ("logarithms", "counts")
        raise SctoolError(
            f"{file.path.name}: {found.source} has {has} ({found.kind}), but the model learned {learned}", f"give a file of {learned}"
        )
    log_ng, counts_ng = read_matrix(file, found, about["target_sum"])
    no_empty_cells(file, log_ng, allowed=config.data.skip_empty)
    match = match_genes(folder.manifest["genes"], found.var, config.data.min_gene_coverage)
    say(str(match))
    model = load_novelty(folder, config.threads)
    scores = model.score_all(Expression(log_ng, counts_ng), match.columns, config.train.inference_chunk)
    return scores, model, {"alpha": folder.manifest["alpha"], "gene_coverage": match.coverage}


def _by_latent(folder: ModelFolder, file: H5ad, config: Config, say: Say) -> tuple[dict[str, Any], NoveltyModel, dict[str, Any]]:
    from sctool.engine.query import open_query
    from sctool.models.registry import BUILDERS

    trained = Path(folder.manifest["data"]["file"])
    if not trained.exists():
        raise SctoolError(
            f"the file of training, {trained}, is not there any more; its cells are what new ones are compared with",
            "put it back, or fit detectors with `sctool novelty DATA`, which keep what they need",
        )
    build = BUILDERS[folder.manifest["model"]]
    known = open_query(folder, build, trained, config)
    folder.require_cells(known.obs.index, trained)
    split = folder.table("cells")["split"].to_numpy(str)
    rows: dict[str, NDArray[np.int64]] = {part: np.flatnonzero(split == part) for part in ("train", "validation")}
    if not len(rows["validation"]):
        raise SctoolError(f"{folder.path} kept no cells back for validation, which the threshold is set by", "train it with validation")
    say("embedding the cells of training, and the query")
    model = NoveltyModel.on_latent(known.embed(rows["train"]), known.embed(rows["validation"]), config.novelty.alpha)
    opened = open_query(folder, build, file.path, config)
    say(str(opened.match))
    cells = Cells(model.space, None, latent_nl=opened.embed())
    return model.score(cells), model, {"alpha": config.novelty.alpha, "gene_coverage": opened.match.coverage}


def _result(
    names: pd.Index, scores: dict[str, Any], model: NoveltyModel, novel_n: NDArray[np.bool_] | None, about: dict[str, Any]
) -> Novelty:
    methods = tuple(scores)
    limits = {name: model.thresholds[name] for name in methods}
    table = pd.DataFrame({"cell": names})
    if novel_n is not None:
        table["is_novel"] = novel_n
    table["flagged"] = scores[methods[0]] > limits[methods[0]]
    table = table.assign(**scores)
    shares = {name: float((score_n > limits[name]).mean()) for name, score_n in scores.items()}
    about |= {"protocol": "query", "n_cells": len(table), "flagged": shares, "thresholds": limits}
    lines = [
        f"{methods[0]} flags {int(table['flagged'].sum()):,} of {len(table):,} cells; of known cells it flags about {about['alpha']:.0%}"
    ]
    by_type = None
    if novel_n is not None:
        judged = [{"held_out": "novel", "part": 0, "method": m, **judge(novel_n, s, limits[m])} for m, s in scores.items()]
        chance = np.random.default_rng(0).random(len(table))
        judged.append({"held_out": "novel", "part": 0, "method": BASELINES[1], **judge(novel_n, chance, None)})
        by_type = pd.DataFrame(judged)
    return Novelty(methods, table, by_type, about, model, lines)
