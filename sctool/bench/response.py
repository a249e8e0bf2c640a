"""Predicted perturbed cells against the real ones, beside changes that need no model and the ceiling of real cells against real cells."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.decomposition import PCA

from sctool.artifacts.model_folder import open_model
from sctool.bench.case import COMPONENTS, Case, Matrix, Profile, score_baselines, score_cells
from sctool.bench.entries import ARMS
from sctool.bench.evaluation import Evaluation
from sctool.config import Config
from sctool.data.expression import read_expression
from sctool.data.read import H5ad
from sctool.data.response import CONTROL, PERTURBED, Design, design
from sctool.errors import SctoolError
from sctool.sections import SCGenConfig

SHOWN = ("change_r", "energy_distance", "mean_r2", "change_error")
FEWEST_CELLS = 10
FEWEST_GENES = 10


@dataclass(frozen=True)
class Run:
    """Predictions to be scored, and where the real cells are."""

    name: str
    label: str
    arm: str
    seed: int
    path: Path
    data: Path
    config: Config
    target_sum: float | None
    groups: tuple[str, ...] | None = None
    """The groups predicted, where that is known."""

    def real_cells(self, file: H5ad) -> tuple[sp.csr_matrix, tuple[str, ...]]:
        """Log expression of all cells of the file with the real ones, for the genes that were predicted; and their names."""
        matrix, found = read_expression(file, self.config.data, self.target_sum)
        predicted = set(map(str, H5ad(self.path).var.index))
        columns = [column for column, name in enumerate(found.var.index) if str(name) in predicted]
        if len(columns) < FEWEST_GENES:
            raise SctoolError(
                f"{self.path} has {len(columns)} of the {len(found.var)} genes of {self.data.name}", "name its genes as that file does"
            )
        return matrix[:, columns], tuple(str(found.var.index[column]) for column in columns)

    def cells(self, group: str, genes: tuple[str, ...]) -> Matrix:
        """Predicted cells of a group, columns in the order of ``genes``."""
        predicted, key = ad.read_h5ad(self.path), self.config.data.group_key
        if predicted.X is None or not predicted.var_names.is_unique:
            raise SctoolError(
                f"{self.path} has {'no X' if predicted.X is None else 'repeated genes'}", "write log expression, each gene once"
            )
        if key in predicted.obs:
            predicted = predicted[(predicted.obs[key].astype(str) == group).to_numpy()]
        elif "," in (self.config.scgen.held_out or ""):
            raise SctoolError(f"{self.path} has no column {key!r}, so which cells are of {group!r} is not known", "add it to obs")
        if predicted.n_obs < 2:
            raise SctoolError(f"{self.path} has {predicted.n_obs} cells of group {group!r}", "predict that group")
        x_ng = predicted[:, list(genes)].X
        x_ng = np.asarray(x_ng.toarray() if sp.issparse(x_ng) else x_ng, np.float32)
        if not np.isfinite(x_ng).all():
            raise SctoolError(f"{self.path} has NaN or infinite values", "predict those cells again")
        return x_ng


def open_run(path: Path, data: Path | None, config: Config) -> Run:
    """A result folder of ``predict scgen``, or an .h5ad of any tool.

    Parameters
    ----------
    path
        ``results/scgen/RUN``, or predicted cells.
    data
        The file with the real cells; None for the one the model was trained on.
    config
        Columns and the held-out group, for predictions of another tool.
    """
    if path.is_file():
        if data is None:
            raise SctoolError(f"{path}: the real cells are not known", "give their file with --data, and --group-key, --held-out, ...")
        return Run(path.stem, path.stem, "prediction", -1, path, data, config, config.data.target_sum)
    note = path / "prediction.json"
    if not note.exists():
        raise SctoolError(f"{path} holds no predictions of scGen", "run `sctool predict scgen checkpoints/scgen/RUN` first")
    about = json.loads(note.read_text())
    folder = open_model(Path(about["model"]), "scgen")
    trained, arm = Config.model_validate(folder.manifest["config"]), ARMS[about["sampler"]]
    file = data or Path(about["file"])
    if file.resolve() == Path(folder.manifest["data"]["file"]).resolve():
        folder.require_cells(H5ad(file).obs.index, file)
    label = "scGen" if arm == "standard" else f"scGen {arm}"
    return Run(
        folder.name,
        label,
        arm,
        int(about["seed"]),
        path / "predictions.h5ad",
        file,
        trained,
        folder.manifest["data"]["target_sum"],
        tuple(about["groups"]),
    )


def evaluate_responses(paths: list[Path], data: Path | None, config: Config, say: Callable[[str], None] = lambda text: None) -> Evaluation:
    """Score predictions of held-out groups.

    Parameters
    ----------
    paths
        Result folders of ``predict scgen``, or .h5ad files of predicted cells.
    data, config
        See :func:`open_run`.
    say
        Told what is left out.
    """
    rows: list[dict[str, Any]] = []
    means: list[pd.DataFrame] = []
    shown: list[tuple[Case, Matrix]] = []
    cases = Cases(say)
    for run in [open_run(path, data, config) for path in paths]:
        for case, new in cases.of(run):
            about = _about(case, run)
            if new:
                rows += [{**row, "run": "", **about} for row in score_baselines(case)]
            predicted_ng = run.cells(case.group, case.genes)
            mine = {"name": run.label, "arm": run.arm, "seed": run.seed, "run": run.name}
            rows.append({**mine, **score_cells(case, predicted_ng), **about})
            means.append(_means(case, predicted_ng, run))
            if len(paths) == 1:
                shown.append((case, predicted_ng))
    if not rows:
        raise SctoolError(
            "no predicted group has enough real perturbed cells that were kept back", "score a group that was held out in training"
        )
    scores = pd.DataFrame(rows)
    summary = {"runs": sorted({str(name) for name in scores["run"]} - {""}), "groups": sorted(set(scores["group"]))}
    tables = {"published_metrics": published_table(scores), "means": pd.concat(means, ignore_index=True)}
    made = Evaluation(
        "scgen", scores, SHOWN, summary, tables, pair_by=("seed", "data", "treatment", "design", "group", "control_share"), decide=SHOWN[:2]
    )
    if shown:
        made.arrays["latent"], made.tables["cells"] = joint_map(shown)
    return made


def joint_map(shown: list[tuple[Case, Matrix]], most: int = 2000) -> tuple[Matrix, pd.DataFrame]:
    """Control, real and predicted cells in the principal components of the real ones, for a picture.

    Returns
    -------
    z_nd, cells
        And the columns ``cell, kind, group`` of at most ``most`` cells of each kind and group.
    """
    rng = np.random.default_rng(0)
    parts = [
        (kind, case.group, x_ng[np.sort(rng.permutation(len(x_ng))[:most])])
        for case, predicted_ng in shown
        for kind, x_ng in (("control", case.control_ng), ("real", case.real_mg), ("predicted", predicted_ng))
    ]
    real_ng = np.vstack([x_ng for kind, _, x_ng in parts if kind != "predicted"])
    space = PCA(min(COMPONENTS, *(side - 1 for side in real_ng.shape)), random_state=0).fit(real_ng)
    cells = pd.DataFrame([(kind, group) for kind, group, x_ng in parts for _ in x_ng], columns=["kind", "group"])
    cells.insert(0, "cell", [f"{kind}-{at}" for at, kind in enumerate(cells["kind"])])
    if cells["group"].nunique() == 1:
        cells = cells.drop(columns="group")
    return space.transform(np.vstack([x_ng for _, _, x_ng in parts])).astype(np.float32), cells


class Cases:
    """Groups to be scored, each made once: a design without random choices is the same for every seed and arm, and so are its baselines."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._made: dict[Any, Case | None] = {}

    def of(self, run: Run) -> Iterator[tuple[Case, bool]]:
        """The groups a run predicted, and whether each is met for the first time; those with too few cells are left out."""
        file, settings = H5ad(run.data), run.config.scgen
        chosen = design(file.obs, run.config)
        random = run.config.seed if settings.random_share or settings.in_distribution else None
        used = run.config.data.group_key, run.config.data.counts_layer, settings.condition_key, *chosen.names, *_design(settings)
        genes = hash(tuple(H5ad(run.path).var.index))
        real: tuple[sp.csr_matrix, tuple[str, ...]] | None = None
        for group in chosen.targets:
            if run.groups is not None and group not in run.groups:
                continue
            place = (run.data.resolve(), group, random, used, run.target_sum, genes)
            new = place not in self._made
            if new:
                real = real or run.real_cells(file)
                self._made[place] = _case(group, *real, chosen, self.say)
            case = self._made[place]
            if case is not None:
                yield case, new


def _case(group: str, matrix: sp.csr_matrix, genes: tuple[str, ...], chosen: Design, say: Callable[[str], None]) -> Case | None:
    controls, truth = chosen.controls(group), chosen.truth(group)
    if min(len(controls), len(truth)) < FEWEST_CELLS:
        say(f"note: {group} is left out: {len(controls)} control and {len(truth)} real perturbed cells, {FEWEST_CELLS} are needed")
        return None
    known: dict[str, tuple[Profile, Profile]] = {}
    for other in sorted(set(chosen.group)):
        sides = [
            np.flatnonzero((chosen.group == other) & (chosen.split == "train") & (chosen.condition == c)) for c in (CONTROL, PERTURBED)
        ]
        if min(map(len, sides)) >= FEWEST_CELLS:
            control_g, perturbed_g = (np.asarray(matrix[side].mean(0)).ravel() for side in sides)
            known[other] = control_g, perturbed_g
    if not known:
        say(f"note: {group} is left out: no other group has {FEWEST_CELLS} cells of each condition")
        return None
    return Case.of(group, genes, matrix[controls].toarray(), matrix[truth].toarray(), known)


def _design(settings: SCGenConfig) -> tuple[Any, ...]:
    """What decides which cells are known."""
    return settings.held_out, settings.in_distribution, settings.random_share


def _about(case: Case, run: Run) -> dict[str, Any]:
    settings = run.config.scgen
    return {
        "group": case.group,
        "control_cells": len(case.control_ng),
        "real_cells": len(case.real_mg),
        "data": run.data.stem,
        "control_share": settings.control_share,
        "treatment": settings.perturbed or "",
        "design": "/".join(map(str, filter(None, _design(settings)))),
        "in_distribution": settings.in_distribution or "",
        "held_out": settings.random_share is None,
    }


def _means(case: Case, predicted_ng: Matrix, run: Run) -> pd.DataFrame:
    """Mean expression of every gene: control, real, predicted; for the scatter."""
    table = pd.DataFrame({"run": run.name, "arm": run.arm, "group": case.group, "gene": case.genes})
    for name, x_ng in (("control", case.control_ng), ("real", case.real_mg), ("predicted", predicted_ng)):
        table[name] = x_ng.mean(0)
    return table.assign(rank=np.argsort(case.changed))


_PUBLISHED = {
    "R2": ("mean_r2", 4),
    "MSE": ("mse", 6),
    **{f"{k} DEG R2": (f"up{k}_r2", 6) for k in (20, 50, 100)},
    **{f"{k} DEG MSE": (f"up{k}_mse", 6) for k in (20, 50, 100)},
    "Cosine Similarity": ("cosine", None),
    "20 DEG Cosine Similarity": ("up20_cosine", None),
    "Diff R": ("change_r", 4),
    "20 DEG Diff R": ("up20_change_r", 4),
}


def published_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The table of the AR study: one row per run and metric, with its column names, metric names and rounding."""
    rows = []
    for _, row in scores[scores["run"] != ""].iterrows():
        varied = row["control_share"] < 1
        experiment = f"{row['data']}-ood{row['held_out']}-variable_con{varied}" + ("-indist" if row["in_distribution"] else "")
        for metric, (column, digits) in _PUBLISHED.items():
            value = row[column] if digits is None else round(row[column], digits)
            rows.append(
                {
                    "experiment_id": experiment,
                    "test": row["group"],
                    "AR": row["arm"] == "ar",
                    "variable_con": varied,
                    "con_percent": row["control_share"],
                    "in_dist_group": row["in_distribution"],
                    "metric": metric,
                    "value": value,
                    "seed": row["seed"],
                }
            )
    return pd.DataFrame(rows)
