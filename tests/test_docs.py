"""Every command of the README and the docs, through the real command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page):
    """Shell and Python blocks of a page, in order."""
    return re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(), re.M | re.S)


def test_pages_have_commands():
    assert all(blocks(page) for page in PAGES)


LONG = ("adaptive-resampling.md", "classify.md", "integrate.md", "novelty.md", "perturbation.md", "samples.md", "scgen.md", "scvi.md")


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page.name in LONG), id=page.name) for page in PAGES])
def test_commands_of_a_page(page, small, tmp_path):
    """In one folder, in order, with few epochs and small files under the names the pages use."""
    (tmp_path / "config.yaml").write_text(
        "train: {epochs: 2}\nthreads: 1\nintegrate: {finetune_epochs: 2, score: false}\ndiffusion: {train_steps: 20}\n"
        "data: {n_top_genes: 300}\nnovelty: {n_components: 10}\n"
        "sampleclr: {permutations: 5}\n"
        "classify: {inner_folds: 2, rf: {n_estimators: 20}, xgb: {max_rounds: 20, eta: 0.3}}\n"
    )
    a = small.copy()
    a.obs["donor"] = a.obs["donor"].astype(str)
    a.obs["condition"] = np.random.default_rng(2).choice(["control", "stimulated"], a.n_obs)
    a.obsm["X_pca"] = a.obsm["X_geneformer"] = np.random.default_rng(0).normal(size=(a.n_obs, 5)).astype(np.float32)
    half = np.random.default_rng(1).permutation(a.n_obs)
    a[np.sort(half[:200])].write_h5ad(tmp_path / "my.h5ad")
    a[np.sort(half[200:])].write_h5ad(tmp_path / "query.h5ad")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for kind, text in blocks(page):
        if text.startswith("make "):
            continue  # make demo and make test are run whole, not from within a test
        command = ["bash", "-euc", text] if kind == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_every_link_to_a_file_works():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "data" / "demo" / "README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
