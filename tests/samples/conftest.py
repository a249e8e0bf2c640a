"""A tiny cohort, and settings that make a run of it cheap."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from typer.main import get_command

from sctool.artifacts.tables import read_table
from sctool.cli import main
from tests.conftest import run_in

KEYS = ("--sample-key", "sample", "--donor-key", "donor")
SMALL = ("sampleclr.n_networks=2", "sampleclr.n_clusters=3", "sampleclr.n_heads=2", "sampleclr.n_values=3", "sampleclr.n_components=4")
QUICK = (
    *(
        "--set",
        "train.most_epochs=3",
        "--cv",
        "donors:2",
        "--repeats",
        "1",
        "--permutations",
        "0",
        "--min-cells",
        "10",
        "--cells-per-view",
        "5-10",
    ),
    *("--n-hidden", "8", "--n-latent", "6", "--no-plots", "--quiet"),
    *(word for setting in SMALL for word in ("--set", setting)),
)
TASKS = ("--task", "condition:class", "--task", "age:regression", "--task", "stage:ordinal")
ORDER = ("--set", "sampleclr.orders={stage: [mild, severe, worst]}")
TYPES = ("--label-key", "cell_type")


def tiny_cohort():
    """14 samples of 10 donors, 40 cells x 60 genes each; the ill ones have type "b" elsewhere in X_pca, and more of genes 0 to 9."""
    rng = np.random.default_rng(0)
    donor_s = np.array([*range(10), 0, 1, 2, 3])
    ill_s, stage_s = donor_s % 2 == 1, np.array(["mild", "severe", "worst"])[donor_s % 3]
    sample_n = np.repeat(np.arange(14), 40)
    type_n = rng.choice(["a", "b"], len(sample_n))
    ill_n, b_n = ill_s[sample_n], type_n == "b"
    obs = pd.DataFrame({"sample": [f"s{i:02d}" for i in sample_n]}, index=[f"c{i}" for i in range(len(sample_n))])
    obs["donor"] = [f"d{i}" for i in donor_s[sample_n]]
    obs["condition"] = np.where(ill_n, "ill", "well")
    obs["age"] = (30.0 + 2 * donor_s)[sample_n]
    obs["stage"] = stage_s[sample_n]
    obs["pool"] = np.where(donor_s // 2 % 2 == 0, "p1", "p2")[sample_n]
    obs["cell_type"] = type_n
    donor_df = rng.normal(0, 0.5, (10, 5))
    x_nf = rng.normal(0, 1, (len(obs), 5)) + donor_df[donor_s[sample_n]] + 2.0 * b_n[:, None] * np.array([1, 0, 0, 0, 0])
    x_nf[:, 1] += 3.0 * (ill_n & b_n)
    rate_ng = np.full((len(obs), 60), 0.7)
    rate_ng[:, :10] += 2.0 * (ill_n & b_n)[:, None]
    rate_ng[:, 10:20] += 3.0 * b_n[:, None]
    rate_ng[:, 20:40] *= rng.gamma(4, 0.25, (10, 20))[donor_s[sample_n]]
    made = ad.AnnData(sp.csr_matrix(rng.poisson(rate_ng).astype(np.float32)), obs=obs)
    made.var_names = [f"g{i}" for i in range(60)]
    made.obsm["X_pca"] = x_nf.astype(np.float32)
    return made


@pytest.fixture(scope="package", autouse=True)
def one_command_line():
    """Built once: typer builds all commands anew at each call, which takes longer than most of what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "app", get_command(main.app))
        yield


@pytest.fixture(scope="session")
def tiny():
    return tiny_cohort()


@pytest.fixture(scope="session")
def tiny_bytes(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.h5ad"
    tiny.write_h5ad(path)
    return path.read_bytes()


@pytest.fixture
def tiny_file(tiny_bytes, tmp_path):
    path = tmp_path / "tiny.h5ad"
    path.write_bytes(tiny_bytes)
    return path


@pytest.fixture(scope="session")
def home(tiny_bytes, tmp_path_factory):
    """A folder with runs that several tests read.

    ``plain`` without tasks, ``told`` with three, ``short`` with one, ``genes`` of the expression.
    """
    here = tmp_path_factory.mktemp("home")
    (here / "tiny.h5ad").write_bytes(tiny_bytes)
    for name, words in (
        ("plain", ("--batch-key", "pool")),
        ("told", (*TASKS, *ORDER, *TYPES)),
        ("genes", ("--rep", "X", "--task", "condition", "--cv", "none")),
        ("short", ("--task", "condition")),
    ):
        run_in(here, "train", "sampleclr", "tiny.h5ad", *KEYS, *QUICK, *words, "--name", name)
    return here


def results(home, name):
    return home / "results" / "sampleclr" / name


def model(home, name):
    return home / "checkpoints" / "sampleclr" / name


def dims(table):
    """The embedding of a table, shape (samples, dimensions)."""
    return table[[key for key in table if key[0] == "e" and key[1:].isdigit()]].to_numpy()


def read(folder, name):
    return read_table(folder / f"{name}.csv")


def files(folder):
    """Contents by name, but for those that name folders and times."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in (".csv", ".gz")}


@pytest.fixture
def train(sctool, tiny_file):
    def run(*words, path=tiny_file, keys=KEYS):
        return sctool("train", "sampleclr", path, *keys, *QUICK, *words)

    return run


@pytest.fixture
def predict(sctool, home, tmp_path):
    """Predict with a run of ``home``; its folder of results."""

    def run(name, path, *words):
        ran = sctool("predict", "sampleclr", model(home, name), path, "--quiet", "--name", "p", *words)
        assert ran.code == 0, ran.err
        return tmp_path / "results" / "sampleclr" / "p"

    return run


def written(tiny, tmp_path, change):
    """A file of the tiny cohort after a change."""
    a = tiny.copy()
    changed = change(a)
    path = tmp_path / "new.h5ad"
    (a if changed is None else changed).write_h5ad(path)
    return path
