"""Cut the demo files out of the published sets they come from; run it again to get the same files.

    python data/demo/make.py FOLDER_WITH_THE_SOURCE_FILES

Every choice is by a fixed rule or a fixed seed. Counts are never changed. Sources, licences and citations: README.md beside this file.
"""

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

HERE = Path(__file__).parent


def most_detected(cells, n):
    """The n genes found in most cells, in the order of the file."""
    detected = np.asarray((cells.X > 0).sum(0)).ravel()
    return np.sort(np.argsort(-detected, kind="stable")[:n])


def draw(cells, column, n, seed=0):
    """At most n cells of each value of a column, in the order of the file."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(cells.obs[column] == value))[:n] for value in sorted(cells.obs[column].unique())]
    return np.sort(np.concatenate(rows))


def cells(source):
    """Sorted blood cells: common lymphocytes as a base, rarer monocytes and CD34+ cells as an atlas, a third kept back as a test."""
    a = source("pbmc_facs")
    a = a[:, most_detected(a, 3000)].copy()
    rng = np.random.default_rng(0)
    part = np.where(a.obs["facs_subpop"].isin(["CD34+", "CD14+"]), "atlas", "base").astype(object)
    for value in sorted(a.obs["cell_type"].unique()):
        rows = rng.permutation(np.flatnonzero(a.obs["cell_type"] == value))
        part[rows[: len(rows) // 3]] = "test"
    a.obs = pd.DataFrame({"cell_type": a.obs["cell_type"], "subpopulation": a.obs["facs_subpop"], "part": part}, index=a.obs_names)
    return a


def batches(source):
    """Five lung cancer cell lines in five batches of two protocols; the line of each cell is known from its SNPs."""
    a = source("cellmix_lung")
    a = a[draw(a, "batch", 100)].copy()
    a = a[:, most_detected(a, 1500)].copy()
    a.obs = a.obs[["batch", "protocol", "cell_type"]]
    return a


def perturbations(source):
    """CRISPR activation of single genes and pairs, with controls."""
    a = source("norman_subset")
    a.obs = a.obs[["perturbation", "batch", "n_guides", "n_counts_all_genes", "n_genes_all"]]
    return a


def treated(source):
    """Glioblastoma slices of five donors, each with and without panobinostat."""
    a = source("glioblastoma_panobinostat")
    a = a[draw(a, "sample", 150)].copy()
    a.obs = a.obs[["donor", "condition", "sample"]]
    return a


def donors(source):
    """Blood of forty donors with their age."""
    a = source("onek1k_40donors")
    a = a[draw(a, "donor", 80)].copy()
    a.obs = a.obs[["donor", "cell_type", "age", "age_group", "sex"]]
    return a


def cohort(source):
    """Immune cells of 48 melanoma samples of 32 patients, before or after checkpoint therapy, as ten published principal components."""
    a = source("melanoma_48samples_pca")
    a.obs = a.obs[["sample", "donor", "timepoint", "condition"]]
    a.obsm["X_pca"] = np.asarray(a.X.todense() if hasattr(a.X, "todense") else a.X, np.float32)
    a.X = sp.csr_matrix(a.shape, dtype=np.float32)  # no counts were published with them
    return a


def main(folder):
    def source(name):
        a = ad.read_h5ad(Path(folder) / f"{name}.h5ad")
        return ad.AnnData(a.X, obs=a.obs, var=a.var[[c for c in a.var.columns if c == "symbol"]])

    for make in (cells, batches, perturbations, treated, donors, cohort):
        a = make(source)
        a.obs = a.obs.apply(lambda column: column.astype(str).astype("category") if column.dtype.kind not in "biuf" else column)
        if hasattr(a.X, "indices"):
            a.X.indices = a.X.indices.astype(np.int32)
        a.X = a.X.astype(np.float32)
        a.write_h5ad(HERE / f"{make.__name__}.h5ad", compression="gzip", compression_opts=9)
        print(make.__name__, a.shape, f"{(HERE / f'{make.__name__}.h5ad').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(sys.argv[1])
