"""Novelty scores of any tool against the truth: a higher score should mean a novel cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sctool.bench.evaluation import Evaluation
from sctool.data.novelty import truth
from sctool.data.read import H5ad, near
from sctool.errors import SctoolError
from sctool.metrics import novelty as m

COLUMNS = ("auroc", "aupr", "prevalence", "fpr_at_95tpr", "tpr_at_5fpr")
_NOT_SCORES = ("cell", "is_novel", "flagged", "part", "held_out", "type", "label")


def evaluate_novelty_scores(
    path: Path, data: Path | None, novel_key: str | None, novel_value: str | None, *, say: Callable[[str], None]
) -> Evaluation:
    """Score every column of numbers of a table, where higher means stranger, beside a random score.

    Parameters
    ----------
    path
        A CSV with the columns ``cell`` and one or more of scores; or a folder of ``results/novelty`` with a ``scores.csv``.
    data, novel_key, novel_value
        The .h5ad whose column says which cells are novel; without it the column ``is_novel`` of the table does.
    """
    path = path / "scores.csv" if path.is_dir() else path
    if not path.exists():
        raise SctoolError(f"{path}: no such file", "give a scores.csv, or the folder of one")
    table = pd.read_csv(path, dtype={"cell": str})
    if "cell" not in table:
        raise SctoolError(
            f"{path} has no column 'cell'; it has: {', '.join(map(str, table.columns[:10]))}", near("cell", list(table.columns))
        )
    if data is not None and novel_key is not None:
        file = H5ad(data)
        novel = pd.Series(truth(file.column(novel_key, "--novel-key"), novel_key, novel_value), file.obs.index)
        table = table[table["cell"].isin(novel.index)]
        novel_n = novel[table["cell"]].to_numpy(bool)
    elif "is_novel" in table:
        novel_n = truth(table["is_novel"], "is_novel")
    else:
        raise SctoolError(f"{path} does not say which cells are novel", "give --truth FILE.h5ad and --novel-key COLUMN")
    methods = [str(c) for c in table.select_dtypes("number") if c not in _NOT_SCORES and table[c].notna().all()]
    if not len(table) or not methods:
        found = "none of the cells of the file" if not len(table) else "no column of numbers"
        raise SctoolError(f"{path} has {found}", "give the scores of these cells")
    say(f"{len(table):,} cells, {int(novel_n.sum()):,} of them novel")
    random = np.random.default_rng(0).random(len(table))
    rows: list[dict[str, Any]] = []
    for name, arm, score_n in [
        *((method, "prediction", table[method].to_numpy(float)) for method in methods),
        ("random", "baseline", random),
    ]:
        rows.append({"name": name, "arm": arm, "seed": 0, **{column: _score(column, novel_n, score_n) for column in COLUMNS}})
    about = {"scores_of": str(path), "n_novel": int(novel_n.sum()), "n_known": int((~novel_n).sum())}
    return Evaluation("novelty_scores", pd.DataFrame(rows), COLUMNS, about, {})


def _score(name: str, novel_n: Any, score_n: Any) -> float:
    return float(m.prevalence(novel_n) if name == "prevalence" else getattr(m, name)(novel_n, score_n))
