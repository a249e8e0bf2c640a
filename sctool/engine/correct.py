"""Writing an integration: codes, predicted types, and expression as if all cells were from one batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sctool.artifacts.cells import CHUNK_CELLS, Block, frame_of, write_cells
from sctool.data.quantile_map import quantile_map
from sctool.engine.query import Query
from sctool.engine.refine import Encoded

WARNING = "decoded values are smoother than measured ones: don't take p-values of differential expression from them"


def write_corrected(
    path: Path, query: Query, z_nl: NDArray[np.float32], target: str | int, about: dict[str, Any], columns: pd.DataFrame
) -> None:
    """Write ``corrected_expression.h5ad``, chunk by chunk.

    ``X`` is log1p of the decoded counts per 10,000 in the target batch; layers: ``rate`` the same without the log, ``mean_counts`` at the
    depth of the cell, ``counts_qmap`` the observed counts mapped to the same quantile there (0 for genes the file lacks).
    ``obsm["X_integrate"]`` has the codes.

    Parameters
    ----------
    path
        Inside a temporary folder.
    query, z_nl
        The cells and their codes, from which expression is decoded.
    target
        As :func:`target_batch` gives it.
    about
        For ``uns``.
    columns
        Added to obs.
    """
    note = {**about, "X": "log1p of decoded counts per 10,000", "warning": WARNING}
    obs = pd.concat([query.obs.drop(columns=[c for c in columns if c in query.obs]), columns], axis=1)
    frame = frame_of(obs, query.genes, obsm={"X_integrate": z_nl}, uns={"sctool": note})
    write_cells(path, frame, _blocks(query, z_nl, target))


@torch.inference_mode()
def _blocks(query: Query, z_nl: NDArray[np.float32], target: str | int) -> Iterator[Block]:
    module, n_batches = query.module.network, query.module.n_batches
    batch_n, measured_g = query.store.codes("batch"), query.match.columns >= 0
    for start in range(0, len(z_nl), CHUNK_CELLS):
        rows = np.arange(start, min(len(z_nl), start + CHUNK_CELLS))
        z = torch.as_tensor(z_nl[rows], device=query.store.device)
        own_n = torch.as_tensor(batch_n[rows], device=query.store.device)
        # Observed counts are explained by where the encoder put the cell; what is decoded starts from the refined code.
        mean_nl = module.embed(query.store.batch(rows))
        own_ng, own_theta = module.proportions(mean_nl, {"batch": own_n}), module.log_dispersion(own_n).exp()
        if target == "source":
            new_ng, new_theta = module.proportions(z, {"batch": own_n}), own_theta
        else:
            codes = range(n_batches) if target == "average" else [int(target)]
            full = [torch.full_like(own_n, code) for code in codes]
            new_ng = torch.stack([module.proportions(z, {"batch": code_n}) for code_n in full]).mean(0)
            new_theta = torch.stack([module.log_dispersion(code_n).exp() for code_n in full]).mean(0)
        x_ng = query.observed(rows)
        own, theta, new, theta_new = (tensor.float().cpu().numpy() for tensor in (own_ng, own_theta, new_ng, new_theta))
        depth_n1 = x_ng.sum(1, keepdims=True) / own[:, measured_g].sum(1, keepdims=True)  # as if all genes had been measured
        rate_ng = 1e4 * new
        mapped_ng = quantile_map(x_ng, depth_n1 * own, theta, depth_n1 * new, theta_new)
        mapped_ng[:, ~measured_g] = 0
        yield {"X": np.log1p(rate_ng), "rate": rate_ng, "mean_counts": depth_n1 * new, "counts_qmap": mapped_ng}


def prediction_table(encoded: Encoded, names: list[str], cells: Any) -> pd.DataFrame:
    """``cell, label, probability, entropy``: the most likely label, or ``cluster_k`` of a model without labels; entropy in nats."""
    p_nc = np.maximum(encoded.probability_nc, 1e-12)
    entropy_n = -(p_nc * np.log(p_nc)).sum(1)
    return pd.DataFrame(
        {
            "cell": np.asarray(cells).astype(str),
            "label": np.asarray(names, object)[encoded.type_n],
            "probability": encoded.confidence_n,
            "entropy": entropy_n,
        }
    )
