"""Calling the types of new cells, block by block, so that memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.data.expression import find_expression, log_normalise, same_scale
from sctool.data.genes import GeneMatch, match_genes
from sctool.data.read import H5ad
from sctool.engine.bundle import Bundle
from sctool.engine.classify import mean_logits
from sctool.errors import SctoolError
from sctool.metrics.classify import UNASSIGNED
from sctool.models.classify.hierarchy import Hierarchy
from sctool.models.classify.reject import Rejector
from sctool.models.classify.vote import majority_vote, overcluster
from sctool.sections import DataConfig

BLOCK = 4096
WELL_COVERED = 0.9


@dataclass(frozen=True)
class Query:
    """A file as a trained classifier sees it."""

    file: H5ad
    source: str
    match: GeneMatch | None
    """None where an embedding is read."""
    covered: float
    """Share of what decides, weighted by importance, that the file has."""
    target_sum: float | None
    counted: bool
    copies: sp.csr_matrix | None = None
    """Adds columns of the same name to the first of them, where there are such."""

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[NDArray[np.int64], Any, NDArray[np.int64] | None]]:
        """Rows, their log expression (or embedding), and where each feature is in it."""
        n = self.file.n_cells
        if self.match is None:
            z_nl = self.file.embedding(self.source)
            for start in range(0, n, size):
                yield np.arange(start, min(n, start + size)), z_nl[start : start + size], None
            return
        for number, x_ng in enumerate(self.file.blocks(self.source, list(range(0, n, size)), size)):
            rows = np.arange(number * size, number * size + x_ng.shape[0])
            bad = int((~np.isfinite(x_ng.data)).sum() + (x_ng.data < 0).sum())
            if bad:
                where = f"{self.file.path.name}: {self.source}"
                raise SctoolError(
                    f"{where} has {bad} NaN, infinite or negative values, in cells like {self.file.obs.index[rows[0]]}", "mend it"
                )
            x_ng = x_ng if self.copies is None else sp.csr_matrix(x_ng @ self.copies)
            yield rows, log_normalise(x_ng, self.target_sum or 1e4) if self.counted else x_ng, self.match.columns


def open_query(bundle: Bundle, file: H5ad, data: DataConfig) -> Query:
    """Match a file to a trained classifier.

    Raises
    ------
    SctoolError
        If less than ``data.min_gene_coverage`` of what decides is in the file, or it is on another scale than the training file.
    """
    manifest = bundle.folder.manifest
    if bundle.embedding:
        z_nl = file.embedding(bundle.embedding)
        if z_nl.shape[1] != len(bundle.fitted.features.scale_f):
            raise SctoolError(
                f"obsm[{bundle.embedding!r}] has {z_nl.shape[1]} dimensions; the model has {len(bundle.fitted.features.scale_f)}",
                "compute it as for the training cells",
            )
        return Query(file, bundle.embedding, None, 1.0, None, False)
    target = manifest["target_sum"]
    found = same_scale(file, find_expression(file, data), target)
    counted = found.kind.is_linear
    copies = _copies(file, found.var, counted)
    match = _match(bundle.genes, found.var)
    weight_f = bundle.importance_f
    covered = float(weight_f[match.columns >= 0].sum() / weight_f.sum())
    if covered < data.min_gene_coverage:
        n = int((match.columns >= 0).sum())
        absent = bundle.genes["name"][int(np.argmax(np.where(match.columns < 0, weight_f, -1)))]
        raise SctoolError(
            f"{n:,} of {len(match.columns):,} genes of the model are in {file.path.name}, {covered:.0%} by importance "
            f"(at least {data.min_gene_coverage:.0%} needed): it lacks {absent}, and has genes like {found.var.index[0]}",
            "add a var column with the other kind of names, or accept it with --set data.min_gene_coverage=0.1",
        )
    return Query(file, found.source, match, covered, target, counted, copies)


def _match(genes: dict[str, list[str]], var: pd.DataFrame) -> GeneMatch:
    """By name, or by names in capitals where that finds a fifth of the genes more (as of another species)."""
    try:
        match = match_genes(genes, var, 0.0)
    except SctoolError:
        match = None
    if match is not None and match.coverage > 0.8:
        return match
    raised = var.set_axis([str(name).upper() for name in var.index])
    try:
        other = match_genes({kind: [name.upper() for name in names] for kind, names in genes.items()}, raised, 0.0)
    except SctoolError:
        other = None
    if other is not None and other.coverage > (match.coverage if match else 0.0) + 0.2:
        return GeneMatch(other.columns, f"{other.how} in capitals; is it of the same species?")
    if match is None:
        return match_genes(genes, var, 0.0)  # says what each side's names look like
    return match


def _copies(file: H5ad, var: pd.DataFrame, counted: bool) -> sp.csr_matrix | None:
    """A matrix that adds up columns of one name; None where each name occurs once."""
    if not var.index.has_duplicates:
        return None
    if not counted:
        name = var.index[var.index.duplicated()][0]
        raise SctoolError(f"{file.path.name}: gene {name} occurs more than once and X holds logarithms, which do not add up", "give counts")
    codes = pd.factorize(var.index)[0]
    first = np.unique(codes, return_index=True)[1]
    n = len(var)
    return sp.csr_matrix((np.ones(n, np.float32), (np.arange(n), first[codes])), shape=(n, n))


def gene_report(bundle: Bundle, query: Query) -> pd.DataFrame:
    """``feature, status, query_name, importance_rank`` of each feature, the most important first.

    The status is ``exact``, ``version`` (of an Ensembl id), ``symbol`` (another kind of name), ``case``, ``duplicate`` (its columns are
    added up) or ``missing``.
    """
    names = bundle.genes["name"]
    weight_f = bundle.importance_f
    rank_f = np.empty(len(names), np.int64)
    rank_f[(-weight_f).argsort(kind="stable")] = np.arange(1, len(names) + 1)
    if query.match is None:
        return pd.DataFrame({"feature": names, "status": "exact", "query_name": names, "importance_rank": rank_f})
    theirs = [str(name) for name in query.file.genes(query.source).index]
    called = [theirs[column] if column >= 0 else "" for column in query.match.columns]
    repeated = set(query.file.genes(query.source).index[query.file.genes(query.source).index.duplicated()])
    status = ["duplicate" if name in repeated else _status(ours, name) for ours, name in zip(names, called, strict=True)]
    return pd.DataFrame({"feature": names, "status": status, "query_name": called, "importance_rank": rank_f}).sort_values(
        "importance_rank"
    )


def _status(ours: str, theirs: str) -> str:
    if not theirs:
        return "missing"
    if ours == theirs:
        return "exact"
    if ours.upper() == theirs.upper():
        return "case"
    return "version" if ours.partition(".")[0] == theirs.partition(".")[0] else "symbol"


def components(features_nf: Any, n: int = 30, seed: int = 0) -> NDArray[np.float32]:
    """Principal components of the features of the query's own cells, for clusters to vote in; shape (cells, n)."""
    from sklearn.decomposition import PCA

    n = min(n, min(features_nf.shape) - 1)
    if n < 2:
        return np.zeros((features_nf.shape[0], 1), np.float32)
    if sp.issparse(features_nf):
        return PCA(n, svd_solver="arpack", random_state=seed).fit_transform(features_nf.astype(np.float64)).astype(np.float32)
    return PCA(n, random_state=seed).fit_transform(features_nf).astype(np.float32)


@dataclass(frozen=True)
class Called:
    """Types of the cells of a file."""

    table: pd.DataFrame
    """``cell, label, label_raw, confidence, margin, entropy, rejected`` and, of an ensemble, ``n_agree``; with a vote ``cluster,
    vote_share, label_cell``; with a conformal rule ``label_set``, all types it may be."""
    probabilities: NDArray[np.float64]
    """Shape (cells, types), to six digits."""
    covered: float


def call_types(
    bundle: Bundle,
    query: Query,
    *,
    rejector: Rejector | None = None,
    hierarchy: Hierarchy | None = None,
    back_off: float = 0.8,
    vote: str | None = None,
    min_share: float = 0.0,
    seed: int = 0,
) -> Called:
    """Call the type of every cell.

    Parameters
    ----------
    rejector
        The rule that leaves cells unassigned; default: the model's own.
    hierarchy
        With it a cell is called the deepest type or group of types whose probability is at least ``back_off``, instead of the rule.
    vote
        An obs column of clusters, or ``auto`` to make small ones: all cells of a cluster get its commonest label, or "Heterogeneous"
        where that has less than ``min_share``. The label of the cell by itself is kept in ``label_cell``.
    """
    fitted, names = bundle.fitted, np.array(bundle.fitted.classes, object)
    rejector = rejector or fitted.rejector
    parts: list[pd.DataFrame] = []
    probabilities: list[NDArray[np.float64]] = []
    features: list[Any] = []
    for rows, x_ng, columns in query.blocks():
        told = [member.proba(x_ng, columns) for member in fitted.members]
        p_nc = fitted.calibration.proba(mean_logits(told)) if told else fitted.proba(x_ng, columns)
        raw = names[p_nc.argmax(1)]
        label = hierarchy.back_off(p_nc, fitted.classes, back_off) if hierarchy else np.where(rejector.rejects(p_nc), UNASSIGNED, raw)
        part = pd.DataFrame({"cell": query.file.obs.index[rows], "label": label, "label_raw": raw, **confidence_columns(p_nc)})
        part["rejected"] = label == UNASSIGNED
        if rejector.kind == "conformal":
            part["label_set"] = ["|".join(names[held]) for held in rejector.sets(p_nc)]
        if told:
            part["n_agree"] = (np.stack(told).argmax(2) == p_nc.argmax(1)).sum(0)
        parts.append(part)
        probabilities.append(p_nc.round(6))
        if vote == "auto":
            features.append(fitted.features.transform(x_ng, columns))
    table = pd.concat(parts, ignore_index=True)
    if vote:
        clusters = _clusters(query.file, vote, features, seed)
        won = majority_vote(clusters, table["label"].to_numpy(object), min_share)
        table = table.assign(label_cell=table["label"], label=won["label"].to_numpy(), cluster=clusters, vote_share=won["share"].to_numpy())
    return Called(table, np.concatenate(probabilities), query.covered)


def _clusters(file: H5ad, vote: str, features: list[Any], seed: int) -> NDArray[Any]:
    if vote != "auto":
        return file.column(vote, "--vote").astype(str).to_numpy()
    stacked = sp.vstack(features, format="csr") if sp.issparse(features[0]) else np.concatenate(features)
    return overcluster(components(stacked, seed=seed), seed)


def confidence_columns(p_nc: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """``confidence`` (largest probability), ``margin`` to the second and ``entropy`` in nats, to six digits."""
    top = -np.sort(-p_nc, axis=1)[:, :2]
    entropy = -(p_nc * np.log(np.maximum(p_nc, 1e-300))).sum(1)
    return {"confidence": top[:, 0].round(6), "margin": (top[:, 0] - top[:, 1]).round(6), "entropy": np.maximum(entropy, 0).round(6)}
