"""Quality control of cells: six criteria, each with a limit at some median absolute deviations (MAD) from the median.

Too few counts or genes; too high a share of mitochondrial, ribosomal or haemoglobin counts; doublets. Limits are fitted on training
cells and stored; failing cells are labelled, not dropped. The rules are those of CRADLE-VAE, mended: counts and genes are compared on the
log scale, MADs are scaled by 1.4826 (to standard deviations of a normal), shares have a floor, below which no limit is set, and haemoglobin
is no criterion where most cells make it (K562).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.data.cache import take_rows
from sctool.data.genes import gene_names, id_type
from sctool.errors import SctoolError

Bools = NDArray[np.bool_]
Bound = tuple[float | None, float | None]
"""A cell fails below the first and above the second."""
CRITERIA = {
    "counts": "counts",
    "genes": "genes detected",
    "mt": "% mitochondrial",
    "ribo": "% ribosomal",
    "hb": "% haemoglobin",
    "doublet": "doublet",
}
FLOORS = {"mt": 5.0, "ribo": 0.0, "hb": 1.0}
"""Percent; no lower limit than this is set."""
OWN_HB = 0.1
"""Percent haemoglobin of the median cell, above which the cells make it themselves."""
LIMITS = ("min_counts", "max_counts", "min_genes", "max_genes", "max_pct_mt", "max_pct_ribo", "max_pct_hb")
"""Limits that can be given instead of fitted ones."""
FEWEST = 30
"""Training cells a batch needs for limits of its own."""
ALL = ""
"""Key of the limits of all batches together."""
_SCALE = 1.4826
_BLOCK = 8192
_COLUMNS = {
    "counts": ("n_counts_all_genes", "UMI_count", "total_counts", "nCount_RNA", "n_counts", "n_umi"),
    "genes": ("n_genes_all_genes", "n_genes_all", "ngenes", "n_genes_by_counts", "nFeature_RNA", "n_genes"),
    "mt": ("pct_counts_mt", "pct_counts_mito", "pct_mito", "pct_mt", "percent_mito", "percent_mt", "percent.mt", "percent.mito"),
    "ribo": ("pct_counts_ribo", "pct_ribo", "percent_ribo", "percent.ribo", "percent.rb"),
    "hb": ("pct_counts_hb", "pct_hb", "percent_hb", "percent.hb"),
    "doublet": ("predicted_doublet", "predicted_doublets", "is_doublet"),
}
_MT = re.compile(r"(MT|mt|Mt)-")
_RIBO = re.compile(r"(RP(SA|LP[012]|[SL]\d+(A|X|Y\d|L|L1|AL)?)|Rp(sa|lp[012]|[sl]\d+(a|x|l|l1|al)?))")
_HB = {"HBA1", "HBA2", "HBB", "HBD", "HBE1", "HBG1", "HBG2", "HBM", "HBQ1", "HBZ"}
_HB |= {"Hba-a1", "Hba-a2", "Hba-x", "Hbb-b1", "Hbb-b2", "Hbb-bh0", "Hbb-bh1", "Hbb-bh2", "Hbb-bs", "Hbb-bt", "Hbb-y", "Hbq1a", "Hbq1b"}
_FAIL = {"fail", "failed", "true", "1", "1.0", "bad", "doublet"}
_PASS = {"pass", "passed", "false", "0", "0.0", "good", "singlet"}
_PLAIN = {"true", "false", "1", "0", "1.0", "0.0"}
"""Words that tell nothing of which is good: that is told by the name of the column."""


@dataclass(frozen=True)
class Thresholds:
    """Limits by criterion and batch (key ``""``: all batches together, and batches without limits of their own)."""

    bounds: dict[str, dict[str, Bound]]
    skipped: dict[str, str] = field(default_factory=dict)
    """Criteria without limits, and why."""

    def to_json(self) -> dict[str, Any]:
        """As strict JSON."""
        return json.loads(json.dumps(asdict(self), allow_nan=False))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Thresholds:
        """From :meth:`to_json`."""
        bounds = {name: {batch: (low, high) for batch, (low, high) in by_batch.items()} for name, by_batch in stored["bounds"].items()}
        return cls(bounds, dict(stored["skipped"]))


def gene_kinds(names: Sequence[str], *, published: bool = False) -> dict[str, Bools]:
    """Mitochondrial, ribosomal and haemoglobin genes among human, mouse or rat symbols, as masks of shape (genes,).

    ``published``: by the patterns of CRADLE-VAE, which take HBEGF and HBS1L for haemoglobins and RPS6KA1 for a ribosomal protein, and know
    no mouse.
    """
    if published:
        tests: dict[str, Any] = {
            "mt": lambda name: name.startswith("MT-"),
            "ribo": lambda name: name.startswith(("RPS", "RPL")),
            "hb": re.compile(r"HB[^(P)]").match,
        }
    else:
        tests = {"mt": _MT.match, "ribo": _RIBO.fullmatch, "hb": _HB.__contains__}
    return {kind: np.array([bool(test(str(name))) for name in names], bool) for kind, test in tests.items()}


def gene_symbols(var: pd.DataFrame) -> list[str]:
    """Symbols of the genes: the index of var, or, where that holds Ensembl ids, a column of other names."""
    kinds = gene_names(var)
    return next((names for names in kinds.values() if id_type(names) == "symbols"), kinds["name"])


def measure(counts: sp.csr_matrix, names: Sequence[str], obs: pd.DataFrame) -> pd.DataFrame:
    """Value of each criterion in each cell, shape (cells, criteria); shares are in percent, doublets 1.

    A column of obs is used where it has one of the known names and can be what it says: depth over all genes of the experiment is better
    than of the file. Other columns never count. What cannot be measured is no column; ``attrs["sources"]`` says what was read.

    Parameters
    ----------
    counts
        Raw counts, shape (cells, genes); may be memory-mapped.
    names
        Symbols of the genes, see :func:`gene_symbols`.
    obs
        Table of cells.
    """
    found = _measured(counts, names, obs)
    values = pd.DataFrame({name: value_n for name, (value_n, _) in found.items()}, index=obs.index)
    values.attrs["sources"] = {name: source for name, (_, source) in found.items()}
    return values


def fit_thresholds(
    values: pd.DataFrame,
    k: float = 3.0,
    rows_train: NDArray[np.int64] | None = None,
    batch_n: NDArray[Any] | None = None,
    criteria: Collection[str] = tuple(CRITERIA),
    limits: Mapping[str, float] | None = None,
    *,
    published: bool = False,
) -> Thresholds:
    """Limits at ``k`` MADs from the median.

    Parameters
    ----------
    values
        From :func:`measure`.
    k
        How many MADs; a greater one never fails more cells.
    rows_train
        Cells to fit on; default all.
    batch_n
        Batch of each cell, to fit each by itself; batches of fewer than 30 training cells get the limits of all.
    criteria
        Which to use, by the keys of ``CRITERIA``.
    limits
        Given limits by the names in ``LIMITS``, e.g. ``{"max_pct_mt": 15}``; they stand in for fitted ones.
    published
        As CRADLE-VAE fits them: on the raw scale, MADs not scaled, no floors, none left out.

    Raises
    ------
    SctoolError
        For a criterion or a limit that is not known.
    """
    given = dict(limits or {})
    check_criteria(criteria, given)
    rows = np.arange(len(values)) if rows_train is None else rows_train
    groups = {ALL: rows}
    if batch_n is not None:
        batch_of_row = np.asarray(batch_n)[rows].astype(str)
        by_batch = {str(name): rows[batch_of_row == name] for name in np.unique(batch_of_row)}
        groups |= {name: own for name, own in by_batch.items() if len(own) >= FEWEST and name != ALL}
    bounds: dict[str, dict[str, Bound]] = {}
    skipped: dict[str, str] = {}
    for name in CRITERIA:
        if name not in criteria:
            skipped[name] = "switched off"
            continue
        if name not in values:
            skipped[name] = "no column predicted_doublet of true and false" if name == "doublet" else "no such genes in the file"
            continue
        value_n = values[name].to_numpy(float)
        median = float(np.median(value_n[rows])) if len(rows) else 0.0
        if name == "hb" and "max_pct_hb" not in given and not published and median > OWN_HB:
            skipped[name] = f"the median cell has {median:.2g} %, so these cells make it and it is no artifact"
            continue
        found = {batch: _bound(name, value_n[own], k, given, published) for batch, own in groups.items()}
        if found[ALL] == (None, None):
            skipped[name] = "half of the cells have the same value, so that deviations have no scale"
            continue
        bounds[name] = {batch: bound for batch, bound in found.items() if bound != (None, None)}
    return Thresholds(bounds, skipped)


def check_criteria(criteria: Collection[str], limits: Collection[str]) -> None:
    """Raise :class:`SctoolError` for a criterion or the name of a limit that is not known."""
    from sctool.data.read import near

    for wanted, known, what in ((criteria, list(CRITERIA), "criterion"), (limits, list(LIMITS), "limit")):
        for name in wanted:
            if name not in known:
                raise SctoolError(f"there is no {what} {name!r} of quality; there are: {', '.join(known)}", near(name, known))


def flags(values: pd.DataFrame, thresholds: Thresholds, batch_n: NDArray[Any] | None = None) -> pd.DataFrame:
    """Which cells fail which criterion, shape (cells, criteria with limits and values)."""
    of_n = np.full(len(values), ALL) if batch_n is None else np.asarray(batch_n).astype(str)
    batches, code_n = np.unique(of_n, return_inverse=True)
    failed = {}
    for name, by_batch in thresholds.bounds.items():
        if name not in values:
            continue
        own = [by_batch.get(str(batch), by_batch[ALL]) for batch in batches]
        low_b = np.array([-np.inf if low is None else low for low, _ in own], float)
        high_b = np.array([np.inf if high is None else high for _, high in own], float)
        value_n = values[name].to_numpy(float)
        failed[name] = (value_n < low_b[code_n]) | (value_n > high_b[code_n])
    return pd.DataFrame(failed, index=values.index, dtype=bool)


def given_flags(obs: pd.DataFrame, key: str) -> Bools:
    """A user's own column as a mask of failing cells, shape (cells,).

    Values may be ``pass`` and ``fail``, or true and false (or 1 and 0): true is fail, unless the column is called by a word of passing,
    like ``qc_pass`` or ``passed_filter``.

    Raises
    ------
    SctoolError
        If the column is not there, a cell has no value, or there are other values.
    """
    if key not in obs:
        from sctool.data.read import near

        columns = list(map(str, obs.columns))
        raise SctoolError(f"obs has no column {key!r} (--qc-key); it has: {', '.join(columns[:20])}", near(key, columns))
    missing = int(obs[key].isna().sum())
    if missing:
        raise SctoolError(f"{missing} of {len(obs)} cells have no value in obs[{key!r}] (--qc-key)", "fill it in")
    word_n = obs[key].astype(str).str.strip().str.lower().to_numpy(object)
    words = set(word_n)
    if not words <= _FAIL | _PASS:
        counts = obs[key].value_counts().loc[lambda n: n > 0]
        shown = [f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value) for value in counts.index[:4]]
        there = ", ".join(f"{text} ({n})" for text, n in zip(shown, counts.iloc[:4], strict=True))
        there += f", ...; {len(counts):,} values in all" if len(counts) > 4 else ""
        raise SctoolError(
            f"obs[{key!r}] (--qc-key) is not a column of flags; it has: {there}",
            'make it true and false (true is fail) or "pass" and "fail", or give --qc-key auto or none',
        )
    fail_n = np.isin(word_n, sorted(_FAIL))
    return ~fail_n if words <= _PLAIN and _says_pass(key) else fail_n


def quality_table(values: pd.DataFrame, thresholds: Thresholds, failed: pd.DataFrame) -> list[list[str]]:
    """Rows to show: criterion, limit, failing cells and their share, or why there is no limit; at last the cells that fail any."""
    rows = []
    n = max(1, len(values))
    sources = values.attrs.get("sources", {})
    for name, title in CRITERIA.items():
        title += f" ({sources[name]})" if name in sources else ""
        if name in failed:
            count = int(failed[name].sum())
            rows.append([title, _limit(name, thresholds.bounds[name]), f"{count:,}", f"{count / n:.1%}"])
        else:
            rows.append([title, f"not used: {thresholds.skipped.get(name, 'not measured in this file')}", "", ""])
    count = int(failed.any(axis=1).sum())
    return [*rows, ["any", "", f"{count:,}", f"{count / n:.1%}"]]


def quality_notes(values: pd.DataFrame, thresholds: Thresholds, failed: pd.DataFrame, name_n: NDArray[Any] | None = None) -> list[str]:
    """What is odd about flags: none or most cells fail, limits that no cell can cross, perturbations (``name_n``) that fail as such.

    Raises :class:`SctoolError` if every cell fails.
    """
    notes = []
    for name, by_batch in thresholds.bounds.items():
        low, high = by_batch[ALL]
        if name != "doublet" and (high is None or (name in FLOORS and high >= 100)) and (low is None or low <= 0):
            notes.append(f"no cell can fail by {CRITERIA[name]}: its limit is {_limit(name, {ALL: by_batch[ALL]})}")
    for name in map(str, failed.columns):
        share = failed[name].mean()
        if share > 0.5:
            notes.append(
                f"{share:.0%} of cells fail by {CRITERIA[name]}; leave it out with --set cradle.qc_criteria if that is no artifact"
            )
    fail_n = failed.any(axis=1).to_numpy(bool)
    return notes + share_notes(fail_n, failed, name_n)


def share_notes(fail_n: Bools, failed: pd.DataFrame | None = None, name_n: NDArray[Any] | None = None) -> list[str]:
    """The part of :func:`quality_notes` that holds for given flags too; ``failed`` is only looked at for names of criteria."""
    if len(fail_n) and fail_n.all():
        raise SctoolError(
            f"all {len(fail_n):,} cells fail quality control", "look at the limits (--qc-mad, cradle.qc_limits) or give --qc-key none"
        )
    if not fail_n.any():
        return ["every cell passes quality control: there is no artifact to learn from"]
    notes = []
    if fail_n.mean() > 0.5:
        notes.append(f"{fail_n.mean():.0%} of cells fail quality control; a model of artifacts expects them to be fewer than half")
    if name_n is not None:
        by_name = pd.Series(fail_n).groupby(np.asarray(name_n).astype(str)).agg(["mean", "size"])
        odd = by_name[(by_name["mean"] > max(0.5, 2 * fail_n.mean())) & (by_name["size"] >= 10)].sort_values("mean", ascending=False)
        if len(odd):
            shown = ", ".join(f"{name} {share:.0%}{_mostly(failed, name_n, name)}" for name, share in odd["mean"].head(5).items())
            which, they = (f"{len(odd)} perturbations", "these do") if len(odd) > 1 else ("1 perturbation", "it does")
            notes.append(f"cells of {which} mostly fail, which may be what {they} and no artifact: {shown}")
    return notes


def _measured(counts: sp.csr_matrix, names: Sequence[str], obs: pd.DataFrame) -> dict[str, tuple[NDArray[np.float64], str]]:
    masks = gene_kinds(names)
    weights_gk = np.stack([np.ones(len(names), bool), *masks.values()], 1).astype(np.float64)
    starts = range(0, counts.shape[0], _BLOCK)
    blocks = [take_rows(counts, np.arange(at, min(at + _BLOCK, counts.shape[0]))) @ weights_gk for at in starts]
    depth_n, *of_kinds = np.concatenate([np.zeros((0, len(masks) + 1)), *blocks]).T
    detected_n = np.diff(counts.indptr).astype(np.float64)
    found: dict[str, tuple[NDArray[np.float64], str]] = {"counts": (depth_n, "all counts"), "genes": (detected_n, "all genes")}
    for name, columns in _COLUMNS.items():
        for key in columns:
            given_n = _given(name, obs[key], depth_n if name == "counts" else detected_n) if key in obs else None
            if given_n is not None:
                found[name] = (given_n, f"obs {key}")
                break
    for (kind, mask), of_kind_n in zip(masks.items(), of_kinds, strict=True):
        if kind not in found and mask.any():
            found[kind] = (100 * of_kind_n / np.maximum(found["counts"][0], 1), f"{int(mask.sum())} genes")
    return {name: found[name] for name in CRITERIA if name in found}


def _given(name: str, column: pd.Series, least_n: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """A column as numbers, if it can be what its name says: depth at least that of the file's genes, shares of 0 to 100 %."""
    if name == "doublet":
        word_n = column.astype(str).str.strip().str.lower().to_numpy(object)
        return np.isin(word_n, sorted(_FAIL)).astype(float) if set(word_n) <= _FAIL | _PASS else None
    value_n = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(float)
    if not len(value_n) or not np.isfinite(value_n).all() or (value_n < 0).any():
        return None
    if name in FLOORS:
        # Other names than scanpy's may hold fractions.
        value_n = value_n * 100 if not str(column.name).startswith("pct_counts_") and value_n.max() <= 1 else value_n
        return value_n if value_n.max() <= 100 else None
    return value_n if (value_n >= 0.99 * least_n).mean() >= 0.99 else None


def _bound(name: str, value_n: NDArray[np.float64], k: float, given: Mapping[str, float], published: bool) -> Bound:
    if name == "doublet":
        return None, 0.5
    low_given, high_given = (given.get(f"{side}_{'pct_' if name in FLOORS else ''}{name}") for side in ("min", "max"))
    if name in FLOORS:
        return None, _fitted(value_n, k, published, FLOORS[name]) if high_given is None else high_given
    logged = value_n if published else np.log1p(value_n)
    fitted = _fitted(logged, -k, published, None) if low_given is None else None
    if fitted is not None and not published:
        fitted = max(0.0, float(np.expm1(fitted)))
    return low_given if low_given is not None else fitted, high_given


def _fitted(value_n: NDArray[np.float64], k: float, published: bool, floor: float | None) -> float | None:
    """Median + ``k`` MADs, at least ``floor``; None where the MAD is 0 and no floor helps."""
    if not len(value_n):
        return None
    median = float(np.median(value_n))
    mad = float(np.median(np.abs(value_n - median)))
    if published:
        return median + k * mad
    if mad == 0 and not floor:
        return None
    limit = median + k * _SCALE * mad
    return limit if floor is None else max(limit, floor)


def _limit(name: str, by_batch: Mapping[str, Bound]) -> str:
    """In words, from the lowest to the highest of the batches."""
    if name == "doublet":
        return "flagged"
    said = []
    own = [bound for batch, bound in by_batch.items() if batch != ALL] or list(by_batch.values())
    for at, sign in ((0, "<"), (1, ">")):
        limits = sorted({limit for bound in own if (limit := bound[at]) is not None})
        if limits:
            texts = [f"{limit:.3g}" if name in FLOORS or abs(limit) < 10 else f"{limit:,.0f}" for limit in (limits[0], limits[-1])]
            said.append(f"{sign} {texts[0]}" + (f" to {texts[1]} by batch" if len(limits) > 1 else ""))
    return ", ".join(said)


def _mostly(failed: pd.DataFrame | None, name_n: NDArray[Any], name: Any) -> str:
    """The criterion that most cells of a perturbation fail by."""
    if failed is None:
        return ""
    shares = failed[np.asarray(name_n).astype(str) == name].mean()
    return f" (by {CRITERIA[shares.idxmax()]})"


def _says_pass(key: str) -> bool:
    words = re.split(r"[^a-z]+", key.lower())
    return any(word in ("pass", "passed", "passes", "passing", "good", "keep", "ok") for word in words)
