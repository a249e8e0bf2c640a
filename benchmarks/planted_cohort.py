"""A planted cohort: donors whose groups differ only in the state of one rare cell type, which is to be found.

    python benchmarks/planted_cohort.py [--seeds 5] [--donors 60] [--out FOLDER]

Each seed simulates a cohort of cell embeddings, trains `sctool train sampleclr` with grouped 5-fold cross-validation, and prints the
balanced accuracy on held-out donors of the supervised model, the linear probe of the embedding, attention alone, the best of the plain
baselines, and the means of given cell types; that of the model after the groups were shuffled among donors (each true group gets each
label equally often); and how much attention cells of the planted type get, relative to all. Read it so: the first should be near the
share of donors that have planted cells at all (.92 to .98), the plain baselines stay near chance, and so do shuffled groups (1 / 3).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray


@dataclass(frozen=True)
class SimulatedCohort:
    """Cells of a cohort. n cells, f features, s samples (one sample a donor), t cell types."""

    x_nf: NDArray[np.float32]  # (n, F) cell embedding, cells of a sample together
    sample_n: NDArray[np.int64]  # (n,) sample of each cell, 0..S-1
    type_n: NDArray[np.int64]  # (n,) cell type of each cell, 0..T-1; type PLANTED carries the group effect
    label_s: NDArray[np.int64]  # (S,) group of each sample
    batch_s: NDArray[np.int64]  # (S,) batch of each sample, nested: donors of one batch only, all groups in each batch


PLANTED = 3  # the cell type whose state tells the groups apart


def simulate_cohort(
    n_donors: int = 60,
    cells: int = 400,
    n_types: int = 8,
    n_features: int = 24,
    n_groups: int = 3,
    effect: float = 2.0,
    share: float = 0.1,
    donor_sd: float = 0.3,
    concentration: float = 9.7,
    n_batches: int = 1,
    batch_sd: float = 0.0,
    noise: bool = False,
    seed: int = 0,
) -> SimulatedCohort:
    """Draw a cohort whose groups differ only in the state of one cell type.

    The features behave like principal components: their scale falls from 1 to 0.5, and cell types are clusters around
    means that differ in the leading features. Donors shift every type (half of the variance shared over the types of a
    donor), and the fractions of the types vary between donors as Dirichlet(concentration x mean). The groups shift type
    PLANTED towards the corners of a regular simplex, so that they share no direction and their mean is zero: the shift
    of a donor's mean over all cells is `share x effect`, small next to its shift and the noise of its composition.

    Parameters
    ----------
    n_donors, cells
        donors, and cells of each (one sample a donor).
    n_types, n_features, n_groups
        cell types, features, groups of donors; groups are as equal as can be and spread evenly over the batches.
    effect
        length of the shift of type PLANTED in each group, in within-type standard deviations.
    share
        mean fraction of type PLANTED; the others fall geometrically.
    donor_sd
        standard deviation of a donor's shift of each type and feature, heavy-tailed over features.
    concentration
        of the Dirichlet distribution of the type fractions (larger: donors more alike); inf: the same for all donors.
    n_batches, batch_sd
        batches and the standard deviation of their shift, shared by all types, within-type standard deviations
    noise
        all donors are draws of one distribution: no effect, donor shifts, composition differences or batches.
    seed
        of the numpy generator.

    About one donor in ten has fewer than 5 cells of type PLANTED at the default concentration, so no model is always right.
    """
    rng = np.random.default_rng(seed)
    # a slow fall of scale from 1 to 0.5: strong enough to look like components, weak enough for the effect to be anywhere
    scale_f = np.linspace(1.0, 0.5, n_features)
    mean_tf = rng.normal(0.0, 2.5, (n_types, n_features)) * np.exp(-np.arange(n_features) / (n_features / 4))
    rest_t = 0.75 ** np.arange(n_types)
    rest_t[PLANTED] = 0.0
    share_t = (1.0 - share) * rest_t / rest_t.sum()
    share_t[PLANTED] = share

    label_s = np.arange(n_donors) % n_groups
    batch_s = (np.arange(n_donors) // n_groups) % n_batches
    corner_gg = np.eye(n_groups) - 1.0 / n_groups
    corner_gg /= np.linalg.norm(corner_gg, axis=1, keepdims=True)
    plane_gf = np.linalg.qr(rng.normal(size=(n_features, n_groups)))[0].T
    effect_gf = effect * corner_gg @ plane_gf

    # donor shifts: heavy-tailed over features, half of the variance shared by the types of a donor
    sd_f = donor_sd * np.exp(rng.normal(0.0, 0.55, n_features))
    sd_f *= donor_sd / np.sqrt(np.mean(sd_f**2))
    shared_sf = rng.normal(size=(n_donors, 1, n_features))
    own_stf = rng.normal(size=(n_donors, n_types, n_features))
    shift_stf = np.sqrt(0.5) * sd_f * (shared_sf + own_stf)
    shift_stf = shift_stf + rng.normal(0.0, batch_sd, (n_batches, n_features))[batch_s][:, None, :]
    shift_stf[:, PLANTED] += effect_gf[label_s]
    fraction_st = np.tile(share_t, (n_donors, 1))
    if not noise and np.isfinite(concentration):
        fraction_st = rng.dirichlet(concentration * share_t, size=n_donors)
    if noise:
        shift_stf = np.zeros_like(shift_stf)

    sample_n = np.repeat(np.arange(n_donors), cells)
    cumulative_st = np.cumsum(fraction_st, axis=1)
    type_n = np.minimum((rng.random((sample_n.size, 1)) > cumulative_st[sample_n]).sum(axis=1), n_types - 1)
    x_nf = mean_tf[type_n] + scale_f * (rng.normal(size=(sample_n.size, n_features)) + shift_stf[sample_n, type_n])
    return SimulatedCohort(x_nf.astype(np.float32), sample_n, type_n, label_s, batch_s)


def as_anndata(cohort):
    """As a file for `sctool train sampleclr`: obs sample, group, batch, cell_type; obsm X_pca."""
    obs = pd.DataFrame({"sample": [f"s{i:03d}" for i in cohort.sample_n]}, index=[f"c{i}" for i in range(len(cohort.sample_n))])
    obs["group"] = [f"g{i}" for i in cohort.label_s[cohort.sample_n]]
    obs["batch"] = [f"b{i}" for i in cohort.batch_s[cohort.sample_n]]
    obs["cell_type"] = [f"t{i}" for i in cohort.type_n]
    made = ad.AnnData(sp.csr_matrix((len(obs), 1), dtype=np.float32), obs=obs)
    made.obsm["X_pca"] = cohort.x_nf
    return made


def shuffled(label_s, n_groups, seed):
    """Labels of which each true group gets each equally often."""
    rng = np.random.default_rng(seed)
    out = np.empty_like(label_s)
    for group in range(n_groups):
        own = np.flatnonzero(label_s == group)
        out[own] = rng.permutation(np.arange(len(own)) % n_groups)
    return out


def trained(cells, folder, name, seed):
    """Scores of a run, by contestant, and the table of importance."""
    path = Path(folder) / f"{name}.h5ad"
    cells.write_h5ad(path)
    words = (
        f"--sample-key sample --label-key cell_type --task group:class --repeats 1 --permutations 0 --seed {seed} --threads 1 --no-plots"
    )
    run = ["train", "sampleclr", str(path), *words.split(), "--quiet", "--name", name, "--out", str(folder), "--force"]
    subprocess.run([sys.executable, "-m", "sctool", *run], check=True, capture_output=True)
    results = Path(folder) / "results" / "sampleclr" / name
    scores = pd.read_csv(results / "scores.csv").set_index("name")["balanced_accuracy"]
    return scores, pd.read_csv(results / "importance_tests.csv").set_index("cell_type"), json.loads((results / "metrics.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--donors", type=int, default=60)
    parser.add_argument("--out", default=None, help="keep the runs here")
    args = parser.parse_args()
    plain = ["mean", "mean_sd", "composition", "composition_clr", "mean_and_composition"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.out or scratch
        titles = ("supervised", "linear probe", "attention", "best plain", "types", "shuffled", "enrichment")
        print("seed " + " ".join(f"{title:>{width}}" for title, width in zip(titles, (10, 12, 9, 26, 6, 8, 10), strict=True)))
        for seed in range(args.seeds):
            cohort = simulate_cohort(n_donors=args.donors, seed=seed)
            cells = as_anndata(cohort)
            scores, importance, _ = trained(cells, folder, f"planted{seed}", seed)
            best = scores[plain].idxmax()
            cells.obs["group"] = [f"g{i}" for i in shuffled(cohort.label_s, 3, seed)[cohort.sample_n]]
            chance, _, _ = trained(cells, folder, f"shuffled{seed}", seed)
            own = importance.loc[f"t{PLANTED}", "mean_enrichment"]
            row = f"{scores['SampleCLR']:>10.3f} {scores['SampleCLR + linear probe']:>12.3f} {scores['attention alone']:>9.3f}"
            row += f" {best:>20} {scores[best]:>5.3f} {scores['types']:>6.3f} {chance['SampleCLR']:>8.3f} {own:>10.1f}"
            print(f"{seed:>4} {row}", flush=True)


if __name__ == "__main__":
    main()
