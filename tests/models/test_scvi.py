import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sctool.data.minibatch import CellStore
from sctool.data.samplers import UniformSampler
from sctool.engine.trainer import Trainer
from sctool.models.scvi import SCVI
from sctool.nn.layers import CodedLinear
from sctool.nn.likelihood import nb_log_likelihood
from sctool.sections import SCVIConfig, TrainConfig


def trained(small, epochs=60, **settings):
    counts = sp.csr_matrix(small.X)
    codes = (small.obs["batch"] == "b2").to_numpy().astype(int)
    store = CellStore(counts, {"batch": codes}, small.obs_names)
    torch.manual_seed(0)
    model = SCVI(SCVIConfig(**{"n_latent": 5, "n_hidden": 32, **settings}), counts.shape[1], n_batches=2)
    trainer = Trainer(model, store, UniformSampler(np.arange(len(store))), TrainConfig(epochs=epochs, warmup=0.2))
    trainer.fit()
    return trainer


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch"])
def test_learns_better_than_one_nb_for_all_cells(small, likelihood, dispersion):
    trainer = trained(small, 200, likelihood=likelihood, dispersion=dispersion)
    rows = np.arange(len(trainer.store))
    batch = trainer.store.batch(rows)
    with torch.no_grad():
        z = trainer.model.embed(batch)
        made = trainer.model.proportions(z, batch.codes)
        assert z.shape == (len(rows), 5)
        torch.testing.assert_close(made.sum(1), torch.ones(len(rows)))
        mean = (batch.dense().sum(0) / batch.dense().sum()).clamp_min(1e-9).log().expand(len(rows), -1)
    mean, log_theta = mean.clone(), torch.zeros(batch.n_genes, requires_grad=True)
    optimizer = torch.optim.Adam([log_theta], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        null = -nb_log_likelihood(mean, log_theta, batch).mean()
        null.backward()
        optimizer.step()
    assert trainer.score(rows)["reconstruction"] < float(null.detach()) - 2
    assert trainer.model.log_theta.shape == ((2, batch.n_genes) if dispersion == "gene-batch" else (batch.n_genes,))


def test_a_model_of_one_batch_has_no_batch_parameters():
    one, two = (SCVI(SCVIConfig(), 50, n_batches=n) for n in (1, 2))
    assert sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in one.parameters()) == 2 * 2 * 128


def test_unknown_batch_is_the_mean_of_the_known_ones():
    layer = CodedLinear(3, 4, (2,))
    with torch.no_grad():
        layer.offsets[0].copy_(torch.randn(2, 4))
    x = torch.randn(5, 3)
    first, second, unknown = (layer(x, torch.full((5,), code)) for code in (0, 1, 2))
    torch.testing.assert_close(unknown, (first + second) / 2)


def test_coded_linear_equals_one_hot_covariates():
    layer = CodedLinear(3, 4, (3, 1, 2))
    with torch.no_grad():
        for offset in layer.offsets:
            offset.copy_(torch.randn(offset.shape))
    codes = [torch.tensor([0, 2, 1]), torch.tensor([0, 0, 0]), torch.tensor([1, 0, 1])]
    x = torch.randn(3, 3)
    one_hot = torch.cat([torch.nn.functional.one_hot(codes[0], 3), torch.nn.functional.one_hot(codes[2], 2)], 1).float()
    wanted = layer.linear(x) + one_hot @ torch.cat(list(layer.offsets))
    torch.testing.assert_close(layer(x, *codes), wanted)


def test_kl_weight_is_annealed():
    store = CellStore(sp.random(20, 30, 0.3, format="csr", dtype=np.float32), {"batch": np.zeros(20, int)}, [""] * 20)
    model = SCVI(SCVIConfig(), 30).eval()
    batch = store.batch(np.arange(20))
    terms = []
    for anneal in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        terms.append(model.loss(batch, anneal))
    losses = [float(term.loss.detach()) for term in terms]
    assert losses[0] == pytest.approx(float(terms[0].parts["reconstruction"]))
    assert losses[2] - losses[0] == pytest.approx(2 * (losses[1] - losses[0]), rel=1e-3)


def test_bf16_stays_close(small):
    full, half = trained(small, epochs=20), None
    counts = sp.csr_matrix(small.X)
    torch.manual_seed(0)
    model = SCVI(SCVIConfig(n_latent=5, n_hidden=32), counts.shape[1], n_batches=2)
    config = TrainConfig(epochs=20, warmup=0.2, precision="bf16")
    half = Trainer(model, full.store, UniformSampler(np.arange(len(full.store))), config)
    half.fit()
    rows = np.arange(len(full.store))
    assert half.score(rows)["loss"] == pytest.approx(full.score(rows)["loss"], rel=0.01)
