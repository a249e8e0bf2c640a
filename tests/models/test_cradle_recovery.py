"""CRADLE-VAE on cells whose truth is known: effects, artifacts and combinations come back out."""

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from sctool.artifacts.model_folder import open_model
from sctool.data.minibatch import CellStore
from sctool.data.samplers import UniformSampler
from sctool.engine.perturb import Response
from sctool.engine.trainer import Trainer
from sctool.models.cradle import CradleVAE
from sctool.nn.likelihood import expected_log1p
from sctool.sections import CradleConfig, TrainConfig
from tests.conftest import run_in

DEPTH, THETA = 5000, 5.0


def log_expression(x_ng):
    return np.log1p(1e4 * x_ng / x_ng.sum(1, keepdims=True))


# cells made by the model itself


class Made:
    """Cells of sparse effects in a latent space, decoded by a random network."""

    def __init__(self, targets, latent, genes, cells, share, seed=0):
        rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        self.mask_tl = rng.random((targets, latent)) < share
        for t in np.flatnonzero(~self.mask_tl.any(1)):
            self.mask_tl[t, rng.integers(latent)] = True
        self.u_pl = np.vstack([np.zeros(latent), self.mask_tl * rng.normal(5, 0.5, self.mask_tl.shape)]).astype(np.float32)
        sizes = [latent, 50, 50, genes]
        self.weights = [torch.nn.init.orthogonal_(torch.empty(out, of), generator=generator) for of, out in itertools.pairwise(sizes)]
        self.base_g = torch.as_tensor(rng.normal(size=genes), dtype=torch.float32)
        self.code_n = np.repeat(np.arange(targets + 1), cells)
        z_nl = rng.normal(size=(len(self.code_n), latent)).astype(np.float32)
        mean_ng = DEPTH * self.shares(z_nl + self.u_pl[self.code_n]).numpy()
        self.x_ng = rng.poisson(rng.gamma(THETA, mean_ng / THETA)).astype(np.float32)

    def shares(self, h_nl):
        h_nl = torch.as_tensor(h_nl)
        for weight in self.weights[:-1]:
            h_nl = torch.nn.functional.leaky_relu(h_nl @ weight.T, 0.01)
        return (h_nl @ self.weights[-1].T + self.base_g).softmax(1)

    def true_changes(self):
        """Of mean log expression, without noise."""
        z_nl = torch.randn(2000, self.u_pl.shape[1], generator=torch.Generator().manual_seed(9))
        theta_g, scale_n1 = torch.full((len(self.base_g),), THETA), torch.full((2000, 1), 1e4 / DEPTH)
        mean_pg = torch.stack(
            [expected_log1p(DEPTH * self.shares(z_nl + torch.as_tensor(u)), theta_g, scale_n1).mean(0) for u in self.u_pl]
        )
        return (mean_pg[1:] - mean_pg[0]).numpy()


def fitted(made, epochs, lr, **config):
    """The network on those cells; its changes of mean log expression, and the chance of each mask."""
    targets, n = len(made.mask_tl), len(made.code_n)
    settings = CradleConfig(
        **{
            "model": "sams",
            "mode": "sum",
            "guide": "mean_field",
            "counterfactual_weight": 0.0,
            "n_hidden": 64,
            "embedding_scale": 5.0,
            **config,
        }
    )
    control_n = made.code_n == 0
    codes = dict.fromkeys(("batch", "flags", "opposite"), np.zeros(n, int))
    codes |= {"perturbation": made.code_n, "base": np.where(control_n, np.arange(n), -1)}
    x_ng = np.hstack([made.x_ng, np.zeros((n, 1), np.float32)])  # no counts of other genes
    store = CellStore(sp.csr_matrix(x_ng), codes, range(n))
    torch.manual_seed(0)
    net = CradleVAE(settings, x_ng.shape[1], targets + 1, targets, n_base=int(control_n.sum()))
    net.design_pt.copy_(torch.vstack([torch.zeros(targets), torch.eye(targets)]))
    net.n_cells.fill_(n)
    net.log_mean_g.copy_(torch.as_tensor(log_expression(x_ng).mean(0)))
    net.log_sd_g.copy_(torch.as_tensor(np.maximum(log_expression(x_ng).std(0), 0.1)))
    train = TrainConfig(epochs=epochs, lr=lr, adam_eps=1e-8, patience=0, grad_clip=100)
    Trainer(net, store, UniformSampler(np.arange(n)), train).fit()
    net.remember([store.batch(np.flatnonzero(control_n))])
    with torch.inference_mode():
        effect_tl = net.draw(sample=False)[0]
        theta_g, total_n1 = net.log_theta.exp()[:-1], net.base_total_n[:, None]
        mean_pg = torch.stack(
            [
                expected_log1p(total_n1 * net.proportions(effect_l), theta_g, 1e4 / total_n1).mean(0)
                for effect_l in (0 * effect_tl[0], *effect_tl)
            ]
        )
    return (mean_pg[1:] - mean_pg[0]).numpy(), net.mask_logits_tl.detach().sigmoid().numpy()


def test_effects_of_its_own_cells_come_back():
    made = Made(targets=6, latent=4, genes=40, cells=150, share=0.25)
    change_pg, mask_tl = fitted(made, epochs=45, lr=0.03, n_latent=4, n_hidden=32, mask_prior=0.25)
    true_pg = made.true_changes()
    assert np.corrcoef(change_pg.ravel(), true_pg.ravel())[0, 1] > 0.95
    assert np.square(change_pg - true_pg).sum() < 0.15 * np.square(true_pg).sum()
    assert mask_tl.min() < 0.25 < mask_tl.max()  # masks have left the prior


@pytest.mark.slow
def test_effects_of_twenty_targets_come_back():
    made = Made(targets=20, latent=15, genes=100, cells=200, share=2 / 15)
    change_pg, mask_tl = fitted(made, epochs=40, lr=0.01, n_latent=15, mask_prior=2 / 15)
    true_pg = made.true_changes()
    assert np.corrcoef(change_pg.ravel(), true_pg.ravel())[0, 1] > 0.95
    assert np.square(change_pg - true_pg).sum() < 0.15 * np.square(true_pg).sum()
    assert mask_tl.min() < 2 / 15 < mask_tl.max()


# a screen with artifacts


GENES, TARGETS, SHIFTED = 60, 6, 15
ARTIFACT = 1.2
"""Change of the log of the expression of 15 genes in cells that fail."""


def artifact_screen(seed=0):
    """Additive effects of six targets on log expression; half of the treated, but a tenth of the control cells failed, 30 % in all."""
    rng = np.random.default_rng(seed)
    base_g = rng.normal(0, 1, GENES)
    effect_tg = rng.normal(0, 0.8, (TARGETS, GENES)) * (rng.random((TARGETS, GENES)) < 0.2)
    artifact_g = np.where(np.arange(GENES) < SHIFTED, ARTIFACT * np.sign(rng.normal(size=GENES)), 0)
    pairs = [(a, b) for a in range(TARGETS) for b in range(a) if (a + b) % 2]
    groups = {(): 500, **{(t,): 100 for t in range(TARGETS)}, **dict.fromkeys(pairs, 40)}
    names = {own: "+".join(sorted(f"T{t}" for t in own)) or "control" for own in groups}
    state_nl = rng.normal(0, 0.3, (sum(groups.values()), 2))
    loading_lg = rng.normal(0, 1, (2, GENES))
    own_n = [own for own, n in groups.items() for _ in range(n)]
    change_ng = np.array([effect_tg[list(own)].sum(0) for own in own_n])
    fail_n = rng.random(len(own_n)) < np.where([not own for own in own_n], 0.1, 0.4)

    def counts(log_ng):
        share_ng = np.exp(log_ng)
        share_ng /= share_ng.sum(1, keepdims=True)
        return rng.poisson(rng.gamma(THETA, DEPTH * share_ng / THETA))

    x_ng = counts(base_g + change_ng + state_nl @ loading_lg + fail_n[:, None] * artifact_g)
    obs = pd.DataFrame({"perturbation": [names[own] for own in own_n], "bad": fail_n}, index=[f"c{at}" for at in range(len(own_n))])
    held = [names[own] for own in pairs[::3]]
    obs["part"] = np.where(obs["perturbation"].isin(held), "test", "train")
    rows = np.flatnonzero(obs["perturbation"] == "control")
    obs.loc[obs.index[rows[:50]], "part"] = "test"
    obs.loc[obs.index[rng.permutation(np.flatnonzero(obs["part"] == "train"))[:60]], "part"] = "validation"
    cells = ad.AnnData(sp.csr_matrix(x_ng.astype(np.float32)), obs=obs, var=pd.DataFrame(index=[f"g{at}" for at in range(GENES)]))

    clean = {}
    for own, name in names.items():  # what each perturbation does where no cell fails
        state = rng.normal(0, 0.3, (3000, 2))
        clean[name] = log_expression(counts(base_g + effect_tg[list(own)].sum(0) + state @ loading_lg)).mean(0)
    return cells, {name: mean_g - clean["control"] for name, mean_g in clean.items()}, held


KEYS = ("--perturbation-key", "perturbation", "--control", "control", "--split", "part", "--n-top-genes", "0", "--quiet")
FIT = ("--epochs", "30", "--n-hidden", "32", "--n-latent", "8", "--lr", "0.01", "--patience", "0")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """The folder of a run of ``cradle`` and of ``sams`` on that screen, the truth, and the combinations held out."""
    cells, truth, held = artifact_screen()
    here = tmp_path_factory.mktemp("artifacts")
    cells.write_h5ad(here / "screen.h5ad")
    for model in ("cradle", "sams"):
        run_in(here, "train", "cradle", "screen.h5ad", *KEYS, *FIT, "--model", model, "--qc-key", "bad", "--name", model)
    return here, cells, truth, held


def test_a_share_of_the_cells_failed(artifacts):
    _, cells, _, _ = artifacts
    assert 0.2 < cells.obs["bad"].mean() < 0.35
    by_name = cells.obs.groupby("perturbation", observed=True)["bad"].mean()
    assert by_name["control"] < 0.15 < 0.25 < by_name.drop("control").mean()


def test_cells_that_failed_come_back_to_those_that_passed(artifacts, sctool, tmp_path):
    """As if they had passed, their mean is more than half the way to that of passing cells of their perturbation."""
    here, cells, _, _ = artifacts
    ran = sctool("predict", "cradle", here / "checkpoints" / "cradle" / "cradle", here / "screen.h5ad", "--counterfactual", "--quiet")
    assert ran.code == 0, ran.err
    made = ad.read_h5ad(tmp_path / "results" / "cradle" / "cradle-counterfactual" / "predictions.h5ad")
    share_ng = {
        "observed": cells.X.toarray() / cells.X.sum(1),
        "mended": sp.csr_matrix(made.layers["expected"]).toarray() / np.asarray(cells.X.sum(1)).reshape(-1, 1),
    }
    bad, name_n = cells.obs["bad"].to_numpy(bool), cells.obs["perturbation"].to_numpy(str)
    left = []
    for name in set(name_n):
        own = name_n == name
        if (own & bad).sum() < 25:  # of fewer, the mean is mostly noise
            continue
        passing_g, observed_g, mended_g = (
            np.log1p(1e4 * np.asarray(share_ng[kind])[own & which].mean(0))
            for kind, which in (("observed", ~bad), ("observed", bad), ("mended", bad))
        )
        left.append(np.linalg.norm(mended_g - passing_g) / np.linalg.norm(observed_g - passing_g))
    assert len(left) == 1 + TARGETS
    assert np.mean(left) < 0.4
    assert np.max(left) < 0.5


def test_the_effect_of_a_cell_does_not_depend_on_its_quality(artifacts):
    here, _, _, _ = artifacts
    net = Response(open_model(here / "checkpoints" / "cradle" / "cradle", "cradle")).module
    x_ng = np.random.default_rng(0).poisson(5, (4, GENES + 1))
    codes = {key: np.zeros(4, int) for key in ("batch", "opposite", "base")} | {
        "perturbation": np.array([1, 1, 3, 3]),
        "flags": np.arange(4) % 2,
    }
    z_nl, u_nl = net.latents(CellStore(sp.csr_matrix(x_ng[[0, 0, 2, 2]].astype(np.float32)), codes, range(4)).batch(np.arange(4)))
    torch.testing.assert_close(u_nl[0], u_nl[1])
    torch.testing.assert_close(u_nl[2], u_nl[3])
    assert (z_nl[0] - z_nl[1]).abs().max() > 0.01  # the artifact is taken out of the state


def predicted(sctool, folder, names, tmp_path, *words):
    ran = sctool("predict", "cradle", folder, "--perturbations", ",".join(names), "--cells", "0", "--quiet", "--force", *words)
    assert ran.code == 0, ran.err
    effects = pd.read_csv(tmp_path / "results" / "cradle" / folder.name / "effects.csv.gz")
    return effects.pivot(index="perturbation", columns="gene", values="change")[[f"g{at}" for at in range(GENES)]]


def error(change, truth):
    true_pg = np.stack([truth[name] for name in change.index])
    return np.square(change.to_numpy() - true_pg).sum() / np.square(true_pg).sum()


def network(folder, names):
    """What the network says without the measured means."""
    return pd.DataFrame(Response(open_model(folder, "cradle")).network_changes(names), index=names)


def test_effects_are_nearer_to_the_truth_with_artifacts_known(artifacts, sctool, tmp_path):
    """More treated than control cells failed, so without flags the artifact counts as part of every effect."""
    here, _, truth, _ = artifacts
    names = [f"T{t}" for t in range(TARGETS)]
    folders = {model: here / "checkpoints" / "cradle" / model for model in ("cradle", "sams")}
    said = {model: predicted(sctool, folder, names, tmp_path) for model, folder in folders.items()}
    assert error(said["cradle"], truth) < 0.7 * error(said["sams"], truth)
    true_pg = np.stack([truth[name] for name in said["sams"].index])
    bias = {model: np.abs((made.to_numpy() - true_pg).mean(0)) for model, made in said.items()}
    assert bias["cradle"][:SHIFTED].mean() < 0.3 * bias["sams"][:SHIFTED].mean()  # in the genes that the artifact shifts
    assert bias["cradle"][SHIFTED:].mean() < 1.5 * bias["sams"][SHIFTED:].mean()  # and not at the expense of the others


def test_combinations_held_out_are_the_sum_of_their_targets(artifacts, sctool, tmp_path):
    here, _, truth, held = artifacts
    folder = here / "checkpoints" / "cradle" / "cradle"
    singles = [f"T{t}" for t in range(TARGETS)]
    change = predicted(sctool, folder, [*singles, *held], tmp_path)
    alone = network(folder, [*singles, *held])
    true_pg = np.stack([truth[name] for name in held])
    for made, least in ((change, 0.88), (alone, 0.75)):
        assert np.corrcoef(made.loc[held].to_numpy().ravel(), true_pg.ravel())[0, 1] > least
    assert error(change.loc[held], truth) < 0.3
    response = Response(open_model(folder, "cradle"))
    with torch.no_grad():
        effect_tl = response.module.draw(sample=False)[0]
        for name in held:
            parts = [response.effect(effect_tl, target) for target in name.split("+")]
            torch.testing.assert_close(response.effect(effect_tl, name), parts[0] + parts[1])


def test_predicted_cells_change_as_the_table_says(artifacts):
    """Expected counts are scaled so that the mean of their log expression over cells changes like the predicted mean."""
    here, _, _, _ = artifacts
    response = Response(open_model(here / "checkpoints" / "cradle" / "cradle", "cradle"))
    cells = response.base_cells().part(0, 200)
    theta_g, wanted = response.module.log_theta.detach().exp()[:-1], ["T0", "T3", "T0+T1"]
    changes = response.changes(wanted)

    def mean(name, factor_g=1.0):
        expected_ng = response.expected_counts(cells, [name] * len(cells.names)) * factor_g
        return expected_log1p(expected_ng, theta_g, response.target_sum / cells.total_n[:, None]).mean(0).numpy()

    control_g = mean("control")
    for name, change_g, factor_g in zip(wanted, changes.change_pg, response.factors(wanted, changes), strict=True):
        made_g = mean(name, factor_g) - control_g
        assert np.corrcoef(made_g, change_g)[0, 1] > 0.95, name
        assert np.square(made_g - change_g).sum() < 0.15 * np.square(change_g).sum(), name


def test_a_target_that_was_not_perturbed_is_refused(artifacts, sctool):
    here, _, _, _ = artifacts
    ran = sctool("predict", "cradle", here / "checkpoints" / "cradle" / "cradle", "--perturbations", "T1+T7")
    assert ran.code == 2
    assert "T7 was not perturbed in any training cell" in ran.err
    assert "fix:" in ran.err


@pytest.mark.slow
def test_adaptive_resampling_keeps_the_effects(artifacts, sctool, tmp_path):
    here, _, truth, _ = artifacts
    words = (*KEYS, *FIT, "--epochs", "12", "--qc-key", "bad", "--ar", "--name", "ar")
    ran = sctool("train", "cradle", here / "screen.h5ad", *words)
    assert ran.code == 0, ran.err
    folder = tmp_path / "checkpoints" / "cradle" / "ar"
    assert (pd.read_csv(folder / "history.csv")["weights_ess"].iloc[1:] < 1).all()
    names = [f"T{t}" for t in range(TARGETS)]
    made_pg, true_pg = network(folder, names).to_numpy(), np.stack([truth[name] for name in names])
    assert np.corrcoef(made_pg.ravel(), true_pg.ravel())[0, 1] > 0.7
