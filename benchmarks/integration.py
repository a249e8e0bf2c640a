"""Integration scores over seeds and modes, unrefined and refined; and the same for an ablation.

    python benchmarks/integration.py OUT_FOLDER FILE.h5ad:BATCH_KEY:LABEL_KEY ... [--seeds 0 1 2 3 4] [--modes unsupervised semi supervised]
        [--tag base] [--set integrate.cycle_weight=1 ...]

Semi: half of the labels, chosen by the seed, are hidden, and ``hidden accuracy`` is on those. The autoencoder's first stage never sees a
label, so one training of it serves all modes of a seed, as three commands would each find it. Models and scores.csv are kept in
OUT_FOLDER, and what is there is passed over. Read the table by ``total``: 0.4 batch + 0.6 bio of scIB, labels of ten cells or more.
Codes are ``unrefined``, ``bridged`` (refined without asking the gate) or ``delivered`` (as ``--ddpm-refine`` writes them). Supervised rows
are scored on the labels they were given, so compare them with supervised methods only.
"""

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch

from sctool.artifacts.model_folder import RunPlace
from sctool.bench.integrated import gated_refinement
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
    parser.add_argument("out", type=Path, help="folder")
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
            for mode in asked.modes:
                key = {"tag": asked.tag, "data": Path(path).stem, "seed": seed, "mode": mode}
                place = asked.out / "-".join(map(str, key.values()))
                if not (place / "scores.csv").exists():
                    rows = one(Path(path), batch_key, label_key, mode, seed, asked.sets_, place)
                    pd.DataFrame([{**key, **row} for row in rows]).to_csv(place / "scores.csv", index=False)
    table = pd.concat(pd.read_csv(file) for file in asked.out.glob("*/scores.csv"))
    table.to_csv(asked.out / "scores.csv", index=False)
    shown = ["batch", "bio", "total", "hidden accuracy"]
    print(table.groupby(["tag", "data", "mode", "codes"])[shown].agg(["mean", "std"]).round(3).to_string())


def one(path, batch_key, label_key, mode, seed, sets, place):
    """Rows of one training: unrefined, refined without asking the gate, and as the command delivers it."""
    place.mkdir(parents=True, exist_ok=True)
    cells = ad.read_h5ad(path)
    labels = cells.obs[label_key].astype(str).to_numpy(object)
    hidden = np.random.default_rng(100 + seed).permutation(len(labels))[: len(labels) // 2] if mode == "semi" else np.empty(0, int)
    given = labels.copy()
    given[hidden] = "Unknown"
    cells.obs[LABEL] = pd.Categorical(given.astype(str))
    cells.write_h5ad(place / "cells.h5ad")
    flags = {"seed": seed, "data.batch_key": batch_key, "integrate.mode": mode}
    if mode != "unsupervised":
        flags["data.label_key"] = LABEL
    (place / "config.yaml").write_text("{}")
    config = load_config(place / "config.yaml", flags, sets, "integrate")
    first_stage = place.with_name(place.name.removesuffix(mode) + "autoencoder.pt")

    def stages(setting):
        inner = integration_stages(setting)
        first = next(inner)
        if first_stage.exists():
            setting.module.load_state_dict(torch.load(first_stage), strict=False)
        else:
            yield first
            torch.save({k: v for k, v in setting.module.state_dict().items() if k.startswith("network.")}, first_stage)
        yield from inner

    prepared = prepare_integration(place / "cells.h5ad", config)
    run = RunPlace(place / "model", resume=False, force=True)
    folder = run_training("integrate", BUILDERS["integrate"], prepared, config, run, stages=stages)
    query = open_query(folder, BUILDERS["integrate"], place / "cells.h5ad", config)
    encoded, known = encode(query), folder.manifest["vocabularies"]["batch"]
    bridged_nl, _ = refine(query, encoded, config.integrate, known)
    delivered_nl, moved_n, gate = gated_refinement(query, encoded, config.integrate, known, seed)
    accuracy = np.nan
    if mode == "semi":
        names = np.array(folder.manifest["vocabularies"]["label"], object)
        accuracy = (names[encoded.type_n] == labels)[hidden].mean()
    kinds, counts = np.unique(labels.astype(str), return_counts=True)
    ok = np.isin(labels.astype(str), kinds[counts >= 10])
    batches = cells.obs[batch_key].astype(str).to_numpy()[ok]
    rows = []
    for codes, values in (("unrefined", encoded.mean_nl), ("bridged", bridged_nl), ("delivered", delivered_nl)):
        scores = integration_scores(values[ok], batches, labels.astype(str)[ok], encoded.mean_nl[ok]).values
        about = {
            "codes": codes,
            "accepted": gate.accepted,
            "steps": gate.figures.get("steps"),
            "moved": moved_n.mean(),
            "reason": gate.reason,
        }
        rows.append({**about, "hidden accuracy": accuracy, **scores})
        print(mode, path.stem, seed, codes, {k: round(v, 3) for k, v in scores.items() if k in ("batch", "bio", "total")}, gate, flush=True)
    (place / "cells.h5ad").unlink()
    return rows


if __name__ == "__main__":
    main()
