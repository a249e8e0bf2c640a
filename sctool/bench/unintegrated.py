"""What an integration is compared with: the cells before it (a PCA), and other tools where they are installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh

from sctool.data.genes import variable_genes
from sctool.data.matrix_kind import find_counts
from sctool.data.read import H5ad
from sctool.errors import SctoolError

COMPONENTS, VARIABLE_GENES = 30, 2000
_MOST, _BLOCK = 10.0, 2048
_INSTALL = "pip install 'sctool[peers]'"

Say = Callable[[str], None]


def unintegrated_pca(log_ng: sp.csr_matrix, components: int = COMPONENTS, n_top: int = VARIABLE_GENES) -> NDArray[np.float32]:
    """Principal components of the variable genes, each scaled to unit variance and cut at 10 standard deviations (scanpy's default way).

    Parameters
    ----------
    log_ng
        Log-normalised expression; read in blocks, never made dense as a whole.
    components
        At most.
    n_top
        Variable genes (Seurat's), at most.
    """
    log_ng = sp.csr_matrix(log_ng[:, variable_genes(log_ng, n_top, logged=True)])
    n, g = log_ng.shape
    mean_g = np.asarray(log_ng.mean(0, dtype=np.float64)).ravel()
    square_g = np.asarray(log_ng.multiply(log_ng).mean(0, dtype=np.float64)).ravel()
    deviation_g = np.sqrt(np.maximum(square_g - mean_g**2, 0) * n / max(n - 1, 1))
    deviation_g[deviation_g < 1e-8] = 1.0

    def block(start: int) -> NDArray[np.float32]:
        x_mg = (log_ng[start : start + _BLOCK].toarray() - mean_g) / deviation_g
        return np.clip(x_mg, -_MOST, _MOST).astype(np.float32)

    starts, sum_g, product_gg = range(0, n, _BLOCK), np.zeros(g), np.zeros((g, g))
    for start in starts:
        x_mg = block(start)
        sum_g, product_gg = sum_g + x_mg.sum(0, dtype=np.float64), product_gg + x_mg.T @ x_mg
    centre_g = sum_g / n
    kept = min(components, n - 1, g - 1)
    start_g = np.random.default_rng(0).random(g)
    axes_gp = eigsh(product_gg - n * np.outer(centre_g, centre_g), k=kept, v0=start_g)[1][:, ::-1]
    axes_gp = axes_gp * np.sign(axes_gp[np.abs(axes_gp).argmax(0), np.arange(kept)])
    return np.vstack([(block(start) - centre_g) @ axes_gp for start in starts]).astype(np.float32)


def harmony(pca_np: NDArray[np.float32], batches: NDArray[Any], seed: int, say: Say) -> NDArray[np.float32] | None:
    """Harmony of principal components (Korsunsky et al. 2019); None where harmonypy is not installed."""
    try:
        import harmonypy
    except ImportError:
        say(f"Harmony is skipped: harmonypy is not installed; {_INSTALL}")
        return None
    say("running Harmony")
    table = pd.DataFrame({"batch": batches})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = harmonypy.run_harmony(pca_np.astype(np.float64), table, ["batch"], random_state=seed, verbose=False)
    z_np = np.asarray(made.Z_corr, np.float32)
    return z_np if z_np.shape == pca_np.shape else np.ascontiguousarray(z_np.T)  # before 2.0: components x cells


def scvi_tools(counts: sp.csr_matrix, batches: NDArray[Any], seed: int, say: Say) -> NDArray[np.float32] | None:
    """The latent space of scvi-tools' scVI with its defaults, on variable genes; None where it is not installed."""
    try:
        import scvi
    except ImportError:
        say(f"scVI of scvi-tools is skipped: it is not installed; {_INSTALL}")
        return None
    import anndata as ad

    say("training scVI of scvi-tools")
    cells = ad.AnnData(counts[:, variable_genes(counts, VARIABLE_GENES)], obs=pd.DataFrame({"batch": batches.astype(str)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi.settings.seed = seed
        scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
        model = scvi.model.SCVI(cells)
        model.train(enable_progress_bar=False)
        return np.asarray(model.get_latent_representation(), np.float32)


def run_peers(
    file: H5ad, layer: str | None, rows: NDArray[np.int64], pca_np: NDArray[np.float32], batches: NDArray[Any], seed: int, say: Say
) -> dict[str, NDArray[np.float32]]:
    """The embeddings of the other tools that are installed; one line for each that is not."""
    made = {"Harmony": harmony(pca_np, batches, seed, say)}
    try:
        counts = file.matrix(find_counts(file, layer).source)[rows]
    except SctoolError as error:
        say(f"scVI of scvi-tools is skipped: {error.message}")
    else:
        made["scvi-tools scVI"] = scvi_tools(counts, batches, seed, say)
    return {name: z_nl for name, z_nl in made.items() if z_nl is not None}
