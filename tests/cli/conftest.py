"""What tests of integration share: a small part of the bundled lung cells, and the command on it."""

import anndata as ad
import numpy as np
import pytest

from sctool.data.demo import BATCHES

KEYS = ("--batch-key", "batch", "--label-key", "cell_type")
TINY = ("--epochs", "3", "--n-hidden", "16", "--n-latent", "4", "--no-score")
SHORT = ("--set", "integrate.finetune_epochs=2", "--set", "diffusion.train_steps=20", "--set", "diffusion.n_hidden=16")
FLAGS = (*TINY, *SHORT)


@pytest.fixture(scope="session")
def lung():
    """240 cells x 200 genes, three types in five batches; a column with half of the types missing."""
    a = ad.read_h5ad(BATCHES.path)
    a = a[a.obs["cell_type"].isin(["H1975", "H2228", "A549"])][:, :200].copy()
    rng = np.random.default_rng(0)
    a = a[np.sort(rng.permutation(a.n_obs)[:240])].copy()
    a.obs["partly"] = a.obs["cell_type"].astype(object).where(rng.random(a.n_obs) < 0.5, "Unknown")
    return a


@pytest.fixture
def lung_file(lung, tmp_path):
    lung.write_h5ad(tmp_path / "lung.h5ad")
    return tmp_path / "lung.h5ad"


@pytest.fixture
def integrate(sctool, lung_file):
    """Run the command on the small file unless another is given."""

    def run(*words, path=lung_file, name="r", flags=FLAGS, keys=KEYS):
        return sctool("integrate", path, *keys, *flags, "--name", name, *words)

    return run
