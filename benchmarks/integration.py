"""Integration scores over seeds and modes, unrefined and refined; and the same for an ablation.

    python benchmarks/integration.py OUT.csv FILE.h5ad:BATCH_KEY:LABEL_KEY ... [--seeds 0 1 2 3 4] [--modes unsupervised semi supervised]
        [--tag base] [--set integrate.cycle_weight=1 ...]

Semi: half of the labels, chosen by the seed, are hidden, and ``hidden accuracy`` is on those. The autoencoder's first stage never sees a
label, so one training of it serves all modes of a seed, as three commands would each find it. Rows that OUT.csv has already are passed
over. Read the table by ``total``: 0.4 batch + 0.6 bio of scIB, labels of ten cells or more; supervised rows are scored on the labels they
were given, so compare them with supervised methods only.
"""

import argparse
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch

from sctool.artifacts.model_folder import RunPlace
from sctool.bench.refinement import refinement_gate
from sctool.config import load_config
from sctool.data.integration import prepare_integration
from sctool.engine.integrate import integration_stages
from sctool.engine.query import open_query
from sctool.engine.refine import encode, refine
from sctool.engine.run import run_training
from sctool.metrics.integration import integration_scores
from sctool.models.registry import BUILDERS

LABEL = "label_of_benchmark"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--modes", nargs="+", default=["unsupervised", "semi", "supervised"])
    parser.add_argument("--tag", default="base")
    parser.add_argument("--set", dest="sets_", nargs="*", default=[])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for seed in asked.seeds:
        for spec in asked.sets:
            path, batch_key, label_key = spec.rsplit(":", 2)
            with tempfile.TemporaryDirectory() as scratch:
                for mode in asked.modes:
                    done = pd.read_csv(asked.out) if asked.out.exists() else pd.DataFrame(columns=["tag", "data", "seed", "mode"])
                    key = {"tag": asked.tag, "data": Path(path).stem, "seed": seed, "mode": mode}
                    if not (done[list(key)] == pd.Series(key)).all(1).any():
                        rows = one(Path(path), batch_key, label_key, mode, seed, asked.sets_, Path(scratch))
                        pd.concat([done, pd.DataFrame([{**key, **row} for row in rows])]).to_csv(asked.out, index=False)
    table = pd.read_csv(asked.out)
    shown = ["batch", "bio", "total", "hidden accuracy"]
    print(table.groupby(["tag", "data", "mode", "codes"])[shown].agg(["mean", "std"]).round(3).to_string())


def one(path, batch_key, label_key, mode, seed, sets, scratch):
    """Rows of one training: unrefined, and refined whether the gate accepts it or not."""
    cells = ad.read_h5ad(path)
    labels = cells.obs[label_key].astype(str).to_numpy(object)
    hidden = np.random.default_rng(100 + seed).permutation(len(labels))[: len(labels) // 2] if mode == "semi" else np.empty(0, int)
    given = labels.copy()
    given[hidden] = "Unknown"
    cells.obs[LABEL] = pd.Categorical(given.astype(str))
    cells.write_h5ad(scratch / f"{mode}.h5ad")
    flags = {"seed": seed, "data.batch_key": batch_key, "integrate.mode": mode}
    if mode != "unsupervised":
        flags["data.label_key"] = LABEL
    (scratch / "config.yaml").write_text("{}")
    config = load_config(scratch / "config.yaml", flags, sets, "integrate")
    kept = scratch / f"autoencoder{seed}.pt"

    def stages(setting):
        inner = integration_stages(setting)
        first = next(inner)
        if kept.exists():
            setting.module.load_state_dict(torch.load(kept), strict=False)
        else:
            yield first
            torch.save({k: v for k, v in setting.module.state_dict().items() if k.startswith("network.")}, kept)
        yield from inner

    prepared = prepare_integration(scratch / f"{mode}.h5ad", config)
    place = RunPlace(scratch / f"{mode}{seed}", resume=False, force=True)
    folder = run_training("integrate", BUILDERS["integrate"], prepared, config, place, stages=stages)
    query = open_query(folder, BUILDERS["integrate"], scratch / f"{mode}.h5ad", config)
    encoded = encode(query)
    z_nl, moved_n = refine(query, encoded, config.integrate, folder.manifest["vocabularies"]["batch"])
    gate = refinement_gate(encoded.mean_nl, z_nl, moved_n, encoded.type_n, encoded.batch_n, seed)
    accuracy = np.nan
    if mode == "semi":
        names = np.array(folder.manifest["vocabularies"]["label"], object)
        accuracy = (names[encoded.type_n] == labels)[hidden].mean()
    kinds, counts = np.unique(labels.astype(str), return_counts=True)
    ok = np.isin(labels.astype(str), kinds[counts >= 10])
    batches = cells.obs[batch_key].astype(str).to_numpy()[ok]
    rows = []
    for codes, values in (("unrefined", encoded.mean_nl), ("refined", z_nl)):
        scores = integration_scores(values[ok], batches, labels.astype(str)[ok], encoded.mean_nl[ok]).values
        rows.append(
            {"codes": codes, "accepted": gate.accepted, "reason": gate.reason, "moved": moved_n.mean(), "hidden accuracy": accuracy}
        )
        rows[-1] |= scores
        print(mode, path.stem, seed, codes, {k: round(v, 3) for k, v in scores.items() if k in ("batch", "bio", "total")}, gate, flush=True)
    return rows


if __name__ == "__main__":
    main()
